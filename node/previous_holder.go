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

// handoverGrace is how long a stopping holder keeps serving after it has handed over: the new holder's announcement
// takes a moment to reach everybody, and packets that are already on the way still arrive here.
const handoverGrace = time.Second

// hasSuccessor says whether another peer could hold. Without one, nobody was handed over to, so there is nothing to
// wait for.
func hasSuccessor(peers []raft.PeerStatus) bool {
	return slices.ContainsFunc(peers, func(p raft.PeerStatus) bool { return !p.Self && p.Role == "voter" })
}

// lingerAfterTenure is the last part to stop before the VIP and the data plane.
func (n *node) lingerAfterTenure(ctx context.Context) error {
	<-ctx.Done()
	ended := n.tenureEnded.Load()
	if ended != nil && time.Since(*ended) < 10*handoverGrace && hasSuccessor(n.group.Status().Peers) {
		time.Sleep(handoverGrace)
	}
	return nil
}

// handBackFor is how long a holder gives connections back to the previous one.
const handBackFor = balancer.ConnLifetime

// silentFor is how long the previous holder's host may be silent before the connections that it has are given up. A busy
// host is back sooner, and each packet that reaches this node meanwhile would end its connection by a reset.
const silentFor = time.Second

// A previousHolder is another peer that was holder, the last term in which it was, and when its host was last heard.
type previousHolder struct {
	id    string
	term  uint64
	heard time.Time
}

// follow returns the previous holder after s, in which holder holds.
func (f previousHolder) follow(s raft.Status, holder string, now time.Time) previousHolder {
	if holder != "" && holder != s.ID {
		if f.id != holder {
			f.heard = time.Time{}
		}
		f.id, f.term = holder, s.Term
	}
	if slices.ContainsFunc(s.Peers, func(p raft.PeerStatus) bool { return p.ID == f.id && !p.Vanished }) {
		f.heard = now
	}
	return f
}

// handBack sends packets of connections that this node does not know to the last other holder. The rules are in place
// before the VIPs come here, so connections that are open at that moment are served to their end.
func (n *node) handBack(ctx context.Context) error {
	tick := time.NewTicker(handoverGrace)
	defer tick.Stop()
	n.reportOnLink()
	var last previousHolder
	said := ""
	for {
		changed := n.group.Changed()
		s := n.group.Status()
		last = last.follow(s, n.holder(s), time.Now())
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
			n.reportOnLink()
		case <-ctx.Done():
			return n.planes.Handback.Close()
		}
	}
}

// keeps returns the addresses of the previous holder and the frontends whose connections it still has; nothing if it
// has none or is gone. It has those of user space while its process lives; the kernel goes on without the process for
// a while.
func (f previousHolder) keeps(
	s raft.Status, lbs []balancer.LoadBalancerStatus, vips map[netip.Addr]string, linger time.Duration,
) ([]netip.Addr, []netip.AddrPort) {
	i := slices.IndexFunc(s.Peers, func(p raft.PeerStatus) bool { return p.ID == f.id && !p.Self })
	if i < 0 || s.Peers[i].Vanished && time.Since(f.heard) >= silentFor || s.Holder && time.Since(s.Since) > handBackFor {
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

// onLinkMost is how many addresses of each family this node reports to the peers.
const onLinkMost = 2

// reportOnLink reports this host's addresses of both families to the peers, which may be configured with one.
func (n *node) reportOnLink() {
	addrs, err := arp.AddrsOn(slices.Collect(maps.Values(n.interfaces()))...)
	if err != nil {
		n.log.Debug("this host's addresses are not known", "error", err)
		return
	}
	reported := make(map[bool]int)
	n.group.SetOnLink(slices.DeleteFunc(addrs, func(a netip.Addr) bool {
		reported[a.Is4()]++
		return reported[a.Is4()] > onLinkMost
	}))
}
