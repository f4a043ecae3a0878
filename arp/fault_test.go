package arp

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// What happens to the interface of a VIP at run time is noticed, said with its reason, and over when it is over: then
// the VIP is announced anew.
func TestInterfaceFaults(t *testing.T) {
	addr := func(cidr string, change func(netlink.Link, *netlink.Addr) error) func(*host) {
		return func(h *host) {
			h.eth0(func(l netlink.Link) error {
				a, err := netlink.ParseAddr(cidr)
				if err != nil {
					return err
				}
				return change(l, a)
			})
		}
	}
	for _, tt := range []struct {
		name       string
		do, undo   func(h *host)
		want       string
		heardFirst bool // that it is over is seen on the wire
	}{
		{
			"becomes the port of a bridge",
			func(h *host) {
				h.eth0(func(eth netlink.Link) error {
					br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br-ex"}}
					if err := netlink.LinkAdd(br); err != nil {
						return err
					}
					return netlink.LinkSetMaster(eth, br)
				})
			},
			func(h *host) { h.eth0(netlink.LinkSetNoMaster) },
			"eth0 is a port of the bridge br-ex and hears nothing itself", true,
		},
		{
			"is set down",
			func(h *host) { h.eth0(netlink.LinkSetDown) }, func(h *host) { h.eth0(netlink.LinkSetUp) },
			"eth0 is down", true,
		},
		{
			"is renamed",
			func(h *host) {
				h.eth0(func(l netlink.Link) error { return netlink.LinkSetName(l, "wan0") })
			},
			func(h *host) {
				h.link("wan0", func(l netlink.Link) error { return netlink.LinkSetName(l, "eth0") })
			},
			"eth0 does not exist", true,
		},
		{
			"loses its subnet",
			addr("192.0.2.11/24", netlink.AddrDel), addr("192.0.2.12/24", netlink.AddrAdd),
			"eth0 has lost its address in the subnet of VIP 192.0.2.10", false,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, families()[0], 1)
			p := w.peers[0]
			p.hold()
			eventually(t, "announcement", func() bool { return len(w.tap.claimants(vip4, 0)) > 0 })
			if got := p.do("fault"); got != "" {
				t.Errorf("fault %q at first", got)
			}
			tt.do(p.host)
			eventually(t, tt.want, func() bool { return p.do("fault") == tt.want })
			if s := p.status()[0]; s.Interface+" "+s.Fault != tt.want {
				t.Errorf("status says %q", s.Fault)
			}
			mark := w.tap.mark()
			tt.undo(p.host)
			eventually(t, "the fault is over", func() bool { return p.do("fault") == "" })
			if tt.heardFirst {
				eventually(t, "announcement", func() bool { return len(w.tap.claimants(vip4, mark)) > 0 })
			}
			p.release()
			p.stop()
		})
	}
}

// The address moves to a bridge over the interface: there the VIP is found from then on. Where the interface was named,
// it stays the operator's word.
func TestFindInterfaceFollowsTheAddress(t *testing.T) {
	h := newLAN(t).host("192.0.2.11/24")
	find := func(pattern string) (name string, err error) {
		within(t, h.ns, func() error { name, err = FindInterface(vip4, pattern); return nil })
		return name, err
	}
	if got, err := find(""); got != "eth0" {
		t.Fatalf("%q, %v", got, err)
	}
	h.eth0(func(eth netlink.Link) error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br-ex"}}
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		a, err := netlink.ParseAddr("192.0.2.11/24")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(eth, br); err != nil {
			return err
		}
		if err := netlink.AddrDel(eth, a); err != nil {
			return err
		}
		return netlink.AddrAdd(br, a)
	})
	for pattern, want := range map[string]string{"": "br-ex", "eth0": "eth0", "eth.*|br-.*": "br-ex"} {
		if got, err := find(pattern); got != want {
			t.Errorf("%q: %q, %v; want %s", pattern, got, err, want)
		}
	}
	var err error
	within(t, h.ns, func() error {
		_, err = Open(Config{VIPs: []VIP{{vip4, "eth0"}}, Silencer: NewSysctls("")})
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "eth0 is a port of the bridge br-ex") {
		t.Errorf("a port of a bridge as the interface: %v", err)
	}
}

// An alternative name is as good as the name, also one that is too long for a name.
func TestFindInterfaceByAlternativeName(t *testing.T) {
	h := newLAN(t).host("192.0.2.11/24")
	h.card("eth1")
	for _, name := range []string{"uplink", "enp0s31f6-of-the-clients"} {
		within(t, h.ns, func() error {
			l, err := netlink.LinkByName("eth1")
			if err != nil {
				return err
			}
			if err := netlink.LinkAddAltName(l, name); err != nil {
				return err
			}
			if got, err := FindInterface(netip.MustParseAddr("198.51.100.1"), name); got != "eth1" {
				t.Errorf("%s: %q, %v", name, got, err)
			}
			return nil
		})
	}
}

// An IPv6 address is tentative until duplicate address detection is over.
func TestTentative(t *testing.T) {
	h := newLAN(t).host()
	own := netip.MustParseAddr("2001:db8::11")
	tentative := func() (yes bool) {
		within(t, h.ns, func() (err error) { yes, err = Tentative(own); return err })
		return yes
	}
	if tentative() {
		t.Error("an address that nobody has is tentative")
	}
	h.eth0(func(l netlink.Link) error {
		for _, c := range []string{"all", "eth0"} {
			if err := writeSysctl("net/ipv6/conf/"+c+"/accept_dad", "1"); err != nil {
				return err
			}
		}
		a, err := netlink.ParseAddr(own.String() + "/64")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(l, a)
	})
	if !tentative() {
		t.Error("a new address is not tentative")
	}
	eventually(t, "the address is usable", func() bool { return !tentative() })
}
