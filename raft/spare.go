package raft

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// spares are connections for raft's RPCs that are open before they are needed,
// one to each peer at most. Followers do not talk to each other until one of them
// asks for a vote, and until it has that, nobody answers for the address: a TLS handshake
// between two busy hosts would be the longest part of it.
type spares struct {
	mu     sync.Mutex
	conns  map[netip.AddrPort]net.Conn
	closed bool
}

// take gives the spare connection to addr away; nil if there is none that lives.
func (s *spares) take(addr netip.AddrPort) net.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	conn := s.conns[addr]
	delete(s.conns, addr)
	if conn != nil && hasEnded(conn) {
		conn.Close()
		return nil
	}
	return conn
}

// has says whether there is a living spare connection to addr.
func (s *spares) has(addr netip.AddrPort) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	conn := s.conns[addr]
	return conn != nil && !hasEnded(conn)
}

// put keeps conn, in place of what was there.
func (s *spares) put(addr netip.AddrPort, conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		conn.Close()
		return
	}
	if old := s.conns[addr]; old != nil {
		old.Close()
	}
	if s.conns == nil {
		s.conns = make(map[netip.AddrPort]net.Conn)
	}
	s.conns[addr] = conn
}

// close closes all of them, and those that are put later.
func (s *spares) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, conn := range s.conns {
		conn.Close()
	}
	clear(s.conns)
}

// hasEnded says that the other end has closed or reset a connection on which
// nothing has been read: what it sent before, as the tickets of TLS, may still be there.
func hasEnded(conn net.Conn) bool {
	for {
		below, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = below.NetConn()
	}
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	ended := true
	err = raw.Control(func(fd uintptr) {
		ask := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(ask, 0)
		ended = err == nil && n > 0
	})
	return err != nil || ended
}

// warm opens the spare connection to addr if there is none.
func (s *stream) warm(ctx context.Context, addr netip.AddrPort) {
	if s.spares.has(addr) {
		return
	}
	if conn, err := s.p.open(ctx, addr, "", preambleRaft); err == nil {
		s.spares.put(addr, conn)
	}
}

// cool closes the spare connection to addr.
func (s *stream) cool(addr netip.AddrPort) {
	if conn := s.spares.take(addr); conn != nil {
		conn.Close()
	}
}
