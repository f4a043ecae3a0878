package balancer

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// What an operator may order of a backend.
const (
	Drain   = "drain"   // no new connections; the open ones go on
	Disable = "disable" // no connections at all
)

// An Order is what the operator wants of one backend for a while, beyond what
// the configuration says.
type Order struct {
	// Out is Drain, Disable, or empty.
	Out string `json:"out,omitempty"`
	// Weight stands in place of the configured one, if there is one here.
	Weight *int `json:"weight,omitempty"`
}

func (o Order) weight(configured int) int {
	if o.Weight != nil {
		return *o.Weight
	}
	return configured
}

// String says what was ordered; nothing if nothing was.
func (o Order) String() string {
	switch {
	case o.Weight == nil:
		return o.Out
	case o.Out == "":
		return fmt.Sprintf("weight %d", *o.Weight)
	}
	return fmt.Sprintf("%s, weight %d", o.Out, *o.Weight)
}

// Order replaces the operator's orders. Those for backends that are not there
// wait for them.
func (b *Balancer) Order(orders map[Target]Order) {
	b.mu.Lock()
	before := b.orders
	b.orders = maps.Clone(orders)
	var events []Event
	for _, lb := range b.wanted {
		for _, be := range lb.Backends {
			t := Target{lb.Name, be.Addr}
			was, is := before[t].String(), orders[t].String()
			if was == is {
				continue
			}
			e := Event{LoadBalancer: lb.Name, Backend: be.String(), From: was, To: "ordered to " + is, Reason: "the operator's order"}
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
		b.poke()
		b.tell(events...)
	}
}

// rotation splits the backends of lb; known is false while one of them has not
// been checked yet. The slices are new ones. Called with mu held.
//
// Those that get new connections are all of the first kind that there is: the
// healthy ones; the healthy backups; those that clients' connections failed to
// reach, because refusing is worse than trying; those that asked to be drained,
// which serve as long as they live; and those that are down, if the operator
// wants these tried.
func (b *Balancer) rotation(lb LoadBalancer) (up, draining []Backend, known bool) {
	known = true
	var kinds [5][]Backend
	const healthy, backups, barred, leaving, down = 0, 1, 2, 3, 4
	now := time.Now()
	for _, be := range lb.Backends {
		t := Target{lb.Name, be.Addr}
		order := b.orders[t]
		be.Weight = order.weight(be.Weight)
		r, _ := b.monitor.record(t)
		kind := down
		switch shown := r.shown(now).State; {
		case shown == Unknown || shown == "":
			known = false
			continue
		case shown == Up && be.Backup:
			kind = backups
		case shown == Up:
			kind = healthy
		case r.State == Up:
			kind = barred
		case r.State == Draining:
			kind = leaving
		}
		switch {
		case order.Out == Disable:
		case order.Out == Drain, be.Weight == 0:
			if kind != down || r.suspect || lb.Handling.KeepDown {
				draining = append(draining, be)
			}
		case r.suspect:
			draining = append(draining, be)
			kinds[down] = append(kinds[down], be)
		default:
			kinds[kind] = append(kinds[kind], be)
		}
	}
	last := leaving
	if lb.TryDown {
		last = down
	}
	for kind, list := range kinds[:last+1] {
		if len(list) == 0 {
			continue
		}
		if up == nil {
			up = list
			continue
		}
		if kind == backups && lb.Handling.EndBackup || kind == down {
			continue
		}
		draining = append(draining, list...)
	}
	if lb.Handling.KeepDown {
		draining = append(draining, kinds[down]...)
	}
	draining = slices.DeleteFunc(draining, func(d Backend) bool {
		return slices.ContainsFunc(up, func(u Backend) bool { return u.Addr == d.Addr })
	})
	slices.SortStableFunc(draining, func(x, y Backend) int { return x.Addr.Compare(y.Addr) })
	return up, slices.CompactFunc(draining, func(x, y Backend) bool { return x.Addr == y.Addr }), known
}
