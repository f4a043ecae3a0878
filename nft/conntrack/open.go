package conntrack

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Open counts the connections of clients elsewhere that this host serves: those that sockets here have with a frontend
// or with a backend on this host, and those that the kernel translates to a backend elsewhere. A stop of this host
// would cut them. A change of the kernel's tables meanwhile may hide some.
func Open(frontends, backends []netip.AddrPort) (int, error) {
	here, err := HostAddrs()
	if err != nil {
		return 0, err
	}
	n, err := sockets(here, frontends, backends)
	if err != nil {
		return 0, err
	}
	through := &translated{here: here, frontends: frontends}
	for _, family := range familiesOf(slices.Values(frontends)) {
		// It deletes nothing, as the filter matches nothing.
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, through)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return 0, fmt.Errorf("connections that conntrack knows: %w", err)
		}
	}
	return n + through.n, nil
}

// HostAddrs are all addresses of this host, virtual ones too.
func HostAddrs() (map[netip.Addr]bool, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	here := make(map[netip.Addr]bool)
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			here[p.Addr().Unmap()] = true
		}
	}
	return here, nil
}

// sockets counts open connections of sockets on this host.
func sockets(here map[netip.Addr]bool, frontends, backends []netip.AddrPort) (n int, err error) {
	// A dual-stack listener has its IPv4 clients in the family IPv6.
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		all, err := netlink.SocketDiagTCP(family)
		if errors.Is(err, unix.ENOENT) { // no IPv6
			continue
		}
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return 0, fmt.Errorf("open sockets: %w; the kernel needs CONFIG_INET_DIAG", err)
		}
		for _, s := range all {
			if s.State != netlink.TCP_ESTABLISHED && s.State != netlink.TCP_CLOSE_WAIT {
				continue
			}
			local, remote := addrPort(s.ID.Source, s.ID.SourcePort), addrPort(s.ID.Destination, s.ID.DestinationPort)
			// The forwarder may listen on another port of the frontend's address.
			toVIP := slices.ContainsFunc(frontends, func(f netip.AddrPort) bool { return f.Addr() == local.Addr() })
			if !here[remote.Addr()] && (toVIP || here[local.Addr()] && slices.Contains(backends, local)) {
				n++
			}
		}
	}
	return n, nil
}

// translated counts the open connections that the kernel translates to backends elsewhere.
type translated struct {
	here      map[netip.Addr]bool
	frontends []netip.AddrPort
	n         int
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter. It never matches.
func (t *translated) MatchConntrackFlow(entry *netlink.ConntrackFlow) bool {
	info, ok := entry.ProtoInfo.(*netlink.ProtoInfoTCP)
	client, backend := addrPort(entry.Forward.SrcIP, 0).Addr(), addrPort(entry.Reverse.SrcIP, 0).Addr()
	if ok && info.State == nl.TCP_CONNTRACK_ESTABLISHED && !t.here[client] && !t.here[backend] &&
		slices.Contains(t.frontends, addrPort(entry.Forward.DstIP, entry.Forward.DstPort)) {
		t.n++
	}
	return false
}
