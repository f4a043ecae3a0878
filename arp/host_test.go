package arp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func TestChoose(t *testing.T) {
	names := []string{"eth1", "eth0", "wlan0", "eth0.7"}
	on := func(iface, prefix string) subnet { return subnet{iface, netip.MustParsePrefix(prefix)} }
	for _, tt := range []struct {
		name, pattern string
		subnets       []subnet
		want, err     string
	}{
		{"by subnet", "", []subnet{on("eth1", "192.0.2.0/24")}, "eth1", ""},
		{"by the narrowest subnet", "", []subnet{on("eth0", "192.0.0.0/16"), on("eth1", "192.0.2.0/24")}, "eth1", ""},
		{"two subnets of one interface", "", []subnet{on("eth1", "192.0.2.0/24"), on("eth1", "192.0.2.0/25")}, "eth1", ""},
		{"no subnet", "", nil, "", "no interface has VIP 192.0.2.10 in its subnet: check the VIP, or set the interface to one of: eth0, eth0.7, eth1, wlan0"},
		{"one subnet, two interfaces", "", []subnet{on("wlan0", "192.0.2.0/24"), on("eth1", "192.0.2.0/24")}, "", "subnet of several interfaces: set the interface to one of: wlan0, eth1"},
		{"by name", "eth0", []subnet{on("eth1", "192.0.2.0/24")}, "eth0", ""},
		{"a name goes before a pattern", "eth0.7", nil, "eth0.7", ""},
		{"by pattern", "wl.*", nil, "wlan0", ""},
		{"pattern and subnet", "eth[0-9]", []subnet{on("eth1", "192.0.2.0/24"), on("wlan0", "192.0.2.0/24")}, "eth1", ""},
		{"alternatives are anchored", "lan0|eth1", nil, "eth1", ""},
		{"part of a name is no match", "eth", nil, "", `no interface matches "eth": write one of: eth0, eth0.7, eth1, wlan0`},
		{"several match", "eth[0-9]", nil, "", "set the interface to one of: eth0, eth1"},
		{"broken pattern", "eth[", nil, "", "missing closing ]"},
	} {
		got, err := choose(vip4, tt.pattern, names, tt.subnets)
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %q, %v; want %q, %q", tt.name, got, err, tt.want, tt.err)
		}
	}
	if _, err := choose(vip4, "", nil, nil); err == nil || !strings.Contains(err.Error(), "none but lo") {
		t.Errorf("no interfaces: %v", err)
	}
}

func TestFindInterfaceOnAHost(t *testing.T) {
	h := newLAN(t).host("192.0.2.11/24", "2001:db8::11/128")
	h.eth0(func(l netlink.Link) error {
		_, dst, err := net.ParseCIDR("2001:db8::/64")
		if err != nil {
			return err
		}
		// The prefix is on the link by a router's word alone.
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
		return nil
	})
}

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
		if err := netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tun0"}, Mode: netlink.TUNTAP_MODE_TUN}); err != nil {
			t.Logf("no tun device here, the case is left out: %v", err)
			return nil
		}
		_, err := Open(Config{VIPs: []VIP{{vip6, "tun0"}}})
		wants("no Ethernet", err, "no Ethernet address")
		return nil
	})
}

func TestCleanup(t *testing.T) {
	h := newLAN(t).host("192.0.2.11/24")
	theirs := netip.MustParseAddr("192.0.2.200")
	within(t, h.ns, func() error {
		lo, err := loIndex()
		if err != nil {
			return err
		}
		for _, v := range []netip.Addr{vip4, vip6} {
			if err := bind(v, lo, time.Minute); err != nil {
				return err
			}
		}
		if err := netlink.AddrAdd(nil, &netlink.Addr{LinkIndex: lo, IPNet: netlink.NewIPNet(theirs.AsSlice())}); err != nil {
			return err
		}
		if local, err := LocalAddrs(); err != nil || slices.Contains(local, vip4) || slices.Contains(local, vip6) ||
			!slices.Contains(local, theirs) || !slices.Contains(local, netip.MustParseAddr("192.0.2.11")) {
			t.Errorf("local addresses %v, %v", local, err)
		}
		if on, err := AddrsOn("lo"); err != nil || slices.Contains(on, vip4) || slices.Contains(on, vip6) || !slices.Contains(on, theirs) {
			t.Errorf("addresses on lo %v, %v", on, err)
		}
		on, err := AddrsOn("eth0", "no such interface")
		if err != nil || len(on) < 2 || slices.Contains(on, theirs) || !slices.Contains(on, netip.MustParseAddr("192.0.2.11")) ||
			slices.ContainsFunc(on[1:], netip.Addr.IsLinkLocalUnicast) {
			t.Errorf("addresses on eth0 %v, %v", on, err)
		}
		// A crashed life's addresses are no obstacle to the next one.
		if _, err := Open(Config{VIPs: []VIP{{vip4, "eth0"}, {vip6, "eth0"}}, Silencer: NewSysctls("")}); err != nil {
			t.Errorf("open after a crash: %v", err)
		}
		removed, err := Cleanup([]netip.Addr{theirs}) // the VIPs need not be known
		if want := []string{"192.0.2.10/32 from lo", "2001:db8::10/128 from lo"}; err != nil || !slices.Equal(removed, want) {
			t.Errorf("removed %v, %v, want %v", removed, err, want)
		}
		if removed, err := Cleanup(nil); len(removed) != 0 || err != nil {
			t.Errorf("removed %v, %v the second time", removed, err)
		}
		return nil
	})
	if got := h.loAddrs(); len(got) != 1 || got[0].addr != theirs {
		t.Errorf("on lo: %v, want only %s", got, theirs)
	}
}

// A VIP is never chosen as the source of packets to other machines, not even
// where the node's own address is on lo, too, as on routed networks.
func TestVIPIsNoSourceAddress(t *testing.T) {
	h := newLAN(t).host()
	within(t, h.ns, func() error {
		lo, err := loIndex()
		if err != nil {
			return err
		}
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, tt := range []struct {
			vip, own netip.Addr
			to       string
		}{
			{vip4, netip.MustParseAddr("198.51.100.1"), "192.0.2.99"},
			{vip6, netip.MustParseAddr("2001:db9::1"), "2001:db8::99"},
		} {
			if err := bind(tt.vip, lo, time.Minute); err != nil {
				return err
			}
			own := &netlink.Addr{LinkIndex: lo, IPNet: netlink.NewIPNet(tt.own.AsSlice())}
			if tt.own.Is6() {
				own.Flags = unix.IFA_F_NODAD // usable at once
			}
			if err := netlink.AddrAdd(nil, own); err != nil {
				return err
			}
			dst := netlink.NewIPNet(net.ParseIP(tt.to))
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}); err != nil {
				return err
			}
			c, err := net.Dial("udp", net.JoinHostPort(tt.to, "9"))
			if err != nil {
				return err
			}
			if from := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr(); from != tt.own {
				t.Errorf("%s is the source to %s, want the node's own %s", from, tt.to, tt.own)
			}
			c.Close()
		}
		return nil
	})
}

// Kernels before 5.18 know no IFA_PROTO.
func TestOursWithoutMarker(t *testing.T) {
	for _, tt := range []struct {
		a    address
		want bool
	}{
		{address{addr: vip4, bits: 32, valid: 60}, true},
		{address{addr: vip6, bits: 128, valid: 60}, true},
		{address{addr: vip4, bits: 32, valid: forever}, false},
		{address{addr: vip4, bits: 24, valid: 60}, false},
		{address{addr: vip6, bits: 128, valid: 7 * 24 * 3600}, false},
		{address{addr: vip4, bits: 32, valid: forever, proto: marker}, true},
		{address{addr: vip4, bits: 32, valid: 60, proto: 2}, false},
	} {
		if got := tt.a.ours(); got != tt.want {
			t.Errorf("%+v: %v", tt.a, got)
		}
	}
}

func TestParseAddress(t *testing.T) {
	attr := func(typ int, v []byte) []byte { return nl.NewRtAttr(typ, v).Serialize() }
	head := []byte{unix.AF_INET, 32, 0x80, unix.RT_SCOPE_HOST, 0, 0, 0, 0}
	binary.NativeEndian.PutUint32(head[4:], 7)
	msg := slices.Concat(head,
		attr(unix.IFA_ADDRESS, []byte{10, 0, 0, 1}), // a peer's
		attr(unix.IFA_LOCAL, vip4.AsSlice()),
		attr(unix.IFA_FLAGS, binary.NativeEndian.AppendUint32(nil, 0x282)),
		attr(unix.IFA_CACHEINFO, (&nl.IfaCacheInfo{IfaCacheinfo: unix.IfaCacheinfo{Valid: 60}}).Serialize()),
		attr(ifaProto, []byte{marker}))
	want := address{addr: vip4, bits: 32, index: 7, scope: unix.RT_SCOPE_HOST, flags: 0x282, proto: marker, valid: 60}
	if got, err := parseAddress(msg); got != want || err != nil {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	for n := range unix.SizeofIfAddrmsg + 1 { // and one without any address
		if _, err := parseAddress(msg[:n]); !errors.Is(err, errAddressMessage) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
}

func TestSysctls(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "net/ipv4/conf")
	write := func(iface, key, v string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, iface), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, iface, key), []byte(v+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := func(what, iface string, ignore, announce int) {
		t.Helper()
		for key, v := range map[string]int{"arp_ignore": ignore, "arp_announce": announce} {
			if got, err := NewSysctls(root).read(iface, key); got != v || err != nil {
				t.Errorf("%s: %s/%s is %d, %v, want %d", what, iface, key, got, err, v)
			}
		}
	}
	for iface, v := range map[string]string{"all": "0", "eth0": "0", "eth1": "2"} {
		write(iface, "arp_ignore", v)
		write(iface, "arp_announce", v)
	}
	s := NewSysctls(root)
	set := []Silenced{{VIP: vip4, Interface: "eth0"}, {VIP: vip4, Interface: "eth1"}}
	silence := func(set []Silenced, repaired int) {
		t.Helper()
		if got, err := s.Silence(context.Background(), set); got != repaired || err != nil {
			t.Errorf("repaired %d, %v, want %d", got, err, repaired)
		}
	}
	silence(set, 0)
	want("silenced", "eth0", 3, 2)
	want("good before", "eth1", 2, 2)
	want("of all", "all", 0, 0)
	silence(set, 0)
	write("eth0", "arp_ignore", "0")
	silence(set, 1)
	want("set back by somebody", "eth0", 3, 2)
	silence(nil, 0)
	want("restored", "eth0", 0, 0)
	want("never touched", "eth1", 2, 2)

	s = NewIgnoreOnly(root)
	silence(set, 0)
	want("with a belt", "eth0", 3, 0)
	silence(nil, 0)
	want("without it", "eth0", 0, 0)

	s = NewSysctls(root)
	write("all", "arp_ignore", "4") // means nothing, and wins over 3
	if _, err := s.Silence(context.Background(), set); err == nil || !strings.Contains(err.Error(), "net.ipv4.conf.all.arp_ignore=4") {
		t.Errorf("reserved value of all: %v", err)
	}
	if _, err := s.Silence(context.Background(), []Silenced{{Interface: "eth9"}}); err == nil {
		t.Error("no error for a missing interface")
	}
}

func TestSysctlsReadOnly(t *testing.T) {
	h := newLAN(t).host("192.0.2.11/24")
	within(t, h.ns, func() error {
		// A mount of this thread's own, as in a container.
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make mounts private: %w", err)
		}
		if err := unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind /proc/sys: %w", err)
		}
		if err := unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("remount /proc/sys: %w", err)
		}
		_, err := NewSysctls("").Silence(context.Background(), []Silenced{{VIP: vip4, Interface: "eth0"}})
		if err == nil || !strings.Contains(err.Error(), `put the line "net.ipv4.conf.eth0.arp_ignore = 3" into /etc/sysctl.d`) {
			t.Errorf("%v, want the line to put", err)
		}
		return nil
	})
}
