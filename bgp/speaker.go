package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/jwhited/corebgp"
	"golang.org/x/sync/errgroup"
)

// A Neighbour is a router to which a Speaker has a session.
type Neighbour struct {
	Addr netip.Addr
	AS   uint32
	// Port is where it listens.
	Port uint16
	// Password signs every segment (RFC 2385), 1 to 80 bytes; empty: none.
	Password string
	// Passive neighbours connect themselves.
	Passive bool
	// Hops is how far it may be away, 1 to 255. With TTLSecurity packets from further away are dropped (RFC 5082).
	Hops        int
	TTLSecurity bool
}

// Config is what a Speaker depends on.
type Config struct {
	AS uint32
	// RouterID is the BGP identifier, an IPv4 address in form.
	RouterID netip.Addr
	// Port is where neighbours connect to; 0: nowhere.
	Port uint16
	// HoldTime is at least 3 s, in whole seconds. The smaller one of both sides is in force.
	HoldTime   time.Duration
	Neighbours []Neighbour
	// NextHop finds where a router is to send packets for addresses of a family, over a session whose own end is local:
	// this host's address of that family, or, where the router is extended, one of IPv6 for IPv4, too (RFC 8950).
	NextHop func(local netip.Addr, is4, extended bool) (netip.Addr, error)
	// OnChange is told of sessions that begin and end. It must return at once.
	OnChange func(SessionChange)
	Log      *slog.Logger
}

// A SessionChange is the begin or the end of a session.
type SessionChange struct {
	Neighbour   netip.Addr
	Established bool
	// Reason is why it ended.
	Reason string
	// Lasted is how long it was established.
	Lasted time.Duration
}

// A Speaker announces virtual addresses to its neighbours. New makes one.
type Speaker struct {
	cfg        Config
	machine    *corebgp.Server
	neighbours map[netip.Addr]*neighbour
	offered    offers

	mu    sync.Mutex
	paths map[netip.Addr]RoutePath // what is announced now
}

// New makes a Speaker that announces nothing yet.
func New(cfg Config) (*Speaker, error) {
	machine, err := corebgp.NewServer(cfg.RouterID)
	if err != nil {
		return nil, fmt.Errorf("bgp: router ID %s: %w; write announce.bgp.routerID in the form of an IPv4 address",
			cfg.RouterID, err)
	}
	s := &Speaker{
		cfg: cfg, machine: machine, neighbours: make(map[netip.Addr]*neighbour),
		offered: offers{conns: make(chan net.Conn), closed: make(chan struct{})},
	}
	for _, n := range cfg.Neighbours {
		s.neighbours[n.Addr] = newNeighbour(s, n)
	}
	return s, nil
}

// Set makes paths, by virtual address, the whole set of what is announced.
func (s *Speaker) Set(paths map[netip.Addr]RoutePath) {
	s.mu.Lock()
	s.paths = maps.Clone(paths)
	s.mu.Unlock()
	for _, n := range s.neighbours {
		n.wake()
	}
}

func (s *Speaker) wanted() map[netip.Addr]RoutePath {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.paths
}

// Told reports whether every neighbour with a session has been told of all that Set wants.
func (s *Speaker) Told() bool {
	for _, n := range s.neighbours {
		if n.behind() {
			return false
		}
	}
	return true
}

// BFDDown ends the session with a neighbour that BFD no longer hears (RFC 5882, section 4.3).
func (s *Speaker) BFDDown(addr netip.Addr, reason string) {
	n := s.neighbours[addr]
	if n == nil {
		return
	}
	n.mu.Lock()
	c := n.conn
	n.mu.Unlock()
	if c != nil {
		c.end(ceaseBFDDown, "BFD: "+reason)
	}
}

// Run keeps the sessions until ctx ends. Then it ends them, so that routers forget what was announced.
func (s *Speaker) Run(ctx context.Context) error {
	listeners, err := s.listen(ctx)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		g.Go(func() error { return s.accept(ctx, l) })
	}
	for _, n := range s.neighbours {
		g.Go(func() error { return n.run(ctx) })
		g.Go(func() error { return n.advertise(ctx) })
	}
	g.Go(func() error {
		if err := s.machine.Serve([]net.Listener{&s.offered}); !errors.Is(err, corebgp.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		s.machine.Close()
		for _, l := range listeners {
			l.Close()
		}
		return nil
	})
	return g.Wait()
}

// listen opens the ports that neighbours connect to.
func (s *Speaker) listen(ctx context.Context) (listeners []net.Listener, err error) {
	if s.cfg.Port == 0 {
		return nil, nil
	}
	for _, is4 := range []bool{true, false} {
		some := false
		for _, n := range s.cfg.Neighbours {
			some = some || n.Addr.Is4() == is4
		}
		if !some {
			continue
		}
		l, err := listen(ctx, s.cfg.Port, is4, s.cfg.Neighbours)
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
			return nil, err
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

// Check says whether the port can be had, and changes nothing.
func (s *Speaker) Check(ctx context.Context) error {
	listeners, err := s.listen(ctx)
	for _, l := range listeners {
		l.Close()
	}
	return err
}

// accept takes the connections of neighbours, and closes those of others.
func (s *Speaker) accept(ctx context.Context, l net.Listener) error {
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			// Out of files, mostly, which passes.
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(time.Second):
			}
			continue
		}
		n := s.neighbours[remoteOf(c)]
		if n == nil {
			c.Close()
			continue
		}
		if err := setOptions(c, n.Neighbour, n.internal()); err != nil {
			s.cfg.Log.Debug("a neighbour's connection is dropped", "neighbour", n.Addr, "error", err)
			c.Close()
			continue
		}
		n.offer(ctx, c)
	}
}

// offers is the listener by which corebgp gets its connections, whoever opened them.
type offers struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// Accept implements net.Listener.
func (o *offers) Accept() (net.Conn, error) {
	select {
	case c := <-o.conns:
		return c, nil
	case <-o.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (o *offers) Close() error {
	o.once.Do(func() { close(o.closed) })
	return nil
}

// Addr implements net.Listener.
func (o *offers) Addr() net.Addr { return &net.TCPAddr{} }
