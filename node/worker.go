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

	"appliance/configs"
	"appliance/node/desired"
	"appliance/raft/auth"
	"appliance/raft/feed"
)

// listPath is where a worker keeps the last good list.
func listPath(cfg *configs.Config) string { return filepath.Join(cfg.DataDir, "backends.json") }

// followPeers keeps a worker's backends equal to those of the peers.
func (n *node) followPeers(ctx context.Context) error {
	f := feed.Follower{ID: n.site.self.ID, Version: n.version, Own: n.site.security, Log: n.log}
	if n.site.worker != nil {
		f.Key = *n.site.worker
	}
	for _, p := range n.cfg.Peers {
		f.Peers = append(f.Peers, auth.Listed{ID: p.ID, Addr: p.AddrPort()})
	}
	for _, at := range n.cfg.Join {
		f.Peers = append(f.Peers, auth.Listed{Addr: at})
	}
	if n.recalledList {
		n.log.Info("serves from the last good list of backends until a peer answers", "path", listPath(n.cfg))
	}
	answered := false
	return f.Follow(ctx, func(data []byte) {
		l, err := desired.ReadList(data)
		if err == nil {
			err = n.ask(ctx, request{list: l})
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			n.log.Error("the peers' list of backends is of no use, and the one before stays", "error", err)
			return
		}
		if !answered {
			answered = true
			n.log.Info("follows the peers' list of backends")
		}
		if err := replaceFile(listPath(n.cfg), data); err != nil {
			n.log.Warn("the list of backends cannot be written to disk; a restart without peers would begin with an older one",
				"error", err)
		}
	}, func(err error) {
		answered = false
		n.log.Warn("no peer answers; serves from the last list of backends", "error", err)
	})
}

// recallList reads the last good list. A worker begins with it, so that it never serves what its own file says while
// the peers say something newer.
func (n *node) recallList() {
	data, err := os.ReadFile(listPath(n.cfg))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var l *desired.List
	if err == nil {
		l, err = desired.ReadList(data)
	}
	if err != nil {
		n.log.Warn("the last good list of backends is of no use", "path", listPath(n.cfg), "error", err)
		return
	}
	n.inputs.list = l
}

// replaceFile replaces the file at path by one with data, whole or not at all.
func replaceFile(path string, data []byte) error {
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

// workerAccess reads what lets a worker follow the peers, if it has anything: a worker key, or a worker's certificate
// of the operator's own authority.
func (s *site) workerAccess(cfg *configs.Config) (err error) {
	if s.worker, err = workerKey(cfg); err != nil {
		return err
	}
	g := cfg.Group
	if g.CAFile == "" && g.CertFile == "" && g.CertKeyFile == "" {
		return nil
	}
	if s.worker != nil {
		return fmt.Errorf("the worker key %s and certificates exclude each other; "+
			"remove group.keyFile, or group.caFile, certFile and certKeyFile", g.KeyFile)
	}
	s.security = auth.Security{CA: g.CAFile, Cert: g.CertFile, Key: g.CertKeyFile}
	if err := s.security.CheckWorker(); err != nil {
		return fmt.Errorf("worker: %w", err)
	}
	return knowsPeers(cfg)
}

// follows says whether this node is a worker that follows the peers.
func (s site) follows(cfg *configs.Config) bool {
	return cfg.Worker() && (s.worker != nil || s.security.CA != "")
}

func knowsPeers(cfg *configs.Config) error {
	if len(cfg.Peers) == 0 && len(cfg.Join) == 0 {
		return errors.New("a worker that follows the peers needs their addresses; list them in peers, or some in join")
	}
	return nil
}

// workerKey reads the key with which a worker follows the peers; nil if it has none.
func workerKey(cfg *configs.Config) (*auth.WorkerKey, error) {
	if cfg.Group.KeyFile == "" {
		return nil, nil
	}
	text, err := os.ReadFile(cfg.Group.KeyFile)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("worker key: %w; make one with `appliance keygen --worker` on a peer", err)
	}
	isDefault := cfg.Group.KeyFile == configs.DefaultKeyFile
	if err == nil && isDefault && strings.HasPrefix(string(text), "appliance-group-key") {
		return nil, nil // it is there by default; nobody asked to follow
	}
	if err == nil && !strings.HasPrefix(strings.TrimSpace(string(text)), "appliance-worker-key") {
		return nil, fmt.Errorf("%s is not a worker key, and a worker should not have the group's key; "+
			"run `appliance keygen --worker --group-key %s` on a peer, and put its output here",
			cfg.Group.KeyFile, cfg.Group.KeyFile)
	}
	if err := knowsPeers(cfg); err != nil {
		return nil, err
	}
	key, err := auth.LoadWorkerKey(cfg.Group.KeyFile)
	if err != nil {
		return nil, err
	}
	return &key, nil
}

// workersPath is where a node keeps which workers have proved themselves. So a worker that is away while this node
// starts is not taken for a stranger, which would cost its load balancers the direct data plane.
func workersPath(cfg *configs.Config) string { return filepath.Join(cfg.DataDir, "workers.json") }

// recallWorkers reads what rememberWorkers wrote.
func (n *node) recallWorkers() (addrs []netip.Addr) {
	data, err := os.ReadFile(workersPath(n.cfg))
	if err == nil {
		err = json.Unmarshal(data, &addrs)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.log.Warn("the workers known before the restart cannot be read, and have to prove themselves again",
			"path", workersPath(n.cfg), "error", err)
		return nil
	}
	n.recalled = addrs
	return addrs
}

// rememberWorkers keeps which workers have proved themselves. Only followDirect calls it.
func (n *node) rememberWorkers() {
	now := n.planes.Prober.ProvedWorkers()
	if slices.Equal(now, n.recalled) {
		return
	}
	n.recalled = now
	data, err := json.Marshal(now)
	if err == nil {
		err = replaceFile(workersPath(n.cfg), data)
	}
	if err != nil {
		n.log.Warn("the workers that have proved themselves cannot be written to disk", "error", err)
	}
}
