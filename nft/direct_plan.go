package nft

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"appliance/balancer"
)

// tables are the plan's tables, in the order in which they are put in force:
// who hands on comes before who sends.
func (p directPlan) tables() [3]table {
	return [3]table{p.arrival(ipv4()), p.arrival(ipv6()), p.ingress()}
}

// plan makes the plan of services in these surroundings.
func (d *Direct) plan(services []balancer.Service, now surroundings) directPlan {
	p := directPlan{fellows: d.fellows(now), passed: make(map[balancer.Target]string), handed: make(map[netip.AddrPort]map[string]bool)}
	for _, name := range d.neighbours.links {
		if l, ok := now.links[name]; ok {
			p.links = append(p.links, l)
		}
	}
	used := make(map[string]preference)
	for _, s := range services {
		l, ok := now.links[d.cfg.Interfaces[s.Frontend.Addr()]]
		if !ok {
			continue // an event will tell when the interface is back
		}
		ds := directService{frontend: s.Frontend, link: l, hops: make(map[netip.AddrPort]hop), place: d.place(s.Frontend)}
		p.handed[s.Frontend] = make(map[string]bool)
		rotation := make(map[netip.AddrPort]bool)
		add := func(b balancer.Backend, inRotation bool) {
			if b.Addr.Addr().Is4() != s.Frontend.Addr().Is4() {
				return
			}
			n, ok := d.node(b.Addr.Addr())
			if !ok {
				if inRotation {
					p.passed[balancer.Target{LoadBalancer: s.LoadBalancer, Backend: b.Addr}] = "its address is that of no node of the group"
				}
				return
			}
			h := hop{addr: b.Addr, self: n.ID == d.cfg.Self}
			if !h.self {
				why := ""
				if h.mac, ok = mac(now, l.name, n, b.Addr.Addr()); !ok {
					why = fmt.Sprintf("the MAC address of %v is not known: it answers nothing on %s", n, l.name)
				} else {
					why = d.path(s.Frontend, n.ID).why(n)
				}
				if d.proof(n) == ProofNone {
					ok, why = false, strange
				}
				if inRotation && why != "" {
					p.passed[balancer.Target{LoadBalancer: s.LoadBalancer, Backend: b.Addr}] = why
				}
				if ok = ok && d.proof(n) == ProofReached; !ok {
					return
				}
				// A node that has stopped answering may keep its open
				// connections: its process restarts, or the probes got lost. One
				// that never answered has none, and may not know what to do with
				// those of others.
				if why == "" {
					delete(d.newcomers, n.ID)
				}
				if d.newcomers[n.ID] {
					return
				}
				inRotation = inRotation && why == ""
			}
			ds.hops[b.Addr] = h
			p.handed[s.Frontend][n.ID] = true
			rotation[b.Addr] = inRotation && b.Weight > 0
		}
		for _, b := range s.Draining {
			add(b, false)
		}
		for _, b := range s.Backends {
			add(b, true)
		}
		if self, ok := ds.self(); ok {
			ds.place = self.addr
		}
		members := d.membersOf(s)
		key := fmt.Sprint(members)
		pref, ok := d.preferred[key]
		if !ok {
			pref = prefer(members)
		}
		used[key] = pref
		ds.preference = pref
		ds.slots = pref.table(
			func(a netip.AddrPort) bool { return rotation[a] },
			func(a netip.AddrPort) bool { _, ok := ds.hops[a]; return ok },
		)
		ds.refuse = !slices.ContainsFunc(ds.slots, func(s slot) bool { return s.owner.IsValid() })
		p.services = append(p.services, ds)
	}
	d.preferred = used
	slices.SortFunc(p.services, func(a, b directService) int { return a.frontend.Compare(b.frontend) })
	return p
}

// membersOf are the service's backends, those that are away too, of the
// frontend's family and sorted by address.
func (d *Direct) membersOf(s balancer.Service) []member {
	weights := make(map[netip.AddrPort]int)
	for _, bs := range [][]balancer.Backend{d.configured[s.LoadBalancer], s.Draining, s.Backends} {
		for _, b := range bs {
			if b.Addr.Addr().Is4() == s.Frontend.Addr().Is4() {
				// Weight 0 takes a backend out of rotation; its place in the
				// table stays, as for one that is down.
				weights[b.Addr] = cmp.Or(b.Weight, weights[b.Addr])
			}
		}
	}
	members := make([]member, 0, len(weights))
	for a, w := range weights {
		members = append(members, member{a, w})
	}
	slices.SortFunc(members, func(a, b member) int { return a.addr.Compare(b.addr) })
	return members
}

// place is where a backend on this node would be, as far as is known.
func (d *Direct) place(frontend netip.AddrPort) netip.AddrPort {
	a, _ := addrOf(*d.nodes.Load(), d.cfg.Self, frontend.Addr())
	return netip.AddrPortFrom(a, frontend.Port())
}

func (d *Direct) node(addr netip.Addr) (Node, bool) { return nodeAt(*d.nodes.Load(), addr) }

// nodeAt is the node of nodes that has an address.
func nodeAt(nodes []Node, addr netip.Addr) (Node, bool) {
	i := slices.IndexFunc(nodes, func(n Node) bool { return slices.Contains(n.Addrs, addr) })
	if i < 0 {
		return Node{}, false
	}
	return nodes[i], true
}

func (d *Direct) hasBackend(n Node, f netip.AddrPort, lb balancer.LoadBalancer) bool {
	return slices.ContainsFunc(lb.Backends, func(b balancer.Backend) bool {
		return b.Addr.Addr().Is4() == f.Addr().Is4() && slices.Contains(n.Addrs, b.Addr.Addr())
	})
}

// mac is a node's MAC address on a link: that of addr, or, while the kernel
// does not know it, that of an address of the other family.
func mac(now surroundings, link string, n Node, addr netip.Addr) (mac [6]byte, ok bool) {
	for _, a := range append([]netip.Addr{addr}, n.Addrs...) {
		if mac, ok = now.macs[place{link, a}]; ok {
			return mac, true
		}
	}
	return mac, false
}

func (d *Direct) path(f netip.AddrPort, node string) Path {
	if d.cfg.Prober == nil {
		return PathProved
	}
	return d.cfg.Prober.Path(f, node)
}
