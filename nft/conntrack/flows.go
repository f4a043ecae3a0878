package conntrack

import (
	"errors"
	"fmt"
	"iter"
	"maps"
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

// Lost are the backends that each frontend has lost.
type Lost map[netip.AddrPort][]netip.AddrPort

func (g Lost) has(f flow) bool { return slices.Contains(g[f.frontend], f.backend) }

// familiesOf are the families of frontends. Looking through the connections of one
// takes some 5 ms on a large table, however few connections it has.
func familiesOf(frontends iter.Seq[netip.AddrPort]) (found []netlink.InetFamily) {
	for frontend := range frontends {
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

// LostBackends are the backends that were in rotation or draining before and are not
// now. A service that is no longer wanted loses none: its connections go on,
// whoever serves it now.
func LostBackends(before, now []balancer.Service) Lost {
	had := make(map[netip.AddrPort][]netip.AddrPort)
	for _, s := range before {
		had[s.Frontend] = Allowed(s)
	}
	g := make(Lost)
	for _, s := range now {
		have := Allowed(s)
		for _, b := range had[s.Frontend] {
			if !slices.Contains(have, b) {
				g[s.Frontend] = append(g[s.Frontend], b)
			}
		}
	}
	return g
}

// Allowed are the backends that may have open connections of s.
func Allowed(s balancer.Service) []netip.AddrPort {
	var addrs []netip.AddrPort
	for _, b := range slices.Concat(s.Backends, s.Draining) {
		addrs = append(addrs, b.Addr)
	}
	return addrs
}

// Cut ends the open connections to backends that are lost: it makes conntrack forget
// them and resets idle clients. It returns how many there were.
//
// A client that sends next sends a packet that belongs to no connection, and the
// rules answer it with a reset. An idle client would wait for ever without
// resetIdle.
func Cut(g Lost) (int, error) {
	if len(g) == 0 {
		return 0, nil
	}
	flows := &flowFilter{gone: g}
	families := familiesOf(maps.Keys(g))
	for _, family := range families {
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, flows); err != nil {
			return flows.deleted, conntrackError(err)
		}
	}
	if len(flows.open) == 0 {
		return flows.deleted, nil
	}
	// A client that this does not reach is reset when it sends.
	_ = resetIdle(flows.open)
	// Conntrack takes each acknowledgement for a connection that the frontend opens
	// to the client. If the entry stayed, the client's next attempt from the same
	// port would be taken for an answer.
	acks := make(resetFilter)
	for _, f := range flows.open {
		acks[[2]netip.AddrPort{f.frontend, f.client}] = true
	}
	for _, family := range families {
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, acks); err != nil {
			return flows.deleted, conntrackError(err)
		}
	}
	return flows.deleted, nil
}

// A resetFilter picks the entries that resetIdle made: from a frontend to a client.
type resetFilter map[[2]netip.AddrPort]bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (p resetFilter) MatchConntrackFlow(entry *netlink.ConntrackFlow) bool {
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
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP),
		errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		remedy = "`modprobe nf_conntrack_netlink`, or use a kernel with CONFIG_NF_CT_NETLINK"
	}
	return fmt.Errorf("ending connections to backends that are gone: %w; %s", err, remedy)
}

// A flowFilter picks the entries of conntrack to delete and remembers them.
type flowFilter struct {
	gone    Lost
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
