package neighbours

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Cache knows the node's links, and the MAC addresses of the other nodes on them,
// from the kernel's tables. It is safe for concurrent use.
type Cache struct {
	links []string // their names
	fixed string   // one of them, see Fix

	mu     sync.Mutex
	addrs  []netip.Addr   // of all other nodes
	byNode [][]netip.Addr // the same, by node
	seen   View
	at     time.Time         // when the kernel was asked for seen
	began  time.Time         // when Resolve last did something
	held   map[Location]bool // the entries that the kernel's table has now
}

// New returns a cache for the links with these names.
func New(links ...string) *Cache { return &Cache{links: links} }

// Fix adds a link on which nobody is asked: whoever has made it has put there all that it leads to. It is to be called
// before the other methods.
func (n *Cache) Fix(link string) { n.links, n.fixed = append(slices.Clone(n.links), link), link }

// Follow sets the addresses of the other nodes, node by node. The next Look
// forgets what was known of others.
func (n *Cache) Follow(byNode [][]netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.byNode, n.addrs, n.at, n.began = byNode, slices.Concat(byNode...), time.Time{}, time.Time{}
}

// Has says whether the cache is about the link with this name.
func (n *Cache) Has(link string) bool { return slices.Contains(n.links, link) }

// IsNews says whether an update is about one of the other nodes and tells more
// than that the kernel has confirmed an entry.
func (n *Cache) IsNews(update netlink.NeighUpdate) bool {
	addr, _ := netip.AddrFromSlice(update.IP)
	addr = addr.Unmap()
	n.mu.Lock()
	defer n.mu.Unlock()
	if !slices.Contains(n.addrs, addr) {
		return false
	}
	for name, l := range n.seen.Links {
		at := Location{name, addr}
		if int(l.Index) == update.LinkIndex && n.held[at] && update.Type == unix.RTM_NEWNEIGH && hasMAC(update.Neigh) {
			return n.seen.MACs[at] != [6]byte(update.HardwareAddr)
		}
	}
	return true
}

// hasMAC says whether the kernel's entry has the neighbour's MAC address.
func hasMAC(n netlink.Neigh) bool {
	return len(n.HardwareAddr) == 6 && n.State&(unix.NUD_FAILED|unix.NUD_INCOMPLETE|unix.NUD_NOARP) == 0
}

// A View is what the cache saw at one moment. Nobody changes it after it
// has been handed out.
type View struct {
	Links map[string]Link // by name; a link that does not exist is missing
	MACs  map[Location][6]byte
	Off   map[Location]string // nodes that are not on a link, with the reason
	// Several are the links whose frames may have several source MAC addresses, with the reason.
	Several map[string]string
}

// A Location is an address on a link.
type Location struct {
	Link string
	Addr netip.Addr
}

// MAC is the MAC address of the first of a node's addresses that the kernel knows
// on a link.
func (s View) MAC(link string, addrs ...netip.Addr) (mac [6]byte, ok bool) {
	for _, a := range addrs {
		if mac, ok = s.MACs[Location{link, a}]; ok {
			return mac, true
		}
	}
	return mac, false
}

func (s View) equal(o View) bool {
	return maps.Equal(s.Links, o.Links) && maps.Equal(s.MACs, o.MACs) && maps.Equal(s.Off, o.Off) &&
		maps.Equal(s.Several, o.Several)
}

// Look reads the kernel's tables and says whether anything differs from the last
// time. A neighbour that the kernel no longer knows keeps its MAC address here:
// whether a server is alive is for health checks to say.
func (n *Cache) Look() (now View, changed bool, err error) { return n.LookOrRecall(0) }

// LookOrRecall is Look, or what the last one saw if that was less than age ago. Many ask at once while many load
// balancers start.
func (n *Cache) LookOrRecall(age time.Duration) (now View, changed bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	asked := time.Now()
	if !n.at.IsZero() && asked.Sub(n.at) < age {
		return n.seen, false, nil
	}
	now = View{
		Links: make(map[string]Link),
		MACs:  maps.Clone(n.seen.MACs),
		Off:   make(map[Location]string), Several: make(map[string]string),
	}
	if now.MACs == nil {
		now.MACs = make(map[Location][6]byte)
	}
	maps.DeleteFunc(now.MACs, func(at Location, _ [6]byte) bool {
		return !slices.Contains(n.addrs, at.Addr) || at.Link == n.fixed
	})
	n.held = make(map[Location]bool)
	for _, name := range n.links {
		l, driver, err := readLink(name)
		if err != nil {
			if errors.As(err, &netlink.LinkNotFoundError{}) {
				continue
			}
			return n.seen, false, err
		}
		now.Links[name] = l
		why, err := severalMACs(driver)
		if err != nil {
			return n.seen, false, err
		}
		if why != "" {
			now.Several[name] = why
		}
		for _, addr := range n.addrs {
			if name == n.fixed {
				break
			}
			if why := l.OffLink(addr); why != "" {
				now.Off[Location{name, addr}] = why
			}
		}
		if len(n.addrs) == 0 {
			continue
		}
		macs, err := l.Neighbours()
		if err != nil {
			return n.seen, false, err
		}
		for addr, mac := range macs {
			at := Location{name, addr}
			if slices.Contains(n.addrs, addr) && now.Off[at] == "" {
				now.MACs[at] = mac
				n.held[at] = true
			}
		}
	}
	changed = !now.equal(n.seen)
	n.seen, n.at = now, asked
	return now, changed, nil
}

// Resolve has the kernel find out, or confirm, the MAC address of every other node.
// The answers show in Look, and as events. It does nothing if that was done less than age ago.
func (n *Cache) Resolve(age time.Duration) {
	n.mu.Lock()
	if time.Since(n.began) < age {
		n.mu.Unlock()
		return
	}
	n.began = time.Now()
	now, held := n.seen, n.held        // Look replaces these,
	addrs, byNode := n.addrs, n.byNode // and Follow these
	n.mu.Unlock()
	for name, l := range now.Links {
		if name == n.fixed {
			continue
		}
		for _, addr := range addrs {
			at := Location{name, addr}
			if now.Off[at] != "" {
				continue
			}
			// An error means that the link is down or gone; an event tells of that.
			if held[at] && now.contradicts(byNode, at) {
				mac := now.MACs[at]
				_ = netlink.NeighSet(l.entry(addr, unix.NUD_PROBE, mac[:]))
			} else {
				_ = l.Ask(addr)
			}
		}
	}
}

// contradicts says whether the entries for the addresses of one node name several
// MAC addresses: the node has another card now, and not all entries have followed.
// The kernel would believe an entry that it has confirmed lately for up to 45 s
// more (base_reachable_time).
func (s View) contradicts(byNode [][]netip.Addr, at Location) bool {
	for _, addrs := range byNode {
		if !slices.Contains(addrs, at.Addr) {
			continue
		}
		for _, other := range addrs {
			if mac, ok := s.MACs[Location{at.Link, other}]; ok && mac != s.MACs[at] {
				return true
			}
		}
	}
	return false
}

// findTime is how long Find waits for answers to neighbour solicitations.
const findTime = 100 * time.Millisecond

// Find has the kernel find out the addresses of addrs that it does not know, and
// returns all neighbours on l. If wait is set, it gives the answers findTime.
func (l Link) Find(addrs []netip.Addr, wait bool) map[netip.Addr][6]byte {
	for until := time.Now().Add(findTime); ; time.Sleep(5 * time.Millisecond) {
		macs, _ := l.Neighbours()
		missing := 0
		for _, addr := range addrs {
			if _, ok := macs[addr]; !ok && l.OffLink(addr) == "" {
				_ = l.Ask(addr) // fails where the family or the link is off
				missing++
			}
		}
		if missing == 0 || !wait || time.Now().After(until) {
			return macs
		}
	}
}

// Neighbours are the MAC addresses that the kernel knows on the link.
func (l Link) Neighbours() (map[netip.Addr][6]byte, error) {
	macs := make(map[netip.Addr][6]byte)
	entries, err := netlink.NeighList(int(l.Index), netlink.FAMILY_ALL)
	if err != nil {
		return macs, fmt.Errorf("reading the neighbours on %s: %w", l.Name, err)
	}
	for _, e := range entries {
		if a, ok := netip.AddrFromSlice(e.IP); ok && hasMAC(e) {
			macs[a.Unmap()] = [6]byte(e.HardwareAddr)
		}
	}
	return macs, nil
}

// Ask has the kernel find out the MAC address of addr, as sending to it would.
func (l Link) Ask(addr netip.Addr) error {
	ask := l.entry(addr, 0, nil)
	ask.Flags = netlink.NTF_USE
	return netlink.NeighSet(ask)
}

// Correct gives the kernel's table another MAC address for addr, if it has one.
func (l Link) Correct(addr netip.Addr, mac [6]byte) {
	macs, _ := l.Neighbours()
	if have, ok := macs[addr]; ok && have != mac {
		// An error means that the link is gone, and the entry with it.
		_ = netlink.NeighSet(l.entry(addr, unix.NUD_STALE, mac[:]))
	}
}

func (l Link) entry(addr netip.Addr, state int, mac []byte) *netlink.Neigh {
	family := netlink.FAMILY_V6
	if addr.Is4() {
		family = netlink.FAMILY_V4
	}
	return &netlink.Neigh{LinkIndex: int(l.Index), Family: family, State: state, IP: addr.AsSlice(), HardwareAddr: mac}
}
