package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Machine is one machine: a network namespace with its interfaces.
type Machine struct {
	// Name is the machine's name in its lab.
	Name string

	lab     *Lab
	threads *threads
	ports   []port

	mu        sync.Mutex
	routes    []route
	processes map[*Process]bool
	stopped   bool // no more processes
}

// port is one interface of a machine and its place on a bridge.
type port struct {
	bridge string
	addrs  []netip.Prefix
	name   string           // inside the machine: eth0, eth1
	mac    net.HardwareAddr // of that interface
	index  int              // of the bridge's end
}

// linkPatience is generous: the kernel lets up to a second pass between
// two rounds of link events.
const linkPatience = 15 * time.Second

type route struct {
	to  netip.Prefix
	via netip.Addr
}

func newNode(l *Lab, name string, number int, ports []port) (*Machine, error) {
	t, err := newThreads()
	if err != nil {
		return nil, err
	}
	n := &Machine{Name: name, lab: l, threads: t, ports: ports, processes: map[*Process]bool{}}
	if err := n.build(number); err != nil {
		return nil, errors.Join(err, t.close())
	}
	return n, nil
}

func (n *Machine) build(number int) error {
	if err := n.Do(n.settings); err != nil {
		return err
	}
	for i := range n.ports {
		p := &n.ports[i]
		p.name = fmt.Sprintf("eth%d", i)
		// Locally administered; the number makes it readable in captures.
		p.mac = net.HardwareAddr{0x02, 0x77, 0x00, byte(i), byte(number >> 8), byte(number)}
		card := p.name
		if n.lab.stack != nil {
			card = fmt.Sprintf("card%d", i)
		}
		index, err := n.lab.sw.plug(p.bridge, fmt.Sprintf("m%d-%d", number, i), n.threads, card, p.mac)
		if err != nil {
			return err
		}
		p.index = index
		if n.lab.stack == nil {
			continue
		}
		if err := n.Do(func() error { return n.lab.stack(card, p.name) }); err != nil {
			return err
		}
	}
	if err := n.Do(n.configure); err != nil {
		return err
	}
	for _, p := range n.ports {
		if err := n.awaitCarrier(p); err != nil {
			return err
		}
	}
	if !n.has(false) {
		return nil
	}
	return n.Do(n.awaitGroups)
}

// awaitGroups waits until the machine hears solicitations for its IPv6
// addresses: the kernel joins their groups from a work queue, even where it
// does not look for duplicates. A first solicitation that comes before is
// repeated after a second only.
func (n *Machine) awaitGroups() error {
	for end := time.Now().Add(linkPatience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		joined, err := os.ReadFile("/proc/thread-self/net/igmp6")
		if err != nil {
			return err
		}
		missing := false
		for _, p := range n.ports {
			for _, a := range p.addrs {
				if a.Addr().Is6() && !strings.Contains(string(joined), solicitedNode(a.Addr())) {
					missing = true
				}
			}
		}
		if !missing {
			return nil
		}
	}
	return fmt.Errorf("the kernel does not listen for solicitations within %s", linkPatience)
}

// solicitedNode is the solicited-node multicast address (RFC 4291 section
// 2.7.1) as /proc/net/igmp6 writes it.
func solicitedNode(a netip.Addr) string {
	b := a.As16()
	return fmt.Sprintf("ff0200000000000000000001ff%02x%02x%02x", b[13], b[14], b[15])
}

// awaitCarrier waits until both ends of a link say that it works: the kernel
// tells bridges and routes about a new carrier a moment later, and a first
// solicitation that is lost until then is repeated after a second only.
func (n *Machine) awaitCarrier(p port) error {
	running := func(find func() (netlink.Link, error)) func() error {
		return func() error {
			link, err := find()
			if err == nil && link.Attrs().OperState != netlink.OperUp {
				err = fmt.Errorf("its link is %s", link.Attrs().OperState)
			}
			return err
		}
	}
	inside := running(func() (netlink.Link, error) { return netlink.LinkByName(p.name) })
	outside := running(func() (netlink.Link, error) { return netlink.LinkByIndex(p.index) })
	var err error
	for end := time.Now().Add(linkPatience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if err = n.Do(inside); err != nil {
			continue
		}
		if err = n.lab.sw.do(outside); err == nil {
			return nil
		}
	}
	return fmt.Errorf("lab: %s of %s has no carrier after %s: %w", p.name, n.Name, linkPatience, err)
}

// settings are written before the first interface comes up.
func (n *Machine) settings() error {
	set := map[string]string{
		// Probes open hundreds of connections per second.
		"ipv4/ip_local_port_range": "1024 65535",
	}
	for _, which := range []string{"all", "default"} {
		conf := "ipv6/conf/" + which + "/"
		if !n.has(false) {
			set[conf+"disable_ipv6"] = "1"
			continue
		}
		// Addresses are usable at once and stay when the link flaps.
		set[conf+"accept_dad"] = "0"
		set[conf+"accept_ra"] = "0"
		set[conf+"keep_addr_on_down"] = "1"
	}
	for k, v := range set {
		if err := sysctl(k, v); err != nil {
			return err
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	if n.has(true) {
		return nil
	}
	// The kernel gives 127.0.0.1 to every lo that comes up.
	addrs, err := netlink.AddrList(lo, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if err := netlink.AddrDel(lo, &a); err != nil {
			return err
		}
	}
	return nil
}

// configure brings the interfaces up and gives them addresses and routes. It
// runs again when a link comes back, since the kernel drops routes of a link
// that goes down.
func (n *Machine) configure() error {
	for _, p := range n.ports {
		link, err := netlink.LinkByName(p.name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", p.name, err)
		}
		for _, a := range p.addrs {
			addr := &netlink.Addr{IPNet: ipNet(a)}
			if a.Addr().Is6() {
				addr.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrReplace(link, addr); err != nil {
				return fmt.Errorf("add %s to %s: %w", a, p.name, err)
			}
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.routes {
		if err := netlink.RouteReplace(&netlink.Route{Dst: ipNet(r.to), Gw: r.via.AsSlice()}); err != nil {
			return fmt.Errorf("route %s via %s: %w", r.to, r.via, err)
		}
	}
	return nil
}

func (n *Machine) forward() error {
	return n.Do(func() error {
		if n.has(true) {
			if err := sysctl("ipv4/ip_forward", "1"); err != nil {
				return err
			}
		}
		if n.has(false) {
			return sysctl("ipv6/conf/all/forwarding", "1")
		}
		return nil
	})
}

// Do runs f on a thread inside the machine. Sockets that f opens and
// processes that it starts belong to the machine; goroutines that it starts
// do not. f must return: it must not lock or unlock its thread, change its
// namespace or end its goroutine.
func (n *Machine) Do(f func() error) error { return n.threads.do(f) }

// Addr is the machine's first address of the family on its first interface,
// or the zero Addr.
func (n *Machine) Addr(is4 bool) netip.Addr {
	for _, a := range n.ports[0].addrs {
		if a.Addr().Is4() == is4 {
			return a.Addr()
		}
	}
	return netip.Addr{}
}

// MAC is the hardware address of the machine's first interface.
func (n *Machine) MAC() net.HardwareAddr { return n.ports[0].mac }

// Namespace is a path by which other processes can enter the machine
// (nsenter --net=PATH) as long as this process lives and the lab is open.
func (n *Machine) Namespace() string {
	return fmt.Sprintf("/proc/%d/fd/%d", unix.Getpid(), int(n.threads.ns))
}

// Route adds a route that stays through LinkDown and LinkUp.
func (n *Machine) Route(to netip.Prefix, via netip.Addr) error {
	n.mu.Lock()
	n.routes = append(n.routes, route{to, via})
	n.mu.Unlock()
	return n.Do(n.configure)
}

// LinkDown takes the machine's first interface down from inside, as
// `ip link set eth0 down` does.
func (n *Machine) LinkDown() error {
	n.lab.log.Info("link down", "machine", n.Name)
	return n.Do(func() error {
		link, err := netlink.LinkByName(n.ports[0].name)
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(link)
	})
}

// LinkUp undoes LinkDown, with all addresses and routes.
func (n *Machine) LinkUp() error {
	n.lab.log.Info("link up", "machine", n.Name)
	return n.Do(n.configure)
}

// Unplug pulls the cable at the bridge: the machine loses its carrier, and
// its interface stays up.
func (n *Machine) Unplug() error {
	n.lab.log.Info("cable unplugged", "machine", n.Name)
	return n.lab.sw.carrier(n.ports[0].index, false)
}

// Plug puts the cable back.
func (n *Machine) Plug() error {
	n.lab.log.Info("cable plugged in", "machine", n.Name)
	if err := n.lab.sw.carrier(n.ports[0].index, true); err != nil {
		return err
	}
	return n.Do(n.configure)
}

// CutFrom drops every frame from this machine to the others, in that
// direction only.
func (n *Machine) CutFrom(others ...*Machine) error {
	return n.lab.sw.change(func(cuts map[cut]bool) {
		for _, o := range others {
			cuts[cut{n.ports[0].index, o.ports[0].index}] = true
		}
	})
}

// Cut parts n from others in both directions, while each of them still
// reaches everybody else.
func (l *Lab) Cut(n *Machine, others ...*Machine) error {
	l.log.Info("cut", "machine", n.Name)
	return l.sw.change(func(cuts map[cut]bool) {
		for _, o := range others {
			cuts[cut{n.ports[0].index, o.ports[0].index}] = true
			cuts[cut{o.ports[0].index, n.ports[0].index}] = true
		}
	})
}

// Heal takes back every cut. Cables and links stay as they are.
func (l *Lab) Heal() error {
	l.log.Info("cuts healed")
	return l.sw.change(func(cuts map[cut]bool) { clear(cuts) })
}

// has tells whether the machine has an address of the family.
func (n *Machine) has(is4 bool) bool {
	for _, p := range n.ports {
		for _, a := range p.addrs {
			if a.Addr().Is4() == is4 {
				return true
			}
		}
	}
	return false
}

func (n *Machine) close() error { return n.threads.close() }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
