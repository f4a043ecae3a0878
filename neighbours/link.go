package neighbours

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// A Link is an Ethernet interface of this node.
type Link struct {
	Name  string
	Index uint32
	MAC   [6]byte
}

// ReadLink reads the link with this name. The error says why it is none, and
// wraps netlink.LinkNotFoundError if it does not exist.
func ReadLink(name string) (Link, error) {
	l, _, err := readLink(name)
	return l, err
}

func readLink(name string) (Link, netlink.Link, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return Link{}, nil, fmt.Errorf("interface %s: %w", name, err)
	}
	a := l.Attrs()
	if a.EncapType != "ether" || len(a.HardwareAddr) != 6 {
		return Link{}, nil, fmt.Errorf("interface %s is %q and not Ethernet, so packets cannot be sent on by MAC address: "+
			"use another data plane", name, a.EncapType)
	}
	return Link{Name: name, Index: uint32(a.Index), MAC: [6]byte(a.HardwareAddr)}, l, nil
}

// BehindRouter is what OffLink says of an address that is reached over the link, but not directly.
const BehindRouter = "it is behind a router"

// OffLink says why addr is not reached directly over the link, or "".
func (l Link) OffLink(addr netip.Addr) string {
	routes, err := netlink.RouteGetWithOptions(net.IP(addr.AsSlice()), &netlink.RouteGetOptions{OifIndex: int(l.Index)})
	if err != nil {
		return fmt.Sprintf("there is no route (%v)", err)
	}
	for _, r := range routes {
		if r.LinkIndex == int(l.Index) && r.Gw == nil && r.Via == nil {
			return ""
		}
	}
	return BehindRouter
}

// severalMACs says why frames that leave by the link may have another source MAC address than the one by which other nodes
// know this node, or "". Nodes would take such a frame for a client's and forward it by their own table: where tables
// differ, in a circle.
//
// It looks through the drivers that stand on others, down to a bond.
func severalMACs(l netlink.Link) (why string, err error) {
	var below []netlink.Link
	switch l := l.(type) {
	case *netlink.Bond:
		if l.Mode == netlink.BOND_MODE_BALANCE_TLB || l.Mode == netlink.BOND_MODE_BALANCE_ALB {
			return fmt.Sprintf("bond %s in mode %s sends with the MAC addresses of all its cards", l.Name, l.Mode), nil
		}
	case *netlink.Bridge:
		all, err := netlink.LinkList()
		if err != nil {
			return "", fmt.Errorf("listing the ports of %s: %w", l.Name, err)
		}
		for _, p := range all {
			if p.Attrs().MasterIndex == l.Index {
				below = append(below, p)
			}
		}
	case *netlink.Vlan, *netlink.Macvlan:
		// In a container, the lower interface may be out of sight.
		if p, err := netlink.LinkByIndex(l.Attrs().ParentIndex); err == nil {
			below = append(below, p)
		}
	}
	for _, b := range below {
		if why, err := severalMACs(b); why != "" || err != nil {
			return why, err
		}
	}
	return "", nil
}
