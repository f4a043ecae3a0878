package balancer

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// What an operator may order of a backend.
const (
	Drain   = "drain"   // no new connections; the open ones go on
	Disable = "disable" // no connections at all
	// Enable lets in a backend that the configuration disables.
	Enable = "enable"
)

// An Override is what the operator orders of one backend for a while, beyond
// what the configuration says.
type Override struct {
	// Out is Drain, Disable, Enable, or empty.
	Out string `json:"out,omitempty"`
	// Weight replaces the configured weight, unless it is nil.
	Weight *int `json:"weight,omitempty"`
}

// out is whether be is kept out: Drain, Disable, or empty.
func (o Override) out(be Backend) string {
	switch {
	case o.Out == Enable:
		return ""
	case o.Out == "" && be.Disabled:
		return Disable
	}
	return o.Out
}

func (o Override) weight(configured int) int {
	if o.Weight != nil {
		return *o.Weight
	}
	return configured
}

// String says what was ordered; it is empty if nothing was.
func (o Override) String() string {
	switch {
	case o.Weight == nil:
		return o.Out
	case o.Out == "":
		return fmt.Sprintf("weight %d", *o.Weight)
	}
	return fmt.Sprintf("%s, weight %d", o.Out, *o.Weight)
}

// SetOverrides replaces the operator's overrides. An override for a backend that
// is not there waits for it.
func (b *Balancer) SetOverrides(overrides map[Target]Override) {
	b.mu.Lock()
	before := b.overrides
	b.overrides = maps.Clone(overrides)
	var events []LoadBalancerEvent
	for _, lb := range b.wanted {
		for _, be := range lb.Backends {
			t := Target{lb.Name, be.Addr}
			was, is := before[t].String(), overrides[t].String()
			if was == is {
				continue
			}
			e := LoadBalancerEvent{
				LoadBalancer: lb.Name, Backend: be.String(),
				From: was, To: "ordered to " + is, Reason: "the operator's order",
			}
			if is == "" {
				e.To = "as configured again"
			}
			events = append(events, e)
		}
	}
	if len(events) > 0 {
		b.version++
	}
	b.mu.Unlock()
	if len(events) > 0 {
		b.wakeAppliers()
		b.emit(events...)
	}
}

// The classes of backends, in the order in which new connections prefer them.
const (
	classHealthy = iota
	classBackup  // healthy, and configured as backup
	// classBarred: clients' connections failed. To try it is better than to
	// refuse the client.
	classBarred
	classDraining // wants no new connections, and still serves the open ones
	classDown
	classes
)

// rotation splits the backends of lb into those that get new connections and
// those that only keep their open ones. New connections go to the first class
// that has a backend; classDown counts only with TryDown. known is false while
// a backend has not been checked yet. The slices are new. The caller holds mu.
func (b *Balancer) rotation(lb LoadBalancer) (up, draining []Backend, known bool) {
	known = true
	var byClass [classes][]Backend
	now := time.Now()
	for _, be := range lb.Backends {
		t := Target{lb.Name, be.Addr}
		override := b.overrides[t]
		be.Weight = override.weight(be.Weight)
		r, _ := b.monitor.record(t)
		class := classDown
		switch state := r.effective(now).State; {
		case state == Unknown || state == "":
			known = false
			continue
		case state == Up && be.Backup:
			class = classBackup
		case state == Up:
			class = classHealthy
		case r.State == Up:
			class = classBarred
		case r.State == Draining:
			class = classDraining
		}
		switch out := override.out(be); {
		case out == Disable:
		case out == Drain, be.Weight == 0:
			if class != classDown || r.suspect || lb.keepsDown(be) {
				draining = append(draining, be)
			}
		case r.suspect:
			draining = append(draining, be)
			byClass[classDown] = append(byClass[classDown], be)
		default:
			byClass[class] = append(byClass[class], be)
		}
	}
	last := classDraining
	if lb.TryDown {
		last = classDown
	}
	for class, list := range byClass[:last+1] {
		if len(list) == 0 {
			continue
		}
		if up == nil {
			up = list
			continue
		}
		if class == classBackup && lb.ConnOptions.EndBackup || class == classDown {
			continue
		}
		draining = append(draining, list...)
	}
	for _, be := range byClass[classDown] {
		if lb.keepsDown(be) {
			draining = append(draining, be)
		}
	}
	draining = slices.DeleteFunc(draining, func(d Backend) bool {
		return slices.ContainsFunc(up, func(u Backend) bool { return u.Addr == d.Addr })
	})
	slices.SortStableFunc(draining, func(x, y Backend) int { return x.Addr.Compare(y.Addr) })
	return up, slices.CompactFunc(draining, func(x, y Backend) bool { return x.Addr == y.Addr }), known
}

// removed is a backend that the configuration no longer has. Its open
// connections may go on until then.
type removed struct {
	Backend
	until time.Time
}

// keepRemoved notes the backends that wanted no longer has and that are alive;
// the dead have no connections to keep. The caller holds mu, and the monitor
// still watches the backends: their health decides.
func (b *Balancer) keepRemoved(wanted []LoadBalancer) {
	for _, lb := range wanted {
		e := b.entries[lb.Name]
		if e == nil {
			continue
		}
		for _, be := range e.lb.Backends {
			stays := slices.ContainsFunc(lb.Backends, func(o Backend) bool { return o.Addr == be.Addr })
			t := Target{lb.Name, be.Addr}
			r, _ := b.monitor.record(t)
			alive := r.State == Up || r.State == Draining || r.suspect
			if stays || !alive || b.overrides[t].out(be) == Disable {
				continue
			}
			if e.removed == nil {
				e.removed = make(map[netip.AddrPort]removed)
			}
			e.removed[be.Addr] = removed{be, time.Now().Add(ConnLifetime)}
		}
	}
}

// withRemoved adds the removed backends of e to draining. One that the monitor
// watches again has come back, so its health decides; one that it no longer
// watches is in e.lb until a plane was asked about the new load balancer. The
// caller holds mu.
func (b *Balancer) withRemoved(e *entry, draining []Backend) []Backend {
	now := time.Now()
	maps.DeleteFunc(e.removed, func(_ netip.AddrPort, r removed) bool { return !now.Before(r.until) })
	for _, addr := range slices.SortedFunc(maps.Keys(e.removed), netip.AddrPort.Compare) {
		if _, watched := b.monitor.record(Target{e.lb.Name, addr}); !watched {
			draining = append(draining, e.removed[addr].Backend)
		}
	}
	return draining
}
