package node

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"appliance/arp"
	"appliance/balancer"
	"appliance/configs"
	"appliance/connlog"
	"appliance/dns"
	"appliance/hook"
	"appliance/host"
	"appliance/nft/ruleset"
	"appliance/node/announcing"
	"appliance/node/desired"
	"appliance/node/lifecycle"
	"appliance/node/observe"
	"appliance/node/planes"
	"appliance/node/proving"
	"appliance/pathprobe"
	"appliance/raft"
	"appliance/raft/store"
	"appliance/track"
)

// A node is the rooms of one node, wired. A witness has a group and nothing else; a worker has everything but a group.
type node struct {
	cfg     *configs.Config // as it was at the start; state has what a reload made of it
	site    site
	log     *slog.Logger
	started time.Time
	version string

	group    *raft.Group // nil on a worker
	broken   error       // why a peer has no group all the same
	secrets  secrets     // in what is told of load balancers
	planes   *planes.Planes
	wire     *arp.Wire          // nil on a witness, and on a worker without VIPs
	balancer *balancer.Balancer // nil on a witness
	trials   *proving.Trials    // nil on a witness
	// announcer tells routers; nil where no VIP is announced to them, on a witness, and on a worker.
	announcer *announcing.Announcer
	observer  *observe.Observer
	tracker   *track.Tracker
	// shortages are what this host was short of, which says nothing about any server.
	shortages *balancer.Shortages
	names     *dns.Names // nil on a witness
	// connections are logged there, and copies are the program's own lines; nil if they go to stderr alone.
	connections, copies *connlog.Sink
	hooks               *hook.Dispatcher

	// The apply loop owns inputs and stores in state what is in force.
	inputs   inputs
	state    atomic.Pointer[desired.State]
	requests chan request

	recalledList bool                            // inputs.list was on disk
	recalled     []netip.Addr                    // the workers on disk; owned by followDirect
	verdict      atomic.Pointer[track.Verdict]   // of the tracks
	judged       chan struct{}                   // has room for one: verdict is another
	tenureEnded  atomic.Pointer[time.Time]       // when this node last ceased to hold
	gaveUpUsers  bool                            // it cannot run programs as another user any more
	holderless   atomic.Pointer[time.Time]       // since when nobody holds
	holds        atomic.Bool                     // a tenure of this node runs
	lingers      bool                            // the kernel goes on without this process
	founded      bool                            // the group was known when this node started
	taken        atomic.Pointer[[]arp.Claim]     // who else answers for the VIPs of a new group
	blocked      atomic.Pointer[map[string]bool] // peers in reach whose datagrams do not arrive
}

// newNode opens what the node needs. It changes nothing on the host, but for files in the data directory.
func newNode(cfg *configs.Config, site site, version string, log *slog.Logger) (n *node, err error) {
	n = &node{
		cfg: cfg, site: site, version: version, log: log, started: time.Now(),
		inputs: inputs{config: cfg}, requests: make(chan request), judged: make(chan struct{}, 1),
	}
	n.shortages = &balancer.Shortages{Log: log}
	n.state.Store(&desired.State{Config: cfg})
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
			n = nil
		}
	}()

	p, err := openPrograms(cfg)
	if err != nil {
		return n, err
	}
	n.hooks = hook.New(log)
	n.hooks.Set(p.hooks)
	n.tracker = track.New(track.Config{
		Changed: n.tracked, Log: log,
		Inconclusive: func(err error) bool { return n.shortages.Note("track", err) },
	})
	n.tracker.Set(p.tracks)
	n.observer = observe.Open(observe.Config{
		Admin: cfg.Admin, DataDir: cfg.DataDir, VIPs: cfg.VIPs, ID: site.self.ID, Version: version,
		Snapshot: n.snapshot, Ask: n.askPeer(), Orders: n.pageOrders(), Log: log,
	})
	if site.follows(cfg) {
		n.recallList()
	}
	if !cfg.Worker() {
		if err := n.openGroup(); err != nil {
			return n, err
		}
	}
	if n.witness() {
		return n, nil
	}
	n.connections = connlog.New(connlog.Config{
		To: cfg.Log.Connections, Facility: slices.Index(connlog.Facilities, cfg.Log.Facility), Stderr: os.Stderr,
		What: "connections", Log: log,
	})
	n.openNames()
	n.awaitNames(context.Background())
	n.inputs.secrets = n.firstSecrets()
	first := n.compute()
	n.state.Store(&first)
	if err := n.openAnnouncer(); err != nil {
		return n, err
	}
	files, err := host.FilesForClients()
	if err != nil {
		return n, err
	}
	n.planes, err = planes.Open(planes.Config{
		Interfaces: n.interfaces(), Routed: cfg.RoutedVIPs(), TunnelPort: cfg.Announce.TunnelPort,
		Self: site.self.ID, Worker: cfg.Worker(), Nodes: first.Nodes,
		Secrets: n.inputs.secrets.own, WorkerSecrets: n.inputs.secrets.workers, Reached: n.recallWorkers(),
		Grouped: n.group != nil, Report: func(t balancer.Target, err error) { n.balancer.Report(t, err) }, Log: log,
		Files: files, Shortages: n.shortages, ConnLog: n.connections, Takeover: cfg.Takeover,
	})
	if err != nil {
		return n, err
	}
	if len(site.vips) > 0 {
		n.wire, err = arp.Open(arp.Config{
			VIPs: site.vips, Unanswered: cfg.RoutedVIPs(), Silencer: n.planes.Silencer, Linger: n.linger,
			Beside: n.beside, OnForeign: n.observer.Claimed, Log: log,
		})
		if err != nil {
			return n, err
		}
	}
	n.trials = proving.New(n.proving())
	n.balancer, err = balancer.New(balancer.Config{
		Planes: n.planes.List, LoadBalancers: first.LoadBalancers, Prover: n.trials,
		Checker: NewChecker, OnEvent: n.balanced, OnCheck: n.observer.Metrics.Checked, Shortages: n.shortages, Log: log,
	})
	return n, err
}

// openGroup opens this peer's part in the group.
func (n *node) openGroup() (err error) {
	cfg, site := n.cfg, n.site
	group, err := raft.Open(raft.Config{
		ID:            site.self.ID,
		Addr:          site.self.AddrPort(),
		Peers:         raftPeers(cfg, site.self),
		Join:          cfg.Join,
		Priority:      cfg.Priority,
		Preempt:       cfg.Group.Preempt.On,
		PreemptAfter:  cfg.Group.Preempt.After,
		DataDir:       cfg.DataDir,
		Security:      site.security,
		StartAsLeader: cfg.StartAsLeader,
		SingleNode:    cfg.SingleNode,
		Heartbeat:     cfg.Group.Heartbeat,
		Log:           n.log,
		Version:       n.version,
		OnCommit:      n.observer.Metrics.Committed,
		View:          n.observer.View,
		Tried:         n.tried,
	})
	if errors.Is(err, store.ErrDamaged) && !n.witness() {
		// A vote that may be wrong is worse than none. The clients on this node are still served.
		n.broken = err
		n.log.Error("this node does not take part in the group, and serves its own clients only", "error", err)
		return nil
	}
	if err != nil {
		return err
	}
	n.group, n.founded = group, group.Status().Cluster != ""
	return nil
}

// raftPeers returns the listed peers, or this node alone if none is listed.
func raftPeers(cfg *configs.Config, self configs.PeerEntry) []raft.Peer {
	listed := cfg.Peers
	isSelf := func(p configs.PeerEntry) bool { return p.ID == self.ID }
	if !slices.ContainsFunc(listed, isSelf) { // the group that it joins tells it the others
		listed = []configs.PeerEntry{self}
	}
	var peers []raft.Peer
	for _, p := range listed {
		role := p.Role
		if p.ID == self.ID {
			role = self.Role // its own word goes first
		}
		witness := role == configs.RoleWitness
		peers = append(peers, raft.Peer{ID: p.ID, Addr: p.AddrPort(), Further: p.Further, Witness: witness})
	}
	return peers
}

// askPeer returns how the page gets what the other peers see; a worker has none to ask.
func (n *node) askPeer() func(context.Context, string) ([]byte, error) {
	if n.cfg.Worker() {
		return nil
	}
	return func(ctx context.Context, id string) ([]byte, error) { return n.group.View(ctx, id) }
}

// proving is what the trials of this node's load balancers depend on.
func (n *node) proving() proving.Config {
	c := proving.Config{
		Self: n.site.self.ID, VIPs: n.cfg.VIPs, Interfaces: n.interfaces(),
		LoadBalancers: func() []balancer.LoadBalancer { return n.state.Load().LoadBalancers },
		Nodes:         func() []pathprobe.Node { return n.state.Load().Nodes },
		Health:        func() []balancer.LoadBalancerStatus { return n.balancer.Health() },
		HealthOf:      func(lb string) (balancer.LoadBalancerStatus, bool) { return n.balancer.HealthOf(lb) },
		ServedBy:      func(lb string) balancer.PlaneName { return n.balancer.ServedBy(lb) },
		Settled:       func(lb string, since time.Time) bool { return n.balancer.Settled(lb, since) },
		Reconsider:    func() { n.balancer.Reconsider() },
		Active:        func() bool { return n.holds.Load() || n.cfg.Routed() && !n.cfg.Announce.HolderOnly },
		Serves:        n.serves,
		Note:          n.observer.Note, Log: n.log,
	}
	if n.planes.Prober != nil {
		c.Path = n.planes.Prober.Path
	}
	if n.group != nil {
		c.Peers = func() []raft.PeerStatus { return n.group.Status().Peers }
		c.Ask = n.group.Try
	}
	return c
}

// tried tries another peer that has asked for it.
func (n *node) tried(ctx context.Context, question []byte) ([]byte, error) {
	if n.trials == nil {
		return nil, errors.New("this node serves no clients, and tries none")
	}
	return n.trials.Answer(ctx, question)
}

func (n *node) witness() bool { return n.site.self.Role == configs.RoleWitness }

func (n *node) interfaces() map[netip.Addr]string {
	on := make(map[netip.Addr]string)
	for _, v := range n.site.vips {
		on[v.Addr] = v.Interface
	}
	return on
}

// parts are the rooms in the order in which they start: the data plane is ready before the VIP is bound and the kernel
// silent, and both are before the node may be elected.
func (n *node) parts() []lifecycle.Part {
	parts := []lifecycle.Part{{Name: "desired state", Run: n.applyLoop}}
	if n.witness() {
		return append(parts,
			lifecycle.Part{Name: "group", Run: n.group.Run},
			lifecycle.Part{Name: "keys", Run: n.followKeys},
			lifecycle.Part{Name: "failovers", Run: n.noteFailovers},
			lifecycle.Part{Name: "holder", Run: n.followHolder},
		)
	}
	parts = append(parts,
		lifecycle.Part{Name: "connections' log", Run: n.connections.Run}, lifecycle.Part{Name: "names", Run: n.names.Run})
	var last []lifecycle.Part
	if n.planes.Direct != nil {
		// The balancer asks what the probes have found, so they begin first. They take leave of the other nodes when
		// they end, so that these send no new connection here; that comes before the VIP is given up.
		leave, gone := make(chan struct{}), make(chan struct{})
		parts = append(parts, lifecycle.Part{Name: "direct data plane", Run: func(ctx context.Context) error {
			err := n.followDirect(ctx, leave)
			close(gone)
			if err == nil {
				<-ctx.Done()
			}
			return err
		}})
		last = append(last, lifecycle.Part{Name: "leave", Run: func(ctx context.Context) error {
			n.planes.Prober.Open() // the VIPs are bound
			<-ctx.Done()
			close(leave)
			<-gone
			return nil
		}})
	}
	parts = append(parts, lifecycle.Part{Name: "balancer", Run: n.balancer.Run, Ready: n.balancer.Ready()})
	parts = append(parts, lifecycle.Part{Name: "proofs", Run: n.trials.Run})
	if n.planes.NFTables {
		parts = append(parts,
			lifecycle.Part{Name: "rules monitor", Run: n.followRules},
			lifecycle.Part{Name: "resets", Run: n.followRefusals},
			lifecycle.Part{Name: "beginnings", Run: n.planes.Begins.Run},
		)
	}
	if n.wire != nil {
		parts = append(parts, lifecycle.Part{Name: "virtual addresses", Run: n.wire.Run, Ready: n.wire.Ready()})
	}
	parts = append(parts, last...)
	if n.site.follows(n.cfg) {
		parts = append(parts, lifecycle.Part{Name: "list of the peers", Run: n.followPeers})
	}
	if n.planes.Handback != nil {
		parts = append(parts, lifecycle.Part{Name: "previous holder", Run: n.handBack})
	}
	if n.group != nil {
		parts = append(parts,
			lifecycle.Part{Name: "after the tenure", Run: n.lingerAfterTenure},
			lifecycle.Part{Name: "group", Run: n.group.Run},
			lifecycle.Part{Name: "peers' hosts", Run: n.followGroup},
			lifecycle.Part{Name: "tracks", Run: n.tracker.Run},
			lifecycle.Part{Name: "keys", Run: n.followKeys},
			lifecycle.Part{Name: "fitness", Run: n.followFitness},
			lifecycle.Part{Name: "holder", Run: n.followHolder},
			lifecycle.Part{Name: "failovers", Run: n.noteFailovers},
		)
		if n.announcer != nil {
			// A holder that stops hands over first, so that its successor announces before it withdraws.
			parts = append(parts, lifecycle.Part{Name: "announcements", Run: n.announcer.Run})
		}
		parts = append(parts,
			// Last to start and first to stop: no answer without the rest.
			lifecycle.Part{Name: "tenure", Run: func(ctx context.Context) error { return n.group.Lead(ctx, n.hold) }},
		)
	}
	if n.wire != nil {
		parts = append(parts, lifecycle.Part{Name: "interfaces", Run: n.followInterfaces})
	}
	return parts
}

// followDirect keeps the direct data plane's view of the link fresh, and lets the choice of plane and its rules follow
// it. Once leave is closed it ends; the plane's rules stay.
func (n *node) followDirect(ctx context.Context, leave <-chan struct{}) error {
	running, stop := context.WithCancel(ctx)
	defer stop()
	g, running := errgroup.WithContext(running)
	g.Go(func() error { return n.planes.Direct.Run(running) })
	g.Go(func() error {
		for {
			select {
			case <-n.planes.Direct.Changed():
				n.rememberWorkers()
				n.balancer.Reconsider()
				n.balancer.Reconcile()
			case <-leave:
				stop()
				return nil
			case <-running.Done():
				return nil
			}
		}
	})
	return g.Wait()
}

// followRules puts back at once what somebody else takes out of our rules: without them, the kernel would answer for
// the VIPs. What others change may be in clients' way.
func (n *node) followRules(ctx context.Context) error {
	err := ruleset.Monitor(ctx, func() {
		if n.wire != nil {
			n.wire.Recheck()
		}
		if n.planes.Handback != nil {
			n.planes.Handback.Recheck()
		}
		n.balancer.Reconcile()
	}, n.trials.Disturbed)
	if err != nil {
		n.log.Warn("rules that others remove are restored within seconds instead of at once", "reason", err)
		<-ctx.Done()
	}
	return nil
}

// followRefusals has backends that refuse clients checked at once.
func (n *node) followRefusals(ctx context.Context) error {
	if err := n.planes.Refusals.Run(ctx); err != nil {
		n.log.Warn("only the checks find backends that refuse clients, which takes longer", "reason", err)
		<-ctx.Done()
	}
	return nil
}

// close gives back what newNode opened, but for what is to linger.
func (n *node) close() error {
	var errs []error
	if n.observer != nil {
		errs = append(errs, n.observer.Close())
	}
	if n.group != nil {
		errs = append(errs, n.group.Close())
	}
	if n.planes != nil {
		errs = append(errs, n.planes.Close(n.lingers))
	}
	return errors.Join(errs...)
}

// light says whether this node leaves moving packets to the kernel or to others.
func (n *node) light() bool {
	forwards := func(lb balancer.LoadBalancer) bool { return lb.Plane == balancer.UserSpace }
	return n.witness() || n.planes.NFTables && !slices.ContainsFunc(n.state.Load().LoadBalancers, forwards)
}
