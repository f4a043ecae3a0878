package direct

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"appliance/balancer"
	"appliance/neighbours"
	"appliance/nft/ruleset"
	"appliance/nft/tunnel"
	"appliance/pathprobe"
)

// # The tunnel
//
// Where routers lead clients to any node, nodes may be behind a router each. Then they have no link in common, and reach
// each other on the tunnel's: everything else is as on a link. A node that is on the link is reached by that.
//
// Only VIPs that are announced to routers, and only peers, are reached so. A worker, or the holder of a VIP that is
// answered for on the link, is on that link.

// lead has the tunnel lead to the nodes behind another router, and returns what is seen of the network then.
// Called with mu held.
func (d *DataPlane) lead(now neighbours.View) (neighbours.View, error) {
	if d.cfg.Tunnel == nil {
		return now, nil
	}
	own, ends, err := d.ends(now)
	if err != nil || len(ends) == 0 && !d.leads {
		return now, err
	}
	d.leads = len(ends) > 0
	if err := d.cfg.Tunnel.Lead(own, ends); err != nil {
		return now, fmt.Errorf("the tunnel to nodes behind another router: %w", err)
	}
	return d.look()
}

// leadOn is lead for what is served already: nodes that are not reached are passed over, and the next Usable tells why.
// Called with mu held.
func (d *DataPlane) leadOn(now neighbours.View) neighbours.View {
	seen, err := d.lead(now)
	why := ""
	if err != nil {
		seen, why = now, err.Error()
	}
	if why != d.leadErr && why != "" {
		d.cfg.Log.Warn("nodes behind another router are out of reach", "data plane", balancer.Direct, "error", err)
		d.notify()
	}
	d.leadErr = why
	return seen
}

// ends are where the tunnel has to lead, and from which own address. Called with mu held.
func (d *DataPlane) ends(now neighbours.View) (own netip.Addr, ends []tunnel.End, err error) {
	nodes := *d.nodes.Load()
	links := d.tunnelled(nodes)
	far := slices.DeleteFunc(slices.Clone(nodes), func(n pathprobe.Node) bool {
		return n.ID == d.cfg.Self || n.Worker ||
			!slices.ContainsFunc(links, func(link string) bool { return isFar(n, link, now) })
	})
	if len(far) == 0 || d.cfg.Worker {
		return own, nil, nil
	}
	// All nodes come to the same family.
	peers := slices.DeleteFunc(slices.Clone(nodes), func(n pathprobe.Node) bool { return n.Worker })
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		at := func(n pathprobe.Node) netip.Addr {
			a, _ := pathprobe.AddrOf(nodes, n.ID, any)
			return a
		}
		if slices.ContainsFunc(peers, func(n pathprobe.Node) bool { return !at(n).IsValid() }) {
			continue
		}
		for _, n := range far {
			ends = append(ends, tunnel.End{At: at(n), Addrs: n.Addrs})
		}
		return at(pathprobe.Node{ID: d.cfg.Self}), ends, nil
	}
	return own, nil, fmt.Errorf("the peers have no addresses of one family, which a tunnel needs: " +
		"give each peer one among its addresses, or use another data plane")
}

// tunnelled are the links whose VIPs the plane could serve through the tunnel.
func (d *DataPlane) tunnelled(nodes []pathprobe.Node) (links []string) {
	for _, fs := range d.mayTunnel {
		for _, f := range fs {
			// A load balancer that is not configured any more is served by no node.
			if slices.ContainsFunc(nodes, func(n pathprobe.Node) bool { return slices.Contains(n.Serves, f) }) {
				links = append(links, d.cfg.Interfaces[f.Addr()])
			}
		}
	}
	return links
}

// noteTunnel notes that lb could be served through the tunnel.
func (d *DataPlane) noteTunnel(lb balancer.LoadBalancer, could bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.mayTunnel, lb.Name)
	if could {
		d.mayTunnel[lb.Name] = slices.DeleteFunc(slices.Clone(lb.Frontends), func(f netip.AddrPort) bool {
			return !slices.Contains(d.cfg.Routed, f.Addr())
		})
	}
}

// isFar says that a node is not on the link, but behind its router.
func isFar(n pathprobe.Node, link string, now neighbours.View) bool {
	if _, ok := now.Links[link]; !ok {
		return false
	}
	off := func(a netip.Addr) string { return now.Off[neighbours.Location{Link: link, Addr: a}] }
	return slices.ContainsFunc(n.Addrs, func(a netip.Addr) bool { return off(a) == neighbours.BehindRouter }) &&
		!slices.ContainsFunc(n.Addrs, func(a netip.Addr) bool { return off(a) == "" })
}

// wayTo is the link by which this node reaches another for a frontend, and its MAC address there. It returns false if
// the kernel does not know that.
func (d *DataPlane) wayTo(n pathprobe.Node, frontend netip.AddrPort, now neighbours.View, addrs ...netip.Addr) (
	on neighbours.Link, mac [6]byte, ok bool,
) {
	addrs = append(addrs, n.Addrs...)
	on = now.Links[d.cfg.Interfaces[frontend.Addr()]]
	if out, exists := now.Links[tunnel.Name]; exists && slices.Contains(d.cfg.Routed, frontend.Addr()) &&
		isFar(n, on.Name, now) {
		on = out
	}
	mac, ok = now.MAC(on.Name, addrs...)
	return on, mac, ok
}

// tunnelProved says whether any node that lb needs, and that is reached through the tunnel, has answered there. A
// network may drop all of that, and a node that is down answers nothing either. A load balancer that is served already,
// or has no other choice, goes on without.
func (d *DataPlane) tunnelProved(lb balancer.LoadBalancer, now neighbours.View) error {
	d.mu.Lock()
	serves := d.isServing(lb)
	d.mu.Unlock()
	if serves || lb.Plane == balancer.Direct {
		return nil
	}
	var silent string
	for f, n := range d.others(lb) {
		if on, _, _ := d.wayTo(n, f, now); on.Name != tunnel.Name {
			continue
		}
		if d.path(f, n.ID) != pathprobe.PathNoAnswer {
			return nil
		}
		silent = n.String()
	}
	if silent == "" {
		return nil
	}
	return fmt.Errorf("%s is behind another router, and does not answer path probes through the tunnel: "+
		"let the peers' UDP to the port of announce.tunnelPort pass, or use another data plane", silent)
}

// via is the next hop for packets that the stack sends to a hop.
func (h hop) via() netip.Addr {
	if h.on.Name == tunnel.Name {
		return tunnel.Via(h.mac, h.addr.Addr().Is4())
	}
	return h.addr.Addr()
}

// clampMSS has clients send no segments that are too long for the tunnel: they may come by any node, and the next one
// that they come by may be behind another router. The kernel lowers the option (RFC 9293 section 3.7.1), and never
// raises it.
func (p rulePlan) clampMSS(t *ruleset.Table, f ruleset.IPFamily, services []service) {
	header := 20
	if f.Proto == unix.NFPROTO_IPV6 {
		header = 40
	}
	c := ruleset.FilterChain("short", *nftables.ChainHookOutput, arrivalPriority)
	c.Add("nothing opens here", ruleset.TCP(), flagSYN(), []expr.Any{ruleset.Equal(reg1, 0)}, accept())
	for _, s := range services {
		if s.tunnel.Index == 0 || p.carries <= 0 {
			continue
		}
		mss := binaryutil.BigEndian.PutUint16(uint16(p.carries - header - 20))
		c.Add("clients of "+s.String()+" may come through the tunnel", []expr.Any{
			ruleset.LoadNetwork(reg1, f.SrcOffset, f.AddrLen), s.isVIP(),
		}, ruleset.TCP(), []expr.Any{
			ruleset.LoadTransport(reg1, 0, 2), ruleset.Equal(reg1, binaryutil.BigEndian.PutUint16(s.port())...),
			&expr.Immediate{Register: reg1, Data: mss},
			&expr.Exthdr{SourceRegister: reg1, Type: 2, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
		})
	}
	if len(c.Rules) > 1 {
		t.Chains = append(t.Chains, c)
	}
}

// flagSYN leaves the flag SYN in reg1 (RFC 9293 section 3.1).
func flagSYN() []expr.Any {
	return []expr.Any{ruleset.LoadTransport(reg1, 13, 1), ruleset.Mask([]byte{2}, []byte{0})}
}
