package raft

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	hraft "github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"appliance/raft/lease"
	"appliance/raft/notify"
)

// A Group is this peer's part in the group.
type Group struct {
	cfg  Config
	log  *slog.Logger
	hlog hclog.Logger

	port     *port
	stream   *stream
	store    *store
	settings *settings
	lease    *lease.Lease
	grants   *lease.Grants
	// heartbeats of the others, as they have told this process
	heartbeats *lease.Heartbeats
	unmet      notify.Change // somebody who has told no heartbeat yet wants something
	watched    *watched
	detector   *detector
	packets    packets // the detector's; nil without UDP
	known      bool    // there was state when the process began

	linksMu sync.Mutex
	links   map[string]*link // by id, the roster but for this peer

	change   notify.Change
	fed      notify.Change // the feed is another
	started  chan struct{} // closed when raft and trans are set
	raft     *hraft.Raft
	trans    *transport
	stopping chan struct{} // closed when Run is about to leave
	failed   chan error    // what makes Run end by itself
	holding  sync.Mutex    // held while hold may run
	ran      atomic.Bool
	closing  sync.Once

	leading  atomic.Bool // Lead runs
	handover chan handover

	admitMu sync.Mutex
	gaveWay time.Duration // when giving way failed last; duty's own

	mu      sync.Mutex
	intent  intent
	phase   string
	hellos  map[string]hello
	left    map[string]time.Time // by peer: when a process of it said that it leaves
	tenure  tenureState
	count   Counters
	causes  map[string]uint64
	written string // the cluster id that is in the store
	met     []Peer // the roster that is in the store, or that a member told
	refused string // why the group does not want this peer, or ""
	feed    feed   // what workers follow
	claim   Claim  // how fit this peer is
	onLink  []netip.Addr
}

// Open takes what the peer needs from the host: data directory, keys, port.
// Nothing is said to the group before Run.
func Open(cfg Config) (*Group, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("group: %w", err)
	}
	cred, err := cfg.Security.credentials(cfg.ID, cfg.Peers)
	if err != nil {
		return nil, fmt.Errorf("group: %w", err)
	}
	g := &Group{
		cfg: cfg, log: cfg.Log, hlog: newHclog(cfg.Log),
		grants:  lease.NewGrants(cfg.now),
		watched: &watched{conns: make(map[net.Conn]struct{})},
		links:   make(map[string]*link), hellos: make(map[string]hello), left: make(map[string]time.Time), causes: make(map[string]uint64),
		started: make(chan struct{}), stopping: make(chan struct{}), failed: make(chan error, 1),
		handover: make(chan handover),
		phase:    "starting",
	}
	g.heartbeats = lease.NewHeartbeats(cfg.Heartbeat, g.unmet.Fire)
	g.lease = lease.New(cfg.ID, cfg.span(), cfg.now, g.heartbeats.Same)
	rand.Read(g.watched.self[:])
	g.detector = newDetector(cfg.self(), g.watched.self, cfg.Heartbeat, cfg.now, cfg.Log, nil)
	g.detector.follow(cfg.Peers)
	g.settings = newSettings(g.change.Fire)
	if g.store, err = openStore(cfg.DataDir, g.hlog); err != nil {
		return nil, err
	}
	g.store.onError = g.onDiskError
	if err := g.store.checkFormat(); err != nil {
		g.store.Close()
		return nil, fmt.Errorf("data directory %s: %w", cfg.DataDir, err)
	}
	if g.known, err = g.store.hasState(); err != nil {
		g.store.Close()
		return nil, fmt.Errorf("data directory %s is %w: %w; move it away, and this peer joins its group again as a new one", cfg.DataDir, ErrDamaged, err)
	}
	if id, err := g.store.Get([]byte(clusterKey)); err == nil {
		g.written = string(id)
	}
	g.met = g.storedRoster()
	bind := cfg.Bind
	if cfg.SingleNode {
		bind = netip.AddrPort{}
	}
	if g.port, err = listen(bind, cred, &g.cfg); err != nil {
		g.store.Close()
		return nil, err
	}
	if bind.IsValid() {
		if g.packets, err = cfg.packets(bind); err != nil {
			cfg.Log.Warn("no datagrams without the peer port's number in UDP; the loss of a host takes two heartbeats to notice instead of half of one; find the program that has it",
				"port", bind, "error", err)
		}
	}
	g.stream = newStream(g.port, cfg.Addr)
	if cred != nil {
		cred.peers = func() []Peer { return append(g.roster(), joined(cfg.Join)...) }
	}
	g.relink(g.roster())
	return g, nil
}

// SetKeys puts other group keys into force: all are accepted, and the first is
// shown on connections that begin from now on. Those that are open stay, and so do the keys of
// datagrams, which belong to the process: who has got hold of a group key
// is shut out for good when every process has been restarted after the rotation.
func (g *Group) SetKeys(keys []Key) error {
	if len(keys) == 0 || g.port.cred.Load() == nil || len(g.cfg.Security.Keys) == 0 {
		return errors.New("this group does not know its peers by a group key; restart the appliance to change that")
	}
	cred, err := Security{Keys: keys, KeyFile: g.cfg.Security.KeyFile}.fromKeys(g.cfg.ID)
	if err != nil {
		return err
	}
	cred.peers = g.roster
	g.port.cred.Store(cred)
	return nil
}

// Close gives back what Open took, if Run has not been called; Run does it itself.
func (g *Group) Close() error {
	var err error
	g.closing.Do(func() {
		g.port.close()
		if g.packets != nil {
			g.packets.close()
		}
		g.stream.Close()
		err = g.store.Close()
	})
	return err
}

// Run takes part in the group until ctx ends. Then it leaves in order: no more
// answers, leadership handed over, goodbye, raft stopped, port and disk closed.
// It is called once.
func (g *Group) Run(ctx context.Context) error {
	if g.ran.Swap(true) {
		return errors.New("group: Run was called before")
	}
	defer g.Close()
	// The parts outlive ctx: leaving needs them.
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	parts, inner := errgroup.WithContext(inner)
	parts.Go(func() error {
		return g.port.serve(map[byte]func(net.Conn, identity){
			preambleRaft:    g.stream.handle,
			preambleWatch:   g.watched.handle,
			preambleControl: func(c net.Conn, who identity) { serveControl(inner, c, who, g.answer) },
		})
	})
	parts.Go(func() error { return g.followRoster(inner) })

	err := g.begin(ctx, parts, inner)
	if err == nil {
		select {
		case <-ctx.Done():
		case <-inner.Done():
		case err = <-g.failed:
			g.log.Error("leaving the group", "error", err)
		}
	} else if ctx.Err() != nil {
		err = nil
	}
	g.leave()
	cancel()
	g.port.close()
	if failure := parts.Wait(); err == nil {
		err = failure
	}
	for _, l := range g.allLinks() {
		l.close()
	}
	return err
}

// begin gets state if there is none, and starts raft.
func (g *Group) begin(ctx context.Context, parts *errgroup.Group, inner context.Context) error {
	if g.known {
		if err := g.checkCluster(ctx); err != nil {
			return err
		}
		// A peer that has just restarted does not know that there is a leader, and would vote
		// for anybody. After one heartbeat there is either no leader, or its word is
		// on the way. It also makes what this process has forgotten of its ledger too old to matter;
		// so it is the heartbeat of the process before, if that was longer.
		g.setPhase("waiting one heartbeat")
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(max(g.cfg.Heartbeat, g.lastHeartbeat())):
		}
	} else if err := g.findGroup(ctx); err != nil {
		return err
	}
	if err := g.rememberHeartbeat(); err != nil {
		return err
	}
	if err := g.start(parts, inner); err != nil {
		return err
	}
	g.setPhase("running")
	return nil
}

func (g *Group) raftConfig(notify chan<- bool) *hraft.Config {
	c := hraft.DefaultConfig()
	c.LocalID = hraft.ServerID(g.cfg.ID)
	c.HeartbeatTimeout = g.cfg.Heartbeat
	if g.cfg.self().Witness {
		// A witness can only hand leadership on; let the others stand first.
		c.HeartbeatTimeout *= 2
	}
	c.ElectionTimeout = c.HeartbeatTimeout
	// The leader steps down soon after its lease has run out; until then it
	// can renew it in the same term.
	c.LeaderLeaseTimeout = g.cfg.Heartbeat
	c.CommitTimeout = 50 * time.Millisecond
	c.NotifyCh = notify
	c.Logger = g.hlog
	c.ShutdownOnRemove = false // a removed peer says so; it does not vanish
	c.NoLegacyTelemetry = true
	// Settings are small and rarely change: a snapshot every 1,024 changes.
	c.SnapshotThreshold = 1024
	c.TrailingLogs = 1024
	return c
}

func (g *Group) start(parts *errgroup.Group, inner context.Context) error {
	g.trans = newTransport(g.stream, g.cfg.Heartbeat, g.lease, g.grants, g.cfg.now, g.hlog)
	g.trans.quiet = g.isRemoved
	g.trans.refusal = g.heartbeats.Refusal
	notify := make(chan bool, 16)
	r, err := hraft.NewRaft(g.raftConfig(notify), g.settings, g.store, g.store, g.store.snaps, g.trans)
	if broken := g.settings.err(); err != nil && broken != nil {
		err = broken
	}
	if err != nil {
		g.trans.Close()
		return fmt.Errorf("group state in %s: %w", g.cfg.DataDir, err)
	}
	seen := make(chan hraft.Observation, 64)
	observer := hraft.NewObserver(seen, false, nil)
	r.RegisterObserver(observer)
	g.raft = r
	close(g.started)
	parts.Go(func() error { return g.trans.relay(inner) })
	parts.Go(func() error { return g.signals(inner, notify, seen) })
	parts.Go(func() error { return g.duty(inner) })
	parts.Go(func() error { return g.detect(inner) })
	g.change.Fire()
	return nil
}

// leave is the order in which a peer goes.
func (g *Group) leave() {
	close(g.stopping)
	g.holding.Lock() // hold has returned, and is not called again: no more answers
	defer g.holding.Unlock()
	g.watched.silent()
	close(g.store.stop)
	select {
	case <-g.started:
	default:
		g.watched.goodbye()
		g.stream.Close()
		return
	}
	if g.raft.State() == hraft.Leader && g.others() > 0 {
		ctx, cancel := context.WithTimeout(context.Background(), 10*g.cfg.Heartbeat)
		if err := g.pass(ctx, ""); err != nil {
			g.log.Warn("leaving without a hand-over; the others elect after a heartbeat", "error", err)
		}
		cancel()
	}
	g.watched.goodbye()
	done := g.raft.Shutdown()
	g.trans.Close() // ends RPCs that would only be waited for
	g.trans.CloseStreams()
	if err := done.Error(); err != nil {
		g.log.Warn("raft did not stop cleanly", "error", err)
	}
	g.change.Fire()
}

// signals turns raft's own into beacons. It never waits for anybody, because
// raft's main loop waits for it.
func (g *Group) signals(ctx context.Context, notify <-chan bool, seen <-chan hraft.Observation) error {
	leader := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-notify:
		case o := <-seen:
			switch data := o.Data.(type) {
			case hraft.LeaderObservation:
				if id := string(data.LeaderID); id != "" && id != leader {
					leader = id
					g.log.Info("the group has a leader", "leader", id, "term", g.raft.CurrentTerm())
				}
			case hraft.RaftState:
				if data == hraft.Candidate {
					g.tally(func(c *Counters) { c.Elections++ })
				}
			}
		}
		g.change.Fire()
	}
}

func (g *Group) onDiskError(err error) {
	if err != nil {
		g.log.Error("cannot write to the data directory: this peer neither votes nor holds until it can; free some space",
			"dir", g.cfg.DataDir, "free", Free(g.cfg.DataDir), "error", err)
	} else {
		g.log.Info("the data directory can be written again", "dir", g.cfg.DataDir)
	}
	g.change.Fire()
}

// Free is how much room is left below dir, in words for people.
func Free(dir string) string {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return "unknown: " + err.Error()
	}
	const mib = 1 << 20
	block := uint64(fs.Bsize)
	return fmt.Sprintf("%d of %d MiB, %d of %d files", fs.Bavail*block/mib, fs.Blocks*block/mib, fs.Ffree, fs.Files)
}

// fail makes Run end.
func (g *Group) fail(err error) {
	select {
	case g.failed <- err:
	default:
	}
}

func (g *Group) setPhase(phase string) {
	g.mu.Lock()
	changed := g.phase != phase
	g.phase = phase
	g.mu.Unlock()
	if changed {
		g.log.Info("group", "phase", phase)
		g.change.Fire()
	}
}

func (g *Group) tally(f func(*Counters)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f(&g.count)
}
