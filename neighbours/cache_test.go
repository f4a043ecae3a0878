package neighbours

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var (
	four  = netip.MustParseAddr("192.0.2.1")
	six   = netip.MustParseAddr("2001:db8::1")
	other = netip.MustParseAddr("192.0.2.2")
	mac   = [6]byte{2, 0, 0, 0, 0, 1}
	mac2  = [6]byte{2, 0, 0, 0, 0, 2}
)

func view(macs map[netip.Addr][6]byte) View {
	v := View{Links: map[string]Link{"eth0": {Name: "eth0", Index: 7}}, MACs: make(map[Location][6]byte)}
	for a, m := range macs {
		v.MACs[Location{"eth0", a}] = m
	}
	return v
}

// A node whose addresses have several MAC addresses has another card now.
func TestContradicts(t *testing.T) {
	byNode := [][]netip.Addr{{four, six}, {other}}
	for what, tt := range map[string]struct {
		macs map[netip.Addr][6]byte
		want bool
	}{
		"one card":             {map[netip.Addr][6]byte{four: mac, six: mac, other: mac2}, false},
		"one address known":    {map[netip.Addr][6]byte{four: mac, other: mac2}, false},
		"another card by IPv6": {map[netip.Addr][6]byte{four: mac, six: mac2}, true},
	} {
		if got := view(tt.macs).contradicts(byNode, Location{"eth0", four}); got != tt.want {
			t.Errorf("%s: %v, want %v", what, got, tt.want)
		}
	}
}

// Only what differs about another node is news: the kernel confirms entries all the
// time.
func TestIsNews(t *testing.T) {
	c := New("eth0")
	c.Follow([][]netip.Addr{{four}})
	c.seen = view(map[netip.Addr][6]byte{four: mac})
	c.held = map[Location]bool{{"eth0", four}: true}
	update := func(a netip.Addr, m [6]byte, state int) netlink.NeighUpdate {
		return netlink.NeighUpdate{Type: unix.RTM_NEWNEIGH, Neigh: netlink.Neigh{
			LinkIndex: 7, IP: a.AsSlice(), HardwareAddr: m[:], State: state,
		}}
	}
	for what, tt := range map[string]struct {
		update netlink.NeighUpdate
		want   bool
	}{
		"confirmed":     {update(four, mac, unix.NUD_REACHABLE), false},
		"another card":  {update(four, mac2, unix.NUD_REACHABLE), true},
		"failed":        {update(four, mac, unix.NUD_FAILED), true},
		"somebody else": {update(other, mac2, unix.NUD_REACHABLE), false},
	} {
		if got := c.IsNews(tt.update); got != tt.want {
			t.Errorf("%s: %v, want %v", what, got, tt.want)
		}
	}
}
