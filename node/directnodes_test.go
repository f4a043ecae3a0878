package node

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"appliance/arp"
	"appliance/balancer"
	"appliance/configs"
	"appliance/nft"
	"appliance/raft"
)

// loadWorker is the configuration of a worker with these backends of its own.
func loadWorker(t *testing.T, backends ...netip.AddrPort) *configs.Config {
	t.Helper()
	words := map[string]string{"vip": "192.0.2.10", "peers": "192.0.2.1+2001:db8::1,192.0.2.2", "role": "worker", "data-dir": t.TempDir()}
	cfg, err := configs.Load("", configs.Source{Flag: func(name string) (string, bool) { v, ok := words[name]; return v, ok }})
	if err != nil {
		t.Fatal(err)
	}
	lb := &cfg.LoadBalancers[0]
	lb.Backends = nil
	for _, b := range backends {
		lb.Backends = append(lb.Backends, configs.Backend{Address: b, Weight: 1})
	}
	return cfg
}

// whereTheyAre compares nodes without what they serve.
var whereTheyAre = cmpopts.IgnoreFields(nft.Node{}, "Serves")

// local is an address of this host.
func local(t *testing.T) netip.Addr {
	t.Helper()
	addrs, err := arp.LocalAddrs()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(addrs, netip.Addr.Is4)
	if i < 0 {
		t.Skip("this host has no IPv4 address")
	}
	return addrs[i]
}

// A worker with a backend knows the peers, and takes who else has one for a
// worker; one without knows nobody.
func TestNeighboursOfWorkers(t *testing.T) {
	own := local(t)
	at := func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 6443) }
	host := netip.MustParseAddr
	peer := func(id string, addrs ...netip.Addr) nft.Node { return nft.Node{ID: id, Addrs: addrs} }
	worker := func(a string) nft.Node {
		return nft.Node{ID: "worker " + a, Addrs: []netip.Addr{host(a)}, Worker: true}
	}
	peers := []nft.Node{peer("192.0.2.1", host("192.0.2.1"), host("2001:db8::1")), peer("192.0.2.2", host("192.0.2.2"))}
	cfg := loadWorker(t, at(host("192.0.2.1")), at(own), at(host("192.0.2.7")), netip.MustParseAddrPort("192.0.2.8:7443"), netip.MustParseAddrPort("[2001:db8::7]:6443"))
	n := &node{cfg: cfg, site: site{self: configs.Peer{ID: "w"}}, log: slog.New(slog.DiscardHandler)}
	with := append(slices.Clone(peers), peer("w", own), worker("192.0.2.7"))
	if d := cmp.Diff(with, n.neighbours(cfg), sameAddrs, whereTheyAre); d != "" {
		t.Error(d)
	}
	for _, o := range n.neighbours(cfg) {
		want := "[192.0.2.10:6443]"
		if o.ID == "192.0.2.2" {
			want = "[]"
		}
		if got := fmt.Sprint(o.Serves); got != want {
			t.Errorf("%s serves %s, want %s", o.ID, got, want)
		}
	}
	without := loadWorker(t, at(host("192.0.2.1")), at(host("192.0.2.7")))
	if d := cmp.Diff([]nft.Node{peer("w")}, n.neighbours(without), sameAddrs, whereTheyAre); d != "" {
		t.Error(d)
	}
	// It has lost its backend, and another worker, too. Both stay for a while.
	n.met = n.neighbours(cfg)
	alone := loadWorker(t, at(host("192.0.2.1")))
	if d := cmp.Diff(with, n.neighbours(alone), sameAddrs, whereTheyAre); d != "" {
		t.Error(d)
	}
	for a := range n.left {
		n.left[a] = time.Now()
	}
	if d := cmp.Diff([]nft.Node{peer("w")}, n.neighbours(alone), sameAddrs, whereTheyAre); d != "" {
		t.Error(d)
	}
	// What the peers say of themselves goes before the file.
	n.met, n.left = nil, nil
	n.list.Store(&list{Nodes: []listedNode{{"three", []netip.Addr{host("192.0.2.3")}}}})
	if d := cmp.Diff([]nft.Node{peer("three", host("192.0.2.3")), peer("w", own), worker("192.0.2.1"), worker("192.0.2.7")}, n.neighbours(cfg), sameAddrs, whereTheyAre); d != "" {
		t.Error(d)
	}
	// Another data plane was asked for.
	cfg.LoadBalancers[0].DataPlane = string(balancer.NFTables)
	if d := cmp.Diff([]nft.Node{peer("w")}, n.neighbours(cfg), sameAddrs, whereTheyAre); d != "" {
		t.Error(d)
	}
}

// A worker speaks with what the peers tell it, which is not what they speak with
// among themselves.
func TestWorkersSecrets(t *testing.T) {
	key, next := raft.GenerateKey(), raft.GenerateKey()
	peer := func(s raft.Security) *node {
		n := &node{cfg: loadPeer(t), site: site{security: s}, reloaded: make(chan struct{}, 1)}
		first := n.probeSecrets()
		n.probing.Store(&first)
		return n
	}
	told := func(n *node) (l list) {
		data, err := json.Marshal(list{ProbeKeys: n.probeKeysForWorkers(), Nodes: []listedNode{{"a", []netip.Addr{netip.MustParseAddr("192.0.2.1")}}}})
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &l); err != nil {
			t.Fatal(err)
		}
		return l
	}
	a, b := peer(raft.Security{Keys: []raft.Key{key}}), peer(raft.Security{Keys: []raft.Key{key}})
	if x, y := told(a), told(b); len(x.ProbeKeys) != 1 || !reflect.DeepEqual(x, y) {
		t.Errorf("two peers tell %v and %v", x, y)
	}
	w := &node{cfg: loadWorker(t), site: site{worker: &raft.WorkerKey{}}}
	if first := w.probeSecrets(); len(first.own) != 1 || len(first.own[0]) == 0 {
		t.Error("a worker that was told nothing speaks with an empty key")
	}
	w.speakAsWorker(told(a).ProbeKeys)
	if got := w.probing.Load(); !reflect.DeepEqual(got.own, a.probing.Load().workers) || reflect.DeepEqual(got.own, a.probing.Load().own) {
		t.Errorf("the worker speaks with %s", got.own)
	}
	// The group's key rotates.
	a.speakIn(probeKeys([]raft.Key{key, next}))
	if l := told(a); len(l.ProbeKeys) != 2 || l.ProbeKeys[0] != told(b).ProbeKeys[0] {
		t.Errorf("with two keys, %v", l.ProbeKeys)
	}
	select {
	case <-a.reloaded:
	default:
		t.Error("the workers are not told")
	}
	// With certificates there is no key before the group has agreed on one.
	c := peer(raft.Security{CA: "ca.crt"})
	if got := c.probing.Load().workers; len(got) != 0 {
		t.Errorf("workers are heard with %s", got)
	}
	c.speakIn([][]byte{[]byte("agreed")})
	if l := told(c); len(l.ProbeKeys) != 1 || strings.Contains(l.ProbeKeys[0], "agreed") {
		t.Errorf("told %v", l.ProbeKeys)
	}
	// Nobody is kept out of a group without a key, and no worker follows it.
	d := peer(raft.Security{Insecure: true})
	d.speakIn([][]byte{[]byte("agreed")})
	open := &node{cfg: loadWorker(t)}
	if got := open.probeSecrets(); !reflect.DeepEqual(got.own, d.probing.Load().workers) || told(d).ProbeKeys != nil {
		t.Errorf("%s and %s, told %v", got.own, d.probing.Load().workers, told(d).ProbeKeys)
	}
}

func loadPeer(t *testing.T) *configs.Config {
	t.Helper()
	words := map[string]string{"vip": "192.0.2.10", "peers": "192.0.2.1", "single-node": "true"}
	cfg, err := configs.Load("", configs.Source{Flag: func(name string) (string, bool) { v, ok := words[name]; return v, ok }})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// Which workers have proved themselves outlives a restart; damage costs no more
// than that they prove it again.
func TestWorkersAreRemembered(t *testing.T) {
	cfg := loadPeer(t)
	cfg.DataDir = filepath.Join(t.TempDir(), "new")
	a := netip.MustParseAddr("192.0.2.7")
	nodes := []nft.Node{{ID: "worker 192.0.2.7", Addrs: []netip.Addr{a}, Worker: true}}
	n := &node{cfg: cfg, log: slog.New(slog.DiscardHandler)}
	if got := n.recallWorkers(); got != nil {
		t.Errorf("at first, %v", got)
	}
	n.prober = nft.NewProber(nft.ProberConfig{Nodes: nodes, Reached: []netip.Addr{a, netip.MustParseAddr("192.0.2.8")}})
	n.rememberWorkers()
	again := &node{cfg: cfg, log: n.log}
	if got := again.recallWorkers(); !slices.Equal(got, []netip.Addr{a}) {
		t.Errorf("recalled %v", got)
	}
	if err := keep(workersPath(cfg), []byte("[")); err != nil {
		t.Fatal(err)
	}
	if got := again.recallWorkers(); got != nil {
		t.Errorf("of a damaged file, %v", got)
	}
}
