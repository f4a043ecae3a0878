package arp

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// on plugs in a machine with two cards, of which build makes eth0. It skips the test where the kernel cannot.
func (l *lan) on(build func(cards []string) error, addrs ...string) (h *host, ports []int) {
	l.t.Helper()
	h = &host{lan: l, ns: newNS(l.t)}
	cards := []string{"card0", "card1"}
	for _, c := range cards {
		ports = append(ports, h.card(c))
	}
	var unknown error
	within(l.t, h.ns, func() error {
		err := build(cards)
		if errors.Is(err, unix.EOPNOTSUPP) {
			unknown = err
			return nil
		}
		return err
	})
	if unknown != nil {
		l.t.Skipf(
			"this kernel has no such interface (%v); the integration tests run this in a virtual machine",
			unknown,
		)
	}
	h.use("eth0", addrs...)
	return h, ports
}

func vlan(cards []string) error { return addVLAN("eth0", cards[0]) }

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

// bond has the MAC address of the card that it uses.
func bond(cards []string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	b := netlink.NewLinkBond(attrs)
	b.Mode, b.Miimon, b.FailOverMac = netlink.BOND_MODE_ACTIVE_BACKUP, 10, netlink.BOND_FAIL_OVER_MAC_ACTIVE
	if err := netlink.LinkAdd(b); err != nil {
		return err
	}
	for _, c := range cards {
		link, err := netlink.LinkByName(c)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(link, b); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
	}
	return nil
}

// A VIP on a VLAN or a bond is answered there. It is announced anew when another card or MAC address serves it. The
// carrier is lost when the last cable is pulled.
func TestVLANAndBondAsInterface(t *testing.T) {
	for _, tt := range []struct {
		name   string
		build  func(cards []string) error
		change func(h *host, ports []int)
	}{
		{"VLAN", vlan, func(h *host, _ []int) {
			h.link("card0", func(l netlink.Link) error {
				return netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 0, 1, 1})
			})
		}},
		{"bond", bond, func(h *host, ports []int) { h.lan.cable(ports[0], false) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLAN(t)
			h, ports := l.on(tt.build, "192.0.2.11/24", "2001:db8::11/64")
			client, _ := l.on(tt.build, "192.0.2.99/24", "2001:db8::99/64")
			tap := l.tap()
			p := h.start(0, vip4, vip6)
			p.hold()
			answered := func(when string) {
				t.Helper()
				for _, vip := range []netip.Addr{vip4, vip6} {
					if mac := client.resolve(vip, true, 20*time.Second); mac != p.mac.String() {
						t.Errorf("%s, client found %q for %s, want %s", when, mac, vip, p.mac)
					}
				}
			}
			answered("at first")

			mark, old := tap.mark(), p.mac.String()
			tt.change(p.host, ports)
			eventually(t, "another MAC address", func() bool {
				p.eth0(func(l netlink.Link) error { p.mac = l.Attrs().HardwareAddr; return nil })
				return p.mac.String() != old
			})
			for _, vip := range []netip.Addr{vip4, vip6} {
				eventually(t, "announcement by the new MAC", func() bool {
					return slices.Contains(tap.claimants(vip, mark), p.mac.String())
				})
			}
			answered("with another MAC address")

			for _, port := range ports {
				l.cable(port, false)
			}
			eventually(t, "carrier is lost", func() bool { return p.do("carrier") == "false" })
			mark = tap.mark()
			for _, port := range ports {
				l.cable(port, true)
			}
			eventually(t, "carrier returns", func() bool { return p.do("carrier") == "true" })
			p.eth0(func(l netlink.Link) error { p.mac = l.Attrs().HardwareAddr; return nil })
			eventually(t, "announcement after carrier", func() bool { return len(tap.claimants(vip4, mark)) > 0 })
			answered("with its cables back")
			p.release()
			p.stop()
		})
	}
}

// cable plugs in or pulls the cable of a machine at the lan's end.
func (l *lan) cable(port int, in bool) {
	l.t.Helper()
	within(l.t, l.ns, func() error {
		link, err := netlink.LinkByIndex(port)
		if err != nil {
			return err
		}
		if in {
			return netlink.LinkSetUp(link)
		}
		return netlink.LinkSetDown(link)
	})
}

// A VLAN on the VIP's interface is another link, where the VIP is not ours: a machine there gets no answer, and its
// packets are no claims.
func TestVLANBesideTheInterface(t *testing.T) {
	l := newLAN(t)
	h, _ := l.on(func(cards []string) error {
		card, err := netlink.LinkByName(cards[0])
		if err != nil {
			return err
		}
		if err := netlink.LinkSetName(card, "eth0"); err != nil {
			return err
		}
		if err := addVLAN("eth0.5", "eth0"); err != nil {
			return err
		}
		v, err := netlink.LinkByName("eth0.5")
		if err != nil {
			return err
		}
		// These tests silence the kernel on the VIP's interface alone.
		return errors.Join(writeSysctl("net/ipv4/conf/eth0.5/arp_ignore", "1"), netlink.LinkSetUp(v))
	}, "192.0.2.11/24", "2001:db8::11/64")
	outsider, _ := l.on(vlan, "192.0.2.99/24", "2001:db8::99/64")
	client := l.host("192.0.2.98/24", "2001:db8::98/64")
	tap := l.tap()
	p := h.start(0, vip4, vip6)
	p.hold()
	for _, vip := range []netip.Addr{vip4, vip6} {
		if mac := client.resolve(vip, true, 20*time.Second); mac != p.mac.String() {
			t.Errorf("client found %q for %s, want %s", mac, vip, p.mac)
		}
	}
	mark := tap.mark()
	for _, vip := range []netip.Addr{vip4, vip6} {
		if mac := outsider.resolve(vip, true, quietTime/3); mac != "" {
			t.Errorf("%s is answered on the VLAN by %s", vip, mac)
		}
	}
	st := &arpSocket{mac: outsider.mac}
	frame, err := st.marshal(packet{kind: announceReply, vip: vip4})
	if err != nil {
		t.Fatal(err)
	}
	outsider.write(frame)
	// A request on the right link comes after all of those.
	for _, vip := range []netip.Addr{vip4, vip6} {
		if mac := client.resolve(vip, true, 20*time.Second); mac != p.mac.String() {
			t.Errorf("client found %q for %s, want %s", mac, vip, p.mac)
		}
	}
	for _, f := range tap.from(p.mac, mark) {
		if f.Destination.String() == outsider.mac.String() {
			t.Errorf("the outsider on the VLAN gets something: %x", f.Payload)
		}
	}
	for _, s := range p.status() {
		if s.ForeignClaims > 0 {
			t.Errorf("%s is claimed by %s, who is on the VLAN", s.VIP, s.LastForeignMAC)
		}
	}
}

func TestBridgeAsInterface(t *testing.T) {
	l := newLAN(t)
	h := l.host()
	h.eth0(func(eth netlink.Link) error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "vmbr0"}}
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		return netlink.LinkSetMaster(eth, br)
	})
	h.use("vmbr0", "192.0.2.11/24", "2001:db8::11/64")
	client := l.host("192.0.2.99/24", "2001:db8::99/64")
	p := h.startNode(nodeConfig{VIPs: []VIP{{vip4, "vmbr0"}, {vip6, "vmbr0"}}})
	p.hold()
	for _, vip := range []netip.Addr{vip4, vip6} {
		if mac := client.resolve(vip, true, 20*time.Second); mac != p.mac.String() {
			t.Errorf("client found %q for %s, want the bridge %s", mac, vip, p.mac)
		}
	}
	// The bridge loses its only port, and so its carrier.
	p.eth0(netlink.LinkSetDown)
	eventually(t, "carrier is lost", func() bool { return p.do("carrier") == "false" })
	p.eth0(netlink.LinkSetUp)
	eventually(t, "carrier returns", func() bool { return p.do("carrier") == "true" })
	if mac := client.resolve(vip6, true, 20*time.Second); mac != p.mac.String() {
		t.Errorf("client found %q after the bridge came back", mac)
	}
}
