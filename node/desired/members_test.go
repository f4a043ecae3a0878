package desired

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"appliance/balancer"
	"appliance/configs"
	"appliance/pathprobe"
	"appliance/raft"
)

var sameAddrs = cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{})

// entry is a backend whose other settings are the defaults.
func entry(name, address string, weight int) configs.BackendEntry {
	at := netip.MustParseAddrPort(address)
	return configs.BackendEntry{Backend: balancer.Backend{Name: name, Addr: at, Weight: weight}}
}

func TestBackendsFollowTheMembers(t *testing.T) {
	at := netip.MustParseAddrPort
	cfg := &configs.Config{
		Peers: []configs.PeerEntry{
			{ID: "a", Address: netip.MustParseAddr("192.0.2.1")}, {ID: "gone", Address: netip.MustParseAddr("192.0.2.9")},
		},
		LoadBalancers: []configs.LoadBalancerEntry{
			{Name: "api", AddPeersAt: 6443, Backends: []configs.BackendEntry{
				entry("extra", "192.0.2.77:7000", 3),
				entry("a", "192.0.2.1:6443", 5), entry("gone", "192.0.2.9:6443", 1),
			}},
			{Name: "web", Backends: []configs.BackendEntry{entry("", "192.0.2.5:80", 1)}},
		},
	}
	got := withMembers(cfg, []raft.PeerStatus{
		{ID: "a", Addr: at("192.0.2.1:10000")},
		{ID: "w", Addr: at("192.0.2.4:10000"), Witness: true},
		{ID: "192.0.2.2", Addr: at("192.0.2.2:10000")},
	})
	want := []configs.BackendEntry{
		entry("extra", "192.0.2.77:7000", 3),
		entry("a", "192.0.2.1:6443", 5),
		entry("", "192.0.2.2:6443", 1),
	}
	if diff := cmp.Diff(want, got.LoadBalancers[0].Backends, sameAddrs); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(cfg.LoadBalancers[1], got.LoadBalancers[1], sameAddrs); diff != "" {
		t.Error(diff)
	}
	if len(cfg.LoadBalancers[0].Backends) != 3 {
		t.Error("the configuration itself was changed")
	}
}

// A peer of both families is a backend of both, and drained in both.
func TestBackendsOfBothFamiliesFollowTheMembers(t *testing.T) {
	at, host := netip.MustParseAddrPort, netip.MustParseAddr
	a := raft.PeerStatus{ID: "a", Addr: at("192.0.2.1:10000"), Further: []netip.Addr{host("2001:db8::1")}, Drained: true}
	cfg := &configs.Config{
		VIPs:  []netip.Addr{host("192.0.2.10"), host("2001:db8::10")},
		Peers: []configs.PeerEntry{{ID: "gone", Address: host("192.0.2.9"), Further: []netip.Addr{host("2001:db8::9")}}},
		LoadBalancers: []configs.LoadBalancerEntry{{Name: "api", AddPeersAt: 6443, Backends: []configs.BackendEntry{
			entry("gone", "192.0.2.9:6443", 1), entry("gone", "[2001:db8::9]:6443", 1),
		}}},
	}
	want := []configs.BackendEntry{entry("a", "192.0.2.1:6443", 1), entry("a", "[2001:db8::1]:6443", 1)}
	got := withMembers(cfg, []raft.PeerStatus{a})
	if diff := cmp.Diff(want, got.LoadBalancers[0].Backends, sameAddrs); diff != "" {
		t.Error(diff)
	}
	overrides := withDrained(
		map[BackendRef]balancer.Override{},
		got,
		raft.Status{Leader: "b", Peers: []raft.PeerStatus{a}},
	)
	for _, b := range want {
		if o := overrides[BackendRef{"api", b.Addr}]; o.Out != balancer.Drain {
			t.Errorf("the override for %v is %v", b.Addr, o)
		}
	}
}

// A machine is a node before its server is a backend, and after it was one.
func TestUnion(t *testing.T) {
	node := func(id string, addrs ...string) pathprobe.Node {
		n := pathprobe.Node{ID: id}
		for _, a := range addrs {
			n.Addrs = append(n.Addrs, netip.MustParseAddr(a))
		}
		return n
	}
	before := []pathprobe.Node{node("a", "192.0.2.1"), node("b", "192.0.2.2"), node("gone", "192.0.2.3")}
	next := []pathprobe.Node{node("a", "192.0.2.1"), node("b", "192.0.2.22", "2001:db8::22"), node("new", "192.0.2.4")}
	want := []pathprobe.Node{
		node("a", "192.0.2.1"),
		node("b", "192.0.2.22", "2001:db8::22", "192.0.2.2"),
		node("new", "192.0.2.4"),
		node("gone", "192.0.2.3"),
	}
	if diff := cmp.Diff(want, Union(before, next), sameAddrs); diff != "" {
		t.Error(diff)
	}
	if len(next[1].Addrs) != 2 {
		t.Error("what is next was changed")
	}
}
