package forward

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"appliance/balancer"
)

// server is a backend that can die and come back on the same port.
type server struct {
	t        *testing.T
	at       netip.AddrPort
	word     string
	listener net.Listener
	done     sync.WaitGroup
	mu       sync.Mutex
	conns    []net.Conn
}

func (s *server) start() {
	s.t.Helper()
	l, err := net.Listen("tcp", s.at.String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.listener, s.at = l, l.Addr().(*net.TCPAddr).AddrPort()
	s.done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns = append(s.conns, c)
			s.mu.Unlock()
			io.WriteString(c, s.word)
		}
	})
}

// die closes the listener and ignores the open connections. They stay open, which is as near
// to a dead host as a test on one host gets.
func (s *server) die() {
	s.listener.Close()
	s.done.Wait()
}

func (s *server) bury() {
	s.die()
	for _, c := range s.conns {
		c.Close()
	}
}

// With real checks and real connections, a server dies under load. New clients do not
// notice, its own clients are reset, and it is used again when it is back.
func TestServerDiesUnderLoad(t *testing.T) {
	var servers []*server
	at := frontend()
	lb := balancer.LoadBalancer{
		Name: "api", Frontends: []netip.AddrPort{at}, Scheduler: balancer.RoundRobin,
		// Only real connections can detect the death in time.
		Check: balancer.Check{Type: "tcp", Inter: 10 * timeout, Timeout: timeout, FastInter: 20 * time.Millisecond, Rise: 1,
			Fall: 3},
	}
	for _, word := range []string{"a", "b", "c"} {
		s := &server{t: t, at: netip.MustParseAddrPort("127.0.0.1:0"), word: word}
		s.start()
		defer s.bury()
		servers = append(servers, s)
		lb.Backends = append(lb.Backends, balancer.Backend{Name: word, Addr: s.at, Weight: 1})
	}
	var b *balancer.Balancer
	f := New(Config{
		Report: func(id balancer.Target, err error) { b.Report(id, err) },
	})
	defer f.Close()
	b, err := balancer.New(balancer.Config{
		Planes: []balancer.Plane{f}, LoadBalancers: []balancer.LoadBalancer{lb}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	}()
	select {
	case <-b.Ready():
	case <-time.After(timeout):
		t.Fatal("never ready")
	}

	open := make(map[string]*net.TCPConn) // one open connection with each
	for range 3 {
		c := dial(t, at)
		buf := make([]byte, 1)
		if _, err := io.ReadFull(c, buf); err != nil {
			t.Fatal(err)
		}
		open[string(buf)] = c
	}
	if len(open) != 3 {
		t.Fatalf("three connections reached %d servers", len(open))
	}
	// first asks for the first word of the server.
	first := func() string {
		c, err := dialErr(at)
		if err != nil {
			t.Fatal(err)
		}
		defer reset(c)
		buf := make([]byte, 1)
		if _, err := io.ReadFull(c, buf); err != nil {
			t.Fatal(err)
		}
		return string(buf)
	}
	state := func() balancer.BackendState { return b.Status().LoadBalancers[0].Backends[1].State }

	servers[1].die()
	eventually(t, "b is found dead", func() bool {
		if got := first(); got == "b" {
			t.Fatal("served by a dead server")
		}
		return state() == balancer.Down
	})
	wantReset(t, open["b"])
	for _, word := range []string{"a", "c"} {
		open[word].SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := open[word].Read(make([]byte, 1)); err == nil || !isTimeout(err) {
			t.Errorf("the connection to %s: %v, want silence", word, err)
		}
	}

	servers[1].start()
	b.PeerUp(servers[1].at.Addr()) // a check now, not at the end of the interval
	eventually(t, "b serves again", func() bool { return first() == "b" })
	if got := state(); got != balancer.Up {
		t.Errorf("b is %s", got)
	}
}

func isTimeout(err error) bool {
	t, ok := err.(net.Error)
	return ok && t.Timeout()
}
