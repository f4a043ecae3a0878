package doctor

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"appliance/configs"
	"appliance/raft/lease"
)

// addresses asks for each VIP: on this host, and on the wire.
func (v *visit) addresses() (all []Finding) {
	for _, vip := range v.cfg.VIPs {
		all = append(all, v.bound(vip)...)
		if name := v.on[vip]; name != "" {
			all = append(all, v.onWire(vip, name))
		}
	}
	return all
}

// bound looks for a VIP on this host's own interfaces.
func (v *visit) bound(vip netip.Addr) (all []Finding) {
	for _, i := range v.ifs {
		for _, p := range i.Addrs {
			switch {
			case p.Addr() != vip:
			case i.Name == "lo":
				all = append(all, fine("vip-here", "%s is on lo, where an appliance binds it", vip))
			case i.Name == "kube-ipvs0":
				all = append(all, problem("vip-here", fmt.Sprintf("%s is on kube-ipvs0", vip),
					"kube-proxy takes it for the address of a Service and answers for it on every node",
					"remove it from externalIPs and loadBalancerIP of every Service: kubectl get services -A -o wide | "+
						"grep "+vip.String()))
			default:
				all = append(all, problem("vip-here", fmt.Sprintf("%s is bound to %s", vip, i.Name),
					"the kernel answers for it whoever is elected; keepalived, kube-vip or a network configuration has put it there",
					fmt.Sprintf("stop what manages it, then: ip address del %s dev %s", p, i.Name)))
			}
		}
	}
	return all
}

// onWire asks on the link who answers for a VIP, and whether that is a peer.
func (v *visit) onWire(vip netip.Addr, iface string) Finding {
	macs, err := v.Ask(iface, vip)
	if err != nil {
		return hint("vip-free", fmt.Sprintf("whether %s is free on %s is unknown: %v", vip, iface, err),
			"an address that another machine has is answered for by both", "run this as root on a host of that link")
	}
	if len(macs) == 0 {
		return fine("vip-free", "nobody else answers for %s on %s", vip, iface)
	}
	if len(macs) == 1 {
		for _, p := range v.cfg.Peers {
			for _, at := range p.Addrs() {
				if at.Is4() != vip.Is4() || v.here && p.ID == v.self.ID {
					continue
				}
				theirs, err := v.Ask(iface, at)
				if err == nil && len(theirs) == 1 && slices.Equal(theirs[0], macs[0]) {
					return fine("vip-free", "the peer %s (%s) answers for %s", p.ID, macs[0], vip)
				}
			}
		}
	}
	var who []string
	for _, m := range macs {
		who = append(who, m.String()+maker(m))
	}
	return problem("vip-free", fmt.Sprintf("%s is taken on %s: %s answers for it, and that is no peer of the list", vip,
		iface, strings.Join(who, " and ")),
		"two machines that answer for one address take turns in losing its connections",
		fmt.Sprintf("find it (ip neighbour; the switch's MAC table; %s) and take the address from it, or choose a free one",
			"arping -I "+iface+" "+vip.String()))
}

// maker says of a MAC address what a person would look up.
func maker(m net.HardwareAddr) string {
	for prefix, name := range map[string]string{
		"00:00:5e:00:01": "a VRRP router for IPv4: keepalived or a gateway", "00:00:5e:00:02": "a VRRP router for IPv6",
		// RFC 9568 section 7.3
	} {
		if strings.HasPrefix(m.String(), prefix) {
			return " (" + name + ")"
		}
	}
	return ""
}

// rules looks for frontends that somebody else's rules translate already.
func (v *visit) rules() []Finding {
	frontends := v.frontends()
	if len(frontends) == 0 {
		return nil
	}
	if err := v.Taken(frontends); err != nil {
		return []Finding{problem("rules", err.Error(), "the appliance refuses to start beside such a rule, because clients "+
			"would be served by whichever comes first",
			"nft -a list ruleset   # remove the rule, or take another port")}
	}
	return []Finding{fine("rules", "no rule of others translates %s", joined(frontends))}
}

func joined[T fmt.Stringer](list []T) string {
	var words []string
	for _, a := range list {
		words = append(words, a.String())
	}
	return strings.Join(words, ", ")
}

// peers dials every other peer.
func (v *visit) peers() (all []Finding) {
	if v.cfg.Group.Insecure {
		all = append(all, hint("group", "group.insecure: whoever reaches the peer port can vote and take the virtual address",
			"that is for trying out only", "(umask 077; appliance keygen > "+configs.DefaultKeyFile+"), copied to every peer; "+
				"remove insecure"))
	}
	if n := v.voters(); n == 2 {
		all = append(all, hint("group", "two peers", "a majority of two is two, so the loss of either ends the service",
			"add a third machine of any kind with role: witness"))
	} else if n > 0 && n%2 == 0 {
		all = append(all, hint("group", fmt.Sprintf("%d peers", n), "an even number survives no more losses than one less",
			"add or remove one"))
	}
	heartbeat := v.cfg.Group.Heartbeat
	found, trips := make([][]Finding, len(v.cfg.Peers)), make([]time.Duration, len(v.cfg.Peers))
	var wg sync.WaitGroup
	for i, p := range v.cfg.Peers {
		if !v.here || p.ID != v.self.ID {
			wg.Go(func() { found[i], trips[i] = v.peer(p) })
		}
	}
	wg.Wait()
	all = append(all, slices.Concat(found...)...)
	worst := slices.Max(append(trips, 0))
	if worst == 0 || heartbeat == 0 {
		return all
	}
	fitting := lease.Fitting(heartbeat, heartbeat, worst)
	switch {
	case fitting < 6*worst:
		all = append(all, problem("heartbeat", fmt.Sprintf("the slowest peer is %s away", round(worst)),
			fmt.Sprintf("a group takes a heartbeat of %s by itself at most, and that is too short: there would be elections "+
				"without a cause, or nobody to answer", lease.LongestHeartbeat),
			"put the peers of one group closer together"))
	case fitting > heartbeat:
		all = append(all, hint("heartbeat", fmt.Sprintf("the slowest peer is %s away, and group.heartbeat is %s",
			round(worst), heartbeat),
			fmt.Sprintf("the group takes a heartbeat of %s by itself, and the loss of a host is noticed within that time",
				fitting),
			fmt.Sprintf("nothing, or group: {heartbeat: %s} on every peer, or peers that are closer together", fitting)))
	default:
		all = append(all, fine("heartbeat", "the slowest peer is %s away: group.heartbeat %s is long enough, and the loss "+
			"of a host is noticed within that time",
			round(worst), heartbeat))
	}
	return all
}

func (v *visit) voters() int {
	if v.cfg.Worker() {
		return 0
	}
	return len(v.cfg.Peers)
}

// peer tries one peer's port by TCP and UDP, and gives the round trip, 0 if there is none.
func (v *visit) peer(p configs.PeerEntry) (all []Finding, trip time.Duration) {
	at := p.AddrPort()
	for range 3 {
		once, err := v.Dial(v.ctx, at)
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			return []Finding{hint("peer", fmt.Sprintf("%s (%s) refuses TCP: its host answers after %s, and no appliance "+
				"listens there", p.ID, at, round(once)),
				"before it is started that is as it should be; a firewall that rejects looks the same",
				"start the appliance there, or try with `appliance doctor --answer` there")}, once
		case err != nil:
			return []Finding{problem("peer", fmt.Sprintf("%s (%s) cannot be reached by TCP: %v", p.ID, at, err),
				"peers that do not reach each other cannot elect",
				fmt.Sprintf("let TCP and UDP %d in on that host; see `appliance endpoints` for the whole table", at.Port()))}, 0
		}
		if trip == 0 || once < trip {
			trip = once
		}
	}
	switch err := v.Datagram(v.ctx, at); {
	case err == nil:
		all = append(all, fine("peer", "%s (%s) answers by TCP and UDP, round trip %s", p.ID, at, round(trip)))
	case errors.Is(err, syscall.ECONNREFUSED):
		all = append(all, problem("peer", fmt.Sprintf("%s (%s) answers by TCP, and refuses UDP", p.ID, at),
			"without datagrams the loss of a host is noticed after four heartbeats or more instead of half of one",
			fmt.Sprintf("let UDP %d in on that host; or what listens there is no appliance", at.Port())))
	default:
		// An appliance answers no datagram without the group's seal, so silence proves nothing.
		all = append(all, fine("peer", "%s (%s) answers by TCP, round trip %s; an appliance keeps silent to a stranger's "+
			"datagram, so try UDP with `appliance doctor --answer` there",
			p.ID, at, round(trip)))
	}
	return all, trip
}

// round keeps three digits or so.
func round(d time.Duration) time.Duration {
	switch {
	case d > time.Second:
		return d.Round(10 * time.Millisecond)
	case d > 10*time.Millisecond:
		return d.Round(time.Millisecond)
	case d > time.Millisecond:
		return d.Round(100 * time.Microsecond)
	}
	return d.Round(time.Microsecond)
}

// disk measures how long a commit takes in the data directory.
func (v *visit) disk() []Finding {
	dir := v.cfg.DataDir
	if dir == "" {
		dir = "/var/lib/appliance"
	}
	times, err := v.Commit(dir)
	if err != nil {
		return []Finding{problem("disk", err.Error(), "the group's votes have to be on disk, so that a node cannot vote "+
			"twice",
			"mkdir -p -m 700 "+dir+"; or set dataDir to a directory that survives a reboot")}
	}
	slices.Sort(times)
	median, worst := times[len(times)/2], times[len(times)-1]
	what := fmt.Sprintf("a commit below %s takes %s, at worst %s", dir, round(median), round(worst))
	heartbeat := v.cfg.Group.Heartbeat
	if heartbeat == 0 {
		heartbeat = 150 * time.Millisecond
	}
	switch {
	case median > heartbeat:
		return []Finding{problem("disk", what, "a vote is on disk before it counts, so an election takes longer than the "+
			"heartbeat of "+heartbeat.String(),
			"move dataDir to a faster disk, or raise group.heartbeat on every peer")}
	case worst > heartbeat || median > heartbeat/5:
		return []Finding{hint("disk", what, "a vote is on disk before it counts: elections are as slow",
			"move dataDir to a disk that etcd and logs do not use; compare: fio --rw=write --fdatasync=1 --bs=4k --size=4m "+
				"--directory="+dir+" --name=commit")}
	}
	return []Finding{fine("disk", "%s", what)}
}
