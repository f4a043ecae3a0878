package nft

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"appliance/balancer"
)

// NAT is the data plane `nftables`: the kernel changes the destination of a
// connection's first packet to a backend's address, and masquerades it so
// that the answers come back. The other packets of the connection follow what
// conntrack remembers; no rule is evaluated for them.
//
// It needs no listener, so a frontend may have the port of a process that
// listens on every address. Clients may be anywhere, on the node too, and so
// may backends. Where firewalls drop forwarded packets by default (docker sets
// the policy of FORWARD to DROP) remote backends need an accept there: a drop
// in anybody's chain is final.
//
// A connection whose backend leaves is reset, see disconnect. Connections of a
// service that is no longer asked for go on: it may have moved to another
// plane. They need NAT to be done by somebody on the host (the rest of our
// services, kube-proxy, docker): the kernel stops translating when the last
// NAT rule of the family is gone.
type NAT struct {
	keep       [2]keeper // by the order of families
	forwarding forwarding

	mu sync.Mutex
	// applied are the services of the last Apply that went well.
	applied []balancer.Service
}

var _ balancer.Plane = (*NAT)(nil)

// NewNAT returns the plane. It touches nothing before Apply.
// Kernel settings are written below sysctls, where /proc/sys is read-only; empty
// means /proc/sys.
func NewNAT(sysctls string) *NAT { return &NAT{forwarding: newForwarding(sysctls)} }

// Name implements balancer.Plane.
func (*NAT) Name() balancer.PlaneName { return balancer.NFTables }

// Usable implements balancer.Plane: it tries the rules for real.
func (n *NAT) Usable(_ context.Context, lb balancer.LoadBalancer) error {
	var services []balancer.Service
	for _, f := range lb.Frontends {
		services = append(services, balancer.Service{LoadBalancer: lb.Name, Frontend: f, Scheduler: lb.Scheduler, Backends: lb.Backends})
	}
	for _, f := range families() {
		if err := sameFamilies(f, lb); err != nil {
			return err
		}
	}
	tables, err := natTables(services)
	if err != nil {
		return err
	}
	for _, t := range tables {
		if err := try(t); err != nil {
			return err
		}
	}
	return n.forwarding.possible(services)
}

// sameFamilies refuses load balancers of which a part would never be served.
func sameFamilies(f ipFamily, lb balancer.LoadBalancer) error {
	if len(lb.Backends) == 0 {
		return nil
	}
	front := slices.IndexFunc(lb.Frontends, func(ap netip.AddrPort) bool { return f.has(ap.Addr()) })
	back := slices.IndexFunc(lb.Backends, func(b balancer.Backend) bool { return f.has(b.Addr.Addr()) })
	switch {
	case front >= 0 && back < 0:
		return fmt.Errorf("load balancer %s: no backend has the address family of %v, and nftables cannot translate between families: add such backends, or set dataPlane: userspace", lb.Name, lb.Frontends[front])
	case front < 0 && back >= 0:
		return fmt.Errorf("load balancer %s: no virtual address has the address family of backend %v, and nftables cannot translate between families: take it off, or set dataPlane: userspace", lb.Name, lb.Backends[back])
	}
	return nil
}

// Apply implements balancer.Plane. Backends of another family than their
// frontend's get nothing.
func (n *NAT) Apply(_ context.Context, services []balancer.Service) (repaired int, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	tables, err := natTables(services)
	if err != nil {
		return 0, err
	}
	// Forwarding before rules: a connection that is sent on must not be
	// dropped for want of it.
	repaired, err = n.forwarding.need(services)
	if err != nil {
		return repaired, err
	}
	for i, t := range tables {
		damaged, err := n.keep[i].apply(t)
		repaired += damaged
		if err != nil {
			return repaired, err
		}
	}
	// Cut after the rules are in place, or a client would come right back to
	// the backend that it was cut from. What could not be cut now is tried
	// again: applied stays what it was.
	if _, err := disconnect(left(n.applied, services)); err != nil {
		return repaired, err
	}
	n.applied = clone(services)
	return repaired, nil
}

// clone copies services so that the caller may do with its own what it wants.
func clone(services []balancer.Service) []balancer.Service {
	c := slices.Clone(services)
	for i := range c {
		c[i].Backends, c[i].Draining = slices.Clone(c[i].Backends), slices.Clone(c[i].Draining)
	}
	return c
}

// Close implements balancer.Plane.
func (n *NAT) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for i, f := range families() {
		_, err := n.keep[i].remove(nat(f, nil))
		errs = append(errs, err)
	}
	n.applied = nil
	return errors.Join(append(errs, n.forwarding.Restore())...)
}

// A Count is how many connections one backend of one frontend got since the
// rules were first made.
type Count struct {
	LoadBalancer string
	Frontend     netip.AddrPort
	Backend      balancer.Backend
	Connections  uint64
}

// Stats are the plane's counters.
type Stats struct {
	Counts []Count
	// Refused counts packets that were answered with a reset: there was no
	// backend, or their connection had been cut.
	Refused uint64
}

// Stats reads the counters from the kernel.
func (n *NAT) Stats() (Stats, error) {
	n.mu.Lock()
	services := n.applied
	n.mu.Unlock()
	conn, err := dial()
	if err != nil {
		return Stats{}, explain(err, nat(ipv4(), nil))
	}
	var s Stats
	counters := make(map[string]uint64)
	for _, f := range families() {
		t := nat(f, nil)
		exists, err := has(conn, t)
		if err != nil {
			return Stats{}, explain(err, t)
		}
		if !exists {
			continue
		}
		c, err := readCounters(conn, t.kernel())
		if err != nil {
			return Stats{}, explain(err, t)
		}
		s.Refused += c[refusedCounter]
		maps.Copy(counters, c)
	}
	for _, svc := range services {
		for _, b := range serving(svc) {
			s.Counts = append(s.Counts, Count{
				LoadBalancer: svc.LoadBalancer,
				Frontend:     svc.Frontend,
				Backend:      b,
				Connections:  counters[backendName(svc.Frontend, b.Addr)],
			})
		}
	}
	return s, nil
}
