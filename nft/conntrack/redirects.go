package conntrack

import (
	"maps"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ForgetRedirects has conntrack forget the connections to the keys of ports that
// were redirected elsewhere than to their values. Such an entry outlives the
// process that had the connection by days where no reset came through, since the
// address had moved; a client that takes the same port again would be led to where
// nobody listens.
func ForgetRedirects(ports map[netip.AddrPort]netip.AddrPort) error {
	for _, family := range familiesOf(maps.Keys(ports)) {
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, redirectFilter(ports))
		if err != nil {
			return conntrackError(err)
		}
	}
	return nil
}

// A redirectFilter picks the entries that ForgetRedirects is about.
type redirectFilter map[netip.AddrPort]netip.AddrPort

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (r redirectFilter) MatchConntrackFlow(entry *netlink.ConntrackFlow) bool {
	from := addrPort(entry.Forward.DstIP, entry.Forward.DstPort)
	to, ours := r[from]
	if entry.Forward.Protocol != unix.IPPROTO_TCP || !ours {
		return false
	}
	was := addrPort(entry.Reverse.SrcIP, entry.Reverse.SrcPort)
	return was.Addr() == from.Addr() && was != from && was != to
}
