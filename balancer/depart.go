package balancer

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// departTime is how long the open connections of a backend may go on that the
// operator has taken out of the configuration. The watches of Kubernetes'
// clients, which are the longest there are, end by themselves within it.
const departTime = time.Hour

// departed is a backend that is not in the configuration any more.
type departed struct {
	Backend
	until time.Time
}

// depart notes the backends that wanted has no more and that live: those that
// are known to be dead have nothing to go on with. Called with mu held, while
// they are still watched: until then their health decides.
func (b *Balancer) depart(wanted []LoadBalancer) {
	for _, lb := range wanted {
		e := b.entries[lb.Name]
		if e == nil {
			continue
		}
		for _, be := range e.lb.Backends {
			stays := slices.ContainsFunc(lb.Backends, func(o Backend) bool { return o.Addr == be.Addr })
			t := Target{lb.Name, be.Addr}
			r, _ := b.monitor.record(t)
			if stays || r.State != Up && r.State != Draining && !r.suspect || b.orders[t].Out == Disable {
				continue
			}
			if e.departed == nil {
				e.departed = make(map[netip.AddrPort]departed)
			}
			e.departed[be.Addr] = departed{be, time.Now().Add(departTime)}
		}
	}
}

// withDeparted adds to draining those that have departed from e. One that is
// watched again has come back, so that its health counts; whoever is not watched
// any more is in e.lb until a plane has been asked about the new one. Called with
// mu held.
func (b *Balancer) withDeparted(e *entry, draining []Backend) []Backend {
	now := time.Now()
	maps.DeleteFunc(e.departed, func(_ netip.AddrPort, d departed) bool { return !now.Before(d.until) })
	if len(e.departed) == 0 {
		return draining
	}
	for _, addr := range slices.SortedFunc(maps.Keys(e.departed), netip.AddrPort.Compare) {
		if _, watched := b.monitor.record(Target{e.lb.Name, addr}); !watched {
			draining = append(draining, e.departed[addr].Backend)
		}
	}
	return draining
}
