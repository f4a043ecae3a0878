package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"appliance/balancer"
	"appliance/configs"
	"appliance/raft"
)

// A list is what the peers tell the workers: the backends of each load
// balancer, and what was ordered of them.
type list struct {
	// Format grows when a worker of before would misread it.
	Format        int      `json:"format"`
	LoadBalancers []listed `json:"loadBalancers"`
	// Nodes are the peers that have the virtual addresses, and ProbeKeys what
	// they speak with to workers in path probes: a worker with a backend may get
	// packets from them.
	Nodes     []listedNode `json:"nodes,omitempty"`
	ProbeKeys []string     `json:"probeKeys,omitempty"`
}

type listedNode struct {
	ID    string       `json:"id"`
	Addrs []netip.Addr `json:"addresses"`
}

type listed struct {
	Name     string         `json:"name"`
	Port     uint16         `json:"port"`
	Backends []listedServer `json:"backends"`
}

type listedServer struct {
	Name    string         `json:"name,omitempty"`
	Address netip.AddrPort `json:"address"`
	Weight  int            `json:"weight"`
	Order   balancer.Order `json:"order,omitzero"`
}

const listFormat = 1

// listOf is the list for workers of cfg, under the group's orders.
func listOf(cfg *configs.Config, given map[ordered]balancer.Order, group raft.Status) list {
	l := list{Format: listFormat}
	for _, c := range cfg.LoadBalancers {
		lb := listed{Name: c.Name, Port: c.Port}
		for _, b := range c.Backends {
			order, ok := given[ordered{lb: c.Name, addr: b.Address}]
			if !ok {
				order, _ = drainedOrder(group, b.Address.Addr())
			}
			lb.Backends = append(lb.Backends, listedServer{Name: b.Name, Address: b.Address, Weight: b.Weight, Order: order})
		}
		l.LoadBalancers = append(l.LoadBalancers, lb)
	}
	for _, p := range group.Peers {
		if !p.Witness {
			l.Nodes = append(l.Nodes, listedNode{p.ID, p.Addrs()})
		}
	}
	// Every peer has them in an order of its own.
	slices.SortFunc(l.Nodes, func(a, b listedNode) int { return strings.Compare(a.ID, b.ID) })
	return l
}

// publish tells the workers what this peer serves, as of index in the group's log.
func (n *node) publish(cfg *configs.Config, group raft.Status, index uint64) {
	l := listOf(cfg, orders(n.group.Settings()), group)
	l.ProbeKeys = n.probeKeysForWorkers()
	data, err := json.Marshal(l)
	if err != nil {
		n.log.Error("the workers cannot be told of the backends", "error", err)
		return
	}
	n.group.Publish(data, index)
}

// withList is cfg with the backends of l where a load balancer has the same
// name, or else the same port. A load balancer that the peers do not have is the
// worker's own.
func withList(cfg *configs.Config, l *list) (*configs.Config, map[ordered]balancer.Order) {
	out := *cfg
	out.LoadBalancers = slices.Clone(cfg.LoadBalancers)
	given := make(map[ordered]balancer.Order)
	for i := range out.LoadBalancers {
		lb := &out.LoadBalancers[i]
		at := slices.IndexFunc(l.LoadBalancers, func(o listed) bool { return o.Name == lb.Name })
		if at < 0 {
			at = slices.IndexFunc(l.LoadBalancers, func(o listed) bool { return o.Port == lb.Port })
		}
		if at < 0 || len(l.LoadBalancers[at].Backends) == 0 {
			continue
		}
		known := make(map[netip.AddrPort]configs.Backend)
		for _, b := range lb.Backends {
			known[b.Address] = b
		}
		lb.Backends = nil
		for _, s := range l.LoadBalancers[at].Backends {
			b := known[s.Address] // what else the worker's file says of it
			b.Name, b.Address, b.Weight = s.Name, s.Address, s.Weight
			lb.Backends = append(lb.Backends, b)
			if s.Order != (balancer.Order{}) {
				given[ordered{lb: lb.Name, addr: s.Address}] = s.Order
			}
		}
	}
	return &out, given
}

// listPath is where a worker keeps the last good list.
func listPath(cfg *configs.Config) string { return filepath.Join(cfg.DataDir, "backends.json") }

// followPeers keeps a worker's backends those of the peers.
func (n *node) followPeers(ctx context.Context) error {
	f := raft.Follower{ID: n.site.self.ID, Own: n.site.security, Log: n.log}
	if n.site.worker != nil {
		f.Key = *n.site.worker
	}
	for _, p := range n.cfg.Peers {
		f.Peers = append(f.Peers, raft.Peer{ID: p.ID, Addr: p.AddrPort()})
	}
	for _, at := range n.cfg.Join {
		f.Peers = append(f.Peers, raft.Peer{Addr: at})
	}
	if l := n.list.Load(); l != nil {
		if err := n.adopt(l); err != nil {
			n.log.Warn("the last good list of backends is of no use", "path", listPath(n.cfg), "error", err)
		} else {
			n.log.Info("serves from the last good list of backends until a peer answers", "path", listPath(n.cfg))
		}
	}
	answered := false
	return f.Follow(ctx, func(data []byte) {
		if err := n.take(data); err != nil {
			n.log.Error("the peers' list of backends is of no use, and the one before stays", "error", err)
			return
		}
		if !answered {
			answered = true
			n.log.Info("follows the peers' list of backends")
		}
		if err := keep(listPath(n.cfg), data); err != nil {
			n.log.Warn("the list of backends is not on disk, so a restart without peers would begin with an older one", "error", err)
		}
	}, func(err error) {
		answered = false
		n.log.Warn("no peer answers; serves from the last list of backends", "error", err)
	})
}

// recallList reads the last good list. A worker begins with it, so that it does
// not serve for a moment what stands in its own file.
func (n *node) recallList() {
	data, err := os.ReadFile(listPath(n.cfg))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var l *list
	if err == nil {
		l, err = readList(data)
	}
	if err != nil {
		n.log.Warn("the last good list of backends is of no use", "path", listPath(n.cfg), "error", err)
		return
	}
	n.list.Store(l)
}

func readList(data []byte) (*list, error) {
	var l list
	if err := json.Unmarshal(data, &l); err != nil {
		return nil, err
	}
	if l.Format > listFormat {
		return nil, fmt.Errorf("it is of format %d, and this program knows up to %d; install the peers' version here", l.Format, listFormat)
	}
	return &l, nil
}

// take puts a list of the peers into force.
func (n *node) take(data []byte) error {
	l, err := readList(data)
	if err != nil {
		return err
	}
	return n.adopt(l)
}

// adopt puts a list into force.
func (n *node) adopt(l *list) error {
	n.setting.Lock()
	defer n.setting.Unlock()
	before := n.list.Swap(l)
	now, given := withList(n.serving.Load(), l)
	if err := n.serve(now, n.balancer.Set); err != nil {
		n.list.Store(before)
		return err
	}
	n.speakAsWorker(l.ProbeKeys)
	n.balancer.Order(targets(now, given, raft.Status{}))
	return nil
}

// keep replaces the file at path by one with data, whole or not at all.
func keep(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".backends-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// workerAccess reads that with which a worker follows the peers, if it has
// anything: a worker key, or a worker's certificate of the operator's own authority.
func (s *site) workerAccess(cfg *configs.Config) (err error) {
	if s.worker, err = workerKey(cfg); err != nil {
		return err
	}
	g := cfg.Group
	if g.CAFile == "" && g.CertFile == "" && g.CertKeyFile == "" {
		return nil
	}
	if s.worker != nil {
		return fmt.Errorf("the worker key %s and certificates exclude each other; remove group.keyFile, or group.caFile, certFile and certKeyFile", g.KeyFile)
	}
	s.security = raft.Security{CA: g.CAFile, Cert: g.CertFile, Key: g.CertKeyFile}
	if err := s.security.CheckWorker(); err != nil {
		return fmt.Errorf("worker: %w", err)
	}
	return knowsPeers(cfg)
}

// follows says that this node is a worker that follows the peers.
func (s site) follows(cfg *configs.Config) bool {
	return cfg.Worker() && (s.worker != nil || s.security.CA != "")
}

func knowsPeers(cfg *configs.Config) error {
	if len(cfg.Peers) == 0 && len(cfg.Join) == 0 {
		return errors.New("a worker that follows the peers needs to know where they are; list them in peers, or some in join")
	}
	return nil
}

// workerKey reads the key with which a worker follows the peers, if it has one.
func workerKey(cfg *configs.Config) (*raft.WorkerKey, error) {
	if cfg.Group.KeyFile == "" {
		return nil, nil
	}
	text, err := os.ReadFile(cfg.Group.KeyFile)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("worker key: %w; make one with `appliance keygen --worker` on a peer", err)
	}
	if err == nil && cfg.Group.KeyFile == configs.DefaultKeyFile && strings.HasPrefix(string(text), "appliance-group-key") {
		return nil, nil // it lies there; nobody said that this is for following
	}
	if err == nil && !strings.HasPrefix(strings.TrimSpace(string(text)), "appliance-worker-key") {
		return nil, fmt.Errorf("%s is no worker key, and a worker should not have the group's; run `appliance keygen --worker --group-key %s` on a peer, and put what it prints here", cfg.Group.KeyFile, cfg.Group.KeyFile)
	}
	if err := knowsPeers(cfg); err != nil {
		return nil, err
	}
	key, err := raft.LoadWorkerKey(cfg.Group.KeyFile)
	if err != nil {
		return nil, err
	}
	return &key, nil
}
