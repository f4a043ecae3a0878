package lease

import (
	"sync"
	"time"
)

// driftNum over driftDen stretches every wait: 1 % covers clocks that are 20 times worse than the 500 ppm
// that NTP can correct.
const driftNum, driftDen = 101, 100

// Stretch is the time to wait here until span has passed on every other clock.
func Stretch(span time.Duration) time.Duration { return span * driftNum / driftDen }

// Lease is the leader's side: when did each voter last grant.
type Lease struct {
	self string
	now  Clock
	span time.Duration
	same func(peer string) bool

	mu        sync.Mutex
	term      uint64
	granted   map[string]time.Duration // voter → t0 of its latest grant in term
	waitedOut uint64                   // the term for which older leases are over
	lapsed    time.Duration            // grants of messages that were sent until then do not count
}

// New returns the lease of peer self, which lasts span from the last majority of grants. Same says that a
// peer's leases have this length too; nil means that all have.
func New(self string, span time.Duration, now Clock, same func(peer string) bool) *Lease {
	return &Lease{self: self, now: now, span: span, same: same, granted: make(map[string]time.Duration)}
}

// Grant counts voter at t0, the moment before the message was sent.
func (l *Lease) Grant(voter string, term uint64, t0 time.Duration) {
	if l.same != nil && !l.same(voter) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if term < l.term || t0 <= l.lapsed {
		return
	}
	if term > l.term {
		l.term = term
		clear(l.granted)
	}
	if old, ok := l.granted[voter]; !ok || t0 > old {
		l.granted[voter] = t0
	}
}

// Lapse ends the lease at once, because the clock has stood still for a while that nobody knows: it runs again when a
// majority has granted to messages that are sent after this.
func (l *Lease) Lapse() {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lapsed = max(l.lapsed, now)
	clear(l.granted)
}

// Begin says that no older lease runs any more, so that the lease of term may.
func (l *Lease) Begin(term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waitedOut = max(l.waitedOut, term)
}

// Begun says whether Begin was called for term.
func (l *Lease) Begun(term uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.waitedOut == term
}

// Left is how long the lease of term still runs, given who votes now. It is zero or less if the lease does
// not run.
func (l *Lease) Left(term uint64, voters []string) time.Duration {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waitedOut != term {
		return 0
	}
	return l.span - (now - l.quorumAt(term, voters, now))
}

// quorumAt is the latest moment at which a majority of voters had granted. The caller holds mu. Majorities
// have 1 to 4 members: sorting by insertion into a small array keeps Left free of allocations.
func (l *Lease) quorumAt(term uint64, voters []string, now time.Duration) time.Duration {
	var buf [9]time.Duration
	at := buf[:0]
	self := false
	for _, v := range voters {
		t := now - l.span // never granted
		if g, ok := l.granted[v]; ok && l.term == term {
			t = g
		}
		if v == l.self {
			self, t = true, now
		}
		i := len(at)
		at = append(at, t)
		for ; i > 0 && at[i-1] < t; i-- {
			at[i] = at[i-1]
		}
		at[i] = t
	}
	if !self {
		return now - l.span // removed from the group: no lease
	}
	return at[len(voters)/2]
}

// GrantedAgo is how long ago voter granted last in term.
func (l *Lease) GrantedAgo(term uint64, voter string) (ago time.Duration, ok bool) {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	t, ok := l.granted[voter]
	return now - t, ok && l.term == term
}
