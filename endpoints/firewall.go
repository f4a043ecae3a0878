package endpoints

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"appliance/configs"
)

// firewall lists what has to get through for this very configuration.
func firewall(cfg *configs.Config) (all []Opening) {
	var peers []netip.Addr
	var ports []uint16
	for _, p := range cfg.Peers {
		peers = append(peers, p.Address)
		ports = append(ports, p.Port)
	}
	group := numbers(ports)
	if group == "" {
		group = fmt.Sprint(cfg.Group.Port)
	}
	everyPeer := words(peers)
	switch {
	case cfg.Worker() && len(peers) > 0:
		all = append(all, Opening{"this node", everyPeer, "TCP", group, "it follows the peers' list of backends"})
	case cfg.Worker():
	case len(peers) > 0:
		all = append(all,
			Opening{everyPeer, everyPeer, "TCP", group, "the group: TLS 1.3, both sides authenticated"},
			Opening{everyPeer, everyPeer, "UDP", group, "a lost host is noticed within one heartbeat; without it, two"},
			Opening{"workers, if there are any", everyPeer, "TCP", group, "they follow the peers' list of backends"})
	default:
		all = append(all, Opening{"peers that join", "this node", "TCP and UDP", group, "the group"})
	}
	for _, lb := range cfg.LoadBalancers {
		if len(lb.VIPs) > 0 && !cfg.Worker() {
			all = append(all, Opening{"clients", words(lb.VIPs), "TCP", fmt.Sprint(lb.Port), "load balancer " + lb.Name})
		}
		if !lb.BindToVIP {
			all = append(all, Opening{"clients", "every address of the nodes, the virtual ones included", "TCP",
				fmt.Sprint(lb.Port), "load balancer " + lb.Name + ", bindToVip: false"})
		}
		all = append(all, servers(cfg, lb)...)
	}
	if !cfg.Worker() {
		all = append(all, link(cfg.VIPs)...)
	}
	for _, at := range cfg.Admin.Listen {
		if ap, err := netip.ParseAddrPort(at); err == nil && !ap.Addr().IsLoopback() {
			all = append(all, Opening{"your browser and Prometheus", ap.Addr().String(), "TCP", fmt.Sprint(ap.Port()),
				"admin.listen"})
		}
	}
	return all
}

// servers is the way from the nodes to a load balancer's backends, one line for each port.
func servers(cfg *configs.Config, lb configs.LoadBalancerEntry) (all []Opening) {
	byPort := make(map[uint16][]netip.Addr)
	var ports []uint16
	for _, b := range lb.Backends {
		p := b.Addr.Port()
		if byPort[p] == nil {
			ports = append(ports, p)
		}
		byPort[p] = append(byPort[p], b.Addr.Addr())
	}
	slices.Sort(ports)
	from := "nodes"
	if cfg.Worker() {
		from = "this node"
	}
	for _, p := range ports {
		why := "checks and traffic of load balancer " + lb.Name
		if p == lb.Port && !cfg.Worker() && onPeers(cfg, lb) && (lb.DataPlane == "auto" || lb.DataPlane == "direct") {
			why += "; data plane direct: from clients' own addresses too"
		}
		all = append(all, Opening{from, words(byPort[p]), "TCP", fmt.Sprint(p), why})
	}
	return all
}

// link is what has to pass on the virtual addresses' own link.
func link(vips []netip.Addr) (all []Opening) {
	is4 := func(a netip.Addr) bool { return a.Is4() }
	if slices.ContainsFunc(vips, is4) {
		all = append(all, Opening{"the link of the virtual addresses", "the same", "ARP", "-", "who has the address"})
	}
	if slices.ContainsFunc(vips, netip.Addr.Is6) {
		all = append(all, Opening{"the link of the virtual addresses", "the same", "ICMPv6", "types 135, 136",
			"who has the address"})
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
