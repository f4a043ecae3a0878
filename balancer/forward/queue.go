package forward

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// queue holds the connections of a service that wait for a backend with room, in the
// order in which they came.
type queue struct {
	waiting atomic.Int32 // the length of waiters, read without mu

	mu      sync.Mutex
	waiters []*waiter
}

// waiter is a connection's place in the queue.
type waiter struct {
	loop   *loop
	ref    ref
	source netip.Addr
	want   *target // nil for any
}

// remove takes a connection out, wherever it stands.
func (q *queue) remove(t *waiter) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := slices.Index(q.waiters, t); i >= 0 {
		q.waiters = slices.Delete(q.waiters, i, i+1)
		q.waiting.Add(-1)
	}
}

// room reports whether one more may wait for want. The caller holds mu.
func (q *queue) room(tb *table, want *target) bool {
	if want == nil {
		most := tb.queueLimit()
		return most < 0 || len(q.waiters) < most
	}
	most := -1
	for _, s := range tb.slots {
		if s.target == want && s.maxQueue > 0 {
			most = s.maxQueue
		}
	}
	n := 0
	for _, t := range q.waiters {
		if t.want == want {
			n++
		}
	}
	return most < 0 || n < most
}

// wait queues the connection for want, or for any backend if too many wait for want. If
// too many wait for all of them, it resets the connection.
func (c *conn) wait(want *target) {
	s, o := c.service, c.opening
	q := &s.queue
	q.mu.Lock()
	if want != nil && !q.room(o.table, want) {
		want = nil
	}
	if want == nil && !q.room(o.table, nil) {
		q.mu.Unlock()
		c.abort(endQueueFull)
		return
	}
	o.waiter = &waiter{c.loop, ref{c.slot, c.id}, c.source.Addr(), want}
	q.waiters = append(q.waiters, o.waiter)
	q.waiting.Add(1)
	q.mu.Unlock()

	c.state = waiting
	timeout := int64(o.table.options.QueueTimeout)
	if timeout <= 0 {
		timeout = o.table.dialTimeout
	}
	o.deadline = c.loop.now + timeout
	c.arm()
	// Room that was made before the connection was queued must not be missed.
	s.admitWaiting()
}

// admitWaiting gives the room that there is to the connections that wait.
func (s *service) admitWaiting() {
	tb := s.table.Load()
	now := nanotime()
	q := &s.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	full := false // all backends are, except perhaps one that somebody waits for
	for i := 0; i < len(q.waiters); {
		k := q.waiters[i]
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
		q.waiters = slices.Delete(q.waiters, i, i+1)
		q.waiting.Add(-1)
		k.loop.post(func() { s.admit(k, t) })
	}
}

// admit starts the dial of a connection that has waited, if it still waits.
func (s *service) admit(k *waiter, t *target) {
	c := k.loop.find(k.ref)
	if c == nil || c.state != waiting || c.opening.waiter != k {
		s.release(t)
		return
	}
	c.opening.waiter = nil
	c.opening.table = s.table.Load()
	c.state = dialing
	c.turn = c.loop.now
	if !c.dial(t) {
		c.advance()
	}
}

// release uncounts a connection with t, and gives its room to one that waits.
func (s *service) release(t *target) {
	t.open.Add(^uint64(0))
	if s.queue.waiting.Load() > 0 {
		s.admitWaiting()
	}
}

// persistence remembers for some time which backend a client address had. It keeps two
// generations of bounded size and forgets the older one as a whole, so that it never
// grows without bound.
type persistence struct {
	mu       sync.Mutex
	span     int64
	now, old map[netip.Addr]remembered
	turned   int64 // when now began
}

type remembered struct {
	backend netip.AddrPort
	at      int64
}

// maxRemembered bounds each generation: some 10 MiB.
const maxRemembered = 1 << 16

func newPersistence(span time.Duration) *persistence {
	return &persistence{span: int64(span), now: make(map[netip.Addr]remembered)}
}

// find is the backend that client had less than span ago.
func (s *persistence) find(client netip.Addr, at int64) (netip.AddrPort, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.now[client]
	if !ok {
		m, ok = s.old[client]
	}
	return m.backend, ok && at-m.at < s.span
}

func (s *persistence) put(client netip.Addr, backend netip.AddrPort, at int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at-s.turned >= s.span || len(s.now) >= maxRemembered {
		s.now, s.old, s.turned = make(map[netip.Addr]remembered), s.now, at
	}
	s.now[client] = remembered{backend, at}
}

// setSpan changes how long it remembers.
func (s *persistence) setSpan(span time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.span = int64(span)
}
