package bfd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Ports of BFD over one hop (RFC 5881, section 4) and over several (RFC 5883, section 5).
const (
	portSingleHop = 3784
	portMultihop  = 4784
)

// ttl is that of every packet; over one hop it must arrive with it (RFC 5881, section 5).
const ttl = 255

// classControl is the traffic class CS6 of network control (RFC 2474; RFC 4594, section 3.1), so that a full link does
// not look like a dead one.
const classControl = 0xc0

// A Router is a router that is watched.
type Router struct {
	Addr netip.Addr
	// Interval is the least time between two packets, in both directions, and Multiplier how many may be missing.
	Interval   time.Duration
	Multiplier uint8
	Multihop   bool
}

// Config is what a Watcher depends on.
type Config struct {
	Peers []Router
	// OnDown is told of a router that was up and is not any more. It must return soon.
	OnDown func(router netip.Addr, reason string)
	Log    *slog.Logger
}

// A Watcher watches routers. New makes one.
type Watcher struct {
	cfg      Config
	sessions []*session
}

// New makes a Watcher, which changes nothing before Run.
func New(cfg Config) *Watcher {
	w := &Watcher{cfg: cfg}
	for i, p := range cfg.Peers {
		w.sessions = append(w.sessions, &session{
			Router: p, cfg: cfg, received: make(chan packet, 16), since: time.Now(),
			machine: newMachine(p.Interval, p.Multiplier, rand.Uint32()&^0xff|uint32(i+1)),
		})
	}
	return w
}

// Run watches until ctx ends. Then it says that this side is down on purpose.
func (w *Watcher) Run(ctx context.Context) error {
	conns, err := w.listen(ctx)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, c := range conns {
		g.Go(func() error { return w.receive(ctx, c) })
	}
	for _, s := range w.sessions {
		g.Go(func() error { return s.run(ctx) })
	}
	g.Go(func() error {
		<-ctx.Done()
		for _, c := range conns {
			c.Close()
		}
		return nil
	})
	return g.Wait()
}

// Check says whether the ports can be had, and changes nothing.
func (w *Watcher) Check(ctx context.Context) error {
	conns, err := w.listen(ctx)
	for _, c := range conns {
		c.Close()
	}
	return err
}

// A receiver is the socket of one port and family.
type receiver struct {
	net.PacketConn
	v4       *ipv4.PacketConn // of the one family that it is for
	v6       *ipv6.PacketConn
	multihop bool
}

func (w *Watcher) listen(ctx context.Context) (conns []receiver, err error) {
	for _, multihop := range []bool{false, true} {
		for _, is4 := range []bool{true, false} {
			some := false
			for _, s := range w.sessions {
				some = some || s.Multihop == multihop && s.Addr.Is4() == is4
			}
			if !some {
				continue
			}
			c, err := listenOne(ctx, multihop, is4)
			if err != nil {
				for _, c := range conns {
					c.Close()
				}
				return nil, err
			}
			conns = append(conns, c)
		}
	}
	return conns, nil
}

func listenOne(ctx context.Context, multihop, is4 bool) (receiver, error) {
	network, any, port := "udp6", netip.IPv6Unspecified(), portSingleHop
	if is4 {
		network, any = "udp4", netip.IPv4Unspecified()
	}
	if multihop {
		port = portMultihop
	}
	var lc net.ListenConfig
	c, err := lc.ListenPacket(ctx, network, net.JoinHostPort(any.String(), strconv.Itoa(port)))
	if errors.Is(err, unix.EADDRINUSE) {
		return receiver{}, fmt.Errorf("bfd: UDP port %d is taken by another program of this host, a routing daemon mostly; "+
			"remove bfd here, or have that daemon announce (by: routes)", port)
	}
	if err != nil {
		return receiver{}, fmt.Errorf("bfd: %w", err)
	}
	r := receiver{PacketConn: c, multihop: multihop}
	if is4 {
		r.v4 = ipv4.NewPacketConn(c)
		err = r.v4.SetControlMessage(ipv4.FlagTTL, true)
	} else {
		r.v6 = ipv6.NewPacketConn(c)
		err = r.v6.SetControlMessage(ipv6.FlagHopLimit, true)
	}
	if err != nil {
		c.Close()
		return receiver{}, fmt.Errorf("bfd: %w", err)
	}
	return r, nil
}

// read reads one packet, and how many hops it had left.
func (r receiver) read(b []byte) (n, hops int, from netip.Addr, err error) {
	var src net.Addr
	if r.v4 != nil {
		var cm *ipv4.ControlMessage
		if n, cm, src, err = r.v4.ReadFrom(b); cm != nil {
			hops = cm.TTL
		}
	} else {
		var cm *ipv6.ControlMessage
		if n, cm, src, err = r.v6.ReadFrom(b); cm != nil {
			hops = cm.HopLimit
		}
	}
	if udp, ok := src.(*net.UDPAddr); ok {
		from = udp.AddrPort().Addr().Unmap().WithZone("")
	}
	return n, hops, from, err
}

// receive hands packets to their sessions.
func (w *Watcher) receive(ctx context.Context, r receiver) error {
	b := make([]byte, 1500)
	for {
		n, hops, from, err := r.read(b)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("bfd: receive: %w", err)
		}
		if !r.multihop && hops != ttl {
			continue // it comes from another link
		}
		p, err := decode(b[:n])
		if err != nil {
			continue
		}
		for _, s := range w.sessions {
			// A discriminator alone is no proof: it can be guessed.
			if s.Addr != from || s.Multihop != r.multihop || p.yours != 0 && p.yours != s.machine.local {
				continue
			}
			select {
			case s.received <- p:
			default: // the session is behind, and the next packet says the same
			}
		}
	}
}

// A session watches one router.
type session struct {
	Router
	cfg      Config
	received chan packet

	mu      sync.Mutex // guards what Status reads: it is written by run alone
	machine *machine
	since   time.Time // of the state
	lost    uint64    // how often it was up and is not any more
}

// run keeps the session until ctx ends.
func (s *session) run(ctx context.Context) error {
	var conn net.Conn
	defer func() {
		if conn != nil {
			s.farewell(conn)
			conn.Close()
		}
	}()
	send := time.NewTimer(0)
	defer send.Stop()
	expiry := time.NewTimer(time.Hour)
	defer expiry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case p := <-s.received:
			every, state := s.machine.every(), s.machine.state
			lost := s.change(func(m *machine) string { return m.receive(p, time.Now()) })
			if p.poll {
				s.send(&conn, true)
			}
			s.report(lost)
			// Section 6.8.7: a change of state is said at once. FRR's bfdd wants a packet a second until it is up itself,
			// and reports no loss before that.
			if s.machine.every() != every || s.machine.state != state {
				send.Reset(0)
			}
		case <-expiry.C:
			if lost := s.change(func(m *machine) string { return m.expire(time.Now()) }); lost != "" {
				s.send(&conn, false)
				s.report(lost)
			}
		case <-send.C:
			s.send(&conn, false)
			every := s.machine.every()
			if every == 0 {
				every = slowTx // to look again
			}
			// RFC 5880, section 6.8.7: up to a quarter less, so that senders do not fall into step.
			send.Reset(time.Duration(float64(every) * (0.75 + 0.24*rand.Float64())))
		}
		if d := s.machine.deadline(); d.IsZero() {
			expiry.Reset(time.Hour)
		} else {
			expiry.Reset(time.Until(d))
		}
	}
}

// change changes the machine, and notes a change of its state.
func (s *session) change(f func(*machine) string) (lost string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.machine.state
	lost = f(s.machine)
	if s.machine.state != was {
		s.since = time.Now()
		if s.machine.state == Up {
			s.cfg.Log.Info("BFD session is up", "router", s.Addr, "detection", s.machine.detection())
		}
	}
	if lost != "" {
		s.lost++
	}
	return lost
}

func (s *session) report(lost string) {
	if lost != "" {
		s.cfg.Log.Warn("BFD session is down", "router", s.Addr, "reason", lost)
		s.cfg.OnDown(s.Addr, lost)
	}
}

// send sends a packet; without a socket it opens one. An error is silence, which the other side notices.
func (s *session) send(conn *net.Conn, final bool) {
	if s.machine.every() == 0 && !final {
		return
	}
	if *conn == nil {
		c, err := s.dial()
		if err != nil {
			s.cfg.Log.Debug("BFD cannot send", "router", s.Addr, "error", err)
			return
		}
		*conn = c
	}
	if _, err := (*conn).Write(s.machine.packet(final).encode()); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
		(*conn).Close()
		*conn = nil // its source address may be gone
	}
}

// farewell says that the end is on purpose.
func (s *session) farewell(conn net.Conn) {
	p := s.machine.packet(false)
	p.state, p.diag, p.poll = AdminDown, diagAdminDown, false
	for range s.Multiplier { // some may be lost
		_, _ = conn.Write(p.encode())
	}
}

// dial opens a socket with a source port of RFC 5881, section 4.
func (s *session) dial() (conn net.Conn, err error) {
	port := portSingleHop
	if s.Multihop {
		port = portMultihop
	}
	for range 20 {
		local := &net.UDPAddr{Port: 49152 + rand.IntN(65536-49152)}
		conn, err = net.DialUDP("udp", local, net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.Addr, uint16(port))))
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	if s.Addr.Is4() {
		c := ipv4.NewConn(conn)
		err = errors.Join(c.SetTTL(ttl), c.SetTOS(classControl))
	} else {
		c := ipv6.NewConn(conn)
		err = errors.Join(c.SetHopLimit(ttl), c.SetTrafficClass(classControl))
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// A WatchStatus is what is known of one router.
type WatchStatus struct {
	Addr  netip.Addr
	State Liveness
	Since time.Time
	// Detection is how long the router may be silent; zero before it was heard.
	Detection time.Duration
	Lost      uint64
}

// Status lists the routers in the order of the configuration.
func (w *Watcher) Status() (list []WatchStatus) {
	for _, s := range w.sessions {
		s.mu.Lock()
		list = append(list, WatchStatus{s.Addr, s.machine.state, s.since, s.machine.detection(), s.lost})
		s.mu.Unlock()
	}
	return list
}
