package direct

import (
	"context"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	"appliance/balancer"
	"appliance/neighbours"
	"appliance/nft/ruleset"
	"appliance/pathprobe"
)

// Usable implements balancer.Plane.
func (d *DataPlane) Usable(ctx context.Context, lb balancer.LoadBalancer) error {
	err := d.suitable(lb)
	d.noteTunnel(lb, err == nil)
	if err != nil {
		return err
	}
	now, err := d.lookOrRecall(lookPause)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.configured[lb.Name] = slices.Clone(lb.Backends)
	if len(d.mayTunnel[lb.Name]) > 0 {
		now, err = d.lead(now)
	}
	d.mu.Unlock()
	if err != nil {
		return err
	}
	for _, f := range lb.Frontends {
		if err := d.onLink(now, f, lb); err != nil {
			return err
		}
	}
	if err := d.awaitProofs(ctx, lb); err != nil {
		return err
	}
	if d.cfg.Prober != nil {
		d.cfg.Prober.Want(lb.Frontends)
	}
	now = d.awaitNetwork(ctx, lb)
	if err := d.pathsProved(lb); err != nil {
		return err
	}
	if err := d.tunnelProved(lb, now); err != nil {
		return err
	}
	if err := d.tryRules(now, lb); err != nil {
		return err
	}
	for f, n := range d.others(lb) {
		if d.path(f, n.ID) == pathprobe.PathFiltered {
			return fmt.Errorf("the network does not carry packets of clients from this node to %s, though it carries ours: "+
				"allow foreign source addresses on the port (address filter of the hypervisor or switch, "+
				"port security, security group), or use another data plane", n)
		}
	}
	return nil
}

// others are the other nodes that have a backend of lb, for each of its frontends.
func (d *DataPlane) others(lb balancer.LoadBalancer) iter.Seq2[netip.AddrPort, pathprobe.Node] {
	return func(yield func(netip.AddrPort, pathprobe.Node) bool) {
		for _, f := range lb.Frontends {
			for _, n := range *d.nodes.Load() {
				if n.ID != d.cfg.Self && hasBackend(n, f, lb) && !yield(f, n) {
					return
				}
			}
		}
	}
}

// suitable checks what lb asks for, without a look at the host.
func (d *DataPlane) suitable(lb balancer.LoadBalancer) error {
	switch lb.Scheduler {
	case balancer.RoundRobin, balancer.WeightedRoundRobin, balancer.SourceHash, balancer.Random, "mh", "":
	case balancer.LeastConn, balancer.WeightedLeastConn:
		return fmt.Errorf("scheduler %s counts connections, and data plane direct knows none: "+
			"use rr, wrr or sh, or another data plane", lb.Scheduler)
	default:
		return fmt.Errorf("data plane direct has no scheduler %s, it spreads by a hash: "+
			"use rr, wrr or sh, or another data plane", lb.Scheduler)
	}
	for _, f := range lb.Frontends {
		if _, ok := d.cfg.Interfaces[f.Addr()]; !ok {
			return fmt.Errorf("frontend %v is not a VIP that is answered on an interface: "+
				"data plane direct serves only those", f)
		}
		n, here := 0, false
		for _, b := range lb.Backends {
			if b.Addr.Addr().Is4() != f.Addr().Is4() {
				continue
			}
			n++
			if b.Addr.Port() != f.Port() {
				return fmt.Errorf("backend %v has another port than %v, and data plane direct changes none: "+
					"use the same, or another data plane", b, f)
			}
			node, ok := d.node(b.Addr.Addr())
			here = here || ok && node.ID == d.cfg.Self
			if !ok {
				return fmt.Errorf("backend %v is at none of the peers' addresses, so data plane direct does not know "+
					"that its node has the VIP: "+
					"make the node a peer with that address among its addresses, or use another data plane", b)
			}
		}
		if n == 0 {
			return fmt.Errorf("frontend %v has no backend of its own family, and data plane direct translates none: "+
				"list backends by such addresses, or use another data plane", f)
		}
		if d.cfg.Worker && !here && !d.hasLeaving(lb) {
			return fmt.Errorf("this node is a worker and has none of the backends of %v, so no peer hands packets to it: "+
				"use another data plane", f)
		}
	}
	return nil
}

func (d *DataPlane) onLink(now neighbours.View, f netip.AddrPort, lb balancer.LoadBalancer) error {
	name := d.cfg.Interfaces[f.Addr()]
	if _, ok := now.Links[name]; !ok {
		return fmt.Errorf("interface %s of VIP %v does not exist: create it, or set `interface`", name, f.Addr())
	}
	if why := now.Several[name]; why != "" {
		return fmt.Errorf("nodes would not know each other's frames: %s; "+
			"use a mode that keeps to one, such as active-backup or 802.3ad, or another data plane", why)
	}
	for _, b := range lb.Backends {
		why := now.Off[neighbours.Location{Link: name, Addr: b.Addr.Addr()}]
		if n, ok := d.node(b.Addr.Addr()); ok && why != "" {
			if d.cfg.Tunnel != nil && !n.Worker && slices.Contains(d.cfg.Routed, f.Addr()) && isFar(n, name, now) {
				continue
			}
		}
		if why != "" {
			return fmt.Errorf("backend %v is not on the link of %s: %s; use another data plane", b, name, why)
		}
	}
	return nil
}

// awaitNetwork gives the network a moment to answer, if something is still unknown.
func (d *DataPlane) awaitNetwork(ctx context.Context, lb balancer.LoadBalancer) neighbours.View {
	ctx, cancel := context.WithTimeout(ctx, firstAnswer)
	defer cancel()
	d.neighbours.Resolve(lookPause)
	for {
		now, _ := d.lookOrRecall(lookPause)
		if d.isResolved(now, lb) {
			return now
		}
		select {
		case <-ctx.Done():
			return now
		case <-time.After(lookPause):
		}
	}
}

// lookPause lies between two looks at the kernel's tables while Usable waits, for all load balancers together.
const lookPause = 10 * time.Millisecond

func (d *DataPlane) isResolved(now neighbours.View, lb balancer.LoadBalancer) bool {
	for f, n := range d.others(lb) {
		if _, _, ok := d.wayTo(n, f, now); !ok || d.path(f, n.ID) == pathprobe.PathNoAnswer {
			return false
		}
	}
	return true
}

// tryRules asks the kernel whether it takes the rules.
func (d *DataPlane) tryRules(now neighbours.View, lb balancer.LoadBalancer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tried {
		return nil
	}
	var services []balancer.Service
	for _, f := range lb.Frontends {
		services = append(services, balancer.Service{LoadBalancer: lb.Name, Frontend: f, Backends: lb.Backends})
	}
	plan := d.plan(services, now)
	plan.nat = true // it may become needed
	for _, t := range plan.tables() {
		if err := ruleset.Try(t); err != nil {
			return err
		}
	}
	d.tried = true
	return nil
}
