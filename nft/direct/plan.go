package direct

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"appliance/balancer"
	"appliance/neighbours"
	"appliance/nft/ruleset"
	"appliance/nft/tunnel"
	"appliance/pathprobe"
)

// tables are the plan's tables in the order in which they come into force: a node
// can hand packets on before it sends any.
func (p rulePlan) tables() [3]ruleset.Table {
	return [3]ruleset.Table{p.arrival(ruleset.IPv4()), p.arrival(ruleset.IPv6()), p.ingress()}
}

// plan makes the plan of services from what is known of the network now.
func (d *DataPlane) plan(services []balancer.Service, now neighbours.View) rulePlan {
	p := rulePlan{
		nodeMACs:   d.knownMACs(now),
		passedOver: make(map[balancer.Target]string),
		handsTo:    make(map[netip.AddrPort]map[string]bool),
		defrag:     &d.defrag,
	}
	out := now.Links[tunnel.Name]
	if out.Index != 0 {
		p.carries = d.cfg.Tunnel.Carries()
	}
	for _, name := range d.links {
		if l, ok := now.Links[name]; ok {
			p.links = append(p.links, l)
		}
	}
	used := make(map[string]preference)
	same := make(map[string]int) // the place of a service by all that it consists of
	for _, s := range services {
		l, ok := now.Links[d.cfg.Interfaces[s.Frontend.Addr()]]
		if !ok {
			continue // an event will tell when the interface is back
		}
		ds := service{frontends: []netip.AddrPort{s.Frontend}, link: l, hops: make(map[netip.AddrPort]hop), position: d.position(s.Frontend)}
		if slices.Contains(d.cfg.Routed, s.Frontend.Addr()) {
			ds.tunnel = out
		}
		p.handsTo[s.Frontend] = make(map[string]bool)
		rotation := make(map[netip.AddrPort]bool)
		add := func(b balancer.Backend, inRotation bool) {
			if b.Addr.Addr().Is4() != s.Frontend.Addr().Is4() {
				return
			}
			n, h, ok, why := d.reach(b.Addr, s.Frontend, l, now)
			if inRotation && why != "" {
				p.passedOver[balancer.Target{LoadBalancer: s.LoadBalancer, Backend: b.Addr}] = why
			}
			if !ok {
				return
			}
			ds.hops[b.Addr] = h
			p.handsTo[s.Frontend][n.ID] = true
			rotation[b.Addr] = inRotation && why == "" && b.Weight > 0
		}
		for _, b := range s.Draining {
			add(b, false)
		}
		for _, b := range s.Backends {
			add(b, true)
		}
		if self, ok := ds.self(); ok {
			ds.position = self.addr
		}
		members := d.membersOf(s)
		key := fmt.Sprint(members)
		all := fmt.Sprintln(s.LoadBalancer, s.Frontend.Port(), l.Name, ds.tunnel.Name, key, ds.position, ds.hops, rotation)
		if i, ok := same[all]; ok {
			p.services[i].frontends = append(p.services[i].frontends, s.Frontend)
			continue
		}
		same[all] = len(p.services)
		pref, ok := d.preferences[key]
		if !ok {
			pref = prefer(members)
		}
		used[key] = pref
		ds.preference = pref
		ds.slots = pref.table(
			func(a netip.AddrPort) bool { return rotation[a] },
			func(a netip.AddrPort) bool { _, ok := ds.hops[a]; return ok },
		)
		ds.reject = !slices.ContainsFunc(ds.slots.kinds, func(s slot) bool { return s.owner.IsValid() })
		p.services = append(p.services, ds)
	}
	d.preferences = used
	for _, s := range p.services {
		slices.SortFunc(s.frontends, netip.AddrPort.Compare)
	}
	slices.SortFunc(p.services, func(a, b service) int { return a.frontends[0].Compare(b.frontends[0]) })
	return p
}

// reach says how this node reaches a backend of a frontend on the link: on which
// node, by which hop, whether packets may go there at all, and, if it may get no new
// connections, why.
func (d *DataPlane) reach(backend, frontend netip.AddrPort, l neighbours.Link, now neighbours.View) (
	n pathprobe.Node, h hop, ok bool, why string,
) {
	if n, ok = d.node(backend.Addr()); !ok {
		return n, h, false, "its address is that of no node of the group"
	}
	h = hop{addr: backend, self: n.ID == d.cfg.Self, on: l}
	if h.self {
		return n, h, true, ""
	}
	// The node's other address will do while the kernel does not know this one.
	h.on, h.mac, ok = d.wayTo(n, frontend, now, backend.Addr())
	proof := d.proof(n)
	switch {
	case proof == pathprobe.ProofNone:
		return n, h, false, noProof
	case !ok:
		return n, h, false, fmt.Sprintf("the MAC address of %v is not known: it answers nothing on %s", n, h.on.Name)
	}
	why = whyNot(d.path(frontend, n.ID), n)
	if why == "" && d.isCut(frontend.Addr(), n.ID) {
		why = fmt.Sprintf("%v says that it has no carrier on the link of %v", n, frontend.Addr())
	}
	if proof != pathprobe.ProofPath {
		return n, h, false, why
	}
	// A node that has stopped answering may keep its open connections: its process
	// restarts, or probes got lost. A node that never was ready has none, and may not
	// know to whom to hand on those of others.
	if why == "" {
		delete(d.newcomers, n.ID)
	}
	return n, h, !d.newcomers[n.ID], why
}

// membersOf are the service's backends of the frontend's family, also those that are
// away, sorted by address.
func (d *DataPlane) membersOf(s balancer.Service) []member {
	weights := make(map[netip.AddrPort]int)
	for _, bs := range [][]balancer.Backend{d.configured[s.LoadBalancer], s.Draining, s.Backends} {
		for _, b := range bs {
			if b.Addr.Addr().Is4() == s.Frontend.Addr().Is4() {
				// Weight 0 takes a backend out of rotation. Its place in the table
				// stays, as for a backend that is down.
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

// position is where a backend on this node would be, as far as is known.
func (d *DataPlane) position(frontend netip.AddrPort) netip.AddrPort {
	a, _ := pathprobe.AddrOf(*d.nodes.Load(), d.cfg.Self, frontend.Addr())
	return netip.AddrPortFrom(a, frontend.Port())
}

func (d *DataPlane) node(addr netip.Addr) (pathprobe.Node, bool) {
	return pathprobe.NodeAt(*d.nodes.Load(), addr)
}

func hasBackend(n pathprobe.Node, f netip.AddrPort, lb balancer.LoadBalancer) bool {
	return slices.ContainsFunc(lb.Backends, func(b balancer.Backend) bool {
		return b.Addr.Addr().Is4() == f.Addr().Is4() && slices.Contains(n.Addrs, b.Addr.Addr())
	})
}

func (d *DataPlane) path(f netip.AddrPort, node string) pathprobe.Path {
	if d.cfg.Prober == nil {
		return pathprobe.PathProved
	}
	return d.cfg.Prober.Path(f, node)
}
