package arp

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

func TestOpenRefuses(t *testing.T) {
	ok := []VIP{{vip4, "eth0"}}
	addr := netip.MustParseAddr
	for _, tt := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"nothing", Config{}, "no VIP"},
		{"short lifetime", Config{VIPs: ok, Silencer: NewSysctls(""), Lifetime: time.Second}, "at least 3s"},
		{"no silencer", Config{VIPs: ok}, "give a Silencer"},
		{"zero address", Config{VIPs: []VIP{{netip.Addr{}, "eth0"}}}, "cannot be a VIP"},
		{"multicast", Config{VIPs: []VIP{{addr("224.0.0.1"), "eth0"}}}, "cannot be a VIP"},
		{"broadcast", Config{VIPs: []VIP{{addr("255.255.255.255"), "eth0"}}}, "cannot be a VIP"},
		{"loopback", Config{VIPs: []VIP{{addr("127.0.0.1"), "eth0"}}}, "cannot be a VIP"},
		{"mapped", Config{VIPs: []VIP{{addr("::ffff:192.0.2.1"), "eth0"}}}, "cannot be a VIP"},
		{"link-local", Config{VIPs: []VIP{{addr("fe80::1%eth0"), "eth0"}}}, "cannot be bound on lo"},
		{"twice", Config{VIPs: append(ok, ok...), Silencer: NewSysctls("")}, "given twice"},
		{"on lo", Config{VIPs: []VIP{{vip6, "lo"}}}, "no interface"},
		{"nowhere", Config{VIPs: []VIP{{vip6, ""}}}, "no interface"},
	} {
		if _, err := Open(tt.cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestOpenLooksAtTheHost(t *testing.T) {
	l := newLAN(t)
	open := func(h *host, vips ...VIP) (err error) {
		within(t, h.ns, func() error {
			_, err = Open(Config{VIPs: vips, Silencer: NewSysctls("")})
			return nil
		})
		return err
	}
	on := func(h *host, dev, cidr string) {
		h.link(dev, func(l netlink.Link) error {
			a, err := netlink.ParseAddr(cidr)
			if err != nil {
				return err
			}
			return netlink.AddrAdd(l, a)
		})
	}
	wants := func(name string, err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	h := l.host("192.0.2.11/24")
	if err := open(h, VIP{vip4, "eth0"}, VIP{vip6, "eth0"}); err != nil {
		t.Errorf("good host: %v", err)
	}
	if got := h.loAddrs(); len(got) != 0 {
		t.Errorf("Open left %v on lo", got)
	}
	wants("missing interface", open(h, VIP{vip6, "eth9"}), "interface eth9")
	on(h, "eth0", "192.0.2.10/32")
	wants("VIP on eth0", open(h, VIP{vip4, "eth0"}), "ip addr del 192.0.2.10/32 dev eth0")

	h = l.host("192.0.2.12/24")
	on(h, "lo", "192.0.2.10/32")
	wants("VIP of somebody else on lo", open(h, VIP{vip4, "eth0"}), "ip addr del 192.0.2.10/32 dev lo")

	h = l.host("2001:db8::13/64")
	wants("no IPv4 address", open(h, VIP{vip4, "eth0"}), "has no IPv4 address")
	if err := open(h, VIP{vip6, "eth0"}); err != nil {
		t.Errorf("IPv6 alone: %v", err)
	}
	within(t, h.ns, func() error {
		tun := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tun0"}, Mode: netlink.TUNTAP_MODE_TUN}
		if err := netlink.LinkAdd(tun); err != nil {
			t.Logf("no tun device here, the case is left out: %v", err)
			return nil
		}
		_, err := Open(Config{VIPs: []VIP{{vip6, "tun0"}}})
		wants("no Ethernet", err, "no Ethernet address")
		return nil
	})
}
