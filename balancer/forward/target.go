package forward

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"appliance/balancer"
)

// target is one backend of one service, with its counters.
type target struct {
	id       balancer.Target
	family   int
	sockaddr []byte

	open, total, failed, in, out atomic.Uint64
	usual                        atomic.Int64 // time that a dial takes, smoothed, in ns
	// shun is when a target that failed or hung may be tried again by one
	// connection; zero means that nothing is wrong.
	shun atomic.Int64
	// since is when it came into rotation, zero if it always was.
	since atomic.Int64
	// gone: neither in rotation nor draining. Its connections are reset, and
	// one that was dialing meanwhile must not slip through.
	gone atomic.Bool
}

func newTarget(id balancer.Target) *target {
	t := &target{id: id}
	t.family, t.sockaddr = sockaddr(id.Backend)
	return t
}

// shunFor is how long a target that failed a dial is passed over where there
// is another. Then one connection tries it.
const shunFor = time.Second

// avoid passes t over for a while.
func (t *target) avoid(now int64) { t.shun.Store(now + int64(shunFor)) }

// answered records a dial that succeeded.
func (t *target) answered(took time.Duration) {
	if t.shun.Load() != 0 {
		t.shun.Store(0)
	}
	usual := t.usual.Load()
	if usual == 0 {
		usual = int64(took)
	}
	t.usual.Store(usual + (int64(took)-usual)/8)
}

// mayTry claims the right to try t, which for a shunned target only one
// connection in shunFor gets.
func (t *target) mayTry(now int64) bool {
	until := t.shun.Load()
	return until == 0 || now >= until && t.shun.CompareAndSwap(until, now+int64(shunFor))
}

// shunned reports whether mayTry is certain to say no.
func (t *target) shunned(now int64) bool { return now < t.shun.Load() }

func (t *target) traffic() balancer.Traffic {
	return balancer.Traffic{Open: t.open.Load(), Total: t.total.Load(), Failed: t.failed.Load(), In: t.in.Load(), Out: t.out.Load()}
}

// table is what new connections of a service are given to. It never changes.
type table struct {
	loadBalancer string
	name         balancer.Scheduler
	scheduler    scheduler
	handling     balancer.ConnOptions
	choosy       bool  // handling names clients
	patience     int64 // of one dial
	tries        int   // dials for one client
	sticky       *sticky
	slots        []slot
	lists        sync.Pool // of *lists, so that picking allocates nothing
}

// lists are what one pick works on.
type lists struct {
	candidates []candidate
	slots      []*slot
}

// slot is a target in rotation.
type slot struct {
	target            *target
	weight            int
	maxConn, maxQueue int
	slowStart         int64
}

// fullShare is the share of a backend that has started long ago.
const fullShare = 256

// share is how much of its weight the slot has at that time.
func (s *slot) share(at int64) int {
	since := s.target.since.Load()
	if s.slowStart <= 0 || since == 0 || at-since >= s.slowStart {
		return fullShare
	}
	return int(max(1, (at-since)*fullShare/s.slowStart))
}

// claim counts a connection with the target, unless it has too many.
func (s *slot) claim() bool {
	n := s.target.open.Add(1)
	if s.maxConn > 0 && n > uint64(s.maxConn) {
		s.target.open.Add(^uint64(0))
		return false
	}
	return true
}

// claim is that of t's slot; it fails where t is not in rotation.
func (tb *table) claim(t *target) bool {
	for i := range tb.slots {
		if s := &tb.slots[i]; s.target == t {
			return s.weight > 0 && s.claim()
		}
	}
	return false
}

// queueLimit is how many may wait for any backend, negative if there is no
// limit.
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

// pick chooses a target for client that is not among tried, and counts the
// connection with it; nil if there is none. With wait, there is one as soon as
// t, or any if t is nil, has room.
func (tb *table) pick(client netip.Addr, tried []*target, at int64) (t *target, wait bool) {
	if tb.sticky != nil {
		if b, ok := tb.sticky.find(client, at); ok {
			for i := range tb.slots {
				s := &tb.slots[i]
				if s.target.id.Backend != b || s.weight <= 0 || slices.Contains(tried, s.target) || !s.target.mayTry(at) {
					continue
				}
				return s.target, !s.claim()
			}
		}
	}
	return tb.spread(client, tried, at, tb.name == balancer.SourceHash)
}

// pickAny chooses among those with room, whoever the client had before.
func (tb *table) pickAny(client netip.Addr, at int64) (t *target, wait bool) {
	return tb.spread(client, nil, at, false)
}

// spread asks the scheduler. Targets that failed lately are the last resort.
// Faithful means that a client waits for the one that the scheduler names
// rather than take another.
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
			if s.weight <= 0 || len(tried) > 0 && slices.Contains(tried, s.target) || !lastResort && s.target.shunned(at) {
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
			if lastResort || s.target.mayTry(at) {
				if s.claim() {
					return s.target, false
				}
				if faithful {
					return s.target, true
				}
				full = true
			}
			// Somebody else is trying it at this moment, or has taken its
			// last place.
			candidates, slots = slices.Delete(candidates, i, i+1), slices.Delete(slots, i, i+1)
		}
		if full {
			return nil, true
		}
	}
	return nil, false
}
