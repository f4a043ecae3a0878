package arp

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestChooseInterface(t *testing.T) {
	names := []string{"eth1", "eth0", "wlan0", "eth0.7"}
	on := func(iface, prefix string) subnet { return subnet{iface, netip.MustParsePrefix(prefix)} }
	for _, tt := range []struct {
		name, pattern string
		subnets       []subnet
		want, err     string
	}{
		{"by subnet", "", []subnet{on("eth1", "192.0.2.0/24")}, "eth1", ""},
		{"by the narrowest subnet", "", []subnet{on("eth0", "192.0.0.0/16"), on("eth1", "192.0.2.0/24")}, "eth1", ""},
		{"two subnets of one interface", "",
			[]subnet{on("eth1", "192.0.2.0/24"), on("eth1", "192.0.2.0/25")}, "eth1", ""},
		{"no subnet", "", nil, "", "no interface has VIP 192.0.2.10 in its subnet: check the VIP, " +
			"or set the interface to one of: eth0, eth0.7, eth1, wlan0"},
		{"one subnet, two interfaces", "", []subnet{on("wlan0", "192.0.2.0/24"), on("eth1", "192.0.2.0/24")}, "",
			"subnet of several interfaces: set the interface to one of: wlan0, eth1"},
		{"by name", "eth0", []subnet{on("eth1", "192.0.2.0/24")}, "eth0", ""},
		{"a name goes before a pattern", "eth0.7", nil, "eth0.7", ""},
		{"by pattern", "wl.*", nil, "wlan0", ""},
		{"pattern and subnet", "eth[0-9]",
			[]subnet{on("eth1", "192.0.2.0/24"), on("wlan0", "192.0.2.0/24")}, "eth1", ""},
		{"alternatives are anchored", "lan0|eth1", nil, "eth1", ""},
		{"part of a name is no match", "eth", nil, "",
			`no interface matches "eth": write one of: eth0, eth0.7, eth1, wlan0`},
		{"several match", "eth[0-9]", nil, "", "set the interface to one of: eth0, eth1"},
		{"broken pattern", "eth[", nil, "", "missing closing ]"},
	} {
		got, err := chooseInterface(vip4, tt.pattern, names, tt.subnets)
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %q, %v; want %q, %q", tt.name, got, err, tt.want, tt.err)
		}
	}
	if _, err := chooseInterface(vip4, "", nil, nil); err == nil || !strings.Contains(err.Error(), "none but lo") {
		t.Errorf("no interfaces: %v", err)
	}
}

func TestOfNoHost(t *testing.T) {
	for _, tt := range []struct{ subnet, vip, want string }{
		{"192.0.2.7/24", "192.0.2.255", "broadcast"},
		{"192.0.2.7/24", "192.0.2.0", "network"},
		{"192.0.2.7/24", "192.0.2.1", ""},
		{"192.0.2.7/16", "192.0.2.255", ""},
		{"192.0.2.7/24", "198.51.100.255", ""},
		{"192.0.2.4/31", "192.0.2.5", ""},
		{"192.0.2.5/32", "192.0.2.5", ""},
		{"0.0.0.1/0", "255.255.255.255", "broadcast"},
		{"2001:db8::7/64", "2001:db8::", "anycast"},
		{"2001:db8::7/64", "2001:db8::ffff:ffff:ffff:ffff", ""},
		{"2001:db8::1/127", "2001:db8::", ""},
	} {
		got := ofNoHost(netip.MustParsePrefix(tt.subnet), netip.MustParseAddr(tt.vip))
		if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
			t.Errorf("%s in %s: %q, want %q", tt.vip, tt.subnet, got, tt.want)
		}
	}
}

func TestFindInterfaceOnAHost(t *testing.T) {
	h := newLAN(t).host("192.0.2.11/24", "2001:db8::11/128")
	h.eth0(func(l netlink.Link) error {
		_, dst, err := net.ParseCIDR("2001:db8::/64")
		if err != nil {
			return err
		}
		// Only the router's advertisement says that the prefix is on the link.
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst})
	})
	within(t, h.ns, func() error {
		for _, vip := range []netip.Addr{vip4, vip6} {
			if got, err := FindInterface(vip, ""); got != "eth0" || err != nil {
				t.Errorf("%s: %q, %v", vip, got, err)
			}
		}
		if got, err := FindInterface(netip.MustParseAddr("203.0.113.1"), ""); err == nil {
			t.Errorf("found %q for an address of no subnet", got)
		}
		for vip, want := range map[string]string{
			"192.0.2.0": "address of the network 192.0.2.0/24", "192.0.2.255": "broadcast address of 192.0.2.0/24",
		} {
			for _, pattern := range []string{"", "eth0"} {
				_, err := FindInterface(netip.MustParseAddr(vip), pattern)
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s on %q: %v, want %q", vip, pattern, err, want)
				}
			}
		}
		return nil
	})
}
