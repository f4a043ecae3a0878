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
	"appliance/nft/ruleset"
)

// An ACL resets new connections of clients that may not connect, before a data
// plane in the kernel sees them. Open connections go on. The zero ACL is ready; one
// serves all planes.
type ACL struct {
	reconciler ruleset.Reconciler
	defrag     ruleset.Defragmenter

	mu   sync.Mutex
	want map[balancer.PlaneName][]balancer.Service
}

// NewACL returns an ACL whose table belongs to the owner.
func NewACL(owner *ruleset.Owner) *ACL { return &ACL{reconciler: ruleset.Reconciler{Owner: owner}} }

// Guard returns the plane with the ACL before it. The result is not usable for a load
// balancer with settings that only user space can honour.
func (a *ACL) Guard(plane balancer.Plane) balancer.Plane {
	return balancer.WithTraffic(guardedPlane{plane, a}, plane)
}

// A guardedPlane is a plane with an ACL before it.
type guardedPlane struct {
	balancer.Plane
	acl *ACL
}

// Usable implements balancer.Plane.
func (g guardedPlane) Usable(ctx context.Context, lb balancer.LoadBalancer) error {
	if err := lb.NeedsUserSpace(g.Name()); err != nil {
		return err
	}
	var services []balancer.Service
	for _, f := range lb.Frontends {
		services = append(services, balancer.Service{LoadBalancer: lb.Name, Frontend: f, ConnOptions: lb.ConnOptions})
	}
	if err := ruleset.Try(g.acl.table(services)); err != nil {
		return err
	}
	return g.Plane.Usable(ctx, lb)
}

// Apply implements balancer.Plane. Clients that may not connect are shut out before
// the plane lets anybody in, and stay so if the plane fails.
func (g guardedPlane) Apply(ctx context.Context, services []balancer.Service) (repaired int, err error) {
	repaired, err = g.acl.apply(g.Name(), services)
	if err != nil {
		return repaired, err
	}
	n, err := g.Plane.Apply(ctx, services)
	return repaired + n, err
}

// Close implements balancer.Plane.
func (g guardedPlane) Close() error {
	err := g.Plane.Close()
	_, err2 := g.acl.apply(g.Name(), nil)
	return errors.Join(err, err2)
}

// apply makes services those of the plane.
func (a *ACL) apply(plane balancer.PlaneName, services []balancer.Service) (repaired int, err error) {
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
	return a.reconciler.Apply(a.table(all))
}

// table is aclTable with the chain that has the kernel show whole packets to it.
func (a *ACL) table(services []balancer.Service) ruleset.Table {
	t := aclTable(services)
	a.defrag.AddTo(&t)
	return t
}

// Close removes the rules.
func (a *ACL) Close() error {
	_, err := a.reconciler.Remove(ruleset.Table{Family: nftables.TableFamilyINet, Name: ruleset.ACLTable})
	return err
}

// aclTable is the table for those of services that do not take everybody.
//
// A fragment without ports tells not for which service it is. Fragments are seen only
// where the kernel cannot put them together before. There, a client must be welcome at
// each service of the address, or its fragments are dropped.
func aclTable(services []balancer.Service) ruleset.Table {
	t := ruleset.Table{Family: nftables.TableFamilyINet, Name: ruleset.ACLTable}
	services = slices.Clone(services)
	slices.SortFunc(services, func(a, b balancer.Service) int { return a.Frontend.Compare(b.Frontend) })
	// Two planes serve a load balancer for a moment while it moves.
	services = slices.CompactFunc(services, func(a, b balancer.Service) bool { return a.Frontend == b.Frontend })
	var rules []ruleset.Rule
	for _, f := range ruleset.Families() {
		var to []nftables.SetElement
		var fragments []ruleset.Rule
		for _, s := range services {
			h := s.ConnOptions
			if !f.Has(s.Frontend.Addr()) || len(h.Allow)+len(h.Deny) == 0 {
				continue
			}
			c := ruleset.Chain{Name: "clients_of_" + ruleset.NameOf(s.Frontend)}
			part := ruleset.Chain{Name: "fragments_to_" + ruleset.NameOf(s.Frontend)}
			for _, p := range h.Deny {
				if f.Has(p.Addr()) {
					c.Add(p.String()+" is denied", append(fromPrefix(f, p), ruleset.Reset()))
					part.Add(p.String()+" is denied", fromPrefix(f, p), ruleset.Verdict(expr.VerdictDrop))
				}
			}
			for _, p := range h.Allow {
				if f.Has(p.Addr()) {
					c.Add(p.String()+" is allowed", fromPrefix(f, p), ruleset.Verdict(expr.VerdictAccept))
					part.Add(p.String()+" is allowed", fromPrefix(f, p), ruleset.Verdict(expr.VerdictReturn))
				}
			}
			if len(h.Allow) > 0 {
				c.Add("nobody else is allowed", []expr.Any{ruleset.Reset()})
				part.Add("nobody else is allowed", ruleset.Verdict(expr.VerdictDrop))
			}
			t.Chains = append(t.Chains, c, part)
			fragments = append(fragments, ruleset.NewRule("fragments for "+s.Frontend.String(), f.Fragment(), []expr.Any{
				ruleset.LoadNetwork(reg1, f.DstOffset, f.AddrLen),
				ruleset.Equal(reg1, s.Frontend.Addr().Unmap().AsSlice()...),
				&expr.Verdict{Kind: expr.VerdictJump, Chain: part.Name},
			}))
			to = append(to, ruleset.GotoElement(ruleset.AddrPortKey(s.Frontend), c.Name))
		}
		if len(to) == 0 {
			continue
		}
		t.Sets = append(t.Sets, ruleset.Set{Name: "limited" + f.Name, Key: f.AddrPortType(), Data: nftables.TypeVerdict,
			Elements: to})
		rules = append(rules, ruleset.NewRule("load balancers that do not take everybody", f.TCP(), ruleset.SYN(),
			f.DstAddrPort(), []expr.Any{ruleset.InMap("limited"+f.Name, ruleset.RegVerdict)}))
		rules = append(rules, fragments...)
	}
	if len(rules) == 0 {
		return t
	}
	// Before NAT changes the destination and IPVS takes the packet.
	t.Chains = append(t.Chains,
		ruleset.FilterChain("prerouting", unix.NF_INET_PRE_ROUTING, ruleset.PriorityMangle, rules...),
		ruleset.FilterChain("output", unix.NF_INET_LOCAL_OUT, ruleset.PriorityMangle, rules...),
	)
	return t
}

// fromPrefix matches packets whose source is in p.
func fromPrefix(f ruleset.IPFamily, p netip.Prefix) []expr.Any {
	return []expr.Any{
		ruleset.LoadNetwork(reg1, f.SrcOffset, f.AddrLen),
		ruleset.Mask(net.CIDRMask(p.Bits(), p.Addr().BitLen()), make([]byte, f.AddrLen)),
		ruleset.Equal(reg1, p.Masked().Addr().AsSlice()...),
	}
}
