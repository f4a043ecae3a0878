package raft

import (
	"context"
	"time"
)

// A place is where the real code meets the simulated world. There a thread stands still for a while, or its whole
// process does: between the clock and a message, between a message and what is made of it, before and after a write.
type place int

const (
	beforeClock place = iota
	afterClock        // before the lock of lease or grants, which is what comes next
	beforeSend
	afterReceive
	beforeDial
	afterDial
	beforeWrite // to the disk
	afterWrite
	atEnd        // hold is about to return
	beforeAnswer // it may, and is about to
)

// Of so many visits one ends in a pause: what is seldom stands for more orderings.
var oneIn = map[place]int{beforeClock: 3000, afterClock: 1500, beforeSend: 400, afterReceive: 400, beforeDial: 60,
	afterDial: 60, beforeWrite: 40, afterWrite: 40, atEnd: 4,
	beforeAnswer: 30}

func (at place) String() string {
	return [...]string{"reads the clock", "has read the clock", "sends", "has received", "dials", "has dialled", "writes",
		"has written", "lets go", "is about to answer"}[at]
}

// yield is called at every place. The code under test may hold locks there; others that want them have to wait by the
// bubble's clock, see durableLocks.
func (p *simProc) yield(at place) {
	locked := at == beforeClock || at == afterClock || at == beforeSend
	if locked && !durableLocks || p.judged.Load() > 0 {
		return
	}
	if durableLocks || at != atEnd && at != beforeAnswer {
		p.gate()
	}
	n := p.host.net
	often := n.pauses.Load()
	if p.dead.Load() || !durableLocks {
		return
	}
	if p.armed.CompareAndSwap(int64(at)+1, 0) {
		n.mu.Lock()
		d := p.armedFor
		n.mu.Unlock()
		p.stand(at, d)
		return
	}
	if often == 0 {
		return
	}
	n.mu.Lock()
	odds := max(1, int64(oneIn[at])*1000/often)
	d := time.Duration(0)
	if n.rnd.Int64N(odds) == 0 {
		d = time.Duration(n.rnd.Int64N(int64(n.longest)) + 1)
	}
	whole := n.rnd.IntN(2) == 0
	n.mu.Unlock()
	if d == 0 {
		return
	}
	if !whole {
		p.stand(at, d)
		return
	}
	n.say("%s stands still for %v where it %v", p.host.id, d.Round(time.Microsecond), at)
	p.until.Store(max(p.until.Load(), time.Now().Add(d).UnixNano()))
	p.gate()
}

// stand is a thread that stands still, while others of its process go on.
func (p *simProc) stand(at place, d time.Duration) {
	p.host.net.say("a thread of %s stands still for %v where it %v", p.host.id, d.Round(time.Microsecond), at)
	p.late.Store(max(p.late.Load(), time.Now().Add(d).UnixNano()))
	time.Sleep(d)
	p.gate()
}

// arm has the next thread that comes to the place stand still.
func (h *simHost) arm(at place, d time.Duration) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if h.proc != nil {
		h.proc.armedFor = d
		h.proc.armed.Store(int64(at) + 1)
	}
}

// disarm has nobody stand still who has not done so yet.
func (h *simHost) disarm() {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if h.proc != nil {
		h.proc.armed.Store(0)
	}
}

// answer has the process answer now and then while it may, as long as hold runs. Whoever stands still between the look
// at the lease and the answer answers late; within the lease nobody else may answer then all the same. A machine that is
// paused in these few instructions answers late too, and no clock of its own says so: docs/security.md names it.
func (s *sim) answer(ctx context.Context, p *simProc, term uint64, may func() bool) {
	turn := time.NewTicker(7 * ms)
	defer turn.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-turn.C:
		}
		paused := p.host.stood()
		if !may() {
			continue
		}
		p.yield(beforeAnswer)
		if p.host.stood() != paused {
			continue
		}
		g := p.group.Load()
		answers := func() bool {
			p.judged.Add(1)
			defer p.judged.Add(-1)
			return g.lease.Left(term, g.voters(nil)) > 0 && !p.dead.Load() && !p.host.isPaused()
		}
		if !answers() {
			continue
		}
		for _, h := range s.hosts {
			s.net.mu.Lock()
			o := h.proc
			s.net.mu.Unlock()
			// Groups that were founded apart have no names at first.
			named := !s.founding || g.cluster() != ""
			if o != nil && o != p && atOnce(o.allowed, answers) && named && o.group.Load().cluster() == g.cluster() {
				s.wrong("%s answers in term %d, and %s may", p.host.id, term, h.id)
			}
		}
	}
}

// atOnce says that both are true at one moment. Each may have to wait for a lock that a paused process holds.
func atOnce(a, b func() bool) bool {
	for {
		began := time.Now()
		if !a() || !b() {
			return false
		}
		if time.Now().Equal(began) {
			return true
		}
	}
}

// allowed asks whether the process may answer now, from outside of it.
func (p *simProc) allowed() bool {
	may := p.may.Load()
	if may == nil || p.host.isPaused() {
		return false
	}
	p.judged.Add(1)
	defer p.judged.Add(-1)
	return (*may)()
}
