package node

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"appliance/balancer"
	"appliance/configs"
	"appliance/nft"
	"appliance/raft"
)

var sameAddrs = cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{})

func TestBackendsFollowTheMembers(t *testing.T) {
	at := netip.MustParseAddrPort
	cfg := &configs.Config{
		Peers: []configs.Peer{
			{ID: "a", Address: netip.MustParseAddr("192.0.2.1")}, {ID: "gone", Address: netip.MustParseAddr("192.0.2.9")},
		},
		LoadBalancers: []configs.LoadBalancer{
			{Name: "api", AddPeersAt: 6443, Backends: []configs.Backend{
				{Name: "extra", Address: at("192.0.2.77:7000"), Weight: 3},
				{Name: "a", Address: at("192.0.2.1:6443"), Weight: 5}, {Name: "gone", Address: at("192.0.2.9:6443"), Weight: 1},
			}},
			{Name: "web", Backends: []configs.Backend{{Address: at("192.0.2.5:80"), Weight: 1}}},
		},
	}
	got := withMembers(cfg, []raft.PeerStatus{
		{ID: "a", Addr: at("192.0.2.1:10000")},
		{ID: "w", Addr: at("192.0.2.4:10000"), Witness: true},
		{ID: "192.0.2.2", Addr: at("192.0.2.2:10000")},
	})
	want := []configs.Backend{
		{Name: "extra", Address: at("192.0.2.77:7000"), Weight: 3},
		{Name: "a", Address: at("192.0.2.1:6443"), Weight: 5},
		{Address: at("192.0.2.2:6443"), Weight: 1},
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
		Peers: []configs.Peer{{ID: "gone", Address: host("192.0.2.9"), Further: []netip.Addr{host("2001:db8::9")}}},
		LoadBalancers: []configs.LoadBalancer{{Name: "api", AddPeersAt: 6443, Backends: []configs.Backend{
			{Name: "gone", Address: at("192.0.2.9:6443"), Weight: 1}, {Name: "gone", Address: at("[2001:db8::9]:6443"), Weight: 1},
		}}},
	}
	want := []configs.Backend{{Name: "a", Address: at("192.0.2.1:6443"), Weight: 1}, {Name: "a", Address: at("[2001:db8::1]:6443"), Weight: 1}}
	got := withMembers(cfg, []raft.PeerStatus{a})
	if diff := cmp.Diff(want, got.LoadBalancers[0].Backends, sameAddrs); diff != "" {
		t.Error(diff)
	}
	for _, b := range want {
		if o, ok := drainedOrder(raft.Status{Leader: "b", Peers: []raft.PeerStatus{a}}, b.Address.Addr()); !ok || o.Out != balancer.Drain {
			t.Errorf("the order for %v is %v", b.Address, o)
		}
	}
}

// A node is met before its server is a backend, and left after.
func TestMeeting(t *testing.T) {
	node := func(id string, addrs ...string) nft.Node {
		n := nft.Node{ID: id}
		for _, a := range addrs {
			n.Addrs = append(n.Addrs, netip.MustParseAddr(a))
		}
		return n
	}
	before := []nft.Node{node("a", "192.0.2.1"), node("b", "192.0.2.2"), node("gone", "192.0.2.3")}
	next := []nft.Node{node("a", "192.0.2.1"), node("b", "192.0.2.22", "2001:db8::22"), node("new", "192.0.2.4")}
	want := []nft.Node{node("a", "192.0.2.1"), node("b", "192.0.2.22", "2001:db8::22", "192.0.2.2"), node("new", "192.0.2.4"), node("gone", "192.0.2.3")}
	if diff := cmp.Diff(want, meeting(before, next), sameAddrs); diff != "" {
		t.Error(diff)
	}
	if len(next[1].Addrs) != 2 {
		t.Error("what is next was changed")
	}
}

func TestParsePeer(t *testing.T) {
	for text, want := range map[string]raft.Peer{
		"192.0.2.1":                             {ID: "192.0.2.1", Addr: netip.MustParseAddrPort("192.0.2.1:10000")},
		"a=192.0.2.1:7":                         {ID: "a", Addr: netip.MustParseAddrPort("192.0.2.1:7")},
		"a=192.0.2.1+2001:db8::1":               {ID: "a", Addr: netip.MustParseAddrPort("192.0.2.1:10000"), Further: []netip.Addr{netip.MustParseAddr("2001:db8::1")}},
		"[2001:db8::1]:7+192.0.2.1+192.0.2.101": {ID: "2001:db8::1", Addr: netip.MustParseAddrPort("[2001:db8::1]:7"), Further: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.101")}},
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

// TestWorkersList goes the whole way: from a peer's configuration and orders
// through the file on a worker's disk to what the worker serves.
func TestWorkersList(t *testing.T) {
	at := netip.MustParseAddrPort
	peer := &configs.Config{LoadBalancers: []configs.LoadBalancer{{Name: "api", Port: 6443, Backends: []configs.Backend{
		{Name: "a", Address: at("192.0.2.1:6443"), Weight: 1}, {Name: "b", Address: at("192.0.2.2:6443"), Weight: 2}, {Address: at("192.0.2.3:6443"), Weight: 1},
	}}}}
	given := map[ordered]balancer.Order{{lb: "api", addr: at("192.0.2.1:6443")}: {Out: balancer.Disable}}
	drained := raft.Status{Leader: "c", Peers: []raft.PeerStatus{{ID: "b", Addr: at("192.0.2.2:10000"), Drained: true}, {ID: "c", Addr: at("192.0.2.3:10000"), Drained: true}}}
	data, err := json.Marshal(listOf(peer, given, drained))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "new", "backends.json")
	for range 2 {
		if err := keep(path, data); err != nil {
			t.Fatal(err)
		}
	}
	if data, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	var l list
	if err := json.Unmarshal(data, &l); err != nil {
		t.Fatal(err)
	}
	worker := &configs.Config{LoadBalancers: []configs.LoadBalancer{
		{Name: "of another name", Port: 6443, Backends: []configs.Backend{{Address: at("192.0.2.50:6443"), Weight: 1}}},
		{Name: "its own", Port: 443, Backends: []configs.Backend{{Address: at("192.0.2.51:443"), Weight: 1}}},
	}}
	got, orders := withList(worker, &l)
	if diff := cmp.Diff(peer.LoadBalancers[0].Backends, got.LoadBalancers[0].Backends, sameAddrs); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(worker.LoadBalancers[1], got.LoadBalancers[1], sameAddrs); diff != "" {
		t.Error(diff)
	}
	name := worker.LoadBalancers[0].Name
	want := map[ordered]balancer.Order{
		{lb: name, addr: at("192.0.2.1:6443")}: {Out: balancer.Disable},
		{lb: name, addr: at("192.0.2.2:6443")}: {Out: balancer.Drain}, // c holds: it has to give that up first
	}
	if len(orders) != len(want) {
		t.Errorf("orders %v, want %v", orders, want)
	}
	for k, v := range want {
		if orders[k] != v {
			t.Errorf("order for %v is %v, want %v", k, orders[k], v)
		}
	}
}
