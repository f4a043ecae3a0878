package balancer

import (
	"context"
	"time"
)

// driver calls Apply of one plane. The fields below plane and kick are guarded
// by Balancer.mu.
type driver struct {
	plane Plane
	kick  chan struct{}

	applied  bool  // Apply has succeeded once with something to serve
	cleaned  bool  // Apply has been called with nothing, to remove what an earlier life left
	last     int   // services in the last Apply that succeeded
	err      error // of the last Apply
	at       time.Time
	repaired int
	// A burst of repairs is logged at its start and its end.
	burst     int
	burstLast time.Time
}

// quiet is how long nothing must have been repaired until the next repair is
// news again.
const quiet = time.Minute

// applyTimeout bounds one Apply, so that a plane that hangs is seen.
const applyTimeout = 15 * time.Second

// drive applies the set of one plane on every change and every Level.
func (b *Balancer) drive(ctx context.Context, d *driver) error {
	ticker := time.NewTicker(b.cfg.Level)
	defer ticker.Stop()
	for {
		if services, version, due := b.services(d); due {
			actx, cancel := context.WithTimeout(ctx, applyTimeout)
			repaired, err := d.plane.Apply(actx, services)
			cancel()
			if ctx.Err() != nil {
				return nil
			}
			b.didApply(d, services, version, repaired, err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-d.kick:
		case <-ticker.C:
		}
	}
}

// services is what d is to serve now, the version of that set, and whether an
// Apply is due at all.
func (b *Balancer) services(d *driver) (services []Service, version uint64, due bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.chosen {
		return nil, 0, false
	}
	for _, w := range b.wanted { // in the operator's order
		e := b.entries[w.Name]
		if e == nil || e.serving != d && e.moving != d {
			continue
		}
		lb := e.lb
		if d == e.serving && e.old != nil {
			lb = *e.old
		}
		up, draining, known := b.rotation(lb)
		if e.serving == nil && !known {
			// An earlier life may still be serving in the kernel. Taking over
			// before the first checks have ended would cut its connections.
			if !d.applied {
				return nil, 0, false
			}
			continue
		}
		draining = b.withDeparted(e, draining)
		for _, f := range lb.Frontends {
			services = append(services, Service{
				LoadBalancer: lb.Name, Frontend: f, Scheduler: lb.Scheduler,
				Backends: up, Draining: draining, ConnectTimeout: lb.ConnectTimeout, Handling: lb.Handling,
			})
		}
	}
	switch {
	case len(services) > 0:
		return services, b.version, true
	case d.last > 0 || d.err != nil && d.applied: // it still serves what it should not
		return nil, b.version, true
	default:
		// What an earlier life left in a plane that is not used now goes, but
		// only when its successor serves.
		return nil, b.version, b.isReady && !d.cleaned
	}
}

// didApply records the outcome of one Apply.
func (b *Balancer) didApply(d *driver, services []Service, version uint64, repaired int, err error) {
	now := time.Now()
	in := make(map[string]bool)
	for _, s := range services {
		in[s.LoadBalancer] = true
	}
	var events []Event
	b.mu.Lock()
	before := d.err
	d.err, d.at = err, now
	d.repaired += repaired
	if len(services) == 0 {
		d.cleaned = true
	}
	if err == nil {
		d.last = len(services)
		d.applied = d.applied || len(services) > 0
	} else if len(services) > 0 {
		d.last = max(d.last, 1) // perhaps half of it is there
	}
	moved := false
	for name, e := range b.entries {
		if !in[name] {
			continue
		}
		e.tried = true
		e.repaired += repaired
		if err == nil && e.moving == d && e.movingSince <= version {
			from := ""
			if e.serving != nil {
				from = string(e.serving.plane.Name())
			}
			e.serving, e.moving, e.old = d, nil, nil
			b.version++
			moved = true
			events = append(events, Event{LoadBalancer: name, Plane: true, From: from,
				To: string(d.plane.Name()), Reason: e.choice.why()})
		}
	}
	log := d.burstLine(repaired, now)
	b.becomeReady()
	used := len(services) > 0 || d.applied
	b.mu.Unlock()

	b.tell(events...)
	if moved {
		b.poke() // the plane that served before may stop
	}
	if log != 0 {
		b.cfg.Log.Warn("data plane had been damaged by somebody else and is whole again",
			"plane", d.plane.Name(), "repaired", log)
	}
	switch {
	case err != nil && !used:
		b.cfg.Log.Debug("data plane that is not in use cannot be cleaned", "plane", d.plane.Name(), "error", err)
	case err != nil && (before == nil || before.Error() != err.Error()):
		b.cfg.Log.Error("data plane does not take what it should serve; it is tried again",
			"plane", d.plane.Name(), "error", err)
	case err == nil && before != nil && used:
		b.cfg.Log.Info("data plane serves again", "plane", d.plane.Name())
	}
}

// burstLine is the number of repairs to log now: the first of a burst at once,
// the rest as a sum when it has been quiet for a while.
func (d *driver) burstLine(repaired int, now time.Time) int {
	switch {
	case repaired > 0 && d.burstLast.IsZero():
		d.burstLast = now
		return repaired
	case repaired > 0:
		d.burst += repaired
		d.burstLast = now
	case !d.burstLast.IsZero() && now.Sub(d.burstLast) >= quiet:
		n := d.burst
		d.burst, d.burstLast = 0, time.Time{}
		return n
	}
	return 0
}
