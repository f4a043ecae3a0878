package web

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"appliance/status/statustest"
)

// Slow, huge and malformed requests are refused, and others do not notice.
func TestServerLimits(t *testing.T) {
	addr, _ := server(t, statustest.New(t, time.Now(), 1, 1))
	say := func(t *testing.T, text string) (answer string, end error) {
		t.Helper()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(60 * time.Second))
		go io.WriteString(c, text)
		all, err := io.ReadAll(bufio.NewReader(c))
		return string(all), err
	}
	for name, tt := range map[string]struct{ send, want string }{
		"huge header": {"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", "431"},
		"huge path":   {"GET /" + strings.Repeat("x", 64<<10) + " HTTP/1.1\r\nHost: localhost\r\n\r\n", "431"},
		"no host":     {"GET / HTTP/1.1\r\n\r\n", "400"},
		"two hosts":   {"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", "400"},
		"no HTTP":     {"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", "400"},
		"two lengths": {"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "400"},
		"a huge body": {
			"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\nConnection: close\r\n\r\n", "405",
		},
		"a chunked one": {
			"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n", "413",
		},
		"half a header": {"GET / HTTP/1.1\r\nHost: loc", ""},
		"a dot dot":     {"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", "30"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			answer, err := say(t, tt.send)
			if os.IsTimeout(err) {
				t.Fatal("the connection is kept for a minute")
			}
			if !strings.HasPrefix(answer, "HTTP/1.1 "+tt.want) &&
				(tt.want != "" || answer != "" && !strings.Contains(answer, "400") && !strings.Contains(answer, "408")) {
				t.Errorf("answered %.200q", answer)
			}
		})
	}
	t.Run("others", func(t *testing.T) {
		t.Parallel()
		resp, err := http.Get("http://" + addr + "/livez")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Error(resp.Status)
		}
	})
}

// Silent connections do not use up the file descriptors of the process, and those of one host not the places of others.
func TestConnectionsAreBounded(t *testing.T) {
	listener, err := Listen("0.0.0.0:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan net.Conn, 2*maxAdminConns)
	go func() {
		defer close(accepted)
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	var all []net.Conn
	defer func() {
		listener.Close()
		for c := range accepted {
			c.Close()
		}
		for _, c := range all {
			c.Close()
		}
	}()
	port := listener.Addr().(*net.TCPAddr).Port
	dial := func(from string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
		return c
	}
	next := func() net.Conn {
		t.Helper()
		select {
		case c := <-accepted:
			return c
		case <-time.After(time.Minute):
			t.Fatal("a connection has no place")
			return nil
		}
	}
	ended := func(c net.Conn, what string) {
		t.Helper()
		c.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
			t.Fatalf("%s is open: %v", what, err)
		}
	}
	const greedy, viewer = "127.0.0.2", "127.0.0.3"
	var theirs []net.Conn // of the greedy host, as the listener has them
	for range maxAdminConns {
		dial(greedy)
		theirs = append(theirs, next())
	}
	ended(dial(greedy), "one more of the host that has every place")

	dial(viewer)
	seen := next()
	if from := seen.RemoteAddr().(*net.TCPAddr).IP.String(); from != viewer {
		t.Fatalf("%s has the place that a viewer was given", from)
	}
	ended(all[0], "the oldest of the host that had every place")

	theirs[1].Close() // there is room for one more, and for no second
	theirs[1].Close()
	theirs[0].Close()
	dial(greedy)
	defer next().Close()
	ended(dial(greedy), "one more than there are places")
	seen.Close()
	for _, c := range theirs {
		c.Close()
	}
}
