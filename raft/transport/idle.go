package transport

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"appliance/raft/peerport"

	"golang.org/x/sys/unix"
)

// idleConns are connections for raft's RPCs that are opened before they are needed, at most one to each peer.
// Followers do not talk to each other until one asks for a vote, and until it has the votes nobody answers
// for the address. A TLS handshake between two busy hosts would take most of that time.
type idleConns struct {
	mu     sync.Mutex
	conns  map[netip.AddrPort]net.Conn
	closed bool
}

// take removes and returns the idle connection to addr; nil if there is none that lives.
func (s *idleConns) take(addr netip.AddrPort) net.Conn {
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

// has says whether there is a living idle connection to addr.
func (s *idleConns) has(addr netip.AddrPort) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	conn := s.conns[addr]
	return conn != nil && !hasEnded(conn)
}

// put keeps conn and closes the one that was there.
func (s *idleConns) put(addr netip.AddrPort, conn net.Conn) {
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
func (s *idleConns) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, conn := range s.conns {
		conn.Close()
	}
	clear(s.conns)
}

// hasEnded says that the other end has closed or reset a connection from which nothing has been read: data
// that it sent before, such as TLS tickets, may still be unread.
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

// Warm opens the idle connection to addr if there is none.
func (s *Stream) Warm(ctx context.Context, addr netip.AddrPort) {
	if s.IsWarm(addr) {
		return
	}
	if conn, err := s.port.Open(ctx, addr, "", peerport.PreambleRaft); err == nil {
		s.idle.put(addr, conn)
	}
}

// IsWarm says whether there is a living idle connection to addr.
func (s *Stream) IsWarm(addr netip.AddrPort) bool { return s.idle.has(addr) }

// Cool closes the idle connection to addr.
func (s *Stream) Cool(addr netip.AddrPort) {
	if conn := s.idle.take(addr); conn != nil {
		conn.Close()
	}
}
