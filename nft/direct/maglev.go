package direct

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"appliance/nft/ruleset"
)

// A member is one server that a Maglev table may choose.
type member struct {
	addr   netip.AddrPort
	weight int
}

// Numbers of slots. Eisenbud et al. (NSDI 2016, section 5.3) want a prime well
// above a hundred slots for each backend, so that shares differ by about 1 %.
const (
	slotsFew  = 1021  // up to 10 members
	slotsSome = 4093  // up to 40
	slotsMany = 16381 // more
)

func slotCount(members int) int {
	switch {
	case members <= 10:
		return slotsFew
	case members <= 40:
		return slotsSome
	}
	return slotsMany
}

// A preference holds, for every slot, all members in the order in which they may own
// it, as indices into members. It depends on the set of members only, neither on
// their order nor on who was alive before. So every node computes the same one, even
// if it has just started.
//
// The first member of each slot is the table of Maglev hashing (Eisenbud et al., NSDI
// 2016, section 3.4). A member that leaves gives up its own slots only, and each goes
// to the next in the slot's order. The paper's own table also moves a few slots of
// members that stay (its section 5.3 counts them).
type preference struct {
	members []member
	// orders are the different ones, and kind says which of them a slot has. Slots of
	// one kind have the same owner whoever is in rotation.
	orders [][]uint16
	kind   []uint16
	// jumps are maps from slot to the chain of its kind, by name. They stay the same
	// as long as the members do.
	jumps map[string]ruleset.Set
}

// prefer makes the preference of a set of members.
func prefer(members []member) preference {
	members = slices.Clone(members)
	slices.SortFunc(members, func(a, b member) int { return a.addr.Compare(b.addr) })
	p := preference{members: members, jumps: make(map[string]ruleset.Set)}
	slots := make([][]uint16, slotCount(len(members)))
	candidates := make([]candidate, 0, len(members))
	for i, m := range members {
		if m.weight > 0 {
			candidates = append(candidates, newCandidate(uint16(i), m))
		}
	}
	all := make([]int, len(slots))
	for i := range all {
		all[i] = i
		slots[i] = make([]uint16, 0, len(members))
	}
	fill(slots, all, candidates, 0, depth(len(candidates)))
	p.kind = make([]uint16, len(slots))
	known := make(map[string]uint16)
	for slot, order := range slots {
		order = p.complete(order, slot)
		name := fmt.Sprint(order)
		kind, ok := known[name]
		if !ok {
			kind = uint16(len(p.orders))
			known[name] = kind
			p.orders = append(p.orders, order)
		}
		p.kind[slot] = kind
	}
	return p
}

// depth is how many places of a slot's order are spread evenly: as many members can
// be away at once before the others' shares become uneven. The work grows with the
// number of members to that power.
func depth(members int) int {
	switch {
	case members <= 5:
		return members
	case members <= 16:
		return 3
	}
	return 2
}

// fill gives each of some slots to one of the candidates by Maglev's algorithm, and
// the next place of each candidate's slots to the other candidates in the same
// way. path tells one such filling from another.
func fill(orders [][]uint16, slots []int, candidates []candidate, path uint64, deep int) {
	if len(slots) == 0 || len(candidates) == 0 || deep == 0 {
		return
	}
	owned := populate(len(slots), candidates, path)
	for c, places := range owned {
		mine := make([]int, len(places))
		for i, place := range places {
			mine[i] = slots[place]
			orders[mine[i]] = append(orders[mine[i]], candidates[c].index)
		}
		others := slices.Delete(slices.Clone(candidates), c, c+1)
		fill(orders, mine, others, mix(path^candidates[c].offset), deep-1)
	}
}

// complete appends the members that a slot's order lacks: those beyond the depth,
// starting with another one for every slot, and those of weight 0, which own nothing
// but may have open connections.
func (p *preference) complete(order []uint16, slot int) []uint16 {
	n := len(p.members)
	for i := range n {
		m := uint16((slot + i) % n)
		if p.members[m].weight > 0 && !slices.Contains(order, m) {
			order = append(order, m)
		}
	}
	for i := range n {
		m := uint16((slot + i) % n)
		if p.members[m].weight <= 0 {
			order = append(order, m)
		}
	}
	return order
}

// A candidate is a member with the two hashes that its permutation of slots is
// made of: h1 and h2 of the paper's section 3.4.
type candidate struct {
	index        uint16
	weight       int
	offset, skip uint64
}

func newCandidate(index uint16, m member) candidate {
	// The text form is the same on every machine. A cryptographic hash costs nothing
	// here, and separates addresses that differ by one.
	h := sha256.Sum256([]byte(m.addr.String()))
	return candidate{
		index:  index,
		weight: m.weight,
		offset: binary.BigEndian.Uint64(h[:]),
		skip:   binary.BigEndian.Uint64(h[8:]),
	}
}

// populate shares places 0 to n-1 out among candidates (section 3.4,
// pseudocode 1). The result holds the places of each candidate.
func populate(n int, candidates []candidate, path uint64) [][]int {
	// Walking in steps visits every place only if their number is prime;
	// places beyond n are skipped.
	prime := uint64(nextPrime(max(n, 2)))
	type turn struct {
		candidate int
		hash      uint64
		at, skip  uint64
		credit    int
	}
	turns := make([]turn, len(candidates))
	heaviest := 0
	for i, c := range candidates {
		offset, skip := mix(c.offset^path), mix(c.skip^path)
		turns[i] = turn{
			candidate: i,
			hash:      offset,
			at:        offset % prime,
			skip:      skip%(prime-1) + 1,
		}
		heaviest = max(heaviest, c.weight)
	}
	// A few places are soon gone, so the first to choose must not always be the same.
	slices.SortFunc(turns, func(a, b turn) int {
		return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.candidate, b.candidate))
	})
	for i := range turns {
		// Half a turn ahead, so that a share is rounded and not truncated.
		turns[i].credit = heaviest / 2
	}
	taken := make([]bool, n)
	owned := make([][]int, len(candidates))
	for left := n; left > 0; {
		for i := range turns {
			t := &turns[i]
			// Weights alter the relative frequency of the turns (section 3.4, last paragraph).
			t.credit += candidates[t.candidate].weight
			if t.credit < heaviest {
				continue
			}
			t.credit -= heaviest
			for t.at >= uint64(n) || taken[t.at] {
				t.at = (t.at + t.skip) % prime
			}
			taken[t.at] = true
			owned[t.candidate] = append(owned[t.candidate], int(t.at))
			if left--; left == 0 {
				break
			}
		}
	}
	return owned
}

// A table is a table in force: the slots of each kind, and the kind of each slot.
type table struct {
	kinds []slot
	kind  []uint16
}

// at is the slot with that number, and len how many there are.
func (t table) at(slot int) slot { return t.kinds[t.kind[slot]] }
func (t table) len() int         { return len(t.kind) }

// A slot is what one slot of a table in force leads to.
type slot struct {
	// owner gets all new connections; it is zero if nobody may.
	owner netip.AddrPort
	// ring are the members that may have open connections, in an order that does not
	// depend on the slot's owner: nodes that know the same members agree on the ring
	// even if they disagree about owners.
	ring []netip.AddrPort
}

// table is the table in which inRotation says who may own slots, and present who else
// may have open connections. A ring has no more members than a packet can ask. That
// is enough in practice: the owner was always the first of the slot's order that was
// in rotation.
func (p preference) table(inRotation, present func(netip.AddrPort) bool) table {
	may := make([]bool, len(p.members))
	has := make([]bool, len(p.members))
	for i, m := range p.members {
		may[i] = m.weight > 0 && inRotation(m.addr)
		has[i] = may[i] || present(m.addr)
	}
	t := table{make([]slot, len(p.orders)), p.kind}
	for i, order := range p.orders {
		s := &t.kinds[i]
		if first := slices.IndexFunc(order, func(m uint16) bool { return may[m] }); first >= 0 {
			s.owner = p.members[order[first]].addr
		}
		for _, m := range order {
			if has[m] && len(s.ring) < maxHandOns {
				s.ring = append(s.ring, p.members[m].addr)
			}
		}
	}
	return t
}

// after is the member that follows self in the ring, or its first if self is
// not in it. It returns false if there is nobody but self.
func (s slot) after(self netip.AddrPort) (netip.AddrPort, bool) {
	if len(s.ring) == 0 {
		return netip.AddrPort{}, false
	}
	// IndexFunc's -1 for absence leads to the first.
	next := s.ring[(slices.Index(s.ring, self)+1)%len(s.ring)]
	return next, next != self
}

// mix is the finalizer of splitmix64: every bit of x moves half of the result's.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func nextPrime(n int) int {
	for ; ; n++ {
		prime := n > 1
		for d := 2; d*d <= n && prime; d++ {
			prime = n%d != 0
		}
		if prime {
			return n
		}
	}
}
