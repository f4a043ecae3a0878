package tunnel

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

var (
	own    = netip.MustParseAddr("192.0.2.1")
	others = []End{
		{At: netip.MustParseAddr("198.51.100.2"),
			Addrs: []netip.Addr{netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("2001:db8::2")}},
		{At: netip.MustParseAddr("198.51.100.3"), Addrs: []netip.Addr{netip.MustParseAddr("198.51.100.3")}},
	}
	vips = []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:1::10")}
)

// inNamespace runs f on a host of its own, with a card that leads to all others. Its thread ends with it.
func inNamespace(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	done := make(chan bool)
	go func() {
		defer close(done)
		runtime.LockOSThread()
		ns, err := netns.New()
		if err != nil {
			t.Errorf("making a network namespace: %v", err)
			return
		}
		defer ns.Close()
		card := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", TxQLen: -1}, PeerName: "peer"}
		check := func(err error) {
			if err != nil {
				t.Error(err)
				runtime.Goexit()
			}
		}
		check(netlink.LinkAdd(card))
		a, err := netlink.ParseAddr(own.String() + "/24")
		check(err)
		check(netlink.AddrAdd(card, a))
		for _, name := range []string{"eth0", "peer"} {
			l, err := netlink.LinkByName(name)
			check(err)
			check(netlink.LinkSetUp(l))
		}
		check(netlink.RouteAdd(&netlink.Route{Gw: net.IPv4(192, 0, 2, 254)}))
		f(t)
	}()
	<-done
}

// known are the addresses that have the MAC address of an end on the device, the next hop of IPv4 and that of IPv6
// included, and where the device sends what is for it.
func known(t *testing.T, e End) (addrs map[netip.Addr]bool) {
	addrs = make(map[netip.Addr]bool)
	l, err := netlink.LinkByName(Name)
	if err != nil {
		t.Error(err)
		return nil
	}
	for _, family := range []int{unix.AF_BRIDGE, netlink.FAMILY_V4, netlink.FAMILY_V6} {
		have, err := netlink.NeighList(l.Attrs().Index, family)
		if err != nil {
			t.Error(err)
		}
		for _, n := range have {
			if a, ok := netip.AddrFromSlice(n.IP); ok && len(n.HardwareAddr) == 6 && [6]byte(n.HardwareAddr) == MAC(e.At) {
				addrs[a.Unmap()] = true
			}
		}
	}
	return addrs
}

func TestDevice(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		if err := New(Config{Port: 10002, VIPs: vips, Untouched: true}).Lead(own, others); err != nil {
			t.Error(err)
		}
		if l, err := netlink.LinkByName(Name); err == nil {
			t.Errorf("a look has made %v", l)
		}
		d := New(Config{Port: 10002, VIPs: vips})
		lead := func(ends []End) {
			t.Helper()
			if err := d.Lead(own, ends); err != nil {
				t.Error(err)
			}
		}
		lead(others)
		l, err := netlink.LinkByName(Name)
		if err != nil {
			t.Error(err)
			return
		}
		if v := l.(*netlink.Vxlan); v.Port != 10002 || v.Learning || !v.SrcAddr.Equal(own.AsSlice()) || v.MTU != 1500 ||
			v.Flags&net.FlagUp == 0 || [6]byte(v.HardwareAddr) != MAC(own) {
			t.Errorf("%+v", v)
		}
		if d.Carries() != 1450 {
			t.Errorf("it carries %d bytes", d.Carries())
		}
		if got := known(t, others[0]); len(got) != 4 {
			t.Errorf("known are %v", got)
		}
		// What somebody removes comes back, on the same device.
		gone, err := netlink.NeighList(l.Attrs().Index, unix.AF_BRIDGE)
		if err != nil || len(gone) != 2 {
			t.Errorf("%v, %v", gone, err)
			return
		}
		for _, n := range gone {
			if err := netlink.NeighDel(&n); err != nil {
				t.Error(err)
			}
		}
		// Another process takes over what is there.
		d = New(Config{Port: 10002, VIPs: vips})
		lead(others)
		if now, err := netlink.LinkByName(Name); err != nil || now.Attrs().Index != l.Attrs().Index {
			t.Errorf("%v, %v", now, err)
		}
		if got := known(t, others[1]); len(got) != 3 {
			t.Errorf("known again are %v", got)
		}
		// A node that leaves is not known any more.
		lead(others[:1])
		if got := known(t, others[1]); len(got) != 0 {
			t.Errorf("known still are %v", got)
		}
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{LinkIndex: l.Attrs().Index},
			netlink.RT_FILTER_OIF)
		if err != nil || len(routes) != 1 || routes[0].Dst.IP.String() != Via(MAC(others[0].At), true).String() {
			t.Errorf("%v, %v", routes, err)
		}
		lead(nil)
		if _, err := netlink.LinkByName(Name); err == nil {
			t.Error("the device stays")
		}
		lead(others)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if _, err := netlink.LinkByName(Name); err == nil {
			t.Error("the device stays after Close")
		}
	})
}

// A device of somebody else is left alone, and what an earlier process left is removed.
func TestOthersDevice(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		d := New(Config{Port: 10002, VIPs: vips})
		if err := d.Lead(own, others); err != nil {
			t.Error(err)
		}
		if removed, err := Cleanup(); len(removed) != 1 || err != nil {
			t.Errorf("%v, %v", removed, err)
		}
		theirs := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: Name, TxQLen: -1}, PeerName: "other"}
		if err := netlink.LinkAdd(theirs); err != nil {
			t.Error(err)
		}
		if err := d.Lead(own, others); err == nil || !strings.Contains(err.Error(), "rename it") {
			t.Error(err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if _, err := netlink.LinkByName(Name); err != nil {
			t.Error(err)
		}
	})
}

// All nodes derive the same, and no two of them the same MAC address or next hop.
func TestMACs(t *testing.T) {
	seen := make(map[any]netip.Addr)
	for at := own; at.Less(netip.MustParseAddr("192.0.9.0")); at = at.Next() {
		mac := MAC(at)
		if mac[0]&3 != 2 {
			t.Fatalf("%x of %v is not locally administered, or of many", mac, at)
		}
		for _, name := range []any{mac, Via(mac, true), Via(mac, false)} {
			if other, ok := seen[name]; ok {
				t.Errorf("%v and %v have %v", at, other, name)
			}
			seen[name] = at
		}
	}
}
