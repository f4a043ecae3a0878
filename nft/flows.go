package nft

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"appliance/balancer"
)

// A flow is a connection that conntrack knows and that we translated.
type flow struct{ client, frontend, backend netip.AddrPort }

// gone are the backends that each frontend has lost.
type gone map[netip.AddrPort][]netip.AddrPort

func (g gone) has(f flow) bool { return slices.Contains(g[f.frontend], f.backend) }

// families are those whose connections have to be looked through, which takes
// some 5 ms each on a large table, however few connections are in it.
func (g gone) families() (found []netlink.InetFamily) {
	for frontend := range g {
		family := netlink.InetFamily(unix.AF_INET)
		if frontend.Addr().Is6() {
			family = unix.AF_INET6
		}
		if !slices.Contains(found, family) {
			found = append(found, family)
		}
	}
	return found
}

// left says which backends were in or draining from rotation before and are
// not now. A service that is not asked for any more loses none: its
// connections go on, under whoever serves it now.
func left(before, now []balancer.Service) gone {
	had := make(map[netip.AddrPort][]netip.AddrPort)
	for _, s := range before {
		had[s.Frontend] = allowed(s)
	}
	g := make(gone)
	for _, s := range now {
		have := allowed(s)
		for _, b := range had[s.Frontend] {
			if !slices.Contains(have, b) {
				g[s.Frontend] = append(g[s.Frontend], b)
			}
		}
	}
	return g
}

// allowed are the backends that may have open connections of s.
func allowed(s balancer.Service) []netip.AddrPort {
	var addrs []netip.AddrPort
	for _, b := range slices.Concat(s.Backends, s.Draining) {
		addrs = append(addrs, b.Addr)
	}
	return addrs
}

// disconnect ends the open connections to backends that are gone: it makes conntrack
// forget them and pokes their clients. It returns how many there were.
//
// A client that speaks next sends a packet that belongs to no connection; the
// rules answer it with a reset. A client that is silent would wait for ever;
// that is what the poke is for.
func disconnect(g gone) (int, error) {
	if len(g) == 0 {
		return 0, nil
	}
	flows := &flowFilter{gone: g}
	families := g.families()
	for _, family := range families {
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, flows); err != nil {
			return flows.deleted, conntrackError(err)
		}
	}
	if len(flows.open) == 0 {
		return flows.deleted, nil
	}
	// A client that cannot be poked is reset when it speaks.
	_ = poke(flows.open)
	// Each poke looks to conntrack like a connection that the frontend opens
	// to the client. If it stayed, the client's next attempt from the same
	// port would be taken for its answer.
	pokes := make(pokeFilter)
	for _, f := range flows.open {
		pokes[[2]netip.AddrPort{f.frontend, f.client}] = true
	}
	for _, family := range families {
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, pokes); err != nil {
			return flows.deleted, conntrackError(err)
		}
	}
	return flows.deleted, nil
}

// A pokeFilter picks the entries that pokes made: from a frontend to a client.
type pokeFilter map[[2]netip.AddrPort]bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (p pokeFilter) MatchConntrackFlow(entry *netlink.ConntrackFlow) bool {
	return entry.Forward.Protocol == unix.IPPROTO_TCP && p[[2]netip.AddrPort{
		addrPort(entry.Forward.SrcIP, entry.Forward.SrcPort),
		addrPort(entry.Forward.DstIP, entry.Forward.DstPort),
	}]
}

func conntrackError(err error) error {
	remedy := "see `dmesg`"
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		remedy = "give the container the capability NET_ADMIN"
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		remedy = "`modprobe nf_conntrack_netlink`, or use a kernel with CONFIG_NF_CT_NETLINK"
	}
	return fmt.Errorf("ending connections to backends that are gone: %w; %s", err, remedy)
}

// A flowFilter picks the entries of conntrack to delete and remembers them.
type flowFilter struct {
	gone    gone
	deleted int
	// open are those that have not come to their end already.
	open []flow
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f *flowFilter) MatchConntrackFlow(entry *netlink.ConntrackFlow) bool {
	if entry.Forward.Protocol != unix.IPPROTO_TCP {
		return false
	}
	fl := flow{
		client:   addrPort(entry.Forward.SrcIP, entry.Forward.SrcPort),
		frontend: addrPort(entry.Forward.DstIP, entry.Forward.DstPort),
		backend:  addrPort(entry.Reverse.SrcIP, entry.Reverse.SrcPort),
	}
	if !f.gone.has(fl) {
		return false
	}
	f.deleted++
	if info, ok := entry.ProtoInfo.(*netlink.ProtoInfoTCP); ok && info.State <= nl.TCP_CONNTRACK_LAST_ACK {
		f.open = append(f.open, fl)
	}
	return true
}

func addrPort(ip net.IP, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port)
}
