package direct

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"appliance/balancer"
	"appliance/pathprobe"
)

// A kind is one of interface on which a VIP may be answered. The zero kind is a card.
type kind struct {
	name string
	// build makes eth0 of the host's two cards.
	build func(cards []string) error
	// change makes frames leave eth0 by another card or MAC address, and reverts that.
	// moves says whether the MAC address changes.
	change func(l *lab, h *host, back bool)
	moves  bool
}

func kinds() []kind {
	return []kind{
		{"card", func(cards []string) error {
			link, err := netlink.LinkByName(cards[0])
			if err != nil {
				return err
			}
			return netlink.LinkSetName(link, "eth0")
		}, otherMAC("eth0"), true},
		{"bridge", func(cards []string) error {
			_, err := addBridge("eth0", cards[0])
			return err
		}, lowerPort, true},
		{"vlan", func(cards []string) error { return addVLAN("eth0", cards[0]) }, otherMAC("card0"), true},
		{"bond", func(cards []string) error {
			return addBond("eth0", cards, netlink.BOND_FAIL_OVER_MAC_ACTIVE)
		}, failOver, true},
		{"bridge on vlan on bond", func(cards []string) error {
			if err := addBond("bond0", cards, netlink.BOND_FAIL_OVER_MAC_NONE); err != nil {
				return err
			}
			return bridgeOnVLANOn("bond0")
		}, failOver, false},
	}
}

// addBridge lets the kernel choose the port whose MAC address the bridge has.
func addBridge(name, port string) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	snooping := false
	br := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := netlink.LinkAdd(br); err != nil {
		return nil, err
	}
	return br, enslave(port, br)
}

func addVLAN(name, card string) error {
	parent, err := netlink.LinkByName(card)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = name, parent.Attrs().Index
	if err := netlink.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: 5}); err != nil {
		return err
	}
	return netlink.LinkSetUp(parent)
}

func bridgeOnVLANOn(name string) error {
	if err := addVLAN(name+".5", name); err != nil {
		return err
	}
	_, err := addBridge("eth0", name+".5")
	return err
}

func addBond(name string, cards []string, mac netlink.BondFailOverMac) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	bond := netlink.NewLinkBond(attrs)
	bond.Mode, bond.Miimon, bond.FailOverMac = netlink.BOND_MODE_ACTIVE_BACKUP, 10, mac
	return addBondOf(bond, cards)
}

func addBondOf(bond *netlink.Bond, cards []string) error {
	if err := netlink.LinkAdd(bond); err != nil {
		return err
	}
	for _, c := range cards {
		if err := enslave(c, bond); err != nil {
			return err
		}
	}
	return nil
}

func enslave(port string, master netlink.Link) error {
	link, err := netlink.LinkByName(port)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetMaster(link, master); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// lowerPort is what starting a container or a virtual machine does to a bridge:
// it takes the lowest MAC address of its ports.
func lowerPort(l *lab, h *host, back bool) {
	l.t.Helper()
	h.do(func() error {
		if back {
			guest, err := netlink.LinkByName("guest0")
			if err != nil {
				return err
			}
			return netlink.LinkDel(guest)
		}
		br, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex = "guest0", br.Attrs().Index
		attrs.HardwareAddr = net.HardwareAddr{2, 0, 0, 0, 0, h.addrs[0].As4()[3]}
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "guest1"})
	})
}

// otherMAC is what the administrator, or a new card, does.
func otherMAC(card string) func(*lab, *host, bool) {
	return func(l *lab, h *host, back bool) {
		l.t.Helper()
		mac := net.HardwareAddr{2, 0, 0, 1, 0, h.addrs[0].As4()[3]}
		if back {
			mac[3] = 2
		}
		h.do(func() error {
			link, err := netlink.LinkByName(card)
			if err != nil {
				return err
			}
			return netlink.LinkSetHardwareAddr(link, mac)
		})
	}
}

// failOver pulls the cable of the card that a bond uses.
func failOver(l *lab, h *host, back bool) {
	l.t.Helper()
	lost, kept := h.ports[0], h.ports[1]
	if back {
		lost, kept = kept, lost
	}
	l.sw.do(func() error {
		up, err := netlink.LinkByName(kept)
		if err != nil {
			return err
		}
		down, err := netlink.LinkByName(lost)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(up); err != nil {
			return err
		}
		if back {
			time.Sleep(100 * time.Millisecond) // until the bond has seen it
		}
		return netlink.LinkSetDown(down)
	})
}

// A VIP may be answered on a bridge, a VLAN or a bond, or on a stack of them. Frames
// of the holder or of another node then sometimes leave by another card or MAC
// address, and no connection notices.
func TestDirectOnOtherInterfaces(t *testing.T) {
	const pause = 100 * time.Millisecond
	for _, k := range kinds() {
		t.Run(k.name, func(t *testing.T) {
			needsRoot(t)
			if !kernelHas(t, k) {
				t.Skipf("this kernel has no interfaces of kind %s", k.name)
			}
			l := newLabOf(t, k, 3)
			var probers []*testProber
			for i := range l.nodes {
				// A long interval, so that no answer is late in an emulated machine.
				p, _ := l.probingAt(i, 2*time.Second)
				p.Open()
				probers = append(probers, p)
			}
			l.usable()
			for i, p := range probers {
				becomes(t, p, l.nodes[(i+1)%3].name, pathprobe.PathProved)
				becomes(t, p, l.nodes[(i+2)%3].name, pathprobe.PathProved)
			}
			// Connections that begin now are not at the owners of their slots when node2 is
			// back in rotation, and are handed on.
			l.apply([]int{0, 2}, []int{1})
			before := l.openSlow(8, pause)
			l.apply([]int{0, 1, 2}, nil)
			s := l.openSlow(8, pause)
			flow := func() {
				t.Helper()
				before.flow(t)
				s.flow(t)
			}
			l.balance()
			// First of a node to which packets are handed on, then of the holder.
			l.changeCard(1, false)
			flow()
			l.hold(1)
			flow()
			l.changeCard(1, true)
			l.hold(1)
			flow()
			l.hold(2)
			flow()
			before.end(t)
			s.end(t)
		})
	}
}

// A node has another MAC address, and the other nodes do not know it yet. Still they
// recognise what it hands on.
func TestDirectUnknownCard(t *testing.T) {
	l := newLab(t)
	l.usable()
	l.apply([]int{0, 2}, []int{1})
	s := l.open(20) // a third of them in slots of node2
	l.apply([]int{0, 1, 2}, nil)
	s.flow(t)
	otherMAC("eth0")(l, l.nodes[1], false)
	l.nodes[1].mac = l.nodes[1].card()
	l.hold(1)
	s.flow(t)
	s.end(t)
}

// card is the MAC address that eth0 has now.
func (h *host) card() (mac net.HardwareAddr) {
	h.t.Helper()
	h.do(func() error {
		eth, err := netlink.LinkByName("eth0")
		if err == nil {
			mac = eth.Attrs().HardwareAddr
		}
		return err
	})
	return mac
}

// changeCard makes a node's frames leave in another way, and waits until the node
// knows it.
func (l *lab) changeCard(node int, back bool) {
	l.t.Helper()
	h := l.nodes[node]
	before := h.mac.String()
	l.kind.change(l, h, back)
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		h.mac = h.card()
		if !l.kind.moves || h.mac.String() != before {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("%s still has the MAC address %s", h.name, before)
		}
	}
}

// balance follows links and neighbours on every node, and applies what has
// changed, as the balancer does, until the test ends.
func (l *lab) balance() {
	l.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	for i, n := range l.nodes {
		go func() { done <- n.inside(func() error { return l.planes[i].follow(ctx) }) }()
		go func() {
			done <- n.inside(func() error {
				for ctx.Err() == nil {
					if _, err := l.planes[i].Apply(ctx, l.services([]int{0, 1, 2}, nil)); err != nil {
						return fmt.Errorf("%s: %w", n.name, err)
					}
					select {
					case <-ctx.Done():
					case <-l.planes[i].Changed():
					case <-time.After(time.Second):
					}
				}
				return nil
			})
		}()
	}
	l.t.Cleanup(func() {
		cancel()
		for range 2 * len(l.nodes) {
			if err := <-done; err != nil {
				l.t.Error(err)
			}
		}
	})
}

func kernelHas(t *testing.T, k kind) bool {
	err := newHost(t, "trial").try(func() error {
		var cards []string
		for i := range 2 {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = fmt.Sprintf("card%d", i)
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: fmt.Sprintf("other%d", i)}); err != nil {
				return err
			}
			cards = append(cards, attrs.Name)
		}
		return k.build(cards)
	})
	if err != nil {
		t.Log(err)
	}
	return !errors.Is(err, unix.EOPNOTSUPP)
}

// A node cannot be recognised by its MAC address behind a bond that sends with
// several, whatever is on top of the bond.
func TestDirectRefusesBondsOfManyAddresses(t *testing.T) {
	needsRoot(t)
	lb := balancer.LoadBalancer{Name: "api", Frontends: frontends[:2]}
	for _, f := range lb.Frontends {
		lb.Backends = append(lb.Backends, balancer.Backend{Addr: netip.AddrPortFrom(f.Addr().Next(), f.Port()), Weight: 1})
	}
	for mode, refused := range map[netlink.BondMode]bool{
		netlink.BOND_MODE_802_3AD:     false,
		netlink.BOND_MODE_BALANCE_TLB: true,
		netlink.BOND_MODE_BALANCE_ALB: true,
	} {
		k := kind{name: "bond " + mode.String(), build: func(cards []string) error {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "bond0"
			bond := netlink.NewLinkBond(attrs)
			bond.Mode = mode
			if err := addBondOf(bond, cards); err != nil {
				return err
			}
			return bridgeOnVLANOn("bond0")
		}}
		if !kernelHas(t, k) {
			t.Skipf("this kernel has no interfaces of kind %s", k.name)
		}
		l := &lab{t: t, kind: k, sw: newHost(t, "switch")}
		l.switchOn()
		h := l.host("node1", 11)
		cfg := Config{Interfaces: make(map[netip.Addr]string), Self: "node1",
			Nodes: []pathprobe.Node{{ID: "node1", Addrs: []netip.Addr{lb.Backends[0].Addr.Addr(), lb.Backends[1].Addr.Addr()}}}}
		for _, f := range lb.Frontends {
			cfg.Interfaces[f.Addr()] = "eth0"
		}
		err := h.try(func() error { return New(cfg).Usable(t.Context(), lb) })
		if refused != (err != nil) || refused && !strings.Contains(err.Error(), "bond bond0 in mode "+mode.String()) {
			t.Errorf("in mode %s: %v", mode, err)
		}
	}
}
