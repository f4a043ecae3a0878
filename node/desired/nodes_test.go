package desired

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"appliance/balancer"
	"appliance/configs"
	"appliance/pathprobe"
)

// loadWorker is the configuration of a worker with these backends of its own.
func loadWorker(t *testing.T, backends ...netip.AddrPort) *configs.Config {
	t.Helper()
	words := map[string]string{
		"vip":      "192.0.2.10",
		"peers":    "192.0.2.1+2001:db8::1,192.0.2.2",
		"role":     "worker",
		"data-dir": t.TempDir(),
	}
	cfg, err := configs.Load(
		"",
		configs.Source{Flag: func(name string) (string, bool) { v, ok := words[name]; return v, ok }},
	)
	if err != nil {
		t.Fatal(err)
	}
	lb := &cfg.LoadBalancers[0]
	lb.Backends = nil
	for _, b := range backends {
		lb.Backends = append(lb.Backends, configs.BackendEntry{Backend: balancer.Backend{Addr: b, Weight: 1}})
	}
	return cfg
}

// whereTheyAre compares nodes without what they serve.
var whereTheyAre = cmpopts.IgnoreFields(pathprobe.Node{}, "Serves")

// A worker with a backend knows the peers, and takes every other machine with a backend for a worker. A worker
// without a backend knows nobody.
func TestNodesOfWorkers(t *testing.T) {
	own := netip.MustParseAddr("192.0.2.99")
	at := func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 6443) }
	host := netip.MustParseAddr
	peer := func(id string, addrs ...netip.Addr) pathprobe.Node { return pathprobe.Node{ID: id, Addrs: addrs} }
	worker := func(a string) pathprobe.Node {
		return pathprobe.Node{ID: "worker " + a, Addrs: []netip.Addr{host(a)}, Worker: true}
	}
	peers := []pathprobe.Node{
		peer("192.0.2.1", host("192.0.2.1"), host("2001:db8::1")),
		peer("192.0.2.2", host("192.0.2.2")),
	}
	cfg := loadWorker(
		t,
		at(host("192.0.2.1")),
		at(own),
		at(host("192.0.2.7")),
		netip.MustParseAddrPort("192.0.2.8:7443"),
		netip.MustParseAddrPort("[2001:db8::7]:6443"),
	)
	k := Known{Self: "w", Local: []netip.Addr{own}, Now: time.Unix(1000, 0)}
	compute := func(cfg *configs.Config) State {
		k.Config = cfg
		return Compute(k)
	}
	with := append(slices.Clone(peers), peer("w", own), worker("192.0.2.7"))
	if d := cmp.Diff(with, compute(cfg).Nodes, sameAddrs, whereTheyAre); d != "" {
		t.Error(d)
	}
	for _, o := range compute(cfg).Nodes {
		want := "[192.0.2.10:6443]"
		if o.ID == "192.0.2.2" {
			want = "[]"
		}
		if got := fmt.Sprint(o.Serves); got != want {
			t.Errorf("%s serves %s, want %s", o.ID, got, want)
		}
	}
	without := loadWorker(t, at(host("192.0.2.1")), at(host("192.0.2.7")))
	if d := cmp.Diff([]pathprobe.Node{peer("w")}, compute(without).Nodes, sameAddrs, whereTheyAre); d != "" {
		t.Error(d)
	}
	// It has lost its backend, and another worker, too. Both stay for a while.
	k.Before = compute(cfg)
	alone := loadWorker(t, at(host("192.0.2.1")))
	if d := cmp.Diff(with, compute(alone).Nodes, sameAddrs, whereTheyAre); d != "" {
		t.Error(d)
	}
	k.Before = compute(alone)
	k.Now = k.Now.Add(departedFor - time.Second)
	if d := cmp.Diff(with, compute(alone).Nodes, sameAddrs, whereTheyAre); d != "" {
		t.Error(d)
	}
	k.Now = k.Now.Add(time.Second)
	if d := cmp.Diff([]pathprobe.Node{peer("w")}, compute(alone).Nodes, sameAddrs, whereTheyAre); d != "" {
		t.Error(d)
	}
	// What the peers say of themselves goes before the file.
	k.Before = State{}
	k.List = &List{Nodes: []ListedNode{{"three", []netip.Addr{host("192.0.2.3")}}}}
	want := []pathprobe.Node{
		peer("three", host("192.0.2.3")), peer("w", own), worker("192.0.2.1"), worker("192.0.2.7"),
	}
	if d := cmp.Diff(want, compute(cfg).Nodes, sameAddrs, whereTheyAre); d != "" {
		t.Error(d)
	}
	// Another data plane was asked for.
	cfg.LoadBalancers[0].DataPlane = balancer.NFTables
	if d := cmp.Diff([]pathprobe.Node{peer("w")}, compute(cfg).Nodes, sameAddrs, whereTheyAre); d != "" {
		t.Error(d)
	}
}
