package node

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"appliance/arp"
	"appliance/balancer"
	"appliance/raft"
)

// handoverGrace is how long a holder that stops keeps serving after it has
// handed over: the new holder's announcement takes a moment to reach everybody,
// and packets that were on the way when it did are still for this node.
const handoverGrace = time.Second

// heir says that there is another peer that could hold: without one nobody has
// been handed over to, so there is nothing to wait for.
func heir(peers []raft.PeerStatus) bool {
	return slices.ContainsFunc(peers, func(p raft.PeerStatus) bool { return !p.Self && p.Role == "voter" })
}

// lingerAfterTenure is the last thing that stops before the VIP and the data
// plane do.
func (n *node) lingerAfterTenure(ctx context.Context) error {
	<-ctx.Done()
	ended := n.tenureEnded.Load()
	if ended != nil && time.Since(*ended) < 10*handoverGrace && heir(n.group.Status().Peers) {
		time.Sleep(handoverGrace)
	}
	return nil
}

// handBackFor is how long a holder gives connections back to the one before. The
// watches of Kubernetes' clients, which are the longest there are, have ended
// by then.
const handBackFor = time.Hour

// A former is another peer that was holder, and the last term in which it was.
type former struct {
	id   string
	term uint64
}

// handBack has packets of connections that this node does not know go to the
// peer that held last besides this one. So the rules are there before the VIPs
// come here, and clients whose connections are open at that moment are served
// to their end.
func (n *node) handBack(ctx context.Context) error {
	tick := time.NewTicker(handoverGrace)
	defer tick.Stop()
	n.tellOnLink()
	var last former
	said := ""
	for {
		changed := n.group.Changed()
		s := n.group.Status()
		if holder := n.holder(s); holder != "" && holder != s.ID {
			last = former{holder, s.Term}
		}
		to, frontends := last.keeps(s, n.balancer.Health(), n.interfaces(), n.cfg.Linger)
		repaired, err := n.planes.Handback.To(to, n.interfaces(), frontends)
		n.wire.Repaired(repaired)
		if err != nil && err.Error() != said {
			said = err.Error()
			n.log.Warn("connections that are open when the holder changes will break", "reason", err)
		}
		select {
		case <-changed:
		case <-tick.C: // load balancers may have changed, and addresses
			n.tellOnLink()
		case <-ctx.Done():
			return n.planes.Handback.Close()
		}
	}
}

// keeps is where the former holder is, and the frontends whose connections it
// has; none if it has none or is not there any more. Those of user space it has
// while its process lives, and the kernel goes on without that for a while.
func (f former) keeps(s raft.Status, lbs []balancer.LoadBalancerStatus, vips map[netip.Addr]string, linger time.Duration) ([]netip.Addr, []netip.AddrPort) {
	i := slices.IndexFunc(s.Peers, func(p raft.PeerStatus) bool { return p.ID == f.id && !p.Self })
	if i < 0 || s.Peers[i].Vanished || s.Holder && time.Since(s.Since) > handBackFor {
		return nil, nil
	}
	p := s.Peers[i]
	process := p.Connected && p.Died < f.term || time.Since(p.Left) < handoverGrace
	kernel := process || p.Connected || time.Since(p.Since) < linger
	var frontends []netip.AddrPort
	for _, lb := range lbs {
		switch {
		case lb.Plane == balancer.UserSpace && process:
		case (lb.Plane == balancer.NFTables || lb.Plane == balancer.IPVS) && kernel:
		default: // direct finds the way by itself
			continue
		}
		for _, f := range lb.Frontends {
			for vip := range vips {
				if f.Addr() == vip || f.Addr().IsUnspecified() && f.Addr().Is4() == vip.Is4() {
					frontends = append(frontends, netip.AddrPortFrom(vip, f.Port()))
				}
			}
		}
	}
	slices.SortFunc(frontends, netip.AddrPort.Compare)
	return append(p.Addrs(), p.OnLink...), slices.Compact(frontends)
}

// onLinkMost is how many addresses of each family the peers are told.
const onLinkMost = 2

// tellOnLink lets the peers know this host by addresses of both families, where
// they are configured with those of one.
func (n *node) tellOnLink() {
	addrs, err := arp.AddrsOn(slices.Collect(maps.Values(n.interfaces()))...)
	if err != nil {
		n.log.Debug("this host's addresses are not known", "error", err)
		return
	}
	told := make(map[bool]int)
	n.group.SetOnLink(slices.DeleteFunc(addrs, func(a netip.Addr) bool {
		told[a.Is4()]++
		return told[a.Is4()] > onLinkMost
	}))
}
