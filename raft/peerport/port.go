package peerport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"appliance/raft/auth"
)

// The preamble is the first byte on a connection, after the TLS handshake if there is one. It says what the
// connection is for.
const (
	PreambleRaft    = 'R' // hashicorp/raft's RPCs
	PreambleWatch   = 'W' // silent; its end means something: package deathwatch
	PreambleControl = 'C' // questions and answers in lines
)

// recordHandshake is the first byte of a TLS connection: RFC 8446, section 5.1.
const recordHandshake = 22

const (
	// maxConns bounds the connections of peers and workers, so that a faulty peer (or, in insecure mode,
	// anybody) cannot use up the process's files. It is enough for a thousand workers on the last peer that
	// is left.
	maxConns = 2048
	// maxWorkerConns bounds those of workers, so that whoever has a worker's key keeps no peer out, and
	// maxConnsOfWorker those of one worker, which needs two.
	maxWorkerConns   = maxConns * 3 / 4
	maxConnsOfWorker = 16
	// strangerQuiet is the time in which one source is logged only once.
	strangerQuiet = 10 * time.Minute
	// maxSources bounds the memory of what was logged.
	maxSources = 256
)

// A DialFunc opens a connection to a peer port.
type DialFunc func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)

// A Network carries the connections of peer ports. The zero value is TCP with keep-alive.
type Network struct {
	Dial   DialFunc
	Listen func(bind netip.AddrPort) (net.Listener, error)
}

// keepAlive finds a vanished host on a silent connection within seconds, so that a connection to a host that
// rebooted is replaced.
func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 2 * time.Second, Interval: time.Second, Count: 3}
}

// Quiet makes keep-alive rare on a connection with questions every few seconds that may take long: who asks has a
// deadline, and who answers closes what is silent. The usual one would be more packets than the questions are.
func Quiet(c net.Conn) {
	for {
		switch t := c.(type) {
		case interface {
			SetKeepAliveConfig(net.KeepAliveConfig) error
		}:
			_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: controlIdle, Interval: 10 * time.Second, Count: 3})
			return
		case interface{ NetConn() net.Conn }:
			c = t.NetConn()
		default:
			return
		}
	}
}

func listenTCP(bind netip.AddrPort) (net.Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: keepAlive()}
	return lc.Listen(context.Background(), "tcp", bind.String())
}

func dialTCP(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: keepAlive()}
	return d.DialContext(ctx, "tcp", addr.String())
}

// Port is the one TCP port of a peer; it also dials the ports of others.
type Port struct {
	// cred is nil if insecure. A rotation of keys replaces it.
	cred atomic.Pointer[auth.Credentials]
	dial DialFunc
	log  *slog.Logger
	l    net.Listener // nil: nobody listens in a group of one

	listed  atomic.Pointer[map[netip.Addr]bool]
	refused atomic.Uint64
	logged  sources

	low filler

	mu     sync.Mutex
	conns  map[net.Conn]seat
	closed bool
}

// Listen opens the peer port at bind. Without a valid bind it listens to nobody and only dials others.
func Listen(bind netip.AddrPort, cred *auth.Credentials, over Network, log *slog.Logger) (*Port, error) {
	if over.Dial == nil {
		over.Dial = dialTCP
	}
	if over.Listen == nil {
		over.Listen = listenTCP
	}
	p := &Port{dial: over.Dial, log: log, conns: make(map[net.Conn]seat)}
	p.cred.Store(cred)
	p.Expect(nil)
	if !bind.IsValid() {
		return p, nil
	}
	p.low.fill()
	defer p.low.empty() // packet sockets may come
	l, err := over.Listen(bind)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("peer port %s is in use by another process; stop it or choose another port on "+
			"every peer: %w", bind, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("this host has no address %s; correct the address of this peer: %w", bind.Addr(), err)
	case err != nil:
		return nil, fmt.Errorf("peer port %s: %w", bind, err)
	}
	p.l = l
	return p, nil
}

// Expect says at which addresses peers are.
func (p *Port) Expect(peers []netip.AddrPort) {
	listed := make(map[netip.Addr]bool)
	for _, at := range peers {
		listed[at.Addr().Unmap()] = true
	}
	p.listed.Store(&listed)
}

func (p *Port) isListed(a netip.Addr) bool { return (*p.listed.Load())[a] }

// SetCredentials puts other credentials into force for connections that begin from now on.
func (p *Port) SetCredentials(cred *auth.Credentials) { p.cred.Store(cred) }

// Insecure says that connections are neither encrypted nor authenticated.
func (p *Port) Insecure() bool { return p.cred.Load() == nil }

// Refused is how many connections were refused so far.
func (p *Port) Refused() uint64 { return p.refused.Load() }

// Serve accepts until the port is closed. It returns when every handler has.
func (p *Port) Serve(handlers map[byte]func(net.Conn, auth.Identity)) error {
	if p.l == nil {
		return nil
	}
	p.low.fill()
	defer p.low.empty()
	var wg sync.WaitGroup
	p.accept(&wg, handlers)
	wg.Wait()
	return nil
}

// accept hands connections over to handlers, in goroutines of wg, until the port is closed.
func (p *Port) accept(wg *sync.WaitGroup, handlers map[byte]func(net.Conn, auth.Identity)) {
	var ours, theirs arrivals
	for {
		conn, err := p.l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// The process is out of files, or a connection died in the backlog: neither is a reason to leave
			// the group.
			p.log.Warn("peer port cannot accept", "error", err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		conn = p.low.lift(conn)
		arriving := &theirs
		if p.isListed(Source(conn)) {
			arriving = &ours
		}
		out, ok := arriving.enter(conn, time.Now())
		if out != nil {
			out.Close()
		}
		if !ok {
			p.stranger(conn, errCrowded)
			conn.Close()
			continue
		}
		if !p.track(conn) {
			arriving.leave(conn)
			p.stranger(conn, errors.New("too many connections"))
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer p.untrack(conn)
			c, kind, who, err := p.greet(conn)
			if !arriving.leave(conn) {
				err = errCrowded
			}
			if err == nil {
				err = p.seat(conn, who)
			}
			if err != nil {
				p.stranger(conn, err)
				return
			}
			if handle := handlers[kind]; handle != nil {
				handle(c, who)
				return
			}
			p.stranger(conn, fmt.Errorf("unknown preamble %q", kind))
		})
	}
}

// greet finds out who is there and what for, within HandshakeTimeout.
func (p *Port) greet(raw net.Conn) (net.Conn, byte, auth.Identity, error) {
	conn, who := raw, auth.Identity{Role: auth.Peer}
	raw.SetDeadline(time.Now().Add(HandshakeTimeout))
	cred := p.cred.Load()
	if cred != nil {
		t := tls.Server(raw, cred.TLS())
		if err := t.Handshake(); err != nil {
			return nil, 0, who, cred.Explain(err)
		}
		var err error
		if who, err = cred.Verify(t.ConnectionState()); err != nil {
			return nil, 0, who, cred.Explain(err)
		}
		conn = t
	}
	var preamble [1]byte
	if _, err := conn.Read(preamble[:]); err != nil {
		return nil, 0, who, cred.Explain(err)
	}
	if cred == nil && preamble[0] == recordHandshake {
		return nil, 0, who, auth.Foreign("it speaks TLS, and group.insecure is true here; make it the same everywhere")
	}
	if who.Role != auth.Peer && preamble[0] != PreambleControl {
		return nil, 0, who, fmt.Errorf("%s may not open a connection of kind %q", who.Role, preamble[0])
	}
	raw.SetDeadline(time.Time{})
	return conn, preamble[0], who, nil
}

// Open dials a peer for a connection of a kind, which is a preamble. Id, if known, is who has to be there.
func (p *Port) Open(ctx context.Context, addr netip.AddrPort, id string, kind byte) (net.Conn, error) {
	raw, err := p.dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	conn, err := p.introduce(raw, id, kind)
	if !stop() && err == nil {
		err = ctx.Err() // too late: the deadline is on the connection
	}
	if err != nil {
		raw.Close()
		p.tellForeign(addr.Addr().Unmap(), err)
		return nil, err
	}
	return conn, nil
}

// tellForeign logs, once in a while, that what listens at an address is not of this group.
func (p *Port) tellForeign(at netip.Addr, err error) {
	var why auth.Foreign
	if errors.As(err, &why) && p.logged.first(at, time.Now()) {
		p.log.Warn("what answers at a peer's address is not of this group", "address", at, "why", why, "quiet",
			strangerQuiet)
	}
}

// explain is Credentials.Explain with the credentials in force.
func (p *Port) explain(err error) error {
	if cred := p.cred.Load(); cred != nil {
		return cred.Explain(err)
	}
	return err
}

func (p *Port) introduce(raw net.Conn, id string, kind byte) (net.Conn, error) {
	conn := raw
	if cred := p.cred.Load(); cred != nil {
		t := tls.Client(raw, cred.TLS())
		if err := t.Handshake(); err != nil {
			return nil, cred.Explain(err)
		}
		who, err := cred.Verify(t.ConnectionState())
		if err != nil {
			return nil, cred.Explain(err)
		}
		if who.Role != auth.Peer || (id != "" && who.ID != id) {
			return nil, fmt.Errorf("%s is %s %q, not peer %q; correct the list of peers", raw.RemoteAddr(),
				who.Role, who.ID, id)
		}
		conn = t
	}
	if _, err := conn.Write([]byte{kind}); err != nil {
		return nil, err
	}
	return conn, nil
}

func (p *Port) track(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.conns) >= maxConns {
		return false
	}
	p.conns[c] = seat{}
	return true
}

// seat refuses a worker that has too many connections, or that is one of too many.
func (p *Port) seat(c net.Conn, who auth.Identity) error {
	if who.Role == auth.Peer {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	all, own := 0, 0
	for _, s := range p.conns {
		if s.worker != "" {
			all++
		}
		if s.worker == who.ID {
			own++
		}
	}
	if all >= maxWorkerConns || own >= maxConnsOfWorker {
		return fmt.Errorf("worker %s has %d connections of %d, all workers %d of %d", who.ID, own, maxConnsOfWorker, all,
			maxWorkerConns)
	}
	p.conns[c] = seat{who.ID, time.Now()}
	return nil
}

// A seat is what a connection is taken for.
type seat struct {
	worker string // its id, "" for others
	since  time.Time
}

// A Worker is a worker with connections to this peer.
type Worker struct {
	ID string
	// Addr is where it is, as this peer sees it.
	Addr netip.Addr
	// Since is when the oldest of its connections was opened.
	Since time.Time
}

// Workers are those that are connected, ordered by id.
func (p *Port) Workers() []Worker {
	by := make(map[string]Worker)
	p.mu.Lock()
	for c, s := range p.conns {
		if s.worker == "" {
			continue
		}
		if w, known := by[s.worker]; !known || s.since.Before(w.Since) {
			by[s.worker] = Worker{s.worker, Source(c), s.since}
		}
	}
	p.mu.Unlock()
	return slices.SortedFunc(maps.Values(by), func(a, b Worker) int { return strings.Compare(a.ID, b.ID) })
}

func (p *Port) untrack(c net.Conn) {
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
	c.Close()
}

// Close ends the port and every connection that was accepted on it.
func (p *Port) Close() {
	p.mu.Lock()
	p.closed = true
	for c := range p.conns {
		c.Close()
	}
	p.mu.Unlock()
	if p.l != nil {
		p.l.Close()
	}
}
