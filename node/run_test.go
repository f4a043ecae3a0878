package node

import (
	"net/netip"
	"testing"
	"time"

	"appliance/arp"
)

// A node begins anew where its VIPs are found on another interface for long enough, and the same one all the time.
func TestMover(t *testing.T) {
	on := func(name string) []arp.VIP {
		if name == "" {
			return nil
		}
		return []arp.VIP{{Addr: netip.MustParseAddr("192.0.2.10"), Interface: name}}
	}
	now := time.Unix(0, 0)
	var m mover
	for i, step := range []struct {
		after time.Duration
		found string // empty: nowhere
		want  bool
	}{
		{0, "eth0", false},
		{time.Minute, "", false},
		{time.Minute, "br-ex", false}, {movedFor / 2, "br-ex", false}, {movedFor / 4, "", false},
		{0, "br-ex", false}, {movedFor / 2, "br0", false}, {movedFor / 2, "br0", false},
		{movedFor / 4, "eth0", false},
		{0, "br-ex", false}, {movedFor / 2, "br-ex", false}, {movedFor / 2, "br-ex", true},
	} {
		now = now.Add(step.after)
		if got := m.moved(on("eth0"), on(step.found), now); got != step.want {
			t.Errorf("step %d: %v, want %v", i, got, step.want)
		}
	}
}
