package node

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"appliance/arp"
	"appliance/balancer"
	"appliance/configs"
	"appliance/nft"
)

// neighbours are the nodes that the direct data plane of cfg is about: the peers
// as the group has them now, or, where there is none, as the peers' list or the
// file does; and, as workers that have yet to prove that they are, the machines
// of all other backends that it could serve.
func (n *node) neighbours(cfg *configs.Config) []nft.Node {
	nodes := n.peerNodes(cfg)
	servers := directServers(cfg)
	if cfg.Worker() {
		local, err := arp.LocalAddrs()
		if err != nil {
			n.log.Debug("the addresses of this host are not known", "error", err)
		}
		self := nft.Node{ID: n.site.self.ID}
		for _, a := range servers {
			if slices.Contains(local, a) {
				self.Addrs = append(self.Addrs, a)
			}
		}
		nodes = append(nodes, self)
	}
	for _, a := range servers {
		if !has(nodes, a) {
			nodes = append(nodes, nft.Node{ID: "worker " + a.String(), Addrs: []netip.Addr{a}, Worker: true})
		}
	}
	return serving(n.withLeavers(nodes), cfg)
}

// has says that one of the nodes has the address.
func has(nodes []nft.Node, a netip.Addr) bool {
	return slices.ContainsFunc(nodes, func(o nft.Node) bool { return slices.Contains(o.Addrs, a) })
}

// peerNodes are the peers that have the VIPs bound.
func (n *node) peerNodes(cfg *configs.Config) (nodes []nft.Node) {
	l := n.list.Load()
	switch {
	case n.group != nil:
		for _, p := range n.group.Status().Peers {
			if !p.Witness {
				nodes = append(nodes, nft.Node{ID: p.ID, Addrs: p.Addrs()})
			}
		}
	case l != nil && len(l.Nodes) > 0:
		for _, p := range l.Nodes {
			nodes = append(nodes, nft.Node{ID: p.ID, Addrs: p.Addrs})
		}
	default:
		for _, p := range cfg.Peers {
			if p.Role != configs.RoleWitness {
				nodes = append(nodes, nft.Node{ID: p.ID, Addrs: p.Addrs()})
			}
		}
	}
	return nodes
}

// directServers are the addresses of the backends that the direct data plane
// could serve.
func directServers(cfg *configs.Config) (addrs []netip.Addr) {
	for a := range directPaths(cfg) {
		if !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// serving is nodes with the frontends of cfg that the direct data plane could
// serve by each.
func serving(nodes []nft.Node, cfg *configs.Config) []nft.Node {
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

// directPaths yields the addresses of the backends that the direct data plane
// could serve, which changes neither port nor family, with each frontend of
// theirs.
func directPaths(cfg *configs.Config) iter.Seq2[netip.Addr, netip.AddrPort] {
	return func(yield func(netip.Addr, netip.AddrPort) bool) {
		for _, lb := range cfg.LoadBalancers {
			p := balancer.PlaneName(lb.DataPlane)
			if p != balancer.Auto && p != balancer.Direct || !lb.BindToVIP {
				continue
			}
			for _, b := range lb.Backends {
				for _, vip := range lb.VIPs {
					a := b.Address.Addr()
					if vip.Is4() == a.Is4() && b.Address.Port() == lb.Port && !yield(a, netip.AddrPortFrom(vip, lb.Port)) {
						return
					}
				}
			}
		}
	}
}

// leaveTime is for how long a worker that has no backend any more stays a node:
// the balancer lets its open connections go on so long.
const leaveTime = time.Hour

// withLeavers is next with the workers that have left, this one too. It is called
// with setting held.
func (n *node) withLeavers(next []nft.Node) []nft.Node {
	now := time.Now()
	left := make(map[netip.Addr]time.Time)
	self := slices.IndexFunc(next, func(o nft.Node) bool { return o.ID == n.site.self.ID })
	for _, o := range n.met {
		us := n.cfg.Worker() && self >= 0 && o.ID == n.site.self.ID
		for _, a := range o.Addrs {
			until := n.left[a]
			if until.IsZero() {
				until = now.Add(leaveTime)
			}
			if has(next, a) || !us && !o.Worker || !now.Before(until) {
				continue
			}
			left[a] = until
			if us {
				next[self].Addrs = append(next[self].Addrs, a)
			} else {
				next = append(next, o)
			}
		}
	}
	n.left = left
	if n.cfg.Worker() && self >= 0 && len(next[self].Addrs) == 0 {
		// Nobody hands packets to a worker without a backend, and it hands none to
		// others.
		return next[self : self+1]
	}
	return next
}

// workersPath is where a node keeps which workers have proved that they are: one
// that is away while this node starts is not taken for a stranger, who would cost
// its load balancers the direct data plane.
func workersPath(cfg *configs.Config) string { return filepath.Join(cfg.DataDir, "workers.json") }

// recallWorkers reads what rememberWorkers wrote.
func (n *node) recallWorkers() (addrs []netip.Addr) {
	data, err := os.ReadFile(workersPath(n.cfg))
	if err == nil {
		err = json.Unmarshal(data, &addrs)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.log.Warn("the workers of before are not known, and have to prove again that they are", "path", workersPath(n.cfg), "error", err)
		return nil
	}
	n.recalled = addrs
	return addrs
}

// rememberWorkers keeps which workers have proved that they are. One goroutine
// does it.
func (n *node) rememberWorkers() {
	now := n.prober.Reached()
	if slices.Equal(now, n.recalled) {
		return
	}
	n.recalled = now
	data, err := json.Marshal(now)
	if err == nil {
		err = keep(workersPath(n.cfg), data)
	}
	if err != nil {
		n.log.Warn("which workers have proved that they are is not on disk", "error", err)
	}
}

// check asks, before anything is touched, whether the load balancers can be
// served. For those that must have the direct data plane, workers are asked
// whether they are there meanwhile.
func (n *node) check(ctx context.Context) error {
	err := n.checkNow(ctx)
	if err == nil || n.list.Load() == nil {
		return err
	}
	// The list is as old as the last life; a newer one comes to who has begun.
	n.log.Warn("the last good list of backends is of no use", "path", listPath(n.cfg), "error", err)
	n.setting.Lock()
	n.list.Store(nil)
	err = n.serve(n.cfg, n.balancer.Set)
	n.setting.Unlock()
	return errors.Join(err, n.checkNow(ctx))
}

func (n *node) checkNow(ctx context.Context) error {
	forced := slices.ContainsFunc(n.cfg.LoadBalancers, func(lb configs.LoadBalancer) bool { return lb.DataPlane == string(balancer.Direct) })
	if n.direct == nil || !forced || !slices.ContainsFunc(n.met, func(o nft.Node) bool { return o.Worker }) {
		return n.balancer.Check(ctx)
	}
	probing, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- n.prober.Run(probing, func() {}) }()
	err := n.balancer.Check(ctx)
	stop()
	return errors.Join(err, <-done)
}
