package arp

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

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
		foreign := &netlink.Addr{LinkIndex: lo, IPNet: netlink.NewIPNet(theirs.AsSlice())}
		if err := netlink.AddrAdd(nil, foreign); err != nil {
			return err
		}
		if local, err := LocalAddrs(); err != nil || slices.Contains(local, vip4) || slices.Contains(local, vip6) ||
			!slices.Contains(local, theirs) || !slices.Contains(local, netip.MustParseAddr("192.0.2.11")) {
			t.Errorf("local addresses %v, %v", local, err)
		}
		if on, err := AddrsOn("lo"); err != nil || slices.Contains(on, vip4) || slices.Contains(on, vip6) ||
			!slices.Contains(on, theirs) {
			t.Errorf("addresses on lo %v, %v", on, err)
		}
		var on []netip.Addr
		eventually(t, "eth0 to have made itself an address", func() bool {
			on, err = AddrsOn("eth0", "no such interface")
			return err != nil || len(on) > 1
		})
		if err != nil || len(on) < 2 || slices.Contains(on, theirs) ||
			!slices.Contains(on, netip.MustParseAddr("192.0.2.11")) ||
			slices.ContainsFunc(on[1:], netip.Addr.IsLinkLocalUnicast) {
			t.Errorf("addresses on eth0 %v, %v", on, err)
		}
		// Addresses that a crashed process left are no obstacle.
		if _, err := Open(Config{VIPs: []VIP{{vip4, "eth0"}, {vip6, "eth0"}}, Silencer: NewSysctls("")}); err != nil {
			t.Errorf("open after a crash: %v", err)
		}
		removed, err := Cleanup([]netip.Addr{theirs}) // the VIPs need not be known
		want := []string{"192.0.2.10/32 from lo", "2001:db8::10/128 from lo"}
		if err != nil || !slices.Equal(removed, want) {
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

// A VIP is never chosen as the source of packets to other machines, not even where the node's own address is on lo too,
// as in routed networks.
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
			route := &netlink.Route{LinkIndex: eth.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}
			if err := netlink.RouteAdd(route); err != nil {
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

// Kernels before 5.18 have no IFA_PROTO.
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

func TestDumpIsRepeatedWhenInterrupted(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for name, test := range map[string]struct {
		answers []error // of one call after the other; the last one stays
		calls   int
		want    error
	}{
		"complete at once":   {[]error{nil}, 1, nil},
		"changed twice":      {[]error{netlink.ErrDumpInterrupted, netlink.ErrDumpInterrupted, nil}, 3, nil},
		"other errors":       {[]error{netlink.ErrDumpInterrupted, broken, nil}, 2, broken},
		"changes all along":  {[]error{netlink.ErrDumpInterrupted}, dumpTries, netlink.ErrDumpInterrupted},
		"an error, no retry": {[]error{broken, nil}, 1, broken},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			calls := 0
			all, err := dump(func() ([]int, error) {
				answer := test.answers[min(calls, len(test.answers)-1)]
				calls++
				return []int{calls}, answer
			})
			if !errors.Is(err, test.want) || calls != test.calls {
				t.Errorf("%d calls, error %v; want %d calls, error %v", calls, err, test.calls, test.want)
			}
			if !slices.Equal(all, []int{calls}) {
				t.Errorf("got list %v, want the last one, [%d]", all, calls)
			}
		})
	}
}
