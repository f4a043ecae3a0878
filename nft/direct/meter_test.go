package direct

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

// Packets that belong to no connection make less than twice as many on the link, if one
// client sends them. If their addresses are many, only a fixed number of them goes round.
func TestStraysAreMetered(t *testing.T) {
	l := newLab(t)
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	const each, clients = 20, 500
	for family, f := range frontends {
		for _, from := range []int{1, clients} {
			before, begin := l.settled(), time.Now()
			for i := range from {
				n := each
				client := l.client.addrs[family]
				if from == 1 {
					n *= clients
				} else {
					b := client.AsSlice()
					binary.BigEndian.PutUint16(b[len(b)-4:], 0x4e00+uint16(i))
					client, _ = netip.AddrFromSlice(b)
				}
				l.strays(f, client, 20000, n)
			}
			// The holder forwards two thirds once, and some go round.
			sent := uint64(each * clients)
			most := sent
			if from > 1 {
				goRound := rounds*time.Since(begin).Seconds() + roundsBurst
				most += uint64(7 * goRound * float64(len(l.nodes)))
			}
			if n := l.settled() - before; n < sent/3 || n > most {
				t.Errorf("%d strays to %v from %d addresses made %d packets more, want at most %d, and not none",
					sent, f, from, n, most)
			}
		}
	}
}

// When a backend comes back, packets of the connections that were opened while it was
// away go round: more connections of one client at once than strays of it would be let
// pass, and more packets of each. All stay whole, and are soon not held up by the meter.
func TestDirectMeterLetsConnectionsPass(t *testing.T) {
	l := newLab(t)
	l.usable()
	l.apply([]int{1, 2}, nil)
	s := l.open(120)
	s.flow(t)
	l.apply([]int{0, 1, 2}, nil)
	for range 3 {
		s.flow(t)
	}
	s.end(t)
}
