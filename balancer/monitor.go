package balancer

import (
	"context"
	"errors"
	"hash/maphash"
	"net/netip"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// monitor keeps the health of every target, each in a loop of its own.
type monitor struct {
	checker func(Check) (Checker, error)
	// changed is called after each change of health, with no lock held.
	changed func(c healthChange)
	// vanished is called instead with all that the loss of a host changed.
	vanished func(host netip.Addr, cs []healthChange)
	// ended, if not nil, is called after each check, with no lock held.
	ended func(t Target, took time.Duration, err error)
	// shortages takes the checks that this host could not do.
	shortages *Shortages
	// cutOff says that this node may be cut off from the backends' hosts.
	cutOff atomic.Bool

	loops  sync.WaitGroup
	mu     sync.Mutex
	probes map[Target]*probe
}

// A healthChange is a change of one backend's health.
type healthChange struct {
	target        Target
	backend       Backend
	before, after Health
}

// probe is one target's loop.
type probe struct {
	target  Target
	check   Check
	checker Checker
	beat    uint64
	wake    chan struct{}   // a check is wanted now
	loop    context.Context // ends with the loop
	stop    context.CancelFunc

	// Guarded by monitor.mu.
	backend  Backend
	record   record
	reported Health // what changed was last called with
	gone     bool
	// How many failed connections of clients bar the backend, and for how long.
	maxFails    int
	failTimeout time.Duration
}

// set starts and stops loops so that exactly the backends of lbs are watched. A
// loop whose check is unchanged goes on. A loop whose check has changed
// starts again and keeps the health that is known. The loops end with ctx; wait waits
// for them.
func (m *monitor) set(ctx context.Context, lbs []LoadBalancer) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	want := make(map[Target]bool)
	for _, lb := range lbs {
		usual, err := m.checker(lb.Check)
		if err != nil {
			return err
		}
		for i, b := range lb.Backends {
			t := Target{lb.Name, b.Addr}
			want[t] = true
			p, check := m.probes[t], lb.check(b)
			if p != nil && reflect.DeepEqual(p.check, check) {
				p.backend = b
				p.maxFails, p.failTimeout = lb.fails(b)
				continue
			}
			checker := usual
			if b.Check != nil {
				if checker, err = m.checker(check); err != nil {
					return err
				}
			}
			next := &probe{
				target: t, check: check, checker: checker, backend: b, beat: beat(lb.Name, i),
				wake:   make(chan struct{}, 1),
				record: record{Health: Health{State: Unknown, Reason: "not checked yet", Since: time.Now()}},
			}
			next.maxFails, next.failTimeout = lb.fails(b)
			next.reported = next.record.Health
			next.loop, next.stop = context.WithCancel(ctx)
			if p != nil {
				next.record, next.reported = p.record, p.reported
				p.end()
				m.unbar(next, next.record.barred)
			}
			m.probes[t] = next
			m.loops.Go(func() { m.watch(next.loop, next) })
		}
	}
	for t, p := range m.probes {
		if !want[t] {
			p.end()
			delete(m.probes, t)
		}
	}
	return nil
}

// wait returns when the loops have ended. Their ctx must have ended before.
func (m *monitor) wait() { m.loops.Wait() }

func (p *probe) end() {
	p.gone = true
	p.stop()
}

// checkNow asks for a check at once. Several requests get one check.
func (p *probe) checkNow() { wake(p.wake) }

// watch checks one target until ctx ends, the first time at once.
func (m *monitor) watch(ctx context.Context, p *probe) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		started := time.Now()
		err := p.once(ctx, m.backend(p))
		if ctx.Err() != nil {
			return // the check was cut short, so it proves nothing
		}
		took := time.Since(started)
		r, known := m.record(p.target)
		if !m.shortages.Note("check", err) || !known {
			r = m.observe(p, result{started, took, err})
			if m.ended != nil {
				m.ended(p.target, took, err)
			}
		}

		pause := p.pause(r, started)
		if pause < 0 { // no check is due until somebody asks
			timer.Stop()
		} else {
			timer.Reset(time.Until(started.Add(pause)))
		}
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
			// However many requests come, checks are FastInter apart.
			timer.Reset(time.Until(started.Add(p.check.FastInter)))
		case <-timer.C:
			timer.Reset(0)
		}
	}
}

// unbar reports at a time until which p is barred that it is not any more. Zero means that it is not barred.
func (m *monitor) unbar(p *probe, until time.Time) {
	if until.IsZero() {
		return
	}
	time.AfterFunc(time.Until(until), func() {
		if p.loop.Err() == nil {
			m.update(p, func(r record) record { return r })
		}
	})
}

// once runs one check within its timeout.
func (p *probe) once(ctx context.Context, b Backend) error {
	ctx, cancel := context.WithTimeout(ctx, p.check.Timeout)
	defer cancel()
	return p.checker.Check(ctx, b)
}

// backend is the current value of the backend that p checks.
func (m *monitor) backend(p *probe) Backend {
	m.mu.Lock()
	defer m.mu.Unlock()
	return p.backend
}

// pause is the time from the start of one check to the start of the next. Negative means that no further check is due by
// itself.
func (p *probe) pause(r record, started time.Time) time.Duration {
	inter := p.check.Inter
	switch {
	case p.check.Type == CheckNone:
		return -1
	case r.changing():
		return p.check.FastInter
	case r.State == Down && p.check.DownInter > 0:
		inter = p.check.DownInter
	}
	return inter + p.offBeat(started.Add(inter), inter)
}

// beatsApart is the least distance of two beats, so that those of many load balancers share wake-ups too.
const beatsApart = 20 * time.Millisecond

// onABeat is how many backends of a load balancer have their beats in common. A wake-up costs more than a check that only
// opens a connection; but many handshakes at one moment would keep everything else waiting.
const onABeat = 4

// beats makes the beats of this process differ from those of all others.
var beats = maphash.MakeSeed()

// beat is the place of the i-th backend's checks in time.
func beat(lb string, i int) uint64 {
	type place struct {
		lb string
		n  int
	}
	return maphash.Comparable(beats, place{lb, i / onABeat})
}

// offBeat is how much later than due the nearest beat is, a tenth of inter at most.
func (p *probe) offBeat(due time.Time, inter time.Duration) time.Duration {
	first := time.Duration(p.beat % uint64(inter)).Truncate(beatsApart)
	since := (time.Duration(due.UnixNano()) - first) % inter // the latest beat
	if since > inter/2 {
		since -= inter // the next one is nearer
	}
	return min(max(-since, -inter/10), inter/10)
}

// observe records a result and returns the new record.
func (m *monitor) observe(p *probe, res result) (now record) {
	m.update(p, func(r record) record {
		now = r.after(p.check, res, m.cutOff.Load())
		return now
	})
	return now
}

// update replaces the record of p and reports a change that matters.
func (m *monitor) update(p *probe, f func(record) record) {
	if c, matters := m.replace(p, f); matters {
		m.changed(c)
	}
}

func (m *monitor) replace(p *probe, f func(record) record) (c healthChange, matters bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.gone {
		return healthChange{}, false
	}
	suspect := p.record.suspect
	p.record = f(p.record)
	c = healthChange{p.target, p.backend, p.reported, p.record.effective(time.Now())}
	p.reported = c.after
	return c, c.before.State != c.after.State || c.before.Remedy != c.after.Remedy || suspect != p.record.suspect
}

// record is the health of one target; false if it is not watched.
func (m *monitor) record(t Target) (record, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.probes[t]
	if p == nil {
		return record{}, false
	}
	return p.record, true
}

// report takes the outcome of a real connection. One failure is only a reason to
// check at once: the check decides. If a client and a check were both refused,
// one check is enough to take the backend out of rotation. Many failures in a
// short time count by themselves.
func (m *monitor) report(t Target, err error) {
	if err == nil {
		return
	}
	m.mu.Lock()
	p := m.probes[t]
	m.mu.Unlock()
	if p == nil {
		return
	}
	var barred time.Time
	m.update(p, func(r record) record {
		if errors.Is(err, ErrSlow) {
			return r
		}
		now := time.Now()
		if errors.Is(err, unix.ECONNREFUSED) {
			r.refused = now
		}
		next := r.connFailed(p.maxFails, p.failTimeout, now)
		if !next.barred.Equal(r.barred) {
			barred = next.barred
		}
		return next
	})
	m.unbar(p, barred)
	if p.check.Type != CheckNone {
		p.checkNow()
	}
}

// probesOn lists the probes of the backends on one host.
func (m *monitor) probesOn(host netip.Addr) []*probe {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []*probe
	for t, p := range m.probes {
		if t.Backend.Addr().Unmap() == host.Unmap() {
			found = append(found, p)
		}
	}
	return found
}

// peerDown takes the backends on host out of rotation until a check that
// starts from now on succeeds.
func (m *monitor) peerDown(host netip.Addr) {
	probes := m.probesOn(host)
	var cs []healthChange
	for _, p := range probes {
		if c, matters := m.replace(p, func(r record) record { return r.lost(time.Now()) }); matters {
			cs = append(cs, c)
		}
	}
	if len(cs) > 0 {
		m.vanished(host, cs)
	}
	for _, p := range probes {
		if p.check.Type != CheckNone { // a check of type none always succeeds
			p.checkNow()
		}
	}
}

// peerUp starts the checks of the backends on host at once.
func (m *monitor) peerUp(host netip.Addr) {
	for _, p := range m.probesOn(host) {
		p.checkNow()
	}
}

// settled says whether the checks of the backends have ended since a time and found
// what was known. Those that have not are hurried.
func (m *monitor) settled(ts []Target, since time.Time) bool {
	all := true
	var due []*probe
	m.mu.Lock()
	for _, t := range ts {
		p := m.probes[t]
		if p == nil || p.check.Type == CheckNone {
			continue
		}
		if p.record.Checked.Before(since) || p.record.changing() || p.record.Since.After(since) {
			all = false
			due = append(due, p)
		}
	}
	m.mu.Unlock()
	for _, p := range due {
		p.checkNow()
	}
	return all
}
