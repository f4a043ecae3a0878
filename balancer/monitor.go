package balancer

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// monitor keeps the health of every target, each by a loop of its own.
type monitor struct {
	checker func(Check) (Checker, error)
	// changed is called after each change of state, with no lock held.
	changed func(c change)
	// vanished is called in its place with all that the loss of a host changed.
	vanished func(host netip.Addr, cs []change)
	// ended, if not nil, is called after each check, with no lock held.
	ended func(t Target, took time.Duration, err error)

	loops  sync.WaitGroup
	mu     sync.Mutex
	probes map[Target]*probe
}

// A change is one of a backend's health.
type change struct {
	target        Target
	backend       Backend
	before, after Health
}

// probe is one target's loop.
type probe struct {
	target  Target
	check   Check
	checker Checker
	kick    chan struct{} // a check is wanted now
	bar     chan struct{} // record.barred was set
	stop    context.CancelFunc

	// Guarded by monitor.mu.
	backend Backend
	record  record
	told    Health // the last that changed was called with
	gone    bool
	// When connections of clients bar the backend.
	maxFails    int
	failTimeout time.Duration
}

// set starts and stops loops so that exactly the backends of lbs are watched.
// A loop whose check is unchanged goes on; a changed check starts anew but
// keeps the health that is known. The loops end with ctx; wait waits for them.
func (m *monitor) set(ctx context.Context, lbs []LoadBalancer) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	want := make(map[Target]bool)
	for _, lb := range lbs {
		checker, err := m.checker(lb.Check)
		if err != nil {
			return err
		}
		for _, b := range lb.Backends {
			t := Target{lb.Name, b.Addr}
			want[t] = true
			p := m.probes[t]
			if p != nil && reflect.DeepEqual(p.check, lb.Check) {
				p.backend, p.maxFails, p.failTimeout = b, lb.MaxFails, lb.FailTimeout
				continue
			}
			next := &probe{
				target: t, check: lb.Check, checker: checker, backend: b,
				kick: make(chan struct{}, 1), bar: make(chan struct{}, 1),
				maxFails: lb.MaxFails, failTimeout: lb.FailTimeout,
				record: record{Health: Health{State: Unknown, Reason: "not checked yet", Since: time.Now()}},
			}
			next.told = next.record.Health
			if p != nil {
				next.record, next.told = p.record, p.told
				p.end()
				if !next.record.barred.IsZero() {
					next.bar <- struct{}{}
				}
			}
			var loop context.Context
			loop, next.stop = context.WithCancel(ctx)
			m.probes[t] = next
			m.loops.Go(func() { m.watch(loop, next) })
			m.loops.Go(func() { m.unbar(loop, next) })
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

// wait returns when the loops have ended; their ctx must have.
func (m *monitor) wait() { m.loops.Wait() }

func (p *probe) end() {
	p.gone = true
	p.stop()
}

// now asks for a check at once; several askers get one check.
func (p *probe) now() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

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
			return // the check was cut short, so it says nothing
		}
		took := time.Since(started)
		r := m.observe(p, result{started, took, err})
		if m.ended != nil {
			m.ended(p.target, took, err)
		}

		pause := p.pause(r)
		if pause < 0 { // nothing to find out until somebody asks
			timer.Stop()
		} else {
			timer.Reset(time.Until(started.Add(pause)))
		}
		select {
		case <-ctx.Done():
			return
		case <-p.kick:
			// However many ask, checks keep the distance of fast ones.
			timer.Reset(time.Until(started.Add(p.check.FastInter)))
		case <-timer.C:
			timer.Reset(0)
		}
	}
}

// unbar tells when a backend is no longer barred, until ctx ends.
func (m *monitor) unbar(ctx context.Context, p *probe) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.bar:
		}
		m.mu.Lock()
		until := p.record.barred
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(until)):
			m.update(p, func(r record) record { return r })
		}
	}
}

// once runs one check within its timeout.
func (p *probe) once(ctx context.Context, b Backend) error {
	ctx, cancel := context.WithTimeout(ctx, p.check.Timeout)
	defer cancel()
	return p.checker.Check(ctx, b)
}

// backend is the newest value of the backend that p checks.
func (m *monitor) backend(p *probe) Backend {
	m.mu.Lock()
	defer m.mu.Unlock()
	return p.backend
}

// pause is the time from the start of one check to the start of the next,
// spread by a tenth each way so that the checks of many nodes do not beat in
// time; negative means that no further check is due by itself.
func (p *probe) pause(r record) time.Duration {
	inter := p.check.Inter
	switch {
	case p.check.Type == CheckNone:
		return -1
	case r.turning():
		return p.check.FastInter
	case r.State == Down && p.check.DownInter > 0:
		inter = p.check.DownInter
	}
	return time.Duration(float64(inter) * (0.9 + 0.2*rand.Float64()))
}

// observe records a result and returns what it makes of the record.
func (m *monitor) observe(p *probe, res result) (now record) {
	m.update(p, func(r record) record {
		now = r.after(p.check, res)
		return now
	})
	return now
}

// update replaces the record of p and tells of a change that matters.
func (m *monitor) update(p *probe, f func(record) record) {
	if c, matters := m.replace(p, f); matters {
		m.changed(c)
	}
}

func (m *monitor) replace(p *probe, f func(record) record) (c change, matters bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.gone {
		return change{}, false
	}
	suspect := p.record.suspect
	p.record = f(p.record)
	c = change{p.target, p.backend, p.told, p.record.shown(time.Now())}
	p.told = c.after
	return c, c.before.State != c.after.State || c.before.Remedy != c.after.Remedy || suspect != p.record.suspect
}

// record is the health of one target; false if nobody watches it.
func (m *monitor) record(t Target) (record, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.probes[t]
	if p == nil {
		return record{}, false
	}
	return p.record, true
}

// report takes what a real connection met. One failure is only a reason to
// look at once: the check decides. If both were refused, one check is enough
// to take the backend out of rotation. Many failures in a short time count by
// themselves.
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
	barred := false
	m.update(p, func(r record) record {
		if errors.Is(err, ErrSlow) {
			return r
		}
		now := time.Now()
		if errors.Is(err, unix.ECONNREFUSED) {
			r.refused = now
		}
		next := r.connFailed(p.maxFails, p.failTimeout, now)
		barred = !next.barred.Equal(r.barred)
		return next
	})
	if barred {
		select {
		case p.bar <- struct{}{}:
		default: // unbar has yet to look
		}
	}
	if p.check.Type != CheckNone {
		p.now()
	}
}

// at lists the probes of the backends on one host.
func (m *monitor) at(host netip.Addr) []*probe {
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
	probes := m.at(host)
	var cs []change
	for _, p := range probes {
		if c, matters := m.replace(p, func(r record) record { return r.lost(time.Now()) }); matters {
			cs = append(cs, c)
		}
	}
	if len(cs) > 0 {
		m.vanished(host, cs)
	}
	for _, p := range probes {
		if p.check.Type != CheckNone { // such a check would say yes to anything
			p.now()
		}
	}
}

// peerUp has the backends on host checked at once.
func (m *monitor) peerUp(host netip.Addr) {
	for _, p := range m.at(host) {
		p.now()
	}
}
