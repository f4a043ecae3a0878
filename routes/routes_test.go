package routes

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"appliance/lab"
)

var (
	four, other = netip.MustParseAddr("198.51.100.10"), netip.MustParseAddr("198.51.100.11")
	six         = netip.MustParseAddr("2001:db8:1::10")
)

// inMachine runs f in a network namespace of its own, in which lo is up.
func inMachine(t *testing.T, f func()) {
	t.Helper()
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
	m, err := l.Machine("n1", netip.MustParsePrefix("10.77.0.11/24"), netip.MustParsePrefix("fd77::11/64"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Do(func() error { f(); return nil }); err != nil {
		t.Fatal(err)
	}
}

func onEth0(vips ...netip.Addr) map[netip.Addr]string {
	on := make(map[netip.Addr]string)
	for _, vip := range vips {
		on[vip] = "eth0"
	}
	return on
}

func bind(t *testing.T, a netip.Addr) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
	if err := netlink.AddrReplace(lo, addr); err != nil {
		t.Fatal(err)
	}
}

// in lists what a table has of a protocol.
func in(t *testing.T, table KernelTable) (got []netip.Addr) {
	t.Helper()
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		all, err := table.list(family)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range all {
			if a, ok := destination(r); ok {
				got = append(got, a)
			}
		}
	}
	slices.SortFunc(got, netip.Addr.Compare)
	return got
}

func TestKeep(t *testing.T) {
	inMachine(t, func() {
		table := KernelTable{Number: 4711, Protocol: DefaultProtocol, Metric: 20}
		foreign := KernelTable{Number: 4711, Protocol: 99}
		for _, a := range []netip.Addr{four, other, six} {
			bind(t, a)
		}
		if _, err := foreign.Keep(onEth0(other)); err != nil {
			t.Fatal(err)
		}
		for i, step := range []struct {
			want    []netip.Addr
			changed int
		}{
			{[]netip.Addr{four, six}, 2}, {[]netip.Addr{four, six}, 0}, {[]netip.Addr{other}, 3}, {nil, 1}, {nil, 0},
		} {
			changed, err := table.Keep(onEth0(step.want...))
			if err != nil || changed != step.changed {
				t.Errorf("step %d: changed %d, %v, want %d", i, changed, err, step.changed)
			}
			if got := in(t, table); !slices.Equal(got, step.want) {
				t.Errorf("step %d: the table has %v, want %v", i, got, step.want)
			}
		}
		if got := in(t, foreign); !slices.Equal(got, []netip.Addr{other}) {
			t.Errorf("of another protocol the table has %v now", got)
		}
	})
}

// A route of IPv4 goes with its virtual address, whose lifetime runs out after a crash, and one of IPv6 has a lifetime.
func TestNothingStaysBehind(t *testing.T) {
	inMachine(t, func() {
		table := KernelTable{Number: 254, Protocol: DefaultProtocol}
		bind(t, four)
		bind(t, six)
		if _, err := table.Keep(onEth0(four, six)); err != nil {
			t.Fatal(err)
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			t.Fatal(err)
		}
		gone := &netlink.Addr{IPNet: &net.IPNet{IP: four.AsSlice(), Mask: net.CIDRMask(32, 32)}}
		if err := netlink.AddrDel(lo, gone); err != nil {
			t.Fatal(err)
		}
		if got := in(t, table); !slices.Equal(got, []netip.Addr{six}) {
			t.Errorf("without %s on lo the table has %v", four, got)
		}
		route, err := os.ReadFile("/proc/thread-self/net/ipv6_route")
		if err != nil {
			t.Fatal(err)
		}
		const expires = 0x00400000 // RTF_EXPIRES of linux/ipv6_route.h
		found := false
		for line := range strings.Lines(string(route)) {
			f := strings.Fields(line)
			if len(f) > 8 && f[0] == "20010db8000100000000000000000010" && f[9] == "eth0" {
				found = found || hex(t, f[8])&expires != 0
			}
		}
		if !found {
			t.Errorf("the route of %s has no lifetime:\n%s", six, route)
		}
		removed, err := Cleanup()
		if err != nil || len(removed) != 1 {
			t.Errorf("clean-up removed %v, %v", removed, err)
		}
		if got := in(t, table); len(got) > 0 {
			t.Errorf("after the clean-up the table has %v", got)
		}
	})
}

func hex(t *testing.T, s string) (n uint64) {
	t.Helper()
	for _, c := range s {
		n = n<<4 | uint64(strings.IndexRune("0123456789abcdef", c))
	}
	return n
}
