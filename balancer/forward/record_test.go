package forward

import (
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"regexp"
	"testing"
	"time"

	"appliance/balancer"
)

// tcplog is the format of haproxy's option tcplog, as its configuration manual has it.
var tcplog = regexp.MustCompile(`^(\S+:\d+) \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d\.\d{3}\] (\S+) (\S+)/(\S+) ` +
	`(-?\d+)/(-?\d+)/(\d+) (\d+) ([-A-Za-z]{2}) (\d+)/(\d+)/(\d+)/(\d+)/(\d+) (\d+)/(\d+)( |$)`)

// TestLog: each way in which a connection ends has its letters.
func TestLog(t *testing.T) {
	lines := make(chan string, 100)
	next := func() []string {
		t.Helper()
		select {
		case line := <-lines:
			m := tcplog.FindStringSubmatch(line)
			if m == nil {
				t.Fatalf("is no line of tcplog: %s", line)
			}
			return m
		case <-time.After(timeout):
			t.Fatal("no line")
		}
		return nil
	}
	echo := backend(t, func(c *net.TCPConn) {
		_, _ = io.Copy(c, c)
		_ = c.CloseWrite()
	})
	resets := backend(t, func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 1))
		_ = c.SetLinger(0)
	})
	hangs := backend(t, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
	closed := frontend()
	talk := func(c *net.TCPConn) {
		_, _ = c.Write([]byte("hello"))
		_ = c.CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	}
	for _, tt := range []struct {
		name, letters, backend string
		to                     netip.AddrPort
		options                balancer.ConnOptions
		client                 func(c *net.TCPConn)
		bytes                  string
	}{
		{"both end", "--", "web", echo, balancer.ConnOptions{}, talk, "5"},
		{"denied", "PR", "<NOSRV>", echo, balancer.ConnOptions{Deny: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
			talk, "0"},
		{"no TLS", "PR", "<NOSRV>", echo, balancer.ConnOptions{RequireTLS: timeout}, talk, "0"},
		{"silent", "cR", "<NOSRV>", echo, balancer.ConnOptions{RequireTLS: 10 * time.Millisecond}, func(c *net.TCPConn) {
			_, _ = io.Copy(io.Discard, c)
		}, "0"},
		{"nobody listens", "SC", "<NOSRV>", closed, balancer.ConnOptions{Retries: -1}, talk, "0"},
		{"the backend resets", "SD", "web", resets, balancer.ConnOptions{}, talk, "0"},
		{"the client resets", "CD", "web", hangs, balancer.ConnOptions{}, func(c *net.TCPConn) {
			_, _ = c.Write([]byte("x"))
			time.Sleep(50 * time.Millisecond) // until the backend has it; earlier it is another ending
			_ = c.SetLinger(0)
		}, "0"},
		{"nothing moves", "cD", "web", hangs, balancer.ConnOptions{ClientTimeout: 20 * time.Millisecond},
			func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) }, "0"},
		{"nothing moves at the backend", "sD", "web", hangs, balancer.ConnOptions{ServerTimeout: 20 * time.Millisecond},
			func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) }, "0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.options.Log = "text"
			s := to(frontend(), tt.to)
			s.ConnOptions, s.LoadBalancer, s.Backends[0].Name = tt.options, "my lb", "web"
			// A second loop that looks for clients at this moment would count itself.
			start(t, Config{Loops: 1, Log: func(line string) { lines <- line }}, s)
			conn, err := net.Dial("tcp", s.Frontend.String())
			client := "" // a client that is refused at once may not see its connection at all
			if err == nil {
				client = conn.LocalAddr().String()
				tt.client(conn.(*net.TCPConn))
				conn.Close()
			}
			m := next()
			if client != "" && m[1] != client || m[2] != "my_lb" || m[3] != "my_lb" || m[4] != tt.backend ||
				m[8] != tt.bytes || m[9] != tt.letters || m[11] != "1" {
				t.Errorf("%q, want %s with %s bytes from %s", m[0], tt.letters, tt.bytes, tt.backend)
			}
			if took := tt.backend == "web"; took != (m[6] != "-1") {
				t.Errorf("%q: time to connect %s", m[0], m[6])
			}
		})
	}
}

// TestLogJSON: JSON has the same, and a load balancer without a log has no lines.
func TestLogJSON(t *testing.T) {
	lines := make(chan string, 100)
	echo := backend(t, func(c *net.TCPConn) {
		_, _ = io.Copy(c, c)
		_ = c.CloseWrite()
	})
	logged, quiet := to(frontend(), echo), to(frontend(), echo)
	logged.ConnOptions.Log = "json"
	start(t, Config{Log: func(line string) { lines <- line }}, logged, quiet)
	for _, at := range []netip.AddrPort{quiet.Frontend, logged.Frontend} {
		conn, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte("hello"))
		_ = conn.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, conn)
		conn.Close()
	}
	var r Record
	if err := json.Unmarshal([]byte(<-lines), &r); err != nil {
		t.Fatal(err)
	}
	if r.Frontend != logged.Frontend || r.Backend != echo.String() || r.In != 5 || r.Out != 5 ||
		r.End != "--" || r.Why == "" {
		t.Errorf("%+v", r)
	}
	select {
	case line := <-lines:
		t.Errorf("another line: %s", line)
	default:
	}
}

// TestLogShare: all frontends of a load balancer share its bounds, and what is beyond a rate is told.
func TestLogShare(t *testing.T) {
	echo := backend(t, func(c *net.TCPConn) {
		_, _ = io.Copy(c, c)
		_ = c.CloseWrite()
	})
	for _, options := range []balancer.ConnOptions{{Log: "text", LogEvery: 3}, {Log: "text", LogRate: 1}} {
		const clients = 6
		lines, skipped := make(chan string, clients), make(chan bool, clients)
		one, two := to(frontend(), echo), to(frontend(), echo)
		one.ConnOptions, two.ConnOptions = options, options
		began := time.Now()
		f := start(t, Config{
			Log: func(line string) { lines <- line }, Unlogged: func() { skipped <- true },
		}, one, two)
		for i := range clients {
			conn, err := net.Dial("tcp", []balancer.Service{one, two}[i%2].Frontend.String())
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, conn)
			conn.Close()
		}
		if err := f.Drain(t.Context()); err != nil { // all have ended
			t.Fatal(err)
		}
		seconds := int(time.Since(began)/time.Second) + 2 // that were begun
		switch n := len(lines); {
		case options.LogEvery > 0 && (n != clients/options.LogEvery || len(skipped) != 0),
			options.LogRate > 0 && (n < 1 || n > seconds || n+len(skipped) != clients):
			t.Errorf("%+v: %d lines and %d skipped of %d clients", options, n, len(skipped), clients)
		}
	}
}
