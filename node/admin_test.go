package node

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"appliance/raft"
)

var sameAddrs = cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{})

func TestParsePeer(t *testing.T) {
	addr, port := netip.MustParseAddr, netip.MustParseAddrPort
	for text, want := range map[string]raft.Peer{
		"192.0.2.1":     {ID: "192.0.2.1", Addr: port("192.0.2.1:10000")},
		"a=192.0.2.1:7": {ID: "a", Addr: port("192.0.2.1:7")},
		"a=192.0.2.1+2001:db8::1": {
			ID: "a", Addr: port("192.0.2.1:10000"), Further: []netip.Addr{addr("2001:db8::1")},
		},
		"[2001:db8::1]:7+192.0.2.1+192.0.2.101": {
			ID: "2001:db8::1", Addr: port("[2001:db8::1]:7"), Further: []netip.Addr{addr("192.0.2.1"), addr("192.0.2.101")},
		},
	} {
		got, err := parsePeer(text, 10000)
		if diff := cmp.Diff(want, got, sameAddrs); err != nil || diff != "" {
			t.Errorf("%s: %v %s", text, err, diff)
		}
	}
	for _, text := range []string{"a=", "a=192.0.2.1+host", "a=192.0.2.1+192.0.2.2:7"} {
		if p, err := parsePeer(text, 10000); err == nil {
			t.Errorf("%s is taken for %v", text, p)
		}
	}
}
