package node

import (
	"context"
	"net/netip"
	"reflect"
	"slices"

	"appliance/balancer"
	"appliance/configs"
	"appliance/nft"
	"appliance/raft"
)

// grown is cfg with the peers that the group has now as backends, where the
// configuration wants the peers at all; on a worker, with those that the peers
// told it.
func (n *node) grown(cfg *configs.Config) *configs.Config {
	if l := n.list.Load(); l != nil {
		out, _ := withList(cfg, l)
		return out
	}
	if n.group == nil {
		return cfg
	}
	return withMembers(cfg, n.group.Status().Peers)
}

func withMembers(cfg *configs.Config, peers []raft.PeerStatus) *configs.Config {
	out := *cfg
	out.LoadBalancers = slices.Clone(cfg.LoadBalancers)
	for i := range out.LoadBalancers {
		lb := &out.LoadBalancers[i]
		if lb.AddPeersAt == 0 {
			continue
		}
		// What stands in the file stays, but for peers that it has from its list.
		listed := make(map[netip.AddrPort]bool)
		for _, p := range cfg.Peers {
			for _, a := range p.Addrs() {
				listed[netip.AddrPortFrom(a, lb.AddPeersAt)] = true
			}
		}
		var own []configs.Backend
		known := make(map[netip.AddrPort]configs.Backend)
		for _, b := range lb.Backends {
			known[b.Address] = b
			if !listed[b.Address] {
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
					b = configs.Backend{Address: at, Weight: 1}
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

// followMembers has the balancer and the direct data plane follow who is in
// the group.
func (n *node) followMembers(ctx context.Context) error {
	var last []configs.LoadBalancer
	for {
		changed := n.group.Changed()
		n.setting.Lock()
		now := n.grown(n.serving.Load())
		err := n.serve(now, func(lbs []balancer.LoadBalancer) error {
			if last != nil && reflect.DeepEqual(last, now.LoadBalancers) {
				return nil
			}
			last = now.LoadBalancers
			n.republish()
			return n.balancer.Set(lbs)
		})
		if err != nil {
			n.log.Error("the peers as they are now cannot be the backends", "error", err)
		}
		n.setting.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// republish has the workers told what is new.
func (n *node) republish() {
	select {
	case n.reloaded <- struct{}{}:
	default:
	}
}

// serve puts cfg's load balancers into force by set, together with the nodes that
// the direct data plane knows: who comes is a node before its server is a
// backend, and who goes, after it was one, so that no load balancer leaves the
// data plane in between. It is called with setting held.
func (n *node) serve(cfg *configs.Config, set func([]balancer.LoadBalancer) error) error {
	next := n.neighbours(cfg)
	n.meet(meeting(n.met, next))
	err := set(loadBalancers(cfg))
	if err == nil {
		n.met = next
	}
	n.meet(n.met)
	return err
}

func (n *node) meet(nodes []nft.Node) {
	if n.direct != nil {
		n.direct.SetNodes(nodes)
	}
}

// meeting are the nodes of before and next, with all their addresses.
func meeting(before, next []nft.Node) []nft.Node {
	var all []nft.Node
	for _, node := range slices.Concat(next, before) {
		at := slices.IndexFunc(all, func(o nft.Node) bool { return o.ID == node.ID })
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

// drainedOrder is what a drained peer means for a backend at addr: no new
// connections, unless somebody has ordered otherwise. First it gives up holding:
// which connections began before a change of backends is known to the holder
// under which they began, and to no other.
func drainedOrder(group raft.Status, addr netip.Addr) (balancer.Order, bool) {
	for _, p := range group.Peers {
		if p.Drained && p.ID != group.Leader && slices.Contains(p.Addrs(), addr) {
			return balancer.Order{Out: balancer.Drain}, true
		}
	}
	return balancer.Order{}, false
}
