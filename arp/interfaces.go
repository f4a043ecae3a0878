package arp

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// FindInterface finds the interface on whose link vip is answered. pattern is its name, or an alternative name of it
// (ip link property), or a regular expression for the whole name, or empty. If pattern leaves several interfaces, the
// one whose subnet contains vip is taken.
func FindInterface(vip netip.Addr, pattern string) (string, error) {
	links, err := listLinks()
	if err != nil {
		return "", err
	}
	all, err := addresses()
	if err != nil {
		return "", err
	}
	iface, err := findInterface(links, all, vip, pattern)
	if err != nil {
		return "", err
	}
	at := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Name == iface })
	for _, a := range all {
		if a.index != links[at].Attrs().Index {
			continue
		}
		if why := ofNoHost(netip.PrefixFrom(a.addr, a.bits), vip); why != "" {
			return "", fmt.Errorf("arp: VIP %s is %s on %s, which no client reaches as a host: "+
				"write another address of that network", vip, why, iface)
		}
	}
	return iface, nil
}

// ofNoHost says what vip is in subnet p, if it is no host's address there.
func ofNoHost(p netip.Prefix, vip netip.Addr) string {
	first := p.Masked().Addr()
	switch {
	case p.Addr().BitLen()-p.Bits() < 2 || !p.Contains(vip): // RFC 3021, RFC 6164
		return ""
	case vip == first && vip.Is6():
		return "the anycast address of all routers (RFC 4291 section 2.6.1) of " + p.Masked().String()
	case vip == first:
		return "the address of the network " + p.Masked().String() + " itself"
	case vip.Is4() && !p.Contains(vip.Next()):
		return "the broadcast address of " + p.Masked().String()
	}
	return ""
}

// findInterface is FindInterface but for what vip is in its subnet.
func findInterface(links []netlink.Link, all []address, vip netip.Addr, pattern string) (string, error) {
	var names []string
	index := make(map[int]string)
	for _, l := range links {
		a := l.Attrs()
		if a.RawFlags&unix.IFF_LOOPBACK != 0 {
			continue
		}
		if slices.Contains(a.AltNames, pattern) {
			return a.Name, nil // what rules of the kernel go by
		}
		names = append(names, a.Name)
		index[a.Index] = a.Name
	}
	subnets, err := subnets(all, vip, index)
	if err != nil {
		return "", err
	}
	iface, err := chooseInterface(vip, pattern, names, subnets)
	if err != nil && vip.Is6() && !slices.ContainsFunc(all, func(a address) bool { return a.addr.Is6() }) {
		err = fmt.Errorf("%w; this host has no IPv6 address at all: switch IPv6 on "+
			"(sysctl -w net.ipv6.conf.all.disable_ipv6=0), or leave this VIP out", err)
	}
	return iface, err
}

// A subnet is a network to which an interface is directly connected.
type subnet struct {
	iface  string
	prefix netip.Prefix
}

// subnets lists the directly connected networks that contain vip, by all addresses of this host and its routes.
func subnets(all []address, vip netip.Addr, index map[int]string) ([]subnet, error) {
	var found []subnet
	add := func(i int, p netip.Prefix) {
		if s := (subnet{index[i], p.Masked()}); s.iface != "" && subnetContains(p, vip) && !slices.Contains(found, s) {
			found = append(found, s)
		}
	}
	for _, a := range all {
		add(a.index, netip.PrefixFrom(a.addr, a.bits))
	}
	// An address from DHCPv6 has no subnet; the prefix in the router's advertisement becomes an on-link route
	// (RFC 4861, section 6.3.4).
	routes, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, family(vip)) })
	if err != nil {
		return nil, fmt.Errorf("arp: list routes: %w", err)
	}
	for _, r := range routes {
		if r.Gw != nil || len(r.MultiPath) > 0 || r.Dst == nil || r.Type != unix.RTN_UNICAST {
			continue
		}
		ip, ok := netip.AddrFromSlice(r.Dst.IP)
		bits, _ := r.Dst.Mask.Size()
		// A default route without gateway says nothing about the link.
		if ok && bits > 0 {
			add(r.LinkIndex, netip.PrefixFrom(ip, bits))
		}
	}
	return found, nil
}

// chooseInterface is FindInterface as a function of what the kernel has.
func chooseInterface(vip netip.Addr, pattern string, names []string, subnets []subnet) (string, error) {
	names = slices.Sorted(slices.Values(names))
	candidates := names
	if pattern != "" {
		if slices.Contains(names, pattern) {
			return pattern, nil
		}
		re, err := regexp.Compile("^(?:" + pattern + ")$")
		if err != nil {
			return "", fmt.Errorf("arp: interface %q is neither a name here nor a regular expression (%w): "+
				"write one of: %s", pattern, err, joined(names))
		}
		candidates = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !re.MatchString(n) })
		switch len(candidates) {
		case 0:
			return "", fmt.Errorf("arp: no interface matches %q: write one of: %s", pattern, joined(names))
		case 1:
			return candidates[0], nil
		}
	}
	var fit []subnet
	for _, s := range subnets {
		if slices.Contains(candidates, s.iface) {
			fit = append(fit, s)
		}
	}
	// The longest prefix wins, as in routing.
	slices.SortStableFunc(fit, func(a, b subnet) int { return cmp.Compare(b.prefix.Bits(), a.prefix.Bits()) })
	var best []string
	for _, s := range fit {
		if s.prefix.Bits() == fit[0].prefix.Bits() && !slices.Contains(best, s.iface) {
			best = append(best, s.iface)
		}
	}
	switch {
	case len(best) == 1:
		return best[0], nil
	case len(best) > 1:
		return "", fmt.Errorf("arp: VIP %s is in the subnet of several interfaces: set the interface to one of: %s",
			vip, joined(best))
	case pattern != "":
		return "", fmt.Errorf("arp: several interfaces match %q and none has VIP %s in its subnet: "+
			"set the interface to one of: %s", pattern, vip, joined(candidates))
	default:
		return "", fmt.Errorf("arp: no interface has VIP %s in its subnet: check the VIP, "+
			"or set the interface to one of: %s", vip, joined(names))
	}
}

// InterfaceOf is the interface that has this host's address addr: the one to a VIP that is in no subnet of this host.
func InterfaceOf(addr netip.Addr) (string, error) {
	_, all, err := loAndAddresses()
	if err != nil {
		return "", err
	}
	names, err := interfaceNames()
	if err != nil {
		return "", err
	}
	for _, a := range all {
		if name := names[a.index]; a.addr == addr.WithZone("") && name != loopback {
			return name, nil
		}
	}
	return "", fmt.Errorf("arp: no interface of this host has the address %s: set the interface of the VIPs", addr)
}

func joined(names []string) string {
	if len(names) == 0 {
		return "(this host has none but lo)"
	}
	return strings.Join(names, ", ")
}

// LocalAddrs lists this host's addresses without those that an appliance has bound. A peer finds itself in the
// configuration by them.
func LocalAddrs() ([]netip.Addr, error) {
	lo, all, err := loAndAddresses()
	if err != nil {
		return nil, err
	}
	var local []netip.Addr
	for _, a := range all {
		if a.index == lo && a.ours() {
			continue
		}
		local = append(local, a.addr)
	}
	return local, nil
}

// AddrsOn lists this host's addresses on the interfaces with these names. The IPv6 link-local ones come first, because
// no other host ever gets them (RFC 4291, section 2.5.6). It leaves out addresses that an appliance has bound, and
// those that the kernel does not answer for: tentative ones and duplicates (RFC 4862, section 5.4).
func AddrsOn(names ...string) ([]netip.Addr, error) {
	all, err := addresses()
	if err != nil {
		return nil, err
	}
	on := make(map[int]bool)
	for _, name := range slices.Compact(slices.Sorted(slices.Values(names))) { // many VIPs have the same
		// One by one: a host of containers has thousands, and this is called often.
		l, err := netlink.LinkByName(name)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("arp: interface %s: %w", name, err)
		}
		on[l.Attrs().Index] = true
	}
	var found []netip.Addr
	for _, a := range all {
		if on[a.index] && !a.marked() && a.flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0 {
			found = append(found, a.addr)
		}
	}
	rank := func(a netip.Addr) int {
		if a.Is6() && a.IsLinkLocalUnicast() {
			return 0
		}
		return 1
	}
	slices.SortFunc(found, func(a, b netip.Addr) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), a.Compare(b)) })
	return slices.Compact(found), nil
}

// Tentative reports whether this host has addr and may not use it yet, because duplicate address detection is not over
// (RFC 4862, section 5.4). That another machine has it is an error.
func Tentative(addr netip.Addr) (bool, error) {
	all, err := addresses()
	if err != nil {
		return false, err
	}
	for _, a := range all {
		switch {
		case a.addr != addr.WithZone(""):
		case a.flags&unix.IFA_F_DADFAILED != 0:
			return false, fmt.Errorf("arp: another machine on the link has this host's address %s (duplicate address "+
				"detection failed): give one of the two another address", addr)
		case a.flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_OPTIMISTIC) == unix.IFA_F_TENTATIVE:
			return true, nil
		}
	}
	return false, nil
}

// interfaceNames maps index to name.
func interfaceNames() (map[int]string, error) {
	links, err := listLinks()
	if err != nil {
		return nil, err
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	return names, nil
}

func listLinks() ([]netlink.Link, error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("arp: list interfaces: %w", err)
	}
	return links, nil
}

// subnetContains is false for the prefix of a single address, which says nothing about the link.
func subnetContains(p netip.Prefix, a netip.Addr) bool {
	return p.IsValid() && !p.IsSingleIP() && p.Contains(a)
}
