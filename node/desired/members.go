package desired

import (
	"net/netip"
	"slices"

	"appliance/balancer"
	"appliance/configs"
	"appliance/raft"
)

// withMembers returns cfg with the peers that the group has now as backends, where the configuration wants the peers
// as backends.
func withMembers(cfg *configs.Config, peers []raft.PeerStatus) *configs.Config {
	out := *cfg
	out.LoadBalancers = slices.Clone(cfg.LoadBalancers)
	for i := range out.LoadBalancers {
		lb := &out.LoadBalancers[i]
		if lb.AddPeersAt == 0 {
			continue
		}
		// Backends that the file names stay. Those that come from its list of peers follow the group.
		listed := make(map[netip.AddrPort]bool)
		for _, p := range cfg.Peers {
			for _, a := range p.Addrs() {
				listed[netip.AddrPortFrom(a, lb.AddPeersAt)] = true
			}
		}
		var own []configs.BackendEntry
		known := make(map[netip.AddrPort]configs.BackendEntry)
		for _, b := range lb.Backends {
			known[b.Addr] = b
			if !listed[b.Addr] {
				own = append(own, b)
			}
		}
		for _, p := range peers {
			for _, a := range configs.ServersAt(p.Addrs(), cfg.VIPs) {
				at := netip.AddrPortFrom(a, lb.AddPeersAt)
				b, is := known[at]
				switch {
				case p.Witness, is && !listed[at]:
					continue
				case !is:
					b.Backend = balancer.Backend{Addr: at, Weight: 1}
					if p.ID != p.Addr.Addr().String() {
						b.Name = p.ID
					}
				}
				own = append(own, b)
			}
		}
		lb.Backends = own
	}
	return &out
}

// withDrained returns the overrides with those that drained peers mean: a backend on a drained peer gets no new
// connections, unless an operator has ordered otherwise. The holder's own backends wait until it has handed over:
// only the holder knows which connections began before a change of backends.
func withDrained(
	overrides map[BackendRef]balancer.Override, cfg *configs.Config, group raft.Status,
) map[BackendRef]balancer.Override {
	for _, lb := range cfg.LoadBalancers {
		for _, b := range lb.Backends {
			ref := BackendRef{lb.Name, b.Addr}
			if _, ordered := overrides[ref]; !ordered && drained(group, b.Addr.Addr()) {
				overrides[ref] = balancer.Override{Out: balancer.Drain}
			}
		}
	}
	return overrides
}

// drained says whether addr is of a drained peer that does not hold.
func drained(group raft.Status, addr netip.Addr) bool {
	return slices.ContainsFunc(group.Peers, func(p raft.PeerStatus) bool {
		return p.Drained && p.ID != group.Leader && slices.Contains(p.Addrs(), addr)
	})
}
