package forward

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"appliance/balancer"
)

// hello is what a client of crypto/tls sends first.
func hello(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	a, b := net.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tls.Client(a, cfg).HandshakeContext(ctx)
	}()
	buf := make([]byte, 64<<10)
	n, err := b.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	a.Close()
	b.Close()
	<-done
	return buf[:n]
}

func hellos(t testing.TB) [][]byte {
	return [][]byte{
		hello(t, &tls.Config{ServerName: "example.org"}),
		hello(t, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}),
		hello(t, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1"}}),
		hello(t, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10}),
	}
}

func TestClientHello(t *testing.T) {
	for i, h := range hellos(t) {
		for n := range h {
			want := isTLS
			if n < helloSize {
				want = undecided
			}
			if got := clientHello(h[:n]); got != want {
				t.Errorf("hello %d, first %d bytes: %v, want %v", i, n, got, want)
			}
		}
		// Every byte before the random matters.
		for _, at := range []int{0, 1, 5, 9} {
			bad := slices.Clone(h)
			bad[at] ^= 0x40
			if got := clientHello(bad); got != notTLS {
				t.Errorf("hello %d with byte %d changed: %v", i, at, got)
			}
		}
	}
	for _, other := range []string{"GET / HTTP/1.1\r\n\r\n", "SSH-2.0-x\r\n", "\x80\x2e\x01\x00\x02",
		"\x16\x03\x01\x00\x00\x01", "\x15\x03\x01\x00\x02\x02\x28", "\x16\x03\x01\xff\xff\x01"} {
		if got := clientHello([]byte(other)); got != notTLS {
			t.Errorf("%q: %v, want it refused", other, got)
		}
	}
}

// More bytes do not change what a prefix has decided, and helloSize bytes always decide.
func FuzzClientHello(f *testing.F) {
	for _, h := range hellos(f) {
		f.Add(h)
		f.Add(h[:5])
	}
	f.Add([]byte("GET / HTTP/1.1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		last := undecided
		for n := range len(b) + 1 {
			got := clientHello(b[:n])
			if last != undecided && got != last {
				t.Fatalf("%x: %v after %d bytes, but %v before", b, got, n, last)
			}
			last = got
		}
		if len(b) >= helloSize && last == undecided {
			t.Fatalf("%x: undecided", b)
		}
		if last == isTLS {
			// crypto/tls accepts it as a handshake too, or needs more bytes.
			if b[0] != 22 || b[5] != 1 {
				t.Fatalf("%x is no ClientHello", b)
			}
		}
	})
}

func TestRequireTLS(t *testing.T) {
	secure := httptest.NewUnstartedServer(nil)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	defer secure.Close()
	server := netip.MustParseAddrPort(secure.Listener.Addr().String())
	at := frontend()
	s := to(at, server)
	s.ConnOptions.RequireTLS = timeout
	f := start(t, Config{}, s)
	total := func() uint64 { return traffic(f, server).Total }

	t.Run("TLS", func(t *testing.T) {
		c, err := tls.Dial("tcp", at.String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "GET / HTTP/1.0\r\n\r\n")
		if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != "HTTP/1.0 404 Not Found\r\n" {
			t.Errorf("%q, %v", line, err)
		}
	})
	t.Run("byte by byte", func(t *testing.T) {
		c := dial(t, at)
		for i, b := range hello(t, &tls.Config{ServerName: "example.org"}) {
			c.Write([]byte{b})
			if i < 12 {
				time.Sleep(time.Millisecond)
			}
		}
		if b := make([]byte, 1); true {
			if _, err := io.ReadFull(c, b); err != nil || b[0] != 22 {
				t.Errorf("the server answers %x, %v; want a handshake", b, err)
			}
		}
	})
	reached := total()
	t.Run("plain HTTP", func(t *testing.T) {
		c := dial(t, at)
		io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
		wantReset(t, c)
	})
	t.Run("ends in the middle", func(t *testing.T) {
		c := dial(t, at)
		c.Write([]byte{22, 3, 1})
		c.CloseWrite()
		wantReset(t, c)
	})
	t.Run("silent", func(t *testing.T) {
		s.ConnOptions.RequireTLS = 30 * time.Millisecond
		apply(t, f, s)
		wantReset(t, dial(t, at))
		c := dial(t, at)
		c.Write([]byte{22, 3, 1, 0}) // begins well and stops
		wantReset(t, c)
	})
	if got := total(); got != reached {
		t.Errorf("%d of those without TLS reached the backend", got-reached)
	}
}

// proxiedBackend sends its clients what their PROXY header said.
func proxiedBackend(t *testing.T) netip.AddrPort {
	return backend(t, func(c *net.TCPConn) {
		c.SetDeadline(time.Now().Add(timeout))
		r := bufio.NewReader(c)
		h, err := proxyproto.Read(r)
		if err != nil {
			io.WriteString(c, "no header: "+err.Error()+"\n")
			return
		}
		line, _ := r.ReadString('\n')
		io.WriteString(c, h.SourceAddr.String()+" to "+h.DestinationAddr.String()+" says "+line)
	})
}

// say sends the parts one after the other, and returns what the client gets.
func say(t *testing.T, at netip.AddrPort, parts ...[]byte) (string, error) {
	t.Helper()
	c := dial(t, at)
	for i, p := range parts {
		if i > 0 {
			time.Sleep(5 * time.Millisecond)
		}
		c.Write(p)
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return line, err
}

func TestSendProxy(t *testing.T) {
	server := proxiedBackend(t)
	for _, version := range []string{"v1", "v2"} {
		at := frontend()
		s := to(at, server)
		s.ConnOptions.SendProxy = version
		start(t, Config{}, s)
		c := dial(t, at)
		io.WriteString(c, "hi\n")
		got, err := bufio.NewReader(c).ReadString('\n')
		if want := c.LocalAddr().String() + " to " + at.String() + " says hi\n"; err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", version, got, err, want)
		}
	}
}

// TestSendProxyOfABackend: what a backend says goes before what its load balancer says.
func TestSendProxyOfABackend(t *testing.T) {
	server := proxiedBackend(t)
	for _, tt := range []struct {
		all, own string
		wants    bool
	}{{"", "v1", true}, {"v1", "v2", true}, {"v2", balancer.ProxyOff, false}, {"v2", "", true}, {"", "", false}} {
		at := frontend()
		s := to(at, server)
		s.ConnOptions.SendProxy, s.Backends[0].SendProxy = tt.all, tt.own
		start(t, Config{}, s)
		c := dial(t, at)
		io.WriteString(c, "hi\n")
		got, _ := bufio.NewReader(c).ReadString('\n')
		has := got == c.LocalAddr().String()+" to "+at.String()+" says hi\n"
		if has != tt.wants {
			t.Errorf("%q for all, %q for it: %q", tt.all, tt.own, got)
		}
	}
}

func header(t testing.TB, version byte, from, to string) []byte {
	t.Helper()
	addr := func(s string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }
	b, err := proxyproto.HeaderProxyFromAddrs(version, addr(from), addr(to)).Format()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAcceptProxy(t *testing.T) {
	server := proxiedBackend(t)
	at := frontend()
	s := to(at, server)
	s.ConnOptions = balancer.ConnOptions{
		SendProxy: "v2", AcceptProxyFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
		Deny: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")},
	}
	f := start(t, Config{}, s)
	hi := []byte("hi\n")
	for what, h := range map[string][]byte{
		"198.51.100.7:1234 to 192.0.2.1:443": header(t, 1, "198.51.100.7:1234", "192.0.2.1:443"),
		"198.51.100.8:1234 to 192.0.2.1:443": header(t, 2, "198.51.100.8:1234", "192.0.2.1:443"),
		"[2001:db8::7]:1 to [2001:db8::1]:2": header(t, 2, "[2001:db8::7]:1", "[2001:db8::1]:2"),
	} {
		want := what + " says hi\n"
		if got, err := say(t, at, append(slices.Clone(h), hi...)); err != nil || got != want {
			t.Errorf("at once: %q, %v; want %q", got, err, want)
		}
		if got, err := say(t, at, h[:7], h[7:len(h)-1], append(slices.Clone(h[len(h)-1:]), 'h'),
			[]byte("i\n")); err != nil || got != want {
			t.Errorf("in pieces: %q, %v; want %q", got, err, want)
		}
	}
	total := traffic(f, server).Total
	local := []byte("\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00")
	if got, err := say(t, at, local, hi); err != nil || !bytes.HasPrefix([]byte(got), []byte("127.0.0.1:")) {
		t.Errorf("LOCAL: %q, %v; want the proxy's own address", got, err)
	}
	total++
	for what, parts := range map[string][]byte{
		"denied":    header(t, 1, "203.0.113.9:1", "192.0.2.1:443"),
		"none":      []byte("GET / HTTP/1.1\r\n\r\n"),
		"garbage":   []byte("PROXY TCP9 a b c d\r\n"),
		"endless":   bytes.Repeat([]byte("PROXY "), 40),
		"too large": []byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff"),
	} {
		c := dial(t, at)
		c.Write(parts)
		if _, err := io.ReadAll(c); err == nil {
			t.Errorf("%s: no reset", what)
		}
	}
	if got := traffic(f, server).Total; got != total {
		t.Errorf("%d of those that must not have reached the backend", got-total)
	}
	// A client that is not in acceptProxyFrom is no proxy: its header goes to the backend.
	s.ConnOptions.AcceptProxyFrom = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	s.ConnOptions.SendProxy = ""
	apply(t, f, s)
	if got, err := say(t, at, header(t, 1, "198.51.100.7:1234", "192.0.2.1:443"), hi); err != nil ||
		got != "198.51.100.7:1234 to 192.0.2.1:443 says hi\n" {
		t.Errorf("the backend got %q, %v", got, err)
	}
}

// A PROXY header, followed by TLS.
func TestAcceptProxyAndRequireTLS(t *testing.T) {
	secure := httptest.NewUnstartedServer(nil)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	defer secure.Close()
	at := frontend()
	s := to(at, netip.MustParseAddrPort(secure.Listener.Addr().String()))
	s.ConnOptions = balancer.ConnOptions{RequireTLS: timeout,
		AcceptProxyFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	start(t, Config{}, s)
	h := header(t, 2, "198.51.100.7:1234", "192.0.2.1:443")
	c := dial(t, at)
	c.Write(h)
	if err := tls.Client(c, &tls.Config{InsecureSkipVerify: true}).Handshake(); err != nil {
		t.Error(err)
	}
	c = dial(t, at)
	c.Write(append(h, "GET / HTTP/1.1\r\n\r\n"...))
	wantReset(t, c)
}

func FuzzReadProxy(f *testing.F) {
	f.Add(header(f, 1, "198.51.100.7:1234", "192.0.2.1:443"))
	f.Add(header(f, 2, "198.51.100.7:1234", "192.0.2.1:443"))
	f.Add(header(f, 2, "[2001:db8::7]:1", "[2001:db8::1]:2"))
	f.Add([]byte("PROXY UNKNOWN\r\n"))
	f.Add([]byte("\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"))
	f.Add([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x31\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, size, err := readProxy(b)
		switch {
		case err != nil && (size != 0 || !errors.Is(err, errProxy)):
			t.Fatalf("%q: size %d with %v", b, size, err)
		case size < 0 || size > len(b) || size > maxProxyHeader:
			t.Fatalf("%q: size %d", b, size)
		case err == nil && size == 0 && len(b) >= maxProxyHeader:
			t.Fatalf("%q: still undecided", b)
		case size == 0:
			return
		}
		// Bytes after the header change nothing, and fewer bytes decide nothing.
		if q, n, err := readProxy(append(slices.Clone(b[:size]), "GET /"...)); err != nil || n != size || q != p {
			t.Fatalf("%q: %v %d %v with other bytes behind, %v %d", b, q, n, err, p, size)
		}
		for n := range size {
			if _, got, err := readProxy(b[:n]); got != 0 || err != nil {
				t.Fatalf("%q: the first %d of %d bytes decide: %d, %v", b, n, size, got, err)
			}
		}
	})
}
