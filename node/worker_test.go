package node

import (
	"encoding/json"
	"log/slog"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"appliance/configs"
	"appliance/node/desired"
	"appliance/node/planes"
	"appliance/pathprobe"
	"appliance/raft/auth"
)

// A worker signs with what the peers tell it, which is not what they sign with among themselves.
func TestWorkersSecrets(t *testing.T) {
	key, next := auth.GenerateKey(), auth.GenerateKey()
	peer := func(s auth.Security) *node {
		n := &node{cfg: loadPeer(t), site: site{security: s}}
		n.inputs.secrets = n.firstSecrets()
		return n
	}
	told := func(n *node) (l desired.List) {
		data, err := json.Marshal(
			desired.List{
				ProbeKeys: n.keysForWorkers(),
				Nodes:     []desired.ListedNode{{ID: "a", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}},
			},
		)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &l); err != nil {
			t.Fatal(err)
		}
		return l
	}
	a, b := peer(auth.Security{Keys: []auth.Key{key}}), peer(auth.Security{Keys: []auth.Key{key}})
	if x, y := told(a), told(b); len(x.ProbeKeys) != 1 || !reflect.DeepEqual(x, y) {
		t.Errorf("two peers tell %v and %v", x, y)
	}
	w := &node{cfg: loadWorker(t), site: site{worker: &auth.WorkerKey{}}}
	if first := w.firstSecrets(); len(first.own) != 1 || len(first.own[0]) == 0 {
		t.Error("a worker that was told nothing speaks with an empty key")
	}
	if got, ok := w.secretsFromPeers(told(a).ProbeKeys); !ok || !reflect.DeepEqual(got.own, a.inputs.secrets.workers) ||
		reflect.DeepEqual(got.own, a.inputs.secrets.own) {
		t.Errorf("the worker speaks with %s", got.own)
	}
	// The group's key rotates.
	a.inputs.secrets = a.secretsFrom(probeKeys([]auth.Key{key, next}))
	if l := told(a); len(l.ProbeKeys) != 2 || l.ProbeKeys[0] != told(b).ProbeKeys[0] {
		t.Errorf("with two keys, %v", l.ProbeKeys)
	}
	// With certificates there is no key before the group has agreed on one.
	c := peer(auth.Security{CA: "ca.crt"})
	if got := c.inputs.secrets.workers; len(got) != 0 {
		t.Errorf("workers are heard with %s", got)
	}
	c.inputs.secrets = c.secretsFrom([][]byte{[]byte("agreed")})
	if l := told(c); len(l.ProbeKeys) != 1 || strings.Contains(l.ProbeKeys[0], "agreed") {
		t.Errorf("told %v", l.ProbeKeys)
	}
	// Nobody is kept out of a group without a key, and no worker follows it.
	d := peer(auth.Security{Insecure: true})
	d.inputs.secrets = d.secretsFrom([][]byte{[]byte("agreed")})
	open := &node{cfg: loadWorker(t)}
	if got := open.firstSecrets(); !reflect.DeepEqual(got.own, d.inputs.secrets.workers) || told(d).ProbeKeys != nil {
		t.Errorf("%s and %s, told %v", got.own, d.inputs.secrets.workers, told(d).ProbeKeys)
	}
}

func loadPeer(t *testing.T) *configs.Config {
	t.Helper()
	return load(t, map[string]string{"peers": "192.0.2.1", "single-node": "true"})
}

func loadWorker(t *testing.T) *configs.Config {
	t.Helper()
	return load(t, map[string]string{"peers": "192.0.2.1,192.0.2.2", "role": "worker", "data-dir": t.TempDir()})
}

func load(t *testing.T, words map[string]string) *configs.Config {
	t.Helper()
	words["vip"] = "192.0.2.10"
	cfg, err := configs.Load(
		"",
		configs.Source{Flag: func(name string) (string, bool) { v, ok := words[name]; return v, ok }},
	)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// Which workers have proved themselves survives a restart. If the file is damaged, they only have to prove it again.
func TestWorkersAreRemembered(t *testing.T) {
	cfg := loadPeer(t)
	cfg.DataDir = filepath.Join(t.TempDir(), "new")
	a := netip.MustParseAddr("192.0.2.7")
	nodes := []pathprobe.Node{{ID: "worker 192.0.2.7", Addrs: []netip.Addr{a}, Worker: true}}
	n := &node{cfg: cfg, log: slog.New(slog.DiscardHandler)}
	if got := n.recallWorkers(); got != nil {
		t.Errorf("at first, %v", got)
	}
	n.planes = &planes.Planes{
		Prober: pathprobe.New(
			pathprobe.Config{Nodes: nodes, ProvedWorkers: []netip.Addr{a, netip.MustParseAddr("192.0.2.8")}},
		),
	}
	n.rememberWorkers()
	again := &node{cfg: cfg, log: n.log}
	if got := again.recallWorkers(); !slices.Equal(got, []netip.Addr{a}) {
		t.Errorf("recalled %v", got)
	}
	if err := replaceFile(workersPath(cfg), []byte("[")); err != nil {
		t.Fatal(err)
	}
	if got := again.recallWorkers(); got != nil {
		t.Errorf("of a damaged file, %v", got)
	}
}
