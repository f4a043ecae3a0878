package forward

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"appliance/balancer"
)

// target is what f has counted for the only backend of the test.
func traffic(f *Forwarder, backend netip.AddrPort) balancer.Traffic {
	return f.Stats()[balancer.Target{LoadBalancer: "lb", Backend: backend}]
}

// silent expects that nothing comes from c for a moment.
func silent(t *testing.T, c *net.TCPConn, what string) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); n > 0 || !isTimeout(err) {
		t.Errorf("%s: read %d, %v; want silence", what, n, err)
	}
	c.SetReadDeadline(time.Now().Add(timeout))
}

// wantRefused expects that a new connection is reset.
func wantRefused(t *testing.T, at netip.AddrPort) {
	t.Helper()
	c, err := dialErr(at)
	if err == nil {
		defer c.Close()
		_, err = io.ReadAll(c)
	}
	if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("%v, want a reset", err)
	}
}

func TestMaxConn(t *testing.T) {
	at, server := frontend(), backend(t, echo)
	s := to(at, server)
	s.ConnOptions.MaxConn = 3
	f := start(t, Config{}, s)
	var open []*net.TCPConn
	for range 3 {
		c := dial(t, at)
		if err := ask(c, "in"); err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	waits := dial(t, at) // in the kernel's queue
	io.WriteString(waits, "late")
	silent(t, waits, "beyond maxconn")
	if got := traffic(f, server); got.Total != 3 {
		t.Errorf("the backend got %d connections, want 3", got.Total)
	}
	open[1].Close()
	b := make([]byte, 4)
	if _, err := io.ReadFull(waits, b); err != nil || string(b) != "late" {
		t.Errorf("when one has ended: %q, %v", b, err)
	}
	// A higher limit lets waiting clients in.
	waits = dial(t, at)
	io.WriteString(waits, "more")
	silent(t, waits, "beyond maxconn again")
	s.ConnOptions.MaxConn = 4
	apply(t, f, s)
	if _, err := io.ReadFull(waits, b); err != nil || string(b) != "more" {
		t.Errorf("under a higher limit: %q, %v", b, err)
	}
}

// Many clients come and go at a limit of one: none may be forgotten.
func TestMaxConnUnderLoad(t *testing.T) {
	at := frontend()
	s := to(at, backend(t, name("x")))
	s.ConnOptions.MaxConn = 1
	start(t, Config{}, s)
	done := make(chan error)
	const clients = 8
	for range clients {
		go func() {
			for range 50 {
				if w, err := word(at); err != nil || w != "x" {
					done <- fmt.Errorf("%q, %w", w, err)
					return
				}
			}
			done <- nil
		}()
	}
	for range clients {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// numbered is a backend that sends each client its number and keeps the connection open.
func numbered(t *testing.T) (netip.AddrPort, chan string) {
	said := make(chan string, 100)
	return backend(t, func(c *net.TCPConn) {
		b := make([]byte, 1)
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		said <- string(b)
		io.Copy(io.Discard, c)
	}), said
}

func TestQueueInOrder(t *testing.T) {
	server, said := numbered(t)
	at := frontend()
	s := to(at, server)
	s.Backends[0].MaxConn, s.Backends[0].MaxQueue = 1, 3
	s.ConnOptions.QueueTimeout = timeout
	f := start(t, Config{}, s)
	var conns []*net.TCPConn
	queued := func() int { return int(f.Stats()[balancer.Target{LoadBalancer: "lb"}].Queued) }
	for i := range 4 {
		c := dial(t, at)
		fmt.Fprintf(c, "%d", i)
		conns = append(conns, c)
		eventually(t, "it is served, or in the queue", func() bool { return traffic(f, server).Total == 1 && queued() == i })
	}
	wantRefused(t, at) // the fourth that would queue
	conns[2].Close()   // gives up while it waits: a FIN may be half a word, so it keeps its turn
	conns[2] = nil
	for _, want := range []string{"0", "1", "2", "3"} {
		select {
		case got := <-said:
			if got != want {
				t.Errorf("served %s, want %s", got, want)
			}
		case <-time.After(timeout):
			t.Fatalf("%s was never served", want)
		}
		if open := traffic(f, server).Open; open > 1 {
			t.Errorf("%d connections are open", open)
		}
		if i := want[0] - '0'; conns[i] != nil {
			conns[i].Close()
		}
	}
	eventually(t, "nobody is left", func() bool { return traffic(f, server).Open == 0 && queued() == 0 })
}

func TestQueueTimeout(t *testing.T) {
	server, said := numbered(t)
	at := frontend()
	s := to(at, server)
	s.Backends[0].MaxConn = 1
	s.ConnOptions.QueueTimeout = 30 * time.Millisecond
	f := start(t, Config{}, s)
	c := dial(t, at)
	io.WriteString(c, "0")
	<-said
	began := time.Now()
	wantRefused(t, at)
	if took := time.Since(began); took > timeout/2 {
		t.Errorf("reset after %v", took)
	}
	// A client that is reset while it waits leaves no gap in the queue.
	s.ConnOptions.QueueTimeout = timeout
	apply(t, f, s)
	gone, waits := dial(t, at), dial(t, at)
	io.WriteString(waits, "1")
	reset(gone)
	c.Close()
	if got := <-said; got != "1" {
		t.Errorf("served %s, want 1", got)
	}
}

// A full backend is passed over while another one has room, but a client that belongs to
// it waits.
func TestFullBackend(t *testing.T) {
	a, saidA := numbered(t)
	b, saidB := numbered(t)
	at := frontend()
	s := to(at, a, b)
	s.Backends[0].MaxConn = 1
	f := start(t, Config{}, s)
	for i := range 6 {
		io.WriteString(dial(t, at), fmt.Sprint(i))
	}
	for range 5 {
		<-saidB
	}
	<-saidA
	if got := traffic(f, a).Total; got != 1 {
		t.Errorf("the full one got %d", got)
	}
	sticky := to(frontend(), a, b)
	sticky.Scheduler = balancer.First
	sticky.ConnOptions.Persistence = time.Hour
	sticky.ConnOptions.QueueTimeout = timeout
	sticky.Backends[0].MaxConn = 1
	apply(t, f, s, sticky)
	c := dial(t, sticky.Frontend)
	io.WriteString(c, "x")
	<-saidA
	waits := dial(t, sticky.Frontend)
	io.WriteString(waits, "y")
	silent(t, waits, "its backend is full")
	if got := traffic(f, a).Queued; got != 1 {
		t.Errorf("%d wait for that backend, want 1", got)
	}
	c.Close()
	select {
	case got := <-saidA:
		if got != "y" {
			t.Errorf("served %s", got)
		}
	case <-saidB:
		t.Error("a client that belongs to a got b")
	case <-time.After(timeout):
		t.Error("never served")
	}
}

func TestSlowStart(t *testing.T) {
	old, fresh := backend(t, name("old")), backend(t, name("fresh"))
	at := frontend()
	s := to(at, old)
	f := start(t, Config{}, s)
	count := func(n int) (got int) {
		for range n {
			w, err := word(at)
			if err != nil {
				t.Fatal(err)
			}
			if w == "fresh" {
				got++
			}
		}
		return got
	}
	s = to(at, old, fresh)
	s.Backends[1].SlowStart = time.Hour
	apply(t, f, s)
	if got := count(100); got > 3 {
		t.Errorf("a backend that has just started got %d of 100", got)
	}
	f.mu.Lock()
	x := f.services[at].targets[balancer.Target{LoadBalancer: "lb", Backend: fresh}]
	f.mu.Unlock()
	for _, tt := range []struct {
		ago       time.Duration
		low, high int
		says      string
	}{{30 * time.Minute, 28, 38, "0.5"}, {2 * time.Hour, 48, 52, "0.0"}} {
		x.since.Store(nanotime() - int64(tt.ago))
		if got := fmt.Sprintf("%.1f", traffic(f, fresh).SlowStart); got != tt.says {
			t.Errorf("after %v of 1h it says %s of its weight, want %s", tt.ago, got, tt.says)
		}
		if got := count(100); got < tt.low || got > tt.high {
			t.Errorf("after %v of 1h it got %d of 100, want %d to %d", tt.ago, got, tt.low, tt.high)
		}
	}
	// The first backends have no slow start.
	first := to(frontend(), old, fresh)
	first.Backends[1].SlowStart = time.Hour
	apply(t, f, s, first)
	at = first.Frontend
	if got := count(20); got != 10 {
		t.Errorf("at the first start it got %d of 20", got)
	}
}

func TestPersistence(t *testing.T) {
	at := frontend()
	a, b := backend(t, name("a")), backend(t, name("b"))
	s := to(at, a, b)
	s.ConnOptions.Persistence = time.Hour
	f := start(t, Config{}, s)
	first, err := word(at)
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if w, err := word(at); err != nil || w != first {
			t.Fatalf("came back to %q, %v, had %q", w, err, first)
		}
	}
	// What it remembers survives a reload.
	s.ConnOptions.MaxConn = 100
	apply(t, f, s)
	if w, err := word(at); err != nil || w != first {
		t.Errorf("after a reload came back to %q, %v, had %q", w, err, first)
	}
	// Its backend leaves: the client gets another one, and stays with it.
	rest := to(at, b)
	other := "b"
	if first == "b" {
		rest, other = to(at, a), "a"
	}
	rest.ConnOptions = s.ConnOptions
	apply(t, f, rest)
	for range 3 {
		if w, err := word(at); err != nil || w != other {
			t.Fatalf("%q, %v", w, err)
		}
		apply(t, f, s)
	}
}

func TestStickyForgets(t *testing.T) {
	s := newPersistence(time.Minute)
	be := netip.MustParseAddrPort("192.0.2.1:1")
	minute := int64(time.Minute)
	s.put(client(1), be, 0)
	if _, ok := s.find(client(1), minute-1); !ok {
		t.Error("forgotten too soon")
	}
	if _, ok := s.find(client(1), minute); ok {
		t.Error("remembered for too long")
	}
	s.put(client(2), be, minute-1)
	s.put(client(3), be, minute) // begins another generation
	if _, ok := s.find(client(2), minute+1); !ok {
		t.Error("forgotten with its generation")
	}
	for i := range 5 * maxRemembered {
		s.put(client(i), be, minute+2)
	}
	if n := len(s.now) + len(s.old); n > 2*maxRemembered {
		t.Errorf("%d clients are remembered, want %d at most", n, 2*maxRemembered)
	}
}

// A backend that restarts is back for one of the retries.
func TestRetriesSameBackend(t *testing.T) {
	at := frontend()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	server := bound(t, fd)
	s := to(at, server)
	s.ConnOptions.Retries = 100
	f := start(t, Config{}, s)
	dial(t, at)
	eventually(t, "it has failed twice", func() bool { return traffic(f, server).Failed >= 2 })
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is connected", func() bool { return traffic(f, server).Total == 1 })
}

func TestRetriesAreCounted(t *testing.T) {
	dead := []netip.AddrPort{refusing(t), refusing(t), refusing(t), refusing(t), refusing(t)}
	for retries, want := range map[int]uint64{-1: 1, 1: 2, 0: 1 + balancer.DefaultRetries} {
		at := frontend()
		s := to(at, dead...)
		s.ConnOptions.Retries = retries
		f := start(t, Config{}, s)
		c, err := dialErr(at)
		if err == nil {
			_, err = io.ReadAll(c)
			c.Close()
		}
		if !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("retries %d: %v, want a reset", retries, err)
		}
		var failed uint64
		for _, n := range f.Stats() {
			failed += n.Failed
		}
		if failed != want {
			t.Errorf("retries %d: %d dials, want %d", retries, failed, want)
		}
	}
}

func TestIdleTimeouts(t *testing.T) {
	const limit = 150 * time.Millisecond
	for what, h := range map[string]balancer.ConnOptions{
		"client": {ClientTimeout: limit}, "server": {ServerTimeout: limit},
	} {
		t.Run(what, func(t *testing.T) {
			ended := make(chan error, 10)
			server := backend(t, func(c *net.TCPConn) {
				c.SetDeadline(time.Now().Add(timeout))
				_, err := io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
				if err == nil { // the client's half has ended, ours has not
					_, err = c.Write([]byte("still here"))
					time.Sleep(3 * limit)
					for err == nil {
						_, err = c.Write([]byte("x"))
						time.Sleep(time.Millisecond)
					}
				}
				ended <- err
			})
			at := frontend()
			s := to(at, server)
			s.ConnOptions = h
			f := start(t, Config{}, s)
			quiet, half := dial(t, at), dial(t, at)
			for _, c := range []*net.TCPConn{quiet, half} {
				if err := ask(c, "x"); err != nil {
					t.Fatal(err)
				}
			}
			half.CloseWrite()
			wantReset(t, quiet)
			if err := <-ended; err == nil {
				t.Error("the server did not notice")
			}
			// The half-closed connection got some bytes and then nothing.
			if b, err := io.ReadAll(half); string(b) != "still here" || !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("half-closed: %q, %v", b, err)
			}
			eventually(t, "both are over", func() bool { return traffic(f, server).Open == 0 })
		})
	}
	// Without timeouts, or with traffic, no connection ends.
	at := frontend()
	s := to(at, backend(t, echo))
	s.ConnOptions.ClientTimeout, s.ConnOptions.ServerTimeout = timeout, timeout
	start(t, Config{}, s)
	c := dial(t, at)
	for range 5 {
		if err := ask(c, "talk"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestAllowAndDeny(t *testing.T) {
	server := backend(t, name("x"))
	for _, tt := range []struct {
		allow, deny string
		isTLS       bool
	}{
		{"", "", true},
		{"127.0.0.0/8", "", true},
		{"192.0.2.0/24", "", false},
		{"127.0.0.0/8", "127.0.0.1/32", false},
		{"", "127.0.0.0/30", false},
		{"", "::/0", true},
	} {
		at := frontend()
		s := to(at, server)
		if tt.allow != "" {
			s.ConnOptions.Allow = []netip.Prefix{netip.MustParsePrefix(tt.allow)}
		}
		if tt.deny != "" {
			s.ConnOptions.Deny = []netip.Prefix{netip.MustParsePrefix(tt.deny)}
		}
		f := start(t, Config{}, s)
		w, err := word(at)
		if isTLS := err == nil && w == "x"; isTLS != tt.isTLS {
			t.Errorf("allow %q deny %q: %q, %v", tt.allow, tt.deny, w, err)
		}
		if got := traffic(f, server).Total; !tt.isTLS && got != 0 {
			t.Errorf("allow %q deny %q: it reached the backend", tt.allow, tt.deny)
		}
	}
}
