package peerport

import (
	"cmp"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// HandshakeTimeout bounds a connection that has not yet said who it is.
	HandshakeTimeout = 2 * time.Second
	// MaxHandshakes bounds how many of those there are at once: as many from the addresses of listed peers as
	// from everywhere else, so that a flood from elsewhere does not keep peers out.
	MaxHandshakes = 32
	// slowHandshake is how long a connection may take to say who it is while others wait for its place. Some 300 a
	// second at most get as far as the costly part of a handshake, whoever sends them.
	slowHandshake = 100 * time.Millisecond
)

var errCrowded = errors.New("too many connections that have not said who they are")

// arrivals are connections that have not said who they are, the oldest first. Whoever has many of them gives way to
// whoever has few: strangers that stay silent keep out neither workers nor joiners, which have no address that is known.
type arrivals struct {
	mu  sync.Mutex
	all []arrival
}

type arrival struct {
	conn  net.Conn
	from  netip.Addr
	since time.Time
}

// enter says whether there is a place for conn, and which connection has to go for that, if any.
func (a *arrivals) enter(conn net.Conn, now time.Time) (out net.Conn, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	from := Source(conn)
	if len(a.all) >= MaxHandshakes {
		count := make(map[netip.Addr]int)
		for _, w := range a.all {
			count[w.from]++
		}
		// MaxFunc returns the first of several, which is the oldest.
		worst := slices.MaxFunc(a.all, func(v, w arrival) int { return cmp.Compare(count[v.from], count[w.from]) })
		if count[worst.from] <= count[from]+1 && now.Sub(worst.since) < slowHandshake {
			return nil, false
		}
		out = worst.conn
		a.remove(out)
	}
	a.all = append(a.all, arrival{conn, from, now})
	return out, true
}

// leave is false if conn had to go before.
func (a *arrivals) leave(conn net.Conn) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.remove(conn)
}

func (a *arrivals) remove(conn net.Conn) bool {
	n := len(a.all)
	a.all = slices.DeleteFunc(a.all, func(w arrival) bool { return w.conn == conn })
	return len(a.all) < n
}
