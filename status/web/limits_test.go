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

// Silent connections do not use up the file descriptors of the process.
func TestConnectionsAreBounded(t *testing.T) {
	l, err := Listen("127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 2*maxAdminConns)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	var all []net.Conn
	defer func() {
		for _, c := range all {
			c.Close()
		}
	}()
	for i := range maxAdminConns + 20 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(fmt.Errorf("connection %d: %w", i, err))
		}
		all = append(all, c)
	}
	for deadline := time.Now().Add(20 * time.Second); len(accepted) < maxAdminConns && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond)
	if n := len(accepted); n != maxAdminConns {
		t.Errorf("%d connections are open", n)
	}
	(<-accepted).Close() // room for one more
	for deadline := time.Now().Add(20 * time.Second); len(accepted) < maxAdminConns && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if n := len(accepted); n != maxAdminConns {
		t.Errorf("%d connections wait after one has left", n)
	}
	for range maxAdminConns {
		(<-accepted).Close()
	}
}
