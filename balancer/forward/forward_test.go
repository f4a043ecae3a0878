package forward

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"appliance/balancer"
)

func TestServiceThatLeavesKeepsItsConnections(t *testing.T) {
	at := frontend()
	server := backend(t, echo)
	f := start(t, Config{}, to(at, server))
	c := dial(t, at)
	if err := ask(c, "before"); err != nil {
		t.Fatal(err)
	}
	apply(t, f)
	if err := ask(c, "after"); err != nil {
		t.Errorf("open connection: %v", err)
	}
	if _, err := dialErr(at); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("new connection: %v, want it refused", err)
	}
	if got := f.Stats()[balancer.Target{LoadBalancer: "lb", Backend: server}].Open; got != 1 {
		t.Errorf("%d connections are counted as open, want 1", got)
	}
	c.Close()
	eventually(t, "the service that left is forgotten", func() bool {
		apply(t, f)
		return len(f.Stats()) == 0
	})
}

// A load balancer that gets another name keeps its connections.
func TestRenamedLoadBalancer(t *testing.T) {
	at, server := frontend(), backend(t, echo)
	s := to(at, server)
	f := start(t, Config{}, s)
	c := dial(t, at)
	if err := ask(c, "before"); err != nil {
		t.Fatal(err)
	}
	s.LoadBalancer = "renamed"
	apply(t, f, s)
	if err := ask(c, "after"); err != nil {
		t.Errorf("open connection: %v", err)
	}
	if err := ask(dial(t, at), "new"); err != nil {
		t.Error(err)
	}
	if got := f.Stats()[balancer.Target{LoadBalancer: "renamed", Backend: server}].Total; got != 1 {
		t.Errorf("%d connections are counted under the new name, want 1", got)
	}
	apply(t, f, to(at))
	wantReset(t, c)
}

func TestDrain(t *testing.T) {
	at, server := frontend(), backend(t, echo)
	f := start(t, Config{}, to(at, server))
	c, stays := dial(t, at), dial(t, at)
	for _, c := range []*net.TCPConn{c, stays} {
		if err := ask(c, "before"); err != nil {
			t.Fatal(err)
		}
	}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := f.Drain(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("drain with open connections: %v", err)
	}
	if _, err := dialErr(at); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("new connection: %v, want it refused", err)
	}
	if err := ask(c, "while draining"); err != nil {
		t.Error(err)
	}
	// Meanwhile the balancer runs on, and a backend may die.
	apply(t, f, to(at, server))
	if _, err := dialErr(at); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("new connection after apply: %v, want it refused", err)
	}
	if err := ask(c, "after apply"); err != nil {
		t.Error(err)
	}
	c.Close()
	done := make(chan error, 1)
	go func() { done <- f.Drain(t.Context()) }()
	select {
	case err := <-done:
		t.Errorf("drain ended with %v although a connection is open", err)
	case <-time.After(20 * time.Millisecond):
	}
	apply(t, f, to(at))
	wantReset(t, stays)
	if err := <-done; err != nil {
		t.Errorf("drain: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err := f.Apply(t.Context(), nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("apply after close: %v", err)
	}
}

func TestCloseResets(t *testing.T) {
	at, hangs := frontend(), frontend()
	f := start(t, Config{}, to(at, backend(t, echo)), to(hangs, hanging(t)))
	c := dial(t, at)
	if err := ask(c, "before"); err != nil {
		t.Fatal(err)
	}
	waits := dial(t, hangs) // the forwarder's dial is under way
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	wantReset(t, c)
	wantReset(t, waits)
}

func TestRedirect(t *testing.T) {
	// TEST-NET-1 of RFC 5737 is not an address of this host: IP_FREEBIND.
	vip, v6 := netip.MustParseAddrPort("192.0.2.1:6443"), netip.MustParseAddrPort("[2001:db8::1]:6443")
	local := frontend()
	var r redirects
	f := New(Config{Redirector: &r})
	if repaired, err := f.Apply(t.Context(), []balancer.Service{to(vip), to(v6), to(local)}); err != nil || repaired != 1 {
		t.Fatalf("apply: %d, %v", repaired, err)
	}
	first := r.last
	if len(first) != 2 || first[vip].Addr() != vip.Addr() || first[v6].Addr() != v6.Addr() || first[vip].Port() == 0 ||
		first[vip].Port() == vip.Port() {
		t.Errorf("redirected %v: want another port of each VIP, and nothing for loopback", first)
	}
	if _, err := f.Apply(t.Context(), []balancer.Service{to(vip)}); err != nil {
		t.Fatal(err)
	}
	if len(r.last) != 1 || r.last[vip] != first[vip] {
		t.Errorf("redirected %v then %v: the port must stay and the other frontend go", first, r.last)
	}
	r.err = errors.New("no nf_tables")
	if _, err := f.Apply(t.Context(), []balancer.Service{to(vip)}); !errors.Is(err, r.err) {
		t.Errorf("apply: %v, want the redirector's error", err)
	}
	r.err = nil
	if err := f.Close(); err != nil || len(r.last) != 0 {
		t.Errorf("close left %v, %v", r.last, err)
	}
}

func TestBusyPort(t *testing.T) {
	taken := backend(t, echo)
	at := frontend()
	f := New(Config{})
	defer f.Close()
	_, err := f.Apply(t.Context(), []balancer.Service{to(taken), to(at, taken)})
	if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), taken.String()) ||
		!strings.Contains(err.Error(), "stop it, or") {
		t.Errorf("error %q should name the address and the remedy", err)
	}
	if err := ask(dial(t, at), "x"); err != nil {
		t.Errorf("the other service is not served: %v", err)
	}
}

// The port of a program that is to be replaced is taken from it by a redirection, and from nobody else.
func TestTakeover(t *testing.T) {
	taken, free := backend(t, echo), frontend()
	var r redirects
	f := start(t, Config{Redirector: &r, Takeover: true}, to(taken, backend(t, echo)), to(free))
	if len(r.last) != 1 || r.last[taken].Addr() != taken.Addr() || r.last[taken].Port() == taken.Port() {
		t.Fatalf("redirected %v, want %v alone", r.last, taken)
	}
	first := r.last[taken]
	if err := ask(dial(t, first), "x"); err != nil {
		t.Errorf("where clients of the other program are led: %v", err)
	}
	apply(t, f, to(taken))
	if r.last[taken] != first {
		t.Errorf("redirected %v, and then %v", first, r.last)
	}
}

// A program that is being started has a copy of each socket until it runs.
func TestCopyOfListenerTakesNobody(t *testing.T) {
	at := frontend()
	server := backend(t, echo)
	f := start(t, Config{}, to(at, server))
	f.mu.Lock()
	listener := f.services[at].listener
	f.mu.Unlock()
	held, err := unix.Dup(listener)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(held)
	apply(t, f)
	if _, err := dialErr(at); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connection to the service that left: %v, want it refused", err)
	}
	apply(t, f, to(at, server))
	if err := ask(dial(t, at), "again"); err != nil {
		t.Error(err)
	}
}

func TestIPv6(t *testing.T) {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skip("this host has no IPv6 loopback: ", err)
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	l.Close()
	start(t, Config{}, to(at, backendOn(t, "[::1]:0", echo)))
	if err := ask(dial(t, at), "six"); err != nil {
		t.Error(err)
	}
}

// Both sockets must detect a peer that vanished silently.
func TestSocketOptions(t *testing.T) {
	want := map[int]int{
		unix.TCP_KEEPIDLE: keepIdle, unix.TCP_KEEPINTVL: keepInterval, unix.TCP_KEEPCNT: keepCount,
		unix.TCP_USER_TIMEOUT: userTimeout, unix.TCP_NODELAY: 1,
	}
	at := frontend()
	f := start(t, Config{}, to(at, backend(t, echo)))
	if err := ask(dial(t, at), "x"); err != nil {
		t.Fatal(err)
	}
	var found atomic.Int32
	f.onLoops(func(l *loop) {
		l.setLateOptions() // as a second later
		l.each(func(c *conn) {
			for side, fd := range map[string]int{"client": c.client.fd, "server": c.server.fd} {
				found.Add(1)
				if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE); err != nil || on != 1 {
					t.Errorf("%s: SO_KEEPALIVE is %d, %v", side, on, err)
				}
				for opt, v := range want {
					if got, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, opt); err != nil || got != v {
						t.Errorf("%s: option %d is %d, %v; want %d", side, opt, got, err, v)
					}
				}
			}
		})
	})
	if found := found.Load(); found != 2 {
		t.Errorf("%d sockets were looked at, want 2", found)
	}
}
