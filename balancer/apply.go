package balancer

import (
	"context"
	"time"
)

// applier calls Apply of one plane. Balancer.mu guards the fields below wake.
type applier struct {
	plane Plane
	wake  chan struct{}

	applied  bool  // Apply has succeeded once with something to serve
	cleaned  bool  // Apply was called with nothing, to remove what an earlier process left
	last     int   // services in the last Apply that succeeded
	err      error // of the last Apply
	at       time.Time
	repaired int
	// A burst of repairs is logged at its start and its end.
	burst     int
	burstLast time.Time
}

// repairPause is how long no repair must have been needed until the next one is
// logged again.
const repairPause = time.Minute

// applyTimeout bounds one Apply, so that a plane that hangs is seen.
const applyTimeout = 15 * time.Second

// keepApplied applies the set of one plane on every change and every Level.
func (b *Balancer) keepApplied(ctx context.Context, a *applier) error {
	ticker := time.NewTicker(b.cfg.Level)
	defer ticker.Stop()
	for {
		if services, version, due := b.services(a); due {
			actx, cancel := context.WithTimeout(ctx, applyTimeout)
			repaired, err := a.plane.Apply(actx, services)
			cancel()
			if ctx.Err() != nil {
				return nil
			}
			b.didApply(a, services, version, repaired, err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.wake:
		case <-ticker.C:
		}
	}
}

// services is what a must serve now, the version of that set, and whether an
// Apply is due at all.
func (b *Balancer) services(a *applier) (services []Service, version uint64, due bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.chosen {
		return nil, 0, false
	}
	for _, w := range b.wanted { // in the operator's order
		e := b.entries[w.Name]
		if e == nil || e.serving != a && e.moving != a {
			continue
		}
		lb := e.lb
		if a == e.serving && e.old != nil {
			lb = *e.old
		}
		up, draining, known := b.rotation(lb)
		if e.serving == nil && !known {
			// The kernel may still serve for an earlier process. To take over
			// before the first checks have ended would cut its connections.
			if !a.applied {
				return nil, 0, false
			}
			continue
		}
		draining = b.withRemoved(e, draining)
		for _, f := range lb.Frontends {
			services = append(services, Service{
				LoadBalancer: lb.Name, Frontend: f, Scheduler: lb.Scheduler,
				Backends: up, Draining: draining,
				ConnectTimeout: lb.ConnectTimeout, ConnOptions: lb.ConnOptions, MaxFails: lb.MaxFails,
			})
		}
	}
	switch {
	case len(services) > 0:
		return services, b.version, true
	case a.last > 0 || a.err != nil && a.applied: // it still serves what is no longer wanted
		return nil, b.version, true
	default:
		// What an earlier process left in a plane that is unused now is removed,
		// but only once its successor serves.
		return nil, b.version, b.isReady && !a.cleaned
	}
}

// didApply records the outcome of one Apply.
func (b *Balancer) didApply(a *applier, services []Service, version uint64, repaired int, err error) {
	now := time.Now()
	in := make(map[string]bool)
	for _, s := range services {
		in[s.LoadBalancer] = true
	}
	var events []LoadBalancerEvent
	b.mu.Lock()
	before := a.err
	a.err, a.at = err, now
	a.repaired += repaired
	if len(services) == 0 {
		a.cleaned = true
	}
	if err == nil {
		a.last = len(services)
		a.applied = a.applied || len(services) > 0
	} else if len(services) > 0 {
		a.last = max(a.last, 1) // part of it may be there
	}
	moved := false
	for name, e := range b.entries {
		if !in[name] {
			continue
		}
		e.tried = true
		e.repaired += repaired
		if err == nil && e.moving == a && e.movingSince <= version {
			from := ""
			if e.serving != nil {
				from = string(e.serving.plane.Name())
			}
			e.serving, e.moving, e.old = a, nil, nil
			b.version++
			moved = true
			events = append(events, LoadBalancerEvent{LoadBalancer: name, Plane: true, From: from,
				To: string(a.plane.Name()), Reason: e.choice.explain()})
		}
	}
	log := a.burstLine(repaired, now)
	b.becomeReady()
	used := len(services) > 0 || a.applied
	b.mu.Unlock()

	b.emit(events...)
	if moved {
		b.wakeAppliers() // the plane that served before may stop
	}
	if log != 0 {
		b.cfg.Log.Warn("data plane had been damaged by somebody else and is restored",
			"plane", a.plane.Name(), "repaired", log)
	}
	switch {
	case err != nil && !used:
		b.cfg.Log.Debug("a data plane that is not in use cannot be cleaned", "plane", a.plane.Name(), "error", err)
	case err != nil && (before == nil || before.Error() != err.Error()):
		b.cfg.Log.Error("the data plane does not take what it should serve; it will be tried again",
			"plane", a.plane.Name(), "error", err)
	case err == nil && before != nil && used:
		b.cfg.Log.Info("the data plane serves again", "plane", a.plane.Name())
	}
}

// burstLine is the number of repairs to log now: the first of a burst at once,
// the rest as a sum after repairPause.
func (a *applier) burstLine(repaired int, now time.Time) int {
	switch {
	case repaired > 0 && a.burstLast.IsZero():
		a.burstLast = now
		return repaired
	case repaired > 0:
		a.burst += repaired
		a.burstLast = now
	case !a.burstLast.IsZero() && now.Sub(a.burstLast) >= repairPause:
		n := a.burst
		a.burst, a.burstLast = 0, time.Time{}
		return n
	}
	return 0
}
