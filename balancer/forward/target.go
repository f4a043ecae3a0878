package forward

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"appliance/balancer"
	"appliance/balancer/rawtcp"
	"appliance/connlog"
)

// target is one backend of one service, with its counters.
type target struct {
	id       balancer.Target
	family   int
	sockaddr []byte

	open, total, failed, in, out atomic.Uint64
	usualDial                    atomic.Int64 // smoothed duration of a dial, in ns
	// avoidUntil is when one connection may try the target again after a dial failed or
	// was slow; zero means that nothing is wrong.
	avoidUntil atomic.Int64
	// since is when it came into rotation; zero if it always was.
	since atomic.Int64
	// gone means neither in rotation nor draining. Its connections are reset, also one
	// whose dial was under way.
	gone atomic.Bool
}

func newTarget(id balancer.Target) *target {
	t := &target{id: id}
	t.family, t.sockaddr = rawtcp.Sockaddr(id.Backend)
	return t
}

// avoidFor is how long a target that failed a dial is passed over if there is another
// one. Then one connection tries it.
const avoidFor = time.Second

// avoid passes t over for avoidFor.
func (t *target) avoid(now int64) { t.avoidUntil.Store(now + int64(avoidFor)) }

// answered records a dial that succeeded.
func (t *target) answered(took time.Duration) {
	if t.avoidUntil.Load() != 0 {
		t.avoidUntil.Store(0)
	}
	usual := t.usualDial.Load()
	if usual == 0 {
		usual = int64(took)
	}
	t.usualDial.Store(usual + (int64(took)-usual)/8)
}

// mayTry claims the right to try t. For a target that is avoided, only one connection in
// avoidFor gets it.
func (t *target) mayTry(now int64) bool {
	until := t.avoidUntil.Load()
	return until == 0 || now >= until && t.avoidUntil.CompareAndSwap(until, now+int64(avoidFor))
}

// avoided reports whether mayTry is certain to return false.
func (t *target) avoided(now int64) bool { return now < t.avoidUntil.Load() }

func (t *target) traffic() balancer.Traffic {
	return balancer.Traffic{
		Open: t.open.Load(), Total: t.total.Load(), Failed: t.failed.Load(), In: t.in.Load(), Out: t.out.Load(),
	}
}

// table says where the new connections of a service go. It never changes.
type table struct {
	loadBalancer string
	name         balancer.Scheduler
	scheduler    scheduler
	options      balancer.ConnOptions
	filters      bool  // options allow or deny certain clients
	dialTimeout  int64 // of one dial
	tries        int   // dials for one client
	persistence  *persistence
	slots        []slot
	sampler      *connlog.Sampler // nil: nothing is logged
	// proxies are the versions of the PROXY headers of those that get one.
	proxies map[*target]string
	lists   sync.Pool // of *lists, so that picking allocates nothing
}

// lists are the working memory of one pick.
type lists struct {
	candidates []candidate
	slots      []*slot
}

// slot is a target in rotation.
type slot struct {
	target            *target
	name              string // empty: its address
	weight            int
	maxConn, maxQueue int
	slowStart         int64
	// stays means that it is not passed over when a dial fails: checks decide.
	stays bool
}

// avoided reports whether the slot's target is certain not to be tried.
func (s *slot) avoided(at int64) bool { return !s.stays && s.target.avoided(at) }

// mayTry is the target's, unless checks alone decide.
func (s *slot) mayTry(at int64) bool { return s.stays || s.target.mayTry(at) }

// fullShare is the share of a backend after its slow start.
const fullShare = 256

// share is how much of its weight the slot has at that time.
func (s *slot) share(at int64) int {
	since := s.target.since.Load()
	if s.slowStart <= 0 || since == 0 || at-since >= s.slowStart {
		return fullShare
	}
	return int(max(1, (at-since)*fullShare/s.slowStart))
}

// claim counts a connection with the target, unless it has MaxConn already.
func (s *slot) claim() bool {
	n := s.target.open.Add(1)
	if s.maxConn > 0 && n > uint64(s.maxConn) {
		s.target.open.Add(^uint64(0))
		return false
	}
	return true
}

// claim calls claim of t's slot. It fails if t is not in rotation.
func (tb *table) claim(t *target) bool {
	for i := range tb.slots {
		if s := &tb.slots[i]; s.target == t {
			return s.weight > 0 && s.claim()
		}
	}
	return false
}

// queueLimit is how many connections may wait for any backend; negative means no limit.
func (tb *table) queueLimit() int {
	sum := 0
	for _, s := range tb.slots {
		if s.weight > 0 && s.maxConn > 0 {
			if s.maxQueue <= 0 {
				return -1
			}
			sum += s.maxQueue
		}
	}
	return sum
}

// pick chooses a target for client that is not among tried, and counts the connection with
// it. t is nil if there is none. With wait, the connection must wait for room at t, or at
// any target if t is nil.
func (tb *table) pick(client netip.Addr, tried []*target, at int64) (t *target, wait bool) {
	if tb.persistence != nil {
		if b, ok := tb.persistence.find(client, at); ok {
			for i := range tb.slots {
				s := &tb.slots[i]
				if s.target.id.Backend != b || s.weight <= 0 || slices.Contains(tried, s.target) || !s.mayTry(at) {
					continue
				}
				return s.target, !s.claim()
			}
		}
	}
	return tb.spread(client, tried, at, tb.name == balancer.SourceHash)
}

// pickAny chooses among the targets with room, whatever the client had before.
func (tb *table) pickAny(client netip.Addr, at int64) (t *target, wait bool) {
	return tb.spread(client, nil, at, false)
}

// spread asks the scheduler. Targets that failed lately are the last resort. With
// faithful, a client waits for the target that the scheduler names rather than take
// another one.
func (tb *table) spread(client netip.Addr, tried []*target, at int64, faithful bool) (t *target, wait bool) {
	l, _ := tb.lists.Get().(*lists)
	if l == nil {
		l = new(lists)
	}
	defer tb.lists.Put(l)
	for _, lastResort := range [...]bool{false, true} {
		full := false
		candidates, slots := l.candidates[:0], l.slots[:0]
		for i := range tb.slots {
			s := &tb.slots[i]
			if s.weight <= 0 || len(tried) > 0 && slices.Contains(tried, s.target) || !lastResort && s.avoided(at) {
				continue
			}
			open := s.target.open.Load()
			if !faithful && s.maxConn > 0 && open >= uint64(s.maxConn) {
				full = true
				continue
			}
			candidates = append(candidates, candidate{s.target.id.Backend, s.weight, s.share(at), open})
			slots = append(slots, s)
		}
		l.candidates, l.slots = candidates, slots
		for len(slots) > 0 {
			i := tb.scheduler.pick(candidates, client)
			s := slots[i]
			if lastResort || s.mayTry(at) {
				if s.claim() {
					return s.target, false
				}
				if faithful {
					return s.target, true
				}
				full = true
			}
			// Another connection is trying it, or has taken its last place.
			candidates, slots = slices.Delete(candidates, i, i+1), slices.Delete(slots, i, i+1)
		}
		if full {
			return nil, true
		}
	}
	return nil, false
}
