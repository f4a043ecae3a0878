package balancer

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// short is the timeout for servers that hang.
const short = 300 * time.Millisecond

func says(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/livez" {
			w.WriteHeader(http.StatusInternalServerError) // dead
			return
		}
		w.WriteHeader(code)
		io.WriteString(w, body)
	}
}

// Each row is a server as found in the field, and the outcome of a check.
func TestChecks(t *testing.T) {
	ca := newAuthority(t)
	good := &tls.Config{Certificates: []tls.Certificate{ca.sign(time.Now().Add(time.Hour), "kubernetes")}}
	expired := &tls.Config{Certificates: []tls.Certificate{ca.sign(time.Now().Add(-time.Hour), "kubernetes")}}
	stranger := &tls.Config{Certificates: []tls.Certificate{newAuthority(t).sign(time.Now().Add(time.Hour))}}
	clients := good.Clone()
	clients.ClientAuth, clients.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
	clients.ClientCAs.AddCert(mustParse(t, ca.file))
	certFile, keyFile := ca.write(ca.sign(time.Now().Add(time.Hour)))

	hang := func(net.Conn) {}
	halfOpen := func(c net.Conn) { // takes the request, and ends its own side
		c.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, c)
	}
	script := func(text string) func(net.Conn) {
		return func(c net.Conn) {
			c.Read(make([]byte, 4096))
			io.WriteString(c, text)
			c.Close()
		}
	}
	verify := TLSOptions{Verify: true, CAFile: ca.file}
	tests := []struct {
		name    string
		check   Check
		backend Backend
		// want is part of the error; empty means healthy. write is part of the line to
		// write; empty means that the check fits.
		want, write string
	}{
		{"tcp", Check{Type: "tcp"}, raw(t, hang), "", ""},
		{"tcp, refuses", Check{Type: "tcp"}, closedPort(t), "refuses", ""},
		{"tcp, other port", Check{Type: "tcp", Port: raw(t, hang).Addr.Port()}, closedPort(t), "", ""},

		{"tls", Check{Type: "tls"}, web(t, good, says(200, "ok")), "", ""},
		{"tls, refuses", Check{Type: "tls"}, closedPort(t), "refuses", ""},
		{"tls, hangs after accept", Check{Type: "tls", Timeout: short}, raw(t, hang), "handshake in time", "type: tcp"},
		{"tls, half-open", Check{Type: "tls"}, raw(t, halfOpen), "closes the connection during", "type: tcp"},
		{"tls, plain HTTP", Check{Type: "tls"}, web(t, nil, says(200, "ok")), "plain HTTP", "type: http"},
		{"tls, other protocol", Check{Type: "tls"}, raw(t, script("SSH-2.0-OpenSSH_9.2\r\n")), "does not speak TLS",
			"type: tcp"},
		{"tls, CA", Check{Type: "tls", TLS: verify}, web(t, good, says(200, "ok")), "", ""},
		{"tls, CA and name", Check{Type: "tls", TLS: TLSOptions{Verify: true, CAFile: ca.file, ServerName: "kubernetes"}},
			web(t, good, says(200, "ok")), "", ""},
		{"tls, another name", Check{Type: "tls", TLS: TLSOptions{Verify: true, CAFile: ca.file, ServerName: "etcd"}},
			web(t, good, says(200, "ok")), "not trusted", "serverName"},
		{"tls, another CA", Check{Type: "tls", TLS: verify}, web(t, stranger, says(200, "ok")), "not trusted", "caFile"},
		{"tls, expired", Check{Type: "tls", TLS: verify}, web(t, expired, says(200, "ok")), "has expired", ""},
		{"tls, expired, nobody looks", Check{Type: "tls"}, web(t, expired, says(200, "ok")), "", ""},
		{"tls, pin", Check{Type: "tls", TLS: TLSOptions{Pin: pinOf(t, good.Certificates[0])}}, web(t, good, says(200, "ok")),
			"", ""},
		{"tls, another pin", Check{Type: "tls", TLS: TLSOptions{Pin: pinOf(t, stranger.Certificates[0])}},
			web(t, good, says(200, "ok")), "pinned", "pin: " + pinOf(t, good.Certificates[0])},

		{"nothing said", Check{}, web(t, good, says(200, "ok")), "", ""},
		{"https, refuses", Check{}, closedPort(t), "refuses", ""},
		{"https, hangs after accept", Check{Timeout: short}, raw(t, hang), "handshake in time", "type: tcp"},
		{"https, plain HTTP", Check{}, web(t, nil, says(200, "ok")), "plain HTTP", "type: http"},
		{"https, no page", Check{}, web(t, good, says(404, "not found")), "404", "type: tls"},
		{"https, 401", Check{}, web(t, good, says(401, "")), "401", "status: [200, 401]"},
		{"https, 403", Check{}, web(t, good, says(403, "")), "403", "status: [200, 403]"},
		{"https, 403 said", Check{Expect: Expect{Status: []StatusRange{{200, 200}, {401, 403}}}},
			web(t, good, says(403, "")), "", ""},
		{"https, 500", Check{}, web(t, good, says(500, "etcd failed")), "answers 500", ""},
		{"https, expired", Check{TLS: verify}, web(t, expired, says(200, "ok")), "has expired", ""},
		{"https, wants a certificate", Check{}, web(t, clients, says(200, "ok")), "certificate required", "certFile"},
		{"https, has a certificate", Check{TLS: TLSOptions{CertFile: certFile, KeyFile: keyFile}},
			web(t, clients, says(200, "ok")), "", ""},

		{"http", Check{Type: "http", Path: "/healthz"}, web(t, nil, says(200, "ok")), "", ""},
		{"http, TLS port", Check{Type: "http"}, web(t, good, says(200, "ok")), "wants TLS", "type: https"},
		{"http, TLS port, alert", Check{Type: "http"}, raw(t, script("\x15\x03\x01\x00\x02\x02\x0a")), "answers in TLS",
			"type: https"},
		{"http, hangs after accept", Check{Type: "http", Timeout: short}, raw(t, hang),
			"does not answer GET /readyz in time", ""},
		{"http, half-open", Check{Type: "http"}, raw(t, halfOpen), "without an answer", ""},
		{"http, other protocol", Check{Type: "http"}, raw(t, script("220 smtp.example.org ESMTP\r\n")), "not answer in HTTP",
			"type: tcp"},
		{"http, closes mid-body", Check{Type: "http"}, raw(t, script("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok")),
			"breaks off", ""},
		{"http, closes mid-header", Check{Type: "http"}, raw(t, script("HTTP/1.1 200 OK\r\nConte")), "broken header", ""},
		{"http, endless header", Check{Type: "http"}, raw(t, func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			for {
				if _, err := io.WriteString(c, "X-Filler: "+strings.Repeat("x", 1000)+"\r\n"); err != nil {
					return
				}
			}
		}), "without an answer", ""},
		{"http, interim answers", Check{Type: "http"}, raw(t, script("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n"+
			"Content-Length: 0\r\n\r\n")), "", ""},
		{"http, slow body", Check{Type: "http", Timeout: short}, raw(t, func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
			for {
				time.Sleep(100 * time.Millisecond)
				if _, err := io.WriteString(c, "."); err != nil {
					return
				}
			}
		}), "in time", ""},
		{"http, redirect", Check{Type: "http"}, web(t, nil, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/login", http.StatusFound)
		}), "redirects are not followed", "302"},
		{"http, redirect said", Check{Type: "http", Expect: Expect{Status: []StatusRange{{200, 399}}}},
			web(t, nil, func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "/login", http.StatusFound)
			}), "", ""},
		{"http, wrong method", Check{Type: "http", Method: "OPTIONS"}, web(t, nil, says(405, "")), "405", "method"},
		{"http, contains", Check{Type: "http", Expect: Expect{Contains: "ok"}}, web(t, nil, says(200, "it is ok.")), "", ""},
		{"http, wrong body", Check{Type: "http", Expect: Expect{Contains: "ok"}}, web(t, nil, says(200, "starting")),
			`"starting"`, ""},
		{"http, matches", Check{Type: "http", Expect: Expect{Matches: "^(ok|OK)$"}}, web(t, nil, says(200, "OK")), "", ""},
		{"http, does not match", Check{Type: "http", Expect: Expect{Matches: "^(ok|OK)$"}}, web(t, nil, says(200, "not OK")),
			"does not match", ""},
		{"http, absent", Check{Type: "http", Expect: Expect{Absent: "bad"}}, web(t, nil, says(200, "good")), "", ""},
		{"http, not absent", Check{Type: "http", Expect: Expect{Absent: "bad"}}, web(t, nil, says(200, "it is bad.")),
			`what has "bad" in it`, ""},
		{"http, does not match, as it should", Check{Type: "http", Expect: Expect{Mismatches: "^bad"}},
			web(t, nil, says(200, "not bad")), "", ""},
		{"http, matches what it must not", Check{Type: "http", Expect: Expect{Mismatches: "^bad"}},
			web(t, nil, says(200, "bad")), `what matches "^bad"`, ""},
		{"http, body beyond the bound", Check{Type: "http", Expect: Expect{Contains: "ok"}},
			web(t, nil, says(200, strings.Repeat("x", maxBody)+"ok")), "does not contain", ""},
		{"http, long body", Check{Type: "http"}, web(t, nil, says(200, strings.Repeat("x", 3*maxBody))), "", ""},
		{"redis", Check{Type: "redis"}, raw(t, script("+PONG\r\n")), "", ""},
		{"redis, loads", Check{Type: "redis"}, raw(t, script("-LOADING\r\n")), `answers "-LOADING"`, ""},
		{"redis, other protocol", Check{Type: "redis"}, raw(t, script("HTTP/1.1 400 Bad Request\r\n\r\n")),
			"does not speak the protocol of Redis", "type: tcp"},
		{"redis, refuses", Check{Type: "redis"}, closedPort(t), "refuses", ""},
		{"redis, hangs after accept", Check{Type: "redis", Timeout: short}, raw(t, hang), "does not send +PONG in time", ""},
		{"redis, half-open", Check{Type: "redis"}, raw(t, halfOpen), "closes the connection without +PONG", ""},
		{"ldap over TLS, plain", Check{Type: "ldap", TLS: TLSOptions{On: true}}, raw(t, script("\x30\x00")), "TLS",
			"type: tcp"},
		{"exchange over TLS", Check{Type: "exchange", TLS: TLSOptions{On: true, Verify: true, CAFile: ca.file},
			Steps: []CheckStep{{Send: "GET / HTTP/1.0\r\n\r\n"}, {Expect: " 200 OK"}, {Matches: "ok$"}}},
			web(t, good, says(200, "ok")), "", ""},
		{"exchange over TLS, another CA", Check{Type: "exchange", TLS: TLSOptions{On: true, Verify: true, CAFile: ca.file},
			Steps: []CheckStep{{Expect: "x"}}}, web(t, stranger, says(200, "ok")), "not trusted", "caFile"},
		{"exchange", Check{Type: "exchange", Steps: []CheckStep{{Send: "a"}, {Expect: "b"}}}, raw(t, script("abc")), "", ""},
		{"none", Check{Type: "none"}, closedPort(t), "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			err := probeOnce(t, tt.check, tt.backend)
			switch {
			case tt.want == "" && err != nil:
				t.Fatalf("%v, want healthy", err)
			case tt.want == "":
				return
			case err == nil || !strings.Contains(err.Error(), tt.want):
				t.Fatalf("%v, want %q", err, tt.want)
			}
			m := (*Mismatch)(nil)
			if errors.As(err, &m) != (tt.write != "") || m != nil && !strings.Contains(m.Write, tt.write) {
				t.Errorf("%v\ntells to write %+v, want %q", err, m, tt.write)
			}
			if errors.Is(err, ErrDraining) {
				t.Errorf("%v is draining", err)
			}
		})
	}
}

func mustParse(t *testing.T, file string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(pemBytes(data))
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// A kube-apiserver that starts and stops, as seen on real ones: it refuses, answers 403,
// then 500, then 200. While it stops, /readyz is 500 and /livez stays 200.
func TestApiserver(t *testing.T) {
	ca := newAuthority(t)
	var ready, live atomic.Int32
	b := web(t, &tls.Config{Certificates: []tls.Certificate{ca.sign(time.Now().Add(time.Hour))}},
		func(w http.ResponseWriter, r *http.Request) {
			code := ready.Load()
			if r.URL.Path == "/livez" {
				code = live.Load()
			}
			w.WriteHeader(int(code))
		})
	for _, step := range []struct {
		ready, live int32
		want        string // up, down or draining
	}{
		{403, 403, "down"}, {500, 500, "down"}, {200, 200, "up"}, {500, 200, "draining"}, {503, 200, "draining"},
		{403, 200, "down"}, {404, 200, "down"},
	} {
		ready.Store(step.ready)
		live.Store(step.live)
		err := probeOnce(t, Check{}, b)
		got := "down"
		switch {
		case err == nil:
			got = "up"
		case errors.Is(err, ErrDraining):
			got = "draining"
		}
		if got != step.want {
			t.Errorf("/readyz %d and /livez %d: %s (%v), want %s", step.ready, step.live, got, err, step.want)
		}
	}
}

// A request has all that its check says, and the newest token of the file.
func TestRequest(t *testing.T) {
	ca := newAuthority(t)
	var got atomic.Pointer[http.Request]
	b := web(t, &tls.Config{Certificates: []tls.Certificate{ca.sign(time.Now().Add(time.Hour))}},
		func(w http.ResponseWriter, r *http.Request) {
			got.Store(r)
		})
	token := filepath.Join(t.TempDir(), "token")
	write := func(s string) {
		t.Helper()
		next := token + ".next"
		if err := os.WriteFile(next, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, token); err != nil {
			t.Fatal(err)
		}
	}
	write("first\n")
	checker, err := NewChecker(Check{Method: "POST", Path: "/a/b?verbose=1", Host: "api.example.org",
		Headers:         []Header{{"X-Probe", "yes"}},
		BearerTokenFile: token, TLS: TLSOptions{Verify: true, CAFile: ca.file}})
	if err != nil {
		t.Fatal(err)
	}
	expect := func(authorization string) {
		t.Helper()
		if err := checker.Check(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		r := got.Load()
		line := fmt.Sprint(r.Method, " ", r.RequestURI, " ", r.Host, " ", r.Header.Get("X-Probe"), " ",
			r.Header.Get("Authorization"))
		if want := "POST /a/b?verbose=1 api.example.org yes " + authorization; line != want {
			t.Errorf("asked %q, want %q", line, want)
		}
	}
	expect("Bearer first")
	if !checker.(*httpChecker).resumes(b) {
		t.Error("the session is not kept for the next check")
	}
	write("second")
	expect("Bearer second")
	write("") // half-written
	expect("Bearer second")
	os.Remove(token)
	expect("Bearer second")
}

func TestNewCheckerRefuses(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		check Check
		want  string
	}{
		{Check{Type: "ping"}, "use tcp, tls, http, https, exchange"},
		{Check{Type: "http", Path: "healthz"}, "begin it with /"},
		{Check{Type: "http", Expect: Expect{Matches: "("}}, "regular expression"},
		{Check{TLS: TLSOptions{Pin: "short"}}, "base64"},
		{Check{TLS: TLSOptions{CAFile: empty + "-not"}}, "correct the path"},
		{Check{TLS: TLSOptions{CAFile: empty}}, "no certificate"},
		{Check{TLS: TLSOptions{CertFile: empty, KeyFile: empty}}, "in PEM"},
		{Check{BearerTokenFile: empty}, "no bearer token"},
	} {
		if _, err := NewChecker(tt.check); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.check, err, tt.want)
		}
	}
}
