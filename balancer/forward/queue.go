package forward

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// queue has the connections of a service that wait for a backend with room, in
// the order in which they came.
type queue struct {
	waiting atomic.Int32 // how many, so that nobody locks for nothing

	mu      sync.Mutex
	tickets []*ticket
}

// ticket is a connection's place in the queue.
type ticket struct {
	loop   *loop
	ref    ref
	source netip.Addr
	want   *target // nil for any
}

// leave takes a connection out, wherever it stands.
func (q *queue) leave(t *ticket) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := slices.Index(q.tickets, t); i >= 0 {
		q.tickets = slices.Delete(q.tickets, i, i+1)
		q.waiting.Add(-1)
	}
}

// room reports whether one more may wait for want. Called with mu held.
func (q *queue) room(tb *table, want *target) bool {
	if want == nil {
		most := tb.queueLimit()
		return most < 0 || len(q.tickets) < most
	}
	most := -1
	for _, s := range tb.slots {
		if s.target == want && s.maxQueue > 0 {
			most = s.maxQueue
		}
	}
	n := 0
	for _, t := range q.tickets {
		if t.want == want {
			n++
		}
	}
	return most < 0 || n < most
}

// wait queues the connection for want, or for any backend where too many wait
// for that one. Where too many wait for all of them it is reset.
func (c *conn) wait(want *target) {
	s, o := c.service, c.opening
	q := &s.queue
	q.mu.Lock()
	if want != nil && !q.room(o.table, want) {
		want = nil
	}
	if want == nil && !q.room(o.table, nil) {
		q.mu.Unlock()
		c.abort()
		return
	}
	o.ticket = &ticket{c.loop, ref{c.slot, c.id}, c.source.Addr(), want}
	q.tickets = append(q.tickets, o.ticket)
	q.waiting.Add(1)
	q.mu.Unlock()

	c.state = waiting
	patience := int64(o.table.handling.QueueTimeout)
	if patience <= 0 {
		patience = o.table.patience
	}
	o.deadline = c.loop.now + patience
	c.arm()
	// Room that was made between the look and the ticket would be missed.
	s.call()
}

// call gives the room that there is to those who wait.
func (s *service) call() {
	tb := s.table.Load()
	now := nanotime()
	q := &s.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	full := false // all are: only those who wait for a certain one may have luck
	for i := 0; i < len(q.tickets); {
		k := q.tickets[i]
		t := k.want
		switch {
		case t == nil && full:
			i++
			continue
		case t != nil && t.gone.Load():
			k.want = nil
			continue
		case t != nil && !tb.claim(t):
			i++
			continue
		case t == nil:
			var wait bool
			if t, wait = tb.pickAny(k.source, now); wait || t == nil {
				full = true
				i++
				continue
			}
		}
		q.tickets = slices.Delete(q.tickets, i, i+1)
		q.waiting.Add(-1)
		k.loop.do(func() { s.granted(k, t) })
	}
}

// granted begins the dial of a connection that has waited, if it still does.
func (s *service) granted(k *ticket, t *target) {
	c := k.loop.find(k.ref)
	if c == nil || c.state != waiting || c.opening.ticket != k {
		s.release(t)
		return
	}
	c.opening.ticket = nil
	c.opening.table = s.table.Load()
	c.state = dialing
	if !c.dial(t) {
		c.advance()
	}
}

// release counts a connection with t off, and gives its room to who waits.
func (s *service) release(t *target) {
	t.open.Add(^uint64(0))
	if s.queue.waiting.Load() > 0 {
		s.call()
	}
}

// sticky remembers for some time which backend a client address had. It keeps
// two generations of bounded size and forgets the older one as a whole, so
// that neither time nor clients make it grow.
type sticky struct {
	mu       sync.Mutex
	span     int64
	now, old map[netip.Addr]memory
	turned   int64 // when now began
}

type memory struct {
	backend netip.AddrPort
	at      int64
}

// maxSticky bounds each generation: some 10 MiB.
const maxSticky = 1 << 16

func newSticky(span time.Duration) *sticky {
	return &sticky{span: int64(span), now: make(map[netip.Addr]memory)}
}

// find is the backend that client had less than span ago.
func (s *sticky) find(client netip.Addr, at int64) (netip.AddrPort, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.now[client]
	if !ok {
		m, ok = s.old[client]
	}
	return m.backend, ok && at-m.at < s.span
}

func (s *sticky) put(client netip.Addr, backend netip.AddrPort, at int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at-s.turned >= s.span || len(s.now) >= maxSticky {
		s.now, s.old, s.turned = make(map[netip.Addr]memory), s.now, at
	}
	s.now[client] = memory{backend, at}
}

// setSpan changes how long it remembers.
func (s *sticky) setSpan(span time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.span = int64(span)
}
