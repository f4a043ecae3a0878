package direct

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// viewOf is a service as seen by the node whose backend has that address, and which
// knows the given members.
func viewOf(self netip.AddrPort, known []member, inRotation func(netip.AddrPort) bool) service {
	s := service{position: self, hops: make(map[netip.AddrPort]hop)}
	for _, m := range known {
		s.hops[m.addr] = hop{addr: m.addr, self: m.addr == self}
	}
	s.slots = prefer(known).table(inRotation, everyone)
	return s
}

// round is the way of a packet that belongs to no connection, from its first node on.
func round(views map[netip.AddrPort]service, slot int, first netip.AddrPort) []netip.AddrPort {
	way := []netip.AddrPort{first}
	for n := 0; ; n++ {
		v := views[way[n]]
		h, ok := v.next(v.slots.at(slot), n)
		if !ok {
			return way
		}
		way = append(way, h.addr)
	}
}

// While nodes have read different files, every backend that is in all of them is asked
// for its connections, wherever a packet begins, if only one backend is not in all
// files. And every round ends.
func TestRingAsksBackendsThatAllKnow(t *testing.T) {
	for n := 2; n <= 10; n++ {
		for range 20 {
			members := testMembers(n)
			missing := rand.IntN(n)
			common := slices.Delete(slices.Clone(members), missing, missing+1)
			views := make(map[netip.AddrPort]service)
			for _, m := range members {
				known := common
				if rand.IntN(2) == 0 {
					known = members
				}
				away := members[rand.IntN(n)].addr
				views[m.addr] = viewOf(m.addr, known, except(away))
			}
			for range 50 {
				slot, first := rand.IntN(slotsFew), members[rand.IntN(n)].addr
				way := round(views, slot, first)
				for _, m := range common {
					if !slices.Contains(way, m.addr) {
						t.Fatalf("%d backends, of which not all nodes know %v: slot %d, from %v on: %v asks not %v",
							n, members[missing].addr, slot, first, way, m.addr)
					}
				}
				if len(way) > n+3 {
					t.Fatalf("%d backends: a round of %d", n, len(way))
				}
			}
		}
	}
}

// If all nodes agree, the backend that served the slot while its owner was away is
// asked first, the owner last, and no backend is left out that the count can reach.
func TestRingWhileAllAgree(t *testing.T) {
	for _, n := range []int{1, 2, 3, 5, 13, 14, 15, 40} {
		members := testMembers(n)
		views := make(map[netip.AddrPort]service)
		for _, m := range members {
			views[m.addr] = viewOf(m.addr, members, everyone)
		}
		for i, s := range slotsOf(views[members[0].addr].slots) {
			if i%17 > 0 {
				continue
			}
			way := round(views, i, s.owner)
			if n > 1 && way[1] != s.ring[1] {
				t.Fatalf("%d backends: slot %d of %v: %v, want %v first", n, i, s.owner, way, s.ring[1])
			}
			if last := way[len(way)-1]; last != s.owner {
				t.Fatalf("%d backends: slot %d of %v ends at %v", n, i, s.owner, last)
			}
			if len(way) > maxHandOns+1 {
				t.Fatalf("%d backends: a round of %d", n, len(way))
			}
			slices.SortFunc(way, netip.AddrPort.Compare)
			if got := len(slices.Compact(way)); got < min(n, maxHandOns) {
				t.Fatalf("%d backends: slot %d: %d are asked", n, i, got)
			}
		}
	}
}

// Open connections survive while a file with one more backend reaches one node after
// the other, whichever node is the holder, and while the file is reverted.
func TestDirectWhileFilesDiffer(t *testing.T) {
	l := newLabOf(t, kind{}, 4)
	l.usable()
	read := func(node int, backends ...int) {
		t.Helper()
		l.nodes[node].do(func() error { return l.planes[node].Usable(t.Context(), l.loadBalancerOf(backends...)) })
		l.applyAt(node, backends, nil)
	}
	for node := range l.nodes {
		read(node, 0, 1, 2)
	}
	s := l.open(60)
	for _, backends := range [][]int{{0, 1, 2, 3}, {0, 1, 2}} {
		for node := range l.nodes {
			read(node, backends...)
			for holder := range l.nodes {
				l.hold(holder)
				s.flow(t)
			}
		}
	}
	s.end(t)
}
