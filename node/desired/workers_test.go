package desired

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"appliance/balancer"
	"appliance/configs"
	"appliance/raft"
)

// TestListOfTheFirstVersion: workers and peers are not upgraded at once. What
// the first version says stays readable, and what this one says is the same
// for as long as listFormat is.
func TestListOfTheFirstVersion(t *testing.T) {
	const first = `{"format":1,"loadBalancers":[{"name":"api","port":6443,"backends":[` +
		`{"name":"n1","address":"192.0.2.1:6443","weight":1,"order":{"out":"drain"}},` +
		`{"address":"[2001:db8::2]:6443","weight":2,"order":{"weight":5}},` +
		`{"address":"192.0.2.3:6443","weight":0}]}]}`
	five := 5
	at := netip.MustParseAddrPort
	want := List{Format: 1, LoadBalancers: []listed{{Name: "api", Port: 6443, Backends: []listedServer{
		{Name: "n1", Address: at("192.0.2.1:6443"), Weight: 1, Order: balancer.Override{Out: balancer.Drain}},
		{Address: at("[2001:db8::2]:6443"), Weight: 2, Order: balancer.Override{Weight: &five}},
		{Address: at("192.0.2.3:6443")},
	}}}}
	if got, err := json.Marshal(want); err != nil || string(got) != first {
		t.Errorf("this version says %s, %v", got, err)
	}
	later := strings.ReplaceAll(first, `"weight":`, `"ofALaterVersion":{"x":[1]},"weight":`)
	for _, text := range []string{first, later} {
		var got List
		if err := json.Unmarshal([]byte(text), &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s is read as %+v, %v", text, got, err)
		}
	}
}

// TestWorkersList goes the whole way: from a peer's configuration and overrides to what a worker serves.
func TestWorkersList(t *testing.T) {
	at := netip.MustParseAddrPort
	peer := &configs.Config{
		LoadBalancers: []configs.LoadBalancerEntry{{Name: "api", Port: 6443, Backends: []configs.BackendEntry{
			entry("a", "192.0.2.1:6443", 1), entry("b", "192.0.2.2:6443", 2), entry("", "192.0.2.3:6443", 1),
			entry("out", "192.0.2.4:6443", 1),
		}}},
	}
	peer.LoadBalancers[0].Backends[3].Disabled = true
	overrides := map[BackendRef]balancer.Override{{"api", at("192.0.2.1:6443")}: {Out: balancer.Disable}}
	drained := raft.Status{
		Leader: "c",
		Peers: []raft.PeerStatus{
			{ID: "b", Addr: at("192.0.2.2:10000"), Drained: true},
			{ID: "c", Addr: at("192.0.2.3:10000"), Drained: true},
		},
	}
	data, err := json.Marshal(listOf(peer, withDrained(overrides, peer, drained), drained, nil))
	if err != nil {
		t.Fatal(err)
	}
	l, err := ReadList(data)
	if err != nil {
		t.Fatal(err)
	}
	worker := &configs.Config{LoadBalancers: []configs.LoadBalancerEntry{
		{Name: "of another name", Port: 6443, Backends: []configs.BackendEntry{entry("", "192.0.2.50:6443", 1)}},
		{Name: "its own", Port: 443, Backends: []configs.BackendEntry{entry("", "192.0.2.51:443", 1)}},
	}}
	got, orders := withList(worker, l)
	peer.LoadBalancers[0].Backends[3].Disabled = false // workers are told by an order
	if diff := cmp.Diff(peer.LoadBalancers[0].Backends, got.LoadBalancers[0].Backends, sameAddrs); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(worker.LoadBalancers[1], got.LoadBalancers[1], sameAddrs); diff != "" {
		t.Error(diff)
	}
	name := worker.LoadBalancers[0].Name
	want := map[BackendRef]balancer.Override{
		{name, at("192.0.2.1:6443")}: {Out: balancer.Disable},
		{name, at("192.0.2.2:6443")}: {Out: balancer.Drain}, // c holds: it has to give that up first
		{name, at("192.0.2.4:6443")}: {Out: balancer.Disable},
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
