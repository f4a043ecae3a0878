package nft

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"appliance/balancer"
	"appliance/nft/conntrack"
	"appliance/nft/ruleset"
	"appliance/sysctl"
)

// NAT is the data plane `nftables`: the kernel changes the destination of a
// connection's first packet to a backend's address, and masquerades it so that the
// answers come back. The other packets of the connection follow what conntrack
// remembers, without any rule.
//
// It needs no listener, so a frontend may have the port of a process that
// listens on every address. Clients may be anywhere, on the node too, and so
// may backends. Where firewalls drop forwarded packets by default (docker sets
// the policy of FORWARD to DROP) remote backends need an accept there: a drop
// in anybody's chain is final.
//
// A connection whose backend leaves is reset; see conntrack.Cut. Connections of a
// service that is no longer wanted go on: it may have moved to another plane. They
// need somebody's NAT rules on the host (the rest of our services, kube-proxy,
// docker): the kernel stops translating when the last NAT rule of the family is
// gone.
type NAT struct {
	reconcilers [2]ruleset.Reconciler // in the order of ruleset.Families
	forwarding  forwarding
	sockets     func() bool // whether the kernel has nft_socket

	mu sync.Mutex
	// applied are the services of the last Apply that went well.
	applied []balancer.Service
	// since is when each frontend of applied was served first by this process.
	since map[netip.AddrPort]time.Time
	// turned is when connections were last looked at; see turn.
	turned time.Time
}

var _ balancer.Plane = (*NAT)(nil)

// NewNAT returns the plane. It touches nothing before Apply. Kernel settings are
// written below sysctls, for containers whose /proc/sys is read-only; empty means
// /proc/sys.
// The tables belong to the owner, which may be nil.
func NewNAT(sysctls string, owner *ruleset.Owner) *NAT {
	return &NAT{forwarding: newForwarding(sysctls), reconcilers: [2]ruleset.Reconciler{{Owner: owner}, {Owner: owner}},
		sockets: sync.OnceValue(matchesSockets)}
}

// matchesSockets tries whether the kernel can tell which connections are open here.
func matchesSockets() bool {
	one := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), 1) // RFC 5737
	return ruleset.Try(natTable(ruleset.IPv4(), []balancer.Service{{Frontend: one}}, true)) == nil
}

func (n *NAT) tables(services []balancer.Service) ([]ruleset.Table, error) {
	return natTables(services, n.sockets())
}

// Name implements balancer.Plane.
func (*NAT) Name() balancer.PlaneName { return balancer.NFTables }

// Usable implements balancer.Plane: it tries the rules for real.
func (n *NAT) Usable(_ context.Context, lb balancer.LoadBalancer) error {
	var services []balancer.Service
	for _, f := range lb.Frontends {
		services = append(services, balancer.Service{
			LoadBalancer: lb.Name, Frontend: f, Scheduler: lb.Scheduler, Backends: lb.Backends,
		})
	}
	for _, f := range ruleset.Families() {
		if err := sameFamilies(f, lb); err != nil {
			return err
		}
	}
	tables, err := n.tables(services)
	if err != nil {
		return err
	}
	for _, t := range tables {
		if err := ruleset.Try(t); err != nil {
			return err
		}
	}
	return n.forwarding.possible(services)
}

// sameFamilies rejects load balancers of which a part would never be served.
func sameFamilies(f ruleset.IPFamily, lb balancer.LoadBalancer) error {
	if len(lb.Backends) == 0 {
		return nil
	}
	front := slices.IndexFunc(lb.Frontends, func(ap netip.AddrPort) bool { return f.Has(ap.Addr()) })
	back := slices.IndexFunc(lb.Backends, func(b balancer.Backend) bool { return f.Has(b.Addr.Addr()) })
	switch {
	case front >= 0 && back < 0:
		return fmt.Errorf("load balancer %s: no backend has the address family of %v, and nftables cannot translate "+
			"between families: add such backends, or set dataPlane: userspace", lb.Name, lb.Frontends[front])
	case front < 0 && back >= 0:
		return fmt.Errorf("load balancer %s: no virtual address has the address family of backend %v, and nftables "+
			"cannot translate between families: take it off, or set dataPlane: userspace", lb.Name, lb.Backends[back])
	}
	return nil
}

// Apply implements balancer.Plane. Backends of another family than their
// frontend's get nothing.
func (n *NAT) Apply(_ context.Context, services []balancer.Service) (repaired int, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	tables, err := n.tables(services)
	if err != nil {
		return 0, err
	}
	// Forwarding comes before the rules: no connection that they send on may be
	// dropped for lack of it.
	repaired, err = n.forwarding.need(services)
	if err != nil {
		return repaired, err
	}
	for i, t := range tables {
		damaged, err := n.reconcilers[i].Apply(t)
		repaired += damaged
		if err != nil {
			return repaired, err
		}
	}
	// Connections are cut after the rules are in place, or a client would come
	// straight back to the same backend. If cutting fails, applied stays as it was,
	// so that the next Apply tries again.
	if _, err := conntrack.Cut(conntrack.LostBackends(n.applied, services)); err != nil {
		return repaired, err
	}
	n.turn(services)
	n.applied = cloneServices(services)
	return repaired, nil
}

// turnFor is how long connections to a new frontend are looked at. Those from before the frontend was served here have
// spoken by then, or are as idle as those that rarely end. A look reads all of conntrack's table, which takes 0.2 s on
// a busy host, so the pauses between looks grow: some eight in the minute.
const turnFor = time.Minute

// turn corrects who opened the connections of the frontends that have not been served here for long.
func (n *NAT) turn(services []balancer.Service) {
	since := make(map[netip.AddrPort]time.Time)
	var frontends []netip.AddrPort
	age := turnFor // of the newest
	for _, s := range services {
		began, known := n.since[s.Frontend]
		if !known {
			began = time.Now()
		}
		since[s.Frontend] = began
		if time.Since(began) < turnFor {
			frontends = append(frontends, s.Frontend)
			age = min(age, time.Since(began))
		}
	}
	n.since = since
	if len(frontends) == 0 || time.Since(n.turned) < max(time.Second, age/2) {
		return
	}
	n.turned = time.Now()
	// Without nf_conntrack_netlink, a client that takes such a port again is refused once.
	_ = conntrack.Turn(frontends)
}

// cloneServices copies services, so that the caller may change its own.
func cloneServices(services []balancer.Service) []balancer.Service {
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
	for i, f := range ruleset.Families() {
		_, err := n.reconcilers[i].Remove(natTable(f, nil, false))
		errs = append(errs, err)
	}
	n.applied = nil
	return errors.Join(append(errs, n.forwarding.Restore())...)
}

// Stats reads the counters from the kernel.
func (n *NAT) Stats() (ruleset.Stats, error) {
	n.mu.Lock()
	services := n.applied
	n.mu.Unlock()
	c, err := ruleset.Counters(natTable(ruleset.IPv4(), nil, false), natTable(ruleset.IPv6(), nil, false))
	if err != nil {
		return ruleset.Stats{}, err
	}
	s := ruleset.Stats{Refused: c[refusedCounter]}
	for _, svc := range services {
		for _, b := range serving(svc) {
			s.Counts = append(s.Counts, ruleset.Count{
				LoadBalancer: svc.LoadBalancer,
				Frontend:     svc.Frontend,
				Backend:      b,
				Connections:  c[ruleset.BackendName(svc.Frontend, b.Addr)],
			})
		}
	}
	return s, nil
}

// forwarding lets the kernel pass packets on to backends on other hosts.
type forwarding struct{ sysctl.Tree }

// newForwarding reads and writes parameters below root; empty means /proc/sys.
func newForwarding(root string) forwarding { return forwarding{sysctl.Tree{Root: root}} }

// need turns forwarding on for the families of backends on other hosts, if it is off. repaired counts what we had
// turned on and somebody else turned off.
func (f *forwarding) need(services []balancer.Service) (repaired int, err error) {
	parameters, err := forwardingFor(services)
	if err != nil {
		return 0, err
	}
	return f.Set(parameters...)
}

// possible returns the error that need would return. It changes nothing.
func (f *forwarding) possible(services []balancer.Service) error {
	parameters, err := forwardingFor(services)
	if err != nil {
		return err
	}
	return f.Check(parameters...)
}

func forwardingFor(services []balancer.Service) ([]sysctl.Parameter, error) {
	remote4, remote6, err := remote(services)
	return sysctl.Forwarding(remote4, remote6, "backends on other hosts need the kernel to forward packets"), err
}

// remote reports whether there are backends on other hosts, by family.
func remote(services []balancer.Service) (remote4, remote6 bool, err error) {
	local, err := conntrack.HostAddrs()
	if err != nil {
		return false, false, err
	}
	for _, s := range services {
		for _, b := range serving(s) {
			switch a := b.Addr.Addr().Unmap(); {
			case local[a]:
			case a.Is4():
				remote4 = true
			default:
				remote6 = true
			}
		}
	}
	return remote4, remote6, nil
}
