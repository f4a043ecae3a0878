package desired

import (
	"iter"
	"net/netip"
	"slices"
	"time"

	"appliance/balancer"
	"appliance/configs"
	"appliance/pathprobe"
)

// nodes returns the machines that the direct data plane of cfg hands packets to: the peers as the group has them now,
// or else as the peers' list or the file has them; and, as workers that have yet to prove themselves, the machines of
// all other backends that the plane could serve.
func nodes(k Known, cfg *configs.Config) (list []pathprobe.Node, departed map[netip.Addr]time.Time) {
	list = peerNodes(k)
	servers := directServers(cfg)
	if cfg.Worker() {
		self := pathprobe.Node{ID: k.Self}
		for _, a := range servers {
			if slices.Contains(k.Local, a) {
				self.Addrs = append(self.Addrs, a)
			}
		}
		list = append(list, self)
	}
	for _, a := range servers {
		if !has(list, a) {
			list = append(list, pathprobe.Node{ID: "worker " + a.String(), Addrs: []netip.Addr{a}, Worker: true})
		}
	}
	list, departed = withDeparted(k, list)
	return withFrontends(list, cfg), departed
}

// has says whether one of the nodes has the address.
func has(nodes []pathprobe.Node, a netip.Addr) bool {
	return slices.ContainsFunc(nodes, func(o pathprobe.Node) bool { return slices.Contains(o.Addrs, a) })
}

// peerNodes returns the peers that have the VIPs bound.
func peerNodes(k Known) (list []pathprobe.Node) {
	switch {
	case k.Group != nil:
		for _, p := range k.Group.Peers {
			if !p.Witness {
				list = append(list, pathprobe.Node{ID: p.ID, Addrs: p.Addrs()})
			}
		}
	case k.List != nil && len(k.List.Nodes) > 0:
		for _, p := range k.List.Nodes {
			list = append(list, pathprobe.Node{ID: p.ID, Addrs: p.Addrs})
		}
	default:
		for _, p := range k.Config.Peers {
			if p.Role != configs.RoleWitness {
				list = append(list, pathprobe.Node{ID: p.ID, Addrs: p.Addrs()})
			}
		}
	}
	return list
}

// directServers returns the addresses of the backends that the direct data plane could serve.
func directServers(cfg *configs.Config) (addrs []netip.Addr) {
	for a := range directPaths(cfg) {
		if !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// withFrontends returns nodes with the frontends of cfg that the direct data plane could serve by each.
func withFrontends(nodes []pathprobe.Node, cfg *configs.Config) []pathprobe.Node {
	for i, n := range nodes {
		nodes[i].Serves = nil
		for a, frontend := range directPaths(cfg) {
			if slices.Contains(n.Addrs, a) && !slices.Contains(nodes[i].Serves, frontend) {
				nodes[i].Serves = append(nodes[i].Serves, frontend)
			}
		}
	}
	return nodes
}

// directPaths yields the address of each backend that the direct data plane could serve, with each of its frontends.
// That plane changes neither port nor family.
func directPaths(cfg *configs.Config) iter.Seq2[netip.Addr, netip.AddrPort] {
	return func(yield func(netip.Addr, netip.AddrPort) bool) {
		for _, lb := range cfg.LoadBalancers {
			p := lb.DataPlane
			if p != balancer.Auto && p != balancer.Direct || !lb.BindToVIP {
				continue
			}
			for _, b := range lb.Backends {
				if !b.Resolved() {
					continue
				}
				for _, vip := range lb.VIPs {
					a := b.Addr.Addr()
					if vip.Is4() == a.Is4() && b.Addr.Port() == lb.Port && !yield(a, netip.AddrPortFrom(vip, lb.Port)) {
						return
					}
				}
			}
		}
	}
}

// departedFor is how long a worker that has no backend any more stays a node: the balancer lets its open connections go
// on for that long.
const departedFor = balancer.ConnLifetime

// withDeparted returns next with the workers that have departed, this one too.
func withDeparted(k Known, next []pathprobe.Node) ([]pathprobe.Node, map[netip.Addr]time.Time) {
	departed := make(map[netip.Addr]time.Time)
	self := slices.IndexFunc(next, func(o pathprobe.Node) bool { return o.ID == k.Self })
	for _, o := range k.Before.Nodes {
		us := k.Config.Worker() && self >= 0 && o.ID == k.Self
		for _, a := range o.Addrs {
			until := k.Before.Departed[a]
			if until.IsZero() {
				until = k.Now.Add(departedFor)
			}
			if has(next, a) || !us && !o.Worker || !k.Now.Before(until) {
				continue
			}
			departed[a] = until
			if us {
				next[self].Addrs = append(next[self].Addrs, a)
			} else {
				next = append(next, o)
			}
		}
	}
	if k.Config.Worker() && self >= 0 && len(next[self].Addrs) == 0 {
		// No node hands packets to a worker without a backend, and it hands none to others.
		return next[self : self+1], departed
	}
	return next, departed
}

// Union returns the nodes of before and next, with all their addresses. They are in force while the balancer changes:
// a machine is a node before its server is a backend, and after it was one, so that no load balancer leaves the direct
// data plane in between.
func Union(before, next []pathprobe.Node) []pathprobe.Node {
	var all []pathprobe.Node
	for _, node := range slices.Concat(next, before) {
		at := slices.IndexFunc(all, func(o pathprobe.Node) bool { return o.ID == node.ID })
		if at < 0 {
			node.Addrs = slices.Clone(node.Addrs)
			all = append(all, node)
			continue
		}
		for _, a := range node.Addrs {
			if !slices.Contains(all[at].Addrs, a) {
				all[at].Addrs = append(all[at].Addrs, a)
			}
		}
	}
	return all
}
