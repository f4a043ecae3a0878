package peerport

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// stranger counts a connection that was refused, and logs its source once in a while.
func (p *Port) stranger(conn net.Conn, why error) {
	p.mu.Lock()
	closed := p.closed
	p.mu.Unlock()
	if closed {
		return
	}
	from := Source(conn)
	silent := errors.Is(why, io.EOF) || errors.Is(why, syscall.ECONNRESET)
	if silent && p.isListed(from) {
		return // a peer that gave up dialling, or has ended
	}
	p.refused.Add(1)
	switch {
	case !p.logged.first(from, time.Now()):
	case silent:
		p.log.Info("somebody connects to the peer port and says nothing: a port scan, or a health check that "+
			"should use another port",
			"from", from, "quiet", strangerQuiet)
	default:
		p.log.Warn("refused a stranger on the peer port",
			"from", from, "why", why, "quiet", strangerQuiet)
	}
}

// Source is the address of the other end, which a TCP connection has that was accepted or dialled, even after its end.
func Source(conn net.Conn) netip.Addr {
	from, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
	return from.Addr().Unmap()
}

// sources remembers which addresses were logged lately.
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
			return false // a scan from many sources: counted, but not logged
		}
	}
	s.last[a] = now
	return true
}
