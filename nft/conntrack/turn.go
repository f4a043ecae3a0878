package conntrack

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Turn has conntrack take the clients of frontends for those who opened their connections. Of a connection from before
// conntrack was in use, it knows what the first packet that it sees tells: if the server spoke first, the frontend
// opened it. As long as such an entry stays, also after the end of the connection, a client that takes the same port
// again is refused: its SYN is taken for an answer.
func Turn(frontends []netip.AddrPort) error {
	for _, family := range familiesOf(slices.Values(frontends)) {
		wrong := &openedBy{frontends: frontends}
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, wrong); err != nil {
			return err
		}
		for _, entry := range wrong.live {
			// The next packet would begin the entry. Perhaps it has.
			err := netlink.ConntrackCreate(netlink.ConntrackTable, family, entry)
			if err != nil && !errors.Is(err, unix.EEXIST) {
				return err
			}
		}
	}
	return nil
}

// openedBy picks the entries of connections that frontends are said to have opened, and keeps those that have not come
// to their end, with the client as the one who opened them.
type openedBy struct {
	frontends []netip.AddrPort
	live      []*netlink.ConntrackFlow
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (o *openedBy) MatchConntrackFlow(entry *netlink.ConntrackFlow) bool {
	from := addrPort(entry.Forward.SrcIP, entry.Forward.SrcPort)
	if entry.Forward.Protocol != unix.IPPROTO_TCP || !slices.Contains(o.frontends, from) {
		return false
	}
	info, ok := entry.ProtoInfo.(*netlink.ProtoInfoTCP)
	if ok && info.State == nl.TCP_CONNTRACK_ESTABLISHED {
		turned := *entry
		turned.Forward, turned.Reverse = entry.Reverse, entry.Forward
		o.live = append(o.live, &turned)
	}
	return true
}
