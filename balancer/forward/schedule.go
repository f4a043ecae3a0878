package forward

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"

	"appliance/balancer"
)

// candidate is what a scheduler knows about a backend.
type candidate struct {
	addr   netip.AddrPort
	weight int    // above 0
	share  int    // the part of its weight, of fullShare, that slow start has reached
	open   uint64 // connections now
}

// effectiveWeight is the weight in parts of fullShare. With equalWeights every weight
// counts as 1.
func (c candidate) effectiveWeight(equalWeights bool) int {
	if equalWeights {
		return c.share
	}
	return c.weight * c.share
}

// A scheduler chooses the index of the candidate that gets a connection from client.
// There is at least one candidate, and the candidates may differ at each call.
// Schedulers are safe for concurrent use.
type scheduler interface {
	pick(cs []candidate, client netip.Addr) int
}

// newScheduler is the scheduler of that name. The empty name means rr.
func newScheduler(name balancer.Scheduler) (scheduler, error) {
	switch name {
	case balancer.RoundRobin, "":
		return &smooth{equalWeights: true}, nil
	case balancer.WeightedRoundRobin:
		return &smooth{}, nil
	case balancer.LeastConn:
		return &least{equalWeights: true}, nil
	case balancer.WeightedLeastConn:
		return &least{}, nil
	case balancer.SourceHash:
		return sourceHash{}, nil
	case balancer.Random:
		return random{}, nil
	case balancer.First:
		return first{}, nil
	}
	return nil, fmt.Errorf("scheduler %q is unknown in user space: use rr, wrr, lc, wlc, sh, random or first", name)
}

// smooth is weighted round robin that spreads the turns of each backend evenly: each turn
// adds every weight to its backend's credit, takes the backend with the most credit, and
// subtracts the sum of weights from it.
type smooth struct {
	equalWeights bool // all weights count as 1

	mu      sync.Mutex
	credits []credit // in the order in which backends came; few, and found faster than in a map
}

type credit struct {
	addr netip.AddrPort
	n    int
}

// of is the place of addr's credit.
func (s *smooth) of(addr netip.AddrPort, guess int) int {
	if guess < len(s.credits) && s.credits[guess].addr == addr {
		return guess
	}
	if i := slices.IndexFunc(s.credits, func(c credit) bool { return c.addr == addr }); i >= 0 {
		return i
	}
	s.credits = append(s.credits, credit{addr: addr})
	return len(s.credits) - 1
}

func (s *smooth) pick(cs []candidate, _ netip.Addr) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.credits) > 2*len(cs)+64 { // many have gone
		s.credits = s.credits[:0]
	}
	best, at, most, sum := 0, 0, math.MinInt, 0
	for i, c := range cs {
		w := c.effectiveWeight(s.equalWeights)
		sum += w
		k := s.of(c.addr, i)
		s.credits[k].n += w
		if n := s.credits[k].n; n > most {
			best, at, most = i, k, n
		}
	}
	s.credits[at].n -= sum
	return best
}

// least takes the backend with the fewest open connections for its weight. Equals take
// turns by weight, so that an idle set does not load one backend only: with one
// connection at a time, every backend is idle each time.
type least struct {
	equalWeights bool
	ties         smooth
}

func (l *least) pick(cs []candidate, client netip.Addr) int {
	weight := func(c candidate) uint64 { return uint64(c.effectiveWeight(l.equalWeights)) }
	// less compares (open+1)/weight without dividing; idle backends are equal.
	less := func(a, b candidate) bool {
		if a.open == 0 || b.open == 0 {
			return a.open < b.open
		}
		return (a.open+1)*weight(b) < (b.open+1)*weight(a)
	}
	best, alone := 0, true
	for i, c := range cs[1:] {
		switch {
		case less(c, cs[best]):
			best, alone = i+1, true
		case !less(cs[best], c):
			alone = false
		}
	}
	if alone {
		return best
	}
	var room [16]candidate // usually enough, and then nothing is allocated
	var places [16]int
	equals, at := room[:0], places[:0]
	for i, c := range cs {
		if !less(cs[best], c) {
			equals, at = append(equals, c), append(at, i)
		}
	}
	return at[l.ties.pick(equals, client)]
}

// sourceHash keeps a client address on one backend by weighted rendezvous hashing: a
// backend that leaves or comes moves only its own clients, and every node chooses the
// same.
type sourceHash struct{}

func (sourceHash) pick(cs []candidate, client netip.Addr) int {
	best, most := 0, math.Inf(-1)
	source := hash(0, client.As16(), 0)
	for i, c := range cs {
		h := hash(source, c.addr.Addr().As16(), c.addr.Port())
		// A uniform u in (0,1], raised to 1/weight, is the greatest with a probability
		// in proportion to weight. Its logarithm has the same order.
		u := (float64(h>>11) + 1) / (1 << 53)
		if score := math.Log(u) / float64(c.effectiveWeight(false)); score > most {
			best, most = i, score
		}
	}
	return best
}

// hash mixes an address into seed with the finalizer of SplitMix64.
func hash(seed uint64, addr [16]byte, port uint16) uint64 {
	for _, w := range [...]uint64{binary.BigEndian.Uint64(addr[:8]), binary.BigEndian.Uint64(addr[8:]), uint64(port)} {
		seed += w + 0x9e3779b97f4a7c15
		seed = (seed ^ seed>>30) * 0xbf58476d1ce4e5b9
		seed = (seed ^ seed>>27) * 0x94d049bb133111eb
		seed ^= seed >> 31
	}
	return seed
}

// random takes any candidate, in proportion to weight.
type random struct{}

func (random) pick(cs []candidate, _ netip.Addr) int {
	sum := 0
	for _, c := range cs {
		sum += c.effectiveWeight(false)
	}
	n := rand.IntN(sum)
	for i, c := range cs {
		if n -= c.effectiveWeight(false); n < 0 {
			return i
		}
	}
	return len(cs) - 1
}

// first takes the first candidate.
type first struct{}

func (first) pick([]candidate, netip.Addr) int { return 0 }
