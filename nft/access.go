package nft

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"appliance/balancer"
)

// Access resets new connections of clients that may not connect, before a data
// plane in the kernel sees them. Open connections go on. The zero Access is
// ready; one serves all planes.
type Access struct {
	keep keeper

	mu   sync.Mutex
	want map[balancer.PlaneName][]balancer.Service
}

// Guard is plane with Access before it. It refuses load balancers with settings
// that only user space can honour.
func (a *Access) Guard(plane balancer.Plane) balancer.Plane {
	g := guarded{plane, a}
	if m, ok := plane.(balancer.TrafficCounter); ok {
		return struct {
			guarded
			balancer.TrafficCounter
		}{g, m}
	}
	return g
}

// guarded is a plane with Access before it.
type guarded struct {
	balancer.Plane
	access *Access
}

// Usable implements balancer.Plane.
func (g guarded) Usable(ctx context.Context, lb balancer.LoadBalancer) error {
	if err := lb.NeedsUserSpace(g.Name()); err != nil {
		return err
	}
	var services []balancer.Service
	for _, f := range lb.Frontends {
		services = append(services, balancer.Service{LoadBalancer: lb.Name, Frontend: f, ConnOptions: lb.ConnOptions})
	}
	if err := try(access(services)); err != nil {
		return err
	}
	return g.Plane.Usable(ctx, lb)
}

// Apply implements balancer.Plane. Who may not connect is shut out before the
// plane lets anybody in, and stays so while it fails.
func (g guarded) Apply(ctx context.Context, services []balancer.Service) (repaired int, err error) {
	repaired, err = g.access.limit(g.Name(), services)
	if err != nil {
		return repaired, err
	}
	n, err := g.Plane.Apply(ctx, services)
	return repaired + n, err
}

// Close implements balancer.Plane.
func (g guarded) Close() error {
	err := g.Plane.Close()
	_, err2 := g.access.limit(g.Name(), nil)
	return errors.Join(err, err2)
}

// limit makes the rules those of services, for that plane.
func (a *Access) limit(plane balancer.PlaneName, services []balancer.Service) (repaired int, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.want == nil {
		a.want = make(map[balancer.PlaneName][]balancer.Service)
	}
	a.want[plane] = slices.Clone(services)
	var all []balancer.Service
	for _, of := range a.want {
		all = append(all, of...)
	}
	return a.keep.apply(access(all))
}

// Close removes the rules.
func (a *Access) Close() error {
	_, err := a.keep.remove(table{family: nftables.TableFamilyINet, name: accessTable})
	return err
}

// access is the table for those of services that do not take everybody.
func access(services []balancer.Service) table {
	t := table{family: nftables.TableFamilyINet, name: accessTable}
	services = slices.SortedFunc(slices.Values(services), func(a, b balancer.Service) int { return a.Frontend.Compare(b.Frontend) })
	// A load balancer that moves is served by two planes for a moment.
	services = slices.CompactFunc(services, func(a, b balancer.Service) bool { return a.Frontend == b.Frontend })
	var rules []rule
	for _, f := range families() {
		var to []nftables.SetElement
		for _, s := range services {
			h := s.ConnOptions
			if !f.has(s.Frontend.Addr()) || len(h.Allow)+len(h.Deny) == 0 {
				continue
			}
			c := chain{name: "clients_of_" + name(s.Frontend)}
			for _, p := range h.Deny {
				if f.has(p.Addr()) {
					c.rules = append(c.rules, rule{p.String() + " is denied", append(f.from(p), resetTCP())})
				}
			}
			for _, p := range h.Allow {
				if f.has(p.Addr()) {
					c.rules = append(c.rules, rule{p.String() + " is allowed", concat(f.from(p), verdict(expr.VerdictAccept))})
				}
			}
			if len(h.Allow) > 0 {
				c.rules = append(c.rules, rule{"nobody else is allowed", []expr.Any{resetTCP()}})
			}
			t.chains = append(t.chains, c)
			to = append(to, nftables.SetElement{Key: addrPortKey(s.Frontend), VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: c.name}})
		}
		if len(to) == 0 {
			continue
		}
		t.sets = append(t.sets, set{name: "limited" + f.name, key: f.addrPortType(), data: nftables.TypeVerdict, elements: to})
		rules = append(rules, rule{
			why:   "load balancers that do not take everybody",
			exprs: concat(f.tcp(), tcpSYN(), f.addrPort(), []expr.Any{inMap("limited"+f.name, regVerdict)}),
		})
	}
	if len(rules) == 0 {
		return t
	}
	// Before NAT changes the destination and IPVS takes the packet.
	t.chains = append(t.chains,
		chain{name: "prerouting", hook: &hook{kind: nftables.ChainTypeFilter, num: unix.NF_INET_PRE_ROUTING, priority: manglePriority}, rules: rules},
		chain{name: "output", hook: &hook{kind: nftables.ChainTypeFilter, num: unix.NF_INET_LOCAL_OUT, priority: manglePriority}, rules: rules},
	)
	return t
}

// from matches packets whose source is in p.
func (f ipFamily) from(p netip.Prefix) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: f.saddr, Len: f.addrLen},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: f.addrLen, Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()), Xor: make([]byte, f.addrLen)},
		equal(reg1, p.Masked().Addr().AsSlice()...),
	}
}
