package endpoints

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"appliance/configs"
)

// The chains of a host's firewall that lines are for.
const (
	input   = "input"
	forward = "forward"
)

// firewall lists what has to get through for this very configuration.
func firewall(cfg *configs.Config) (all []Opening) {
	in := func(from, to, protocol, ports, why string) {
		all = append(all, Opening{input, from, to, protocol, ports, why})
	}
	var peers []netip.Addr
	var ports []uint16
	for _, p := range cfg.Peers {
		peers = append(peers, p.Addrs()...)
		ports = append(ports, p.Port)
	}
	group := numbers(ports)
	if group == "" {
		group = fmt.Sprint(cfg.Group.Port)
	}
	everyPeer := words(peers)
	switch {
	case cfg.Worker() && len(peers) > 0:
		in("this node", everyPeer, "TCP", group, "it follows the peers' list of backends")
	case cfg.Worker():
	case len(peers) > 0:
		in(everyPeer, everyPeer, "TCP", group, "the group: TLS 1.3, both sides authenticated")
		in(everyPeer, everyPeer, "UDP", group, "a lost host is noticed within one heartbeat; without it, two")
		in("workers, if there are any", everyPeer, "TCP", group, "they follow the peers' list of backends")
	default:
		in("peers that join", "this node", "TCP and UDP", group, "the group")
	}
	for _, lb := range cfg.LoadBalancers {
		switch {
		case len(lb.VIPs) > 0 && !cfg.Worker():
			in("clients, and all peers, which try it", words(lb.VIPs), "TCP", fmt.Sprint(lb.Port), "load balancer "+lb.Name)
		case len(lb.VIPs) > 0 && mayBe(lb, "direct"):
			in("clients, and all peers, which try it", words(lb.VIPs), "TCP", fmt.Sprint(lb.Port),
				"load balancer "+lb.Name+" in data plane direct, if a server here is a backend")
		}
		if !lb.BindToVIP {
			in("clients", "every address of the nodes, the virtual ones included", "TCP", fmt.Sprint(lb.Port),
				"load balancer "+lb.Name+", bindToVip: false")
		}
		all = append(all, servers(cfg, lb)...)
	}
	for _, n := range cfg.Announce.BGP.Neighbours {
		if !n.Passive {
			all = append(all, Opening{input, "nodes", n.Addr.String(), "TCP", fmt.Sprint(n.Port), "BGP"})
		}
		if port := cfg.Announce.BGP.Port; port != 0 {
			in(n.Addr.String(), "nodes", "TCP", fmt.Sprint(port), "BGP")
		}
		if n.BFDInterval > 0 {
			port := bfdPort
			if n.Hops > 1 {
				port = bfdMultihopPort
			}
			in(n.Addr.String(), "nodes", "UDP", fmt.Sprint(port), "BFD")
		}
	}
	mayDirect := func(lb configs.LoadBalancerEntry) bool { return mayBe(lb, "direct") }
	if port := cfg.Announce.TunnelPort; port != 0 && cfg.Routed() && !cfg.Worker() && len(peers) > 1 &&
		slices.ContainsFunc(cfg.LoadBalancers, mayDirect) {
		in(everyPeer, everyPeer, "UDP", fmt.Sprint(port),
			"data plane direct between peers behind different routers; without it, another one serves there")
	}
	all = append(all, link(cfg)...)
	for _, at := range cfg.Admin.Listen {
		if ap, err := netip.ParseAddrPort(at); err == nil && !ap.Addr().IsLoopback() {
			in("your browser and Prometheus", ap.Addr().String(), "TCP", fmt.Sprint(ap.Port()), "admin.listen")
		}
	}
	return all
}

// mayBe says whether a load balancer may be served by one of the data planes.
func mayBe(lb configs.LoadBalancerEntry, planes ...string) bool {
	return lb.DataPlane == "auto" || slices.Contains(planes, string(lb.DataPlane))
}

// servers is the way to a load balancer's backends, one line for each port and chain. What the kernel translates, a
// firewall sees as it goes on: to the backend, from the client.
func servers(cfg *configs.Config, lb configs.LoadBalancerEntry) (all []Opening) {
	byPort := make(map[uint16][]string)
	atPeer := make(map[uint16]bool)
	for _, b := range lb.Backends {
		port, at := b.Addr.Port(), b.Host
		if at == "" {
			at = b.Addr.Addr().String()
		}
		byPort[port] = append(byPort[port], at)
		// A name may be a peer's.
		atPeer[port] = atPeer[port] || b.Host != "" || onPeer(cfg, b)
	}
	translates := mayBe(lb, "nftables", "ipvs") && len(lb.VIPs) > 0 && !cfg.Worker()
	for _, port := range slices.Sorted(maps.Keys(byPort)) {
		from, why := "nodes", "checks and traffic of load balancer "+lb.Name
		if cfg.Worker() {
			from = "this node"
		}
		if translates && atPeer[port] {
			from, why = "nodes, and clients of servers on peers", why+"; the kernel translates before this chain"
		}
		all = append(all, Opening{input, from, strings.Join(byPort[port], ", "), "TCP", fmt.Sprint(port), why})
	}
	all = append(all, checks(cfg, lb)...)
	if !translates {
		return all
	}
	for _, port := range slices.Sorted(maps.Keys(byPort)) {
		all = append(all, Opening{forward, "clients, and all peers, which try it", strings.Join(byPort[port], ", "), "TCP",
			fmt.Sprint(port), "load balancer " + lb.Name + " in data planes ipvs and nftables; without it, user space serves"})
	}
	return all
}

// checks is the way to where a load balancer's backends are checked, if that is not where they serve.
func checks(cfg *configs.Config, lb configs.LoadBalancerEntry) (all []Opening) {
	byPort := make(map[uint16][]string)
	for _, b := range lb.Backends {
		to, ok := lb.CheckedAt(b)
		if !ok || to == b.Addr || to.Addr().IsLoopback() {
			continue
		}
		at := to.Addr().String()
		if b.Host != "" && !to.Addr().IsValid() {
			at = b.Host
		}
		if !slices.Contains(byPort[to.Port()], at) {
			byPort[to.Port()] = append(byPort[to.Port()], at)
		}
	}
	from := "nodes"
	if cfg.Worker() {
		from = "this node"
	}
	for _, port := range slices.Sorted(maps.Keys(byPort)) {
		all = append(all, Opening{input, from, strings.Join(byPort[port], ", "), "TCP", fmt.Sprint(port),
			"checks of load balancer " + lb.Name})
	}
	return all
}

// link is what nodes need of their links, whatever addresses they talk to.
func link(cfg *configs.Config) (all []Opening) {
	addrs := slices.Clone(cfg.VIPs)
	for _, p := range cfg.Peers {
		addrs = append(addrs, p.Addrs()...)
	}
	for _, lb := range cfg.LoadBalancers {
		for _, b := range lb.Backends {
			if b.Host == "" {
				addrs = append(addrs, b.Addr.Addr())
			}
		}
	}
	is4 := func(a netip.Addr) bool { return a.Is4() }
	if slices.ContainsFunc(addrs, is4) {
		all = append(all, Opening{input, "the nodes' links", "the same", "ARP", "-", "who has an address"})
	}
	if slices.ContainsFunc(addrs, netip.Addr.Is6) {
		all = append(all, Opening{input, "the nodes' links", "the same", "ICMPv6", "types 135, 136",
			"who has an address: neighbour discovery"})
	}
	return all
}

func words(list []netip.Addr) string {
	var all []string
	for _, a := range list {
		all = append(all, a.String())
	}
	return strings.Join(all, ", ")
}

// numbers joins ports, each once.
func numbers(list []uint16) string {
	list = slices.Clone(list)
	slices.Sort(list)
	var all []string
	for _, p := range slices.Compact(list) {
		all = append(all, fmt.Sprint(p))
	}
	return strings.Join(all, ", ")
}
