package nft

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// neighbours knows our links, and the MAC addresses of the other nodes on
// them, from the kernel's tables.
type neighbours struct {
	links []string

	mu    sync.Mutex
	nodes []netip.Addr   // of the other nodes
	same  [][]netip.Addr // the same, those of one node together
	seen  surroundings
	held  map[place]bool // those that the kernel's table holds now
}

// follow sets who the nodes are. What is known of others is forgotten at the
// next look.
func (n *neighbours) follow(nodes []Node, self string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes, n.same = nil, nil
	for _, node := range nodes {
		if node.ID != self {
			n.nodes = append(n.nodes, node.Addrs...)
			n.same = append(n.same, node.Addrs)
		}
	}
}

// isNews says whether the kernel's word about a neighbour is about one of the
// other nodes, and not what is known already: that it confirms an entry.
func (n *neighbours) isNews(heard netlink.NeighUpdate) bool {
	addr, _ := netip.AddrFromSlice(heard.IP)
	addr = addr.Unmap()
	n.mu.Lock()
	defer n.mu.Unlock()
	if !slices.Contains(n.nodes, addr) {
		return false
	}
	for name, l := range n.seen.links {
		if at := (place{name, addr}); int(l.index) == heard.LinkIndex && n.held[at] && heard.Type == unix.RTM_NEWNEIGH && isHeard(heard.Neigh) {
			return n.seen.macs[at] != [6]byte(heard.HardwareAddr)
		}
	}
	return true
}

// isHeard says that the kernel's entry holds the neighbour's MAC address.
func isHeard(n netlink.Neigh) bool {
	return len(n.HardwareAddr) == 6 && n.State&(unix.NUD_FAILED|unix.NUD_INCOMPLETE|unix.NUD_NOARP) == 0
}

// surroundings are what neighbours saw at one moment. They are not changed
// after they have been handed out.
type surroundings struct {
	links map[string]link
	macs  map[place][6]byte
	// off are nodes that are not on a link, and why.
	off map[place]string
}

// A place is an address on a link.
type place struct {
	link string
	addr netip.Addr
}

func (s surroundings) equal(o surroundings) bool {
	return maps.Equal(s.links, o.links) && maps.Equal(s.macs, o.macs) && maps.Equal(s.off, o.off)
}

// look reads the kernel's tables and tells whether anything differs from the
// last time. A neighbour that the kernel no longer knows keeps the MAC address
// that it had: whether a server is alive is for health checks to say.
func (n *neighbours) look() (now surroundings, changed bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	now = surroundings{
		links: make(map[string]link),
		macs:  maps.Clone(n.seen.macs),
		off:   make(map[place]string),
	}
	if now.macs == nil {
		now.macs = make(map[place][6]byte)
	}
	maps.DeleteFunc(now.macs, func(at place, _ [6]byte) bool { return !slices.Contains(n.nodes, at.addr) })
	n.held = make(map[place]bool)
	for _, name := range n.links {
		l, err := readLink(name)
		if err != nil {
			if errors.As(err, &netlink.LinkNotFoundError{}) {
				continue
			}
			return n.seen, false, err
		}
		now.links[name] = l
		for _, addr := range n.nodes {
			if why := offLink(l, addr); why != "" {
				now.off[place{name, addr}] = why
			}
		}
		if len(n.nodes) == 0 {
			continue
		}
		heard, err := netlink.NeighList(int(l.index), netlink.FAMILY_ALL)
		if err != nil {
			return n.seen, false, fmt.Errorf("reading the neighbours on %s: %w", name, err)
		}
		for _, h := range heard {
			addr, ok := netip.AddrFromSlice(h.IP)
			if !ok || !isHeard(h) {
				continue
			}
			at := place{name, addr.Unmap()}
			if slices.Contains(n.nodes, at.addr) && now.off[at] == "" {
				now.macs[at] = [6]byte(h.HardwareAddr)
				n.held[at] = true
			}
		}
	}
	changed = !now.equal(n.seen)
	n.seen = now
	return now, changed, nil
}

// resolve asks the kernel to find out, or to confirm, the MAC address of every
// other node, as sending to it would. The answers show in look, and as events.
func (n *neighbours) resolve() {
	n.mu.Lock()
	now, held := n.seen, n.held    // look makes new ones,
	nodes, same := n.nodes, n.same // and so does follow
	n.mu.Unlock()
	for name, l := range now.links {
		for _, addr := range nodes {
			if now.off[place{name, addr}] != "" {
				continue
			}
			ask := question(l, addr)
			if at := (place{name, addr}); held[at] && doubtful(now, same, name, addr) {
				mac := now.macs[at]
				ask.Flags, ask.State, ask.HardwareAddr = 0, unix.NUD_PROBE, mac[:]
			}
			// An error means that the link is down or gone, of which an event tells.
			_ = netlink.NeighSet(&ask)
		}
	}
}

// question has the kernel find out where addr is on l, as sending to it would.
func question(l link, addr netip.Addr) netlink.Neigh {
	family := netlink.FAMILY_V6
	if addr.Is4() {
		family = netlink.FAMILY_V4
	}
	return netlink.Neigh{LinkIndex: int(l.index), Family: family, Flags: netlink.NTF_USE, IP: addr.AsSlice()}
}

// doubtful tells whether the addresses of a node, which stand together in same, are said to be at different
// cards: it has got another one, which not all entries have followed. One that
// was confirmed lately would be believed for up to 45 s more
// (base_reachable_time).
func doubtful(now surroundings, same [][]netip.Addr, link string, addr netip.Addr) bool {
	for _, addrs := range same {
		if !slices.Contains(addrs, addr) {
			continue
		}
		for _, other := range addrs {
			if mac, ok := now.macs[place{link, other}]; ok && mac != now.macs[place{link, addr}] {
				return true
			}
		}
	}
	return false
}

func readLink(name string) (link, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return link{}, fmt.Errorf("interface %s: %w", name, err)
	}
	a := l.Attrs()
	if a.EncapType != "ether" || len(a.HardwareAddr) != 6 {
		return link{}, fmt.Errorf("interface %s is %q and not Ethernet, so packets cannot be sent on by MAC address: use another data plane", name, a.EncapType)
	}
	return link{name: name, index: uint32(a.Index), mac: [6]byte(a.HardwareAddr)}, nil
}

// severalSources says why frames of one node that leave by l may come with
// another source MAC address than the one by which its fellows know it, or "".
// They would take such a frame for a client's and send it on by their own idea of
// the slots: where ideas differ, in a circle.
//
// The drivers that stand on others are looked through down to the bond.
func severalSources(l netlink.Link) (why string, err error) {
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
		// In a container, what it stands on may be out of sight.
		if p, err := netlink.LinkByIndex(l.Attrs().ParentIndex); err == nil {
			below = append(below, p)
		}
	}
	for _, b := range below {
		if why, err := severalSources(b); why != "" || err != nil {
			return why, err
		}
	}
	return "", nil
}

// offLink says why a node is not reached directly over a link, or "".
func offLink(l link, addr netip.Addr) string {
	routes, err := netlink.RouteGetWithOptions(net.IP(addr.AsSlice()), &netlink.RouteGetOptions{OifIndex: int(l.index)})
	if err != nil {
		return fmt.Sprintf("there is no route (%v)", err)
	}
	for _, r := range routes {
		if r.LinkIndex == int(l.index) && r.Gw == nil && r.Via == nil {
			return ""
		}
	}
	return "it is behind a router"
}

// neighboursOn are the MAC addresses that the kernel knows on a link.
func neighboursOn(l link) map[netip.Addr][6]byte {
	macs := make(map[netip.Addr][6]byte)
	heard, err := netlink.NeighList(int(l.index), netlink.FAMILY_ALL)
	if err != nil {
		return macs
	}
	for _, h := range heard {
		if a, ok := netip.AddrFromSlice(h.IP); ok && isHeard(h) {
			macs[a.Unmap()] = [6]byte(h.HardwareAddr)
		}
	}
	return macs
}
