package raft

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// The preamble is the first byte on a connection, after the TLS handshake
// where there is one. It says what the connection is for.
const (
	preambleRaft    = 'R' // hashicorp/raft's RPCs
	preambleWatch   = 'W' // silent, its end means something: watch.go
	preambleControl = 'C' // questions and answers: control.go
)

// recordHandshake is the first byte of a TLS connection: RFC 8446, section 5.1.
const recordHandshake = 22

const (
	// handshakeTimeout bounds a connection that has not yet said who it is.
	handshakeTimeout = 2 * time.Second
	// maxHandshakes bounds how many of those there are at once: so many from
	// the addresses of listed peers, and so many from anywhere else, so that a
	// flood from elsewhere does not keep peers out. What is too much is closed at once.
	maxHandshakes = 32
	// maxConns bounds the connections of peers and workers, so that a peer gone
	// mad (or, in insecure mode, anybody) cannot use up the process's files. It
	// is enough for a thousand workers on the last peer that is left.
	maxConns = 2048
	// strangerQuiet is for how long one source is logged once.
	strangerQuiet = 10 * time.Minute
	// maxSources bounds the memory of who was logged.
	maxSources = 256
)

// port is the one TCP port of a peer, and the way to the ports of others.
type port struct {
	// cred is nil if insecure. It is another after a rotation of keys.
	cred atomic.Pointer[credentials]
	dial func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)
	log  *slog.Logger
	l    net.Listener // nil: a group of one listens to nobody

	listed  atomic.Pointer[map[netip.Addr]bool]
	refused atomic.Uint64
	logged  sources

	low filler

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
}

func listen(bind netip.AddrPort, cred *credentials, cfg *Config) (*port, error) {
	p := &port{dial: cfg.dial, log: cfg.Log, conns: make(map[net.Conn]struct{})}
	p.cred.Store(cred)
	p.list(cfg.Peers, cfg.Join)
	if !bind.IsValid() {
		return p, nil
	}
	lc := net.ListenConfig{KeepAliveConfig: keepAlive()}
	p.low.fill()
	defer p.low.empty() // packet sockets are to come
	l, err := lc.Listen(context.Background(), "tcp", bind.String())
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("peer port %s is in use by another process; stop it or choose another port on every peer: %w", bind, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("this host has no address %s; correct the address of this peer: %w", bind.Addr(), err)
	case err != nil:
		return nil, fmt.Errorf("peer port %s: %w", bind, err)
	}
	p.l = l
	return p, nil
}

// list says from where peers are expected to come.
func (p *port) list(peers []Peer, join []netip.AddrPort) {
	listed := make(map[netip.Addr]bool)
	for _, peer := range append(joined(join), peers...) {
		listed[peer.Addr.Addr().Unmap()] = true
	}
	p.listed.Store(&listed)
}

func (p *port) isListed(a netip.Addr) bool { return (*p.listed.Load())[a] }

// joined are the peers at the addresses to join, as far as they are known.
func joined(at []netip.AddrPort) []Peer {
	var peers []Peer
	for _, addr := range at {
		peers = append(peers, Peer{ID: addr.String(), Addr: addr})
	}
	return peers
}

// serve accepts until the port is closed. It returns when every handler has.
func (p *port) serve(handlers map[byte]func(net.Conn, identity)) error {
	if p.l == nil {
		return nil
	}
	p.low.fill()
	defer p.low.empty()
	var wg sync.WaitGroup
	defer wg.Wait()
	ours, theirs := make(chan struct{}, maxHandshakes), make(chan struct{}, maxHandshakes)
	for {
		conn, err := p.l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			// Out of files, or a connection that died in the backlog: neither
			// is a reason to leave the group.
			p.log.Warn("peer port cannot accept", "error", err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		conn = p.low.lift(conn)
		slots := theirs
		if p.isListed(source(conn)) {
			slots = ours
		}
		select {
		case slots <- struct{}{}:
		default:
			p.stranger(conn, errors.New("too many connections that have not said who they are"))
			conn.Close()
			continue
		}
		if !p.track(conn) {
			<-slots
			p.stranger(conn, errors.New("too many connections"))
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer p.untrack(conn)
			c, kind, who, err := p.greet(conn)
			<-slots
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

// greet finds out who is there and what for, within handshakeTimeout.
func (p *port) greet(raw net.Conn) (net.Conn, byte, identity, error) {
	conn, who := raw, identity{role: rolePeer}
	raw.SetDeadline(time.Now().Add(handshakeTimeout))
	cred := p.cred.Load()
	if cred != nil {
		t := tls.Server(raw, cred.config())
		if err := t.Handshake(); err != nil {
			return nil, 0, who, cred.explain(err)
		}
		var err error
		if who, err = cred.verify(t.ConnectionState()); err != nil {
			return nil, 0, who, cred.explain(err)
		}
		conn = t
	}
	var preamble [1]byte
	if _, err := conn.Read(preamble[:]); err != nil {
		return nil, 0, who, cred.explain(err)
	}
	if cred == nil && preamble[0] == recordHandshake {
		return nil, 0, who, foreign("it speaks TLS, and group.insecure is true here; make it the same everywhere")
	}
	if who.role != rolePeer && preamble[0] != preambleControl {
		return nil, 0, who, fmt.Errorf("%s may not open a connection of kind %q", who.role, preamble[0])
	}
	raw.SetDeadline(time.Time{})
	return conn, preamble[0], who, nil
}

// open dials a peer and says what for. id, if known, is who has to be there.
func (p *port) open(ctx context.Context, addr netip.AddrPort, id string, kind byte) (net.Conn, error) {
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

// tellForeign logs once in a while that what listens at an address is not of this group.
func (p *port) tellForeign(at netip.Addr, err error) {
	var why foreign
	if errors.As(err, &why) && p.logged.first(at, time.Now()) {
		p.log.Warn("what answers at a peer's address is not of this group", "address", at, "why", why, "quiet", strangerQuiet)
	}
}

// explain is credentials.explain of those in force.
func (p *port) explain(err error) error {
	if cred := p.cred.Load(); cred != nil {
		return cred.explain(err)
	}
	return err
}

func (p *port) introduce(raw net.Conn, id string, kind byte) (net.Conn, error) {
	conn := raw
	if cred := p.cred.Load(); cred != nil {
		t := tls.Client(raw, cred.config())
		if err := t.Handshake(); err != nil {
			return nil, cred.explain(err)
		}
		who, err := cred.verify(t.ConnectionState())
		if err != nil {
			return nil, cred.explain(err)
		}
		if who.role != rolePeer || (id != "" && who.id != id) {
			return nil, fmt.Errorf("%s is %s %q, not peer %q; correct the list of peers", raw.RemoteAddr(), who.role, who.id, id)
		}
		conn = t
	}
	if _, err := conn.Write([]byte{kind}); err != nil {
		return nil, err
	}
	return conn, nil
}

func (p *port) track(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.conns) >= maxConns {
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *port) untrack(c net.Conn) {
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
	c.Close()
}

// close ends the port and every connection that was accepted on it.
func (p *port) close() {
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

// stranger counts a connection that was refused, and logs its source once in a while.
func (p *port) stranger(conn net.Conn, why error) {
	p.mu.Lock()
	closed := p.closed
	p.mu.Unlock()
	if closed {
		return
	}
	from := source(conn)
	silent := errors.Is(why, io.EOF) || errors.Is(why, syscall.ECONNRESET)
	if silent && p.isListed(from) {
		return // a peer that gave up dialling, or ended meanwhile
	}
	p.refused.Add(1)
	switch {
	case !p.logged.first(from, time.Now()):
	case silent:
		p.log.Info("somebody connects to the peer port and says nothing: a port scan, or a health check that should use another port",
			"from", from, "quiet", strangerQuiet)
	default:
		p.log.Warn("refused a stranger on the peer port",
			"from", from, "why", why, "quiet", strangerQuiet)
	}
}

// source is the address of the other end. Connections are TCP, so it has one.
func source(conn net.Conn) netip.Addr {
	from, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
	return from.Addr().Unmap()
}

// sources remembers who was logged lately.
type sources struct {
	mu   sync.Mutex
	last map[netip.Addr]time.Time
}

func (s *sources) first(a netip.Addr, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, ok := s.last[a]; ok && now.Sub(t) < strangerQuiet {
		return false
	}
	if s.last == nil {
		s.last = make(map[netip.Addr]time.Time)
	}
	if len(s.last) >= maxSources {
		for old, t := range s.last {
			if now.Sub(t) >= strangerQuiet {
				delete(s.last, old)
			}
		}
		if len(s.last) >= maxSources {
			return false // a scan from many sources: counted, no longer told
		}
	}
	s.last[a] = now
	return true
}
