package web

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"appliance/status"
	"appliance/status/metrics"
	"appliance/status/statustest"
)

// site is an admin handler over a made-up group.
func site(t *testing.T, change func(*AdminConfig)) http.Handler {
	t.Helper()
	c := statustest.New(t, time.Now(), 2, 3)
	p := newPage(t, c)
	ctx, end := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() { end(); <-done })
	snapshot := func() status.Snapshot { return c.Snapshots["n1"] }
	cfg := AdminConfig{
		Snapshot: snapshot, Page: p, Journal: c.Journals["n1"], Metrics: metrics.New(snapshot, "v0.1.0").Handler(),
	}
	if change != nil {
		change(&cfg)
	}
	return Admin(cfg)
}

type ask struct {
	method, path, host string
	header             map[string]string
	body               string
}

func (a ask) of(h http.Handler) *httptest.ResponseRecorder {
	if a.method == "" {
		a.method = http.MethodGet
	}
	var body io.Reader
	if a.body != "" {
		body = strings.NewReader(a.body)
	}
	r := httptest.NewRequest(a.method, a.path, body)
	r.Host = "127.0.0.1:10001"
	if a.host != "" {
		r.Host = a.host
	}
	for k, v := range a.header {
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestAdminServes(t *testing.T) {
	h := site(t, nil)
	for path, want := range map[string]string{
		"/":            "All is well",
		"/page.css":    "prefers-color-scheme",
		"/page.js":     "EventSource",
		"/icon.svg":    "<svg",
		"/status.json": `"holder":"n2"`,
		"/events.json": `"kind":"holder"`,
		"/metrics":     "appliance_holder_known 1",
		"/healthz":     "ok",
		"/livez":       "ok",
		"/readyz":      "ok",
	} {
		w := ask{path: path}.of(h)
		body := w.Body.String()
		if path == "/" { // one backend is down, and clients wait
			want = "Clients are served, with 2 things to look at"
		}
		if w.Code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d, lacks %q:\n%.300s", path, w.Code, want, body)
		}
		csp := w.Header().Get("Content-Security-Policy")
		if !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: policy %q", path, csp)
		}
		if w.Header().Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s is for other sites too", path)
		}
	}
	// No scripts or styles inline, or from elsewhere.
	page := ask{path: "/"}.of(h).Body.String()
	for _, bad := range []string{" style=", "<style", "javascript:", " onclick", "http://", "https://", "<script>"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
}

func TestAdminRefuses(t *testing.T) {
	h := site(t, func(c *AdminConfig) { c.Hosts = []string{"vip.example.org"} })
	for name, tt := range map[string]struct {
		ask  ask
		want int
	}{
		"a change":             {ask{method: "POST", path: "/transfer"}, http.StatusMethodNotAllowed},
		"a deletion":           {ask{method: "DELETE", path: "/"}, http.StatusMethodNotAllowed},
		"a body":               {ask{path: "/", body: "x"}, http.StatusRequestEntityTooLarge},
		"another name":         {ask{path: "/", host: "evil.example:10001"}, http.StatusMisdirectedRequest},
		"no name":              {ask{path: "/", host: " "}, http.StatusMisdirectedRequest},
		"a name like ours":     {ask{path: "/", host: "vip.example.org.evil.example"}, http.StatusMisdirectedRequest},
		"an address like name": {ask{path: "/", host: "127.0.0.1.evil.example"}, http.StatusMisdirectedRequest},
		"another site": {
			ask{path: "/status.json", header: map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}},
			http.StatusForbidden,
		},
		"a path of nothing": {ask{path: "/<script>alert(1)</script>"}, http.StatusNotFound},
		"a bad position":    {ask{path: "/events.json?since=<b>"}, http.StatusBadRequest},
		"a link from outside": {
			ask{path: "/", header: map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}},
			http.StatusOK,
		},
		"a name of ours":      {ask{path: "/", host: "VIP.example.org.:443"}, http.StatusOK},
		"localhost":           {ask{path: "/", host: "localhost:10001"}, http.StatusOK},
		"IPv6":                {ask{path: "/", host: "[::1]:10001"}, http.StatusOK},
		"IPv6 without a port": {ask{path: "/", host: "[fe80::1%25eth0]"}, http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			w := tt.ask.of(h)
			if w.Code != tt.want {
				t.Errorf("%d, want %d: %s", w.Code, tt.want, w.Body)
			}
			for _, input := range []string{"evil", "<script>alert", "<b>"} {
				if w.Code != http.StatusOK && strings.Contains(w.Body.String(), input) {
					t.Errorf("it repeats what was asked: %s", w.Body)
				}
			}
		})
	}
}

func TestAdminPath(t *testing.T) {
	h := site(t, func(c *AdminConfig) { c.Path = "/stats" })
	for path, want := range map[string]int{
		"/stats/": 200, "/stats/page.css": 200, "/stats/page.js": 200, "/stats/status.json": 200,
		"/stats": http.StatusTemporaryRedirect, "/": http.StatusFound,
		"/metrics": 200, "/readyz": 200, "/status.json": 200, "/page.css": 404,
	} {
		w := ask{path: path}.of(h)
		if w.Code != want && !(want == http.StatusTemporaryRedirect && w.Code/100 == 3) {
			t.Errorf("%s: %d, want %d", path, w.Code, want)
		}
		if w.Code/100 == 3 && w.Header().Get("Location") != "/stats/" {
			t.Errorf("%s leads to %q", path, w.Header().Get("Location"))
		}
	}
	if page := (ask{path: "/stats/"}).of(h).Body.String(); !strings.Contains(page, `href="../metrics"`) {
		t.Error("the page does not lead to the metrics")
	}
}

func TestAdminHidesVersion(t *testing.T) {
	h := site(t, func(c *AdminConfig) { c.HideVersion, c.Page.cfg.HideVersion = true, true })
	for _, path := range []string{"/", "/status.json"} {
		if body := (ask{path: path}).of(h).Body.String(); strings.Contains(body, `"v0.1.0"`) ||
			strings.Contains(body, "appliance v0.1.0") || strings.Contains(body, ">v0.1.0<") {
			t.Errorf("%s tells the version", path)
		}
	}
}

func basic(name, password string) map[string]string {
	return map[string]string{"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+password))}
}

func TestAdminGate(t *testing.T) {
	hash, err := bcrypt.GenerateFromPassword([]byte("correct horse"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	h := site(t, func(c *AdminConfig) {
		c.Users, c.Token = map[string]string{"op": string(hash)}, "0123456789abcdef"
		ready := c.Snapshot
		secret := []status.NotReady{{Reason: "the secret reason"}}
		c.Snapshot = func() status.Snapshot { s := ready(); s.NotReady = secret; return s }
	})
	right := basic("op", "correct horse")
	for name, tt := range map[string]struct {
		path   string
		header map[string]string
		want   int
	}{
		"nobody":             {"/", nil, 401},
		"nobody, metrics":    {"/metrics", nil, 401},
		"nobody, style":      {"/page.css", nil, 401},
		"nobody, events":     {"/events", nil, 401},
		"a wrong password":   {"/", basic("op", "wrong"), 401},
		"a wrong user":       {"/", basic("root", "correct horse"), 401},
		"a long password":    {"/", basic("op", strings.Repeat("x", 100)), 401},
		"a wrong token":      {"/metrics", map[string]string{"Authorization": "Bearer 0123456789abcdeX"}, 401},
		"an empty token":     {"/metrics", map[string]string{"Authorization": "Bearer "}, 401},
		"the hash":           {"/", basic("op", string(hash)), 401},
		"a user":             {"/", right, 200},
		"a user again":       {"/status.json", right, 200},
		"the token":          {"/metrics", map[string]string{"Authorization": "Bearer 0123456789abcdef"}, 200},
		"a probe, live":      {"/livez", nil, 200},
		"a probe, not ready": {"/readyz", nil, 503},
	} {
		t.Run(name, func(t *testing.T) {
			w := ask{path: tt.path, header: tt.header}.of(h)
			if w.Code != tt.want {
				t.Errorf("%d, want %d: %.200s", w.Code, tt.want, w.Body)
			}
			if tt.want == 401 && len(w.Header().Values("WWW-Authenticate")) != 2 {
				t.Errorf("it asks for %q", w.Header().Values("WWW-Authenticate"))
			}
			if tt.want == 503 && strings.Contains(w.Body.String(), "secret") {
				t.Errorf("a stranger learns %q", w.Body)
			}
		})
	}
	if w := (ask{path: "/readyz", header: right}).of(h); !strings.Contains(w.Body.String(), "the secret reason") {
		t.Errorf("a user does not learn why: %s", w.Body)
	}
	// Who guesses has to wait; who knows the password does not.
	codes := map[int]int{}
	for i := 0; i < 30 && codes[429] == 0; i++ {
		codes[ask{path: "/", header: basic("op", "guess")}.of(h).Code]++
	}
	if codes[429] == 0 {
		t.Errorf("guesses are answered with %v", codes)
	}
	if w := (ask{path: "/status.json", header: right}).of(h); w.Code != 200 {
		t.Errorf("a user is kept out by somebody who guesses: %d", w.Code)
	}
}

// A golden file would change with every field; these are the fields that others rely on.
func TestStatusJSON(t *testing.T) {
	w := ask{path: "/status.json"}.of(site(t, nil))
	var got map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	at := func(path string) any {
		var v any = got
		for name := range strings.SplitSeq(path, ".") {
			switch x := v.(type) {
			case map[string]any:
				v = x[name]
			case []any:
				v = x[0].(map[string]any)[name]
			}
		}
		return v
	}
	for path, want := range map[string]any{
		"id": "n1", "role": "peer", "holder": "n2", "term": 4.0,
		"group.state": "follower", "group.holding": false, "group.peers.id": "n1", "group.peers.connected": true,
		"vips.address": "10.77.0.10", "vips.mac": "02:00:00:00:00:11", "vips.bound": true, "vips.answering": false,
		"loadBalancers.name": "kube-apiserver", "loadBalancers.plane": "ipvs", "loadBalancers.backends.state": "up",
		"loadBalancers.backends.address": "10.77.0.11:6443", "loadBalancers.backends.traffic.open": 12.0,
		"loadBalancers.refused.plane": "direct", "planes.name": "ipvs",
	} {
		if at(path) != want {
			t.Errorf("%s is %v, want %v", path, at(path), want)
		}
	}
}

func TestListen(t *testing.T) {
	l, err := Listen("127.0.0.1:0", []netip.Addr{netip.MustParseAddr("127.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go l.Accept()
	// A connection to a VIP is closed at once, although the listener is there.
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("read %d, %v on the VIP", n, err)
	}
	if _, err := Listen(l.Addr().String(), nil); err == nil ||
		!strings.Contains(err.Error(), "another program listens there") {
		t.Errorf("a port that is taken: %v", err)
	}
	if _, err := Listen("192.0.2.77:10001", nil); err == nil ||
		!strings.Contains(err.Error(), "this host has no such address") {
		t.Errorf("an address that is not here: %v", err)
	}
	file := filepath.Join(t.TempDir(), "admin.sock")
	u, err := Listen("unix:"+file, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if info, _ := os.Stat(file); info.Mode().Perm() != 0o660 {
		t.Errorf("the socket's mode is %v", info.Mode())
	}
}

func TestSecure(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "crt"), filepath.Join(dir, "key")
	if _, err := Secure(nil, cert, key); err == nil || !strings.Contains(err.Error(), "admin.certFile") {
		t.Errorf("without a certificate: %v", err)
	}
	serial := func(addr string) string {
		c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	first := writeCertificate(t, cert, key, 1)
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := Secure(raw, cert, key)
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, site(t, nil), slog.Default()) }()
	if got := serial(raw.Addr().String()); got != first {
		t.Errorf("serial %s, want %s", got, first)
	}
	second := writeCertificate(t, cert, key, 2)
	os.Chtimes(cert, time.Now(), time.Now().Add(time.Hour))
	for deadline := time.Now().Add(20 * time.Second); serial(raw.Addr().String()) != second; {
		if time.Now().After(deadline) {
			t.Fatal("a new certificate is not taken")
		}
		time.Sleep(100 * time.Millisecond)
	}
	end()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A handler that panics is a fault of ours, and told; what a stranger sends is not.
func TestFaultsAreTold(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	said, line := io.Pipe()
	ctx, end := context.WithCancel(t.Context())
	done := make(chan error, 1)
	broken := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("broken") })
	go func() { done <- Serve(ctx, l, broken, slog.New(slog.NewTextHandler(line, nil))) }()
	t.Cleanup(func() { end(); said.Close(); <-done })
	ask := func(text string) {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, text)
		io.Copy(io.Discard, c)
	}
	ask("\x16\x03\x01 garbage\r\n\r\n")
	go http.Get("http://" + l.Addr().String())
	text := make([]byte, 4096)
	n, err := said.Read(text)
	if got := string(text[:n]); err != nil || !strings.Contains(got, "fault of this program") ||
		!strings.Contains(got, "broken") {
		t.Errorf("%q, %v", got, err)
	}
}
