package announcing

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"appliance/arp"
	"appliance/configs"
)

// nextHop finds this host's address of a family for a session whose own end is local. A router is extended because its
// operator has said that it takes next hops of IPv6 for IPv4; it may have no IPv4 on this link, and gets them unless
// this node's operator has named one.
func (a *Announcer) nextHop(local netip.Addr, is4, extended bool) (netip.Addr, error) {
	for _, hop := range a.cfg.Announce.BGP.NextHops {
		if hop.Is4() == is4 {
			return hop, nil
		}
	}
	if is4 && extended {
		return a.nextHop(local, false, false)
	}
	if local.Is4() == is4 {
		return local, nil
	}
	name, err := arp.InterfaceOf(local)
	if err != nil {
		return netip.Addr{}, err
	}
	addrs, err := arp.AddrsOn(name)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, hop := range addrs {
		if hop.Is4() == is4 && !hop.IsLinkLocalUnicast() {
			return hop, nil
		}
	}
	if is4 && local.Is6() {
		return netip.Addr{}, fmt.Errorf("%s has no IPv4 address for routers to send packets to; give it one, write "+
			"announce.bgp.nextHops, or have the router take next hops of IPv6 (extended next hop, RFC 8950)", name)
	}
	family := map[bool]string{true: "IPv4", false: "IPv6"}[is4]
	return netip.Addr{}, fmt.Errorf("%s has no %s address for routers to send packets to; "+
		"give it one, or write announce.bgp.nextHops", name, family)
}

// CheckNextHops says which virtual addresses routers would not be told of, because this host has no address that they
// could send packets to. It changes nothing, and sends nothing. What is missing may come later, so it keeps no node
// from starting.
func (a *Announcer) CheckNextHops() error {
	b := a.cfg.Announce.BGP
	var errs []error
	for _, hop := range b.NextHops {
		if _, err := arp.InterfaceOf(hop); err != nil {
			errs = append(errs, fmt.Errorf("announce.bgp.nextHops: %s is no address of this host; write one that it has", hop))
		}
	}
	for _, n := range b.Neighbours {
		local, err := towards(n.Addr, n.Port)
		if err != nil {
			errs = append(errs, fmt.Errorf("router %s cannot be reached: %w; add a route to it", n.Addr, err))
			continue
		}
		for _, v := range a.cfg.VIPs {
			if v.By != configs.ByBGP {
				continue
			}
			// A router of IPv6 may say in its session that it takes next hops of IPv6 for IPv4.
			if _, err := a.nextHop(local, v.Addr.Is4(), n.Addr.Is6()); err != nil {
				errs = append(errs, fmt.Errorf("router %s would not be told of %s: %w", n.Addr, v.Addr, err))
			}
		}
	}
	return errors.Join(errs...)
}

// towards is the address of this host from which it reaches another.
func towards(addr netip.Addr, port uint16) (netip.Addr, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, port)))
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	from, err := netip.ParseAddrPort(conn.LocalAddr().String())
	return from.Addr().Unmap(), err
}
