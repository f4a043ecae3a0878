package announcing

import (
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"appliance/configs"
	"appliance/lab"
)

// What routers could not be told of is found on the host itself: next hops that it does not have, and routers that it
// has no route to.
func TestCheckNextHops(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	l, err := lab.New(lab.Layout{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	m, err := l.Machine("n1", netip.MustParsePrefix("10.77.0.11/24"))
	if err != nil {
		t.Fatal(err)
	}
	six, err := l.Machine("n2", netip.MustParsePrefix("fd77::12/64"))
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		vip      string
		hops     []string
		router   string
		problems []string
	}{
		"well":       {"198.51.100.10", nil, "10.77.0.1", nil},
		"configured": {"198.51.100.10", []string{"10.77.0.11"}, "10.77.0.1", nil},
		"no address of the family": {"2001:db8::10", nil, "10.77.0.1", []string{
			"router 10.77.0.1 would not be told of 2001:db8::10: eth0 has no IPv6 address for routers to send packets to; "}},
		"IPv4, a router of IPv6": {"198.51.100.10", nil, "fd77::1", nil},
		"next hop of another host": {"198.51.100.10", []string{"10.77.0.12"}, "10.77.0.1", []string{
			"announce.bgp.nextHops: 10.77.0.12 is no address of this host; write one that it has"}},
		"no route": {"198.51.100.10", nil, "203.0.113.1", []string{"router 203.0.113.1 cannot be reached: "}},
	} {
		var hops []netip.Addr
		for _, h := range tt.hops {
			hops = append(hops, netip.MustParseAddr(h))
		}
		a, err := New(Config{
			Announce: configs.AnnounceSettings{BGP: configs.BGPSettings{
				AS: 64512, HoldTime: 9 * time.Second, NextHops: hops,
				Neighbours: []configs.NeighbourEntry{{Addr: netip.MustParseAddr(tt.router), AS: 64500, Port: 179, Hops: 1}},
			}},
			VIPs: []RoutedVIP{{Addr: netip.MustParseAddr(tt.vip), Interface: "eth0", By: configs.ByBGP}},
			Self: []netip.Addr{netip.MustParseAddr("10.77.0.11")}, Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		on := m
		if netip.MustParseAddr(tt.router).Is6() {
			on = six
		}
		err = on.Do(a.CheckNextHops)
		if (err != nil) != (tt.problems != nil) {
			t.Errorf("%s: %v", name, err)
		}
		for _, want := range tt.problems {
			if err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", name, err, want)
			}
		}
	}
}

// Whose address a router is given, by what it takes and what the operator says.
func TestNextHop(t *testing.T) {
	local4, local6 := netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8::11")
	named4, named6 := netip.MustParseAddr("192.0.2.99"), netip.MustParseAddr("2001:db8::99")
	for name, tt := range map[string]struct {
		named         []netip.Addr
		local         netip.Addr
		is4, extended bool
		want          netip.Addr
	}{
		"the session's own":              {nil, local4, true, false, local4},
		"the session's own, IPv6":        {nil, local6, false, false, local6},
		"IPv6 for IPv4":                  {nil, local6, true, true, local6},
		"named, of IPv4":                 {[]netip.Addr{named4}, local6, true, true, named4},
		"named, IPv6 for IPv4":           {[]netip.Addr{named6}, local6, true, true, named6},
		"named, not for the other":       {[]netip.Addr{named6}, local4, true, false, local4},
		"named, of IPv6 over IPv4":       {[]netip.Addr{named6}, local4, false, false, named6},
		"extended means nothing to IPv6": {nil, local6, false, true, local6},
	} {
		a := &Announcer{cfg: Config{Announce: configs.AnnounceSettings{BGP: configs.BGPSettings{NextHops: tt.named}}}}
		if got, err := a.nextHop(tt.local, tt.is4, tt.extended); err != nil || got != tt.want {
			t.Errorf("%s: %v, %v, want %v", name, got, err, tt.want)
		}
	}
}
