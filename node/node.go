package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"appliance/arp"
	"appliance/balancer"
	"appliance/balancer/forward"
	"appliance/configs"
	"appliance/hook"
	"appliance/ipvs"
	"appliance/manifest"
	"appliance/nft"
	"appliance/raft"
	"appliance/track"
)

// A node is this node's rooms, wired. A witness has a group and nothing else; a
// worker has everything but a group.
type node struct {
	cfg     *configs.Config
	site    site
	log     *slog.Logger
	started time.Time
	version string

	group    *raft.Group          // nil for a worker
	broken   error                // why a peer has no group all the same
	setting  sync.Mutex           // held while the balancer gets other load balancers
	list     atomic.Pointer[list] // what a worker has from the peers
	wire     *arp.Wire            // nil for a witness, and for a worker without VIPs
	balancer *balancer.Balancer
	sight    *sight
	tracker  *track.Tracker
	hooks    *hook.Hooks
	// serving is what is in force now, after a reload too; reloaded says that
	// it is another.
	serving  atomic.Pointer[configs.Config]
	reloaded chan struct{}
	// claim is what the tracks say; claimed says that it is another.
	claim    atomic.Pointer[track.Claim]
	claimed  chan struct{}
	direct   *nft.Direct
	prober   *nft.EthernetProber // of direct
	met      []nft.Node          // the nodes that direct knows; guarded by setting
	recalled []netip.Addr        // the workers on disk; owned by followDirect
	// left is until when workers that have left are nodes; guarded by setting.
	left map[netip.Addr]time.Time
	// probing is what path probes are signed with.
	probing  atomic.Pointer[probeSecrets]
	refusals *nft.Refusals // of the kernel's planes that translate
	handback *nft.Handback // nil without a group, and without nf_tables
	nftables bool          // rules of ours are in nf_tables
	closers  []io.Closer   // what newNode opened, in the order of closing
	// kernel is what goes on without this process, in the order of closing. It
	// stays when the node lingers.
	kernel  []io.Closer
	lingers bool
	// tenureEnded is when this node last ceased to be holder.
	tenureEnded atomic.Pointer[time.Time]
}

// newNode opens what the node needs. Nothing on the host is changed yet, but
// for files in the data directory.
func newNode(cfg *configs.Config, site site, version string, log *slog.Logger) (n *node, err error) {
	n = &node{cfg: cfg, site: site, version: version, log: log, started: time.Now(), reloaded: make(chan struct{}, 1), claimed: make(chan struct{}, 1)}
	n.serving.Store(cfg)
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
			n = nil
		}
	}()

	o, err := openOutside(cfg)
	if err != nil {
		return n, err
	}
	n.hooks = hook.New(log)
	n.hooks.Set(o.hooks)
	n.tracker = track.New(track.Config{Changed: n.tracked, Log: log})
	n.tracker.Set(o.tracks)
	n.sight = openSight(cfg, site.self.ID, version, log, n.snapshot, n.askPeer())
	n.closers = append(n.closers, n.sight)
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
	silencer, planes, err := n.openPlanes()
	if err != nil {
		return n, err
	}
	if len(site.vips) > 0 {
		n.wire, err = arp.Open(arp.Config{VIPs: site.vips, Silencer: silencer, Linger: n.linger, OnForeign: n.sight.claimed, Log: log})
		if err != nil {
			return n, err
		}
	}
	n.balancer, err = balancer.New(balancer.Config{
		Planes: planes, LoadBalancers: loadBalancers(n.grown(cfg)), OnEvent: n.balanced, OnCheck: n.sight.metrics.Checked, Log: log,
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
		OnCommit:      n.sight.metrics.Committed,
		View:          n.view,
	})
	if errors.Is(err, raft.ErrDamaged) && !n.witness() {
		// A vote that may be wrong is worse than none. The clients on this node
		// are served all the same.
		n.broken = err
		n.log.Error("this node does not take part in the group, and serves its own clients only", "error", err)
		return nil
	}
	if err != nil {
		return err
	}
	n.group = group
	n.closers = append(n.closers, n.group)
	return nil
}

func (n *node) witness() bool { return n.site.self.Role == configs.RoleWitness }

// openPlanes chooses what keeps the kernel silent, and lists the data planes in the
// order of preference. Without nf_tables little is left, and it is said.
func (n *node) openPlanes() (arp.Silencer, []balancer.Plane, error) {
	if len(n.site.vips) == 0 {
		// A worker that listens on addresses of its own needs nothing of the kernel.
		user := forward.New(forward.Config{Report: n.report, Log: n.log, Loops: loops()})
		n.closers = append(n.closers, user)
		return nil, []balancer.Plane{user}, nil
	}
	if missing := nft.Available(); missing != nil {
		n.log.Warn("without nf_tables: the kernel is kept silent by sysctls, and user space forwards on the load balancers' own ports", "reason", missing)
		user := forward.New(forward.Config{Report: n.report, Log: n.log, Loops: loops()})
		n.closers = append(n.closers, user)
		return arp.NewSysctls(sysctls()), []balancer.Plane{user}, nil
	}

	n.nftables = true
	silencer, redirector, masquerader := &nft.Silencer{}, &nft.Redirector{}, &nft.Masquerader{}
	refuser := &nft.Refuser{}
	access := &nft.Access{}
	virtual, err := ipvs.New(ipvs.Config{Masquerader: masquerader, Refuser: refuser, Sysctls: sysctls(), Log: n.log})
	if err != nil {
		return nil, nil, err
	}
	nat := nft.NewNAT(sysctls())
	user := forward.New(forward.Config{Redirector: redirector, Report: n.report, Log: n.log, Loops: loops()})
	n.refusals = nft.NewRefusals(func(t balancer.Target) { n.report(t, errRefused) }, n.log)
	planes := []balancer.Plane{
		meterIPVS(access.Guard(n.refusals.Watch(virtual, nft.AgainByIPVS), "persistence"), virtual),
		meterNAT(access.Guard(n.refusals.Watch(nat, nft.AgainByNAT)), nat),
		user,
	}
	// Planes are closed before the rules that they stand on.
	n.closers = append(n.closers, user, redirector)
	n.kernel = []io.Closer{virtual, nat, n.refusals, access, refuser, masquerader, silencer}
	if n.group != nil {
		n.handback = &nft.Handback{}
	}
	n.met = n.neighbours(n.grown(n.cfg))
	secrets := n.probeSecrets()
	n.probing.Store(&secrets)
	n.prober = nft.NewProber(nft.ProberConfig{
		Interfaces: n.interfaces(),
		Nodes:      n.met,
		Self:       n.site.self.ID,
		Worker:     n.cfg.Worker(),
		Keys:       secrets.own,
		WorkerKeys: secrets.workers,
		Reached:    n.recallWorkers(),
		Log:        n.log,
	})
	n.direct = nft.NewDirect(nft.DirectConfig{
		Interfaces: n.interfaces(),
		Nodes:      n.met,
		Self:       n.site.self.ID,
		Worker:     n.cfg.Worker(),
		Prober:     n.prober,
		Log:        n.log,
	})
	n.kernel = append([]io.Closer{n.direct}, n.kernel...)
	return silence{silencer, arp.NewBelt(sysctls()), n.log, new(sync.Once)}, append([]balancer.Plane{meterDirect(access.Guard(n.direct), n.direct)}, planes...), nil
}

// sysctls is where kernel settings can be written: where the manifest mounts
// the host's, or the usual place, which is empty here.
func sysctls() string {
	if _, err := os.Stat(manifest.HostSysctls); err == nil {
		return manifest.HostSysctls
	}
	return ""
}

// silence hands the wire's wishes to nf_tables; the two rooms do not know
// each other. The belt keeps the kernel from answering for the VIPs in the moment
// between somebody's `nft flush ruleset` and the repair.
type silence struct {
	*nft.Silencer
	belt *arp.Sysctls
	log  *slog.Logger
	said *sync.Once
}

func (s silence) Silence(ctx context.Context, set []arp.Silenced) (repaired int, err error) {
	if _, err := s.belt.Silence(ctx, set); err != nil {
		s.said.Do(func() { s.log.Debug("the rules alone keep the kernel silent", "reason", err) })
	}
	wanted := make([]nft.Silenced, len(set))
	for i, one := range set {
		wanted[i] = nft.Silenced(one)
	}
	return s.Silencer.Silence(ctx, wanted)
}

// errRefused is what a packet that refuses a client says.
var errRefused = fmt.Errorf("refuses connections of clients: %w", unix.ECONNREFUSED)

// report hands what real connections saw to the checks.
func (n *node) report(t balancer.Target, err error) { n.balancer.Report(t, err) }

func (n *node) interfaces() map[netip.Addr]string {
	on := make(map[netip.Addr]string)
	for _, v := range n.site.vips {
		on[v.Addr] = v.Interface
	}
	return on
}

// parts are the rooms in the order in which they start: the data plane is ready
// before the VIP is bound and the kernel silent, and both are before the node
// may be elected.
func (n *node) parts() []part {
	if n.witness() {
		return []part{{name: "group", run: n.group.Run}, {name: "chronicle", run: n.keepChronicle}}
	}
	var parts, last []part
	if n.direct != nil {
		// The balancer asks what the probes have found, so they begin first. They
		// say farewell to the other nodes when they end, so that these send no new
		// connection here any more; that comes before the VIP is given up.
		farewell, gone := make(chan struct{}), make(chan struct{})
		parts = append(parts, part{name: "direct data plane", run: func(ctx context.Context) error {
			err := n.followDirect(ctx, farewell)
			close(gone)
			if err == nil {
				<-ctx.Done()
			}
			return err
		}})
		last = append(last, part{name: "farewell", run: func(ctx context.Context) error {
			n.prober.Open() // the VIPs are bound
			<-ctx.Done()
			close(farewell)
			<-gone
			return nil
		}})
	}
	parts = append(parts, part{name: "balancer", run: n.balancer.Run, ready: n.balancer.Ready()})
	if n.nftables {
		parts = append(parts,
			part{name: "rules watch", run: n.followRules},
			part{name: "refusals", run: n.followRefusals},
		)
	}
	if n.wire != nil {
		parts = append(parts, part{name: "virtual addresses", run: n.wire.Run, ready: n.wire.Ready()})
	}
	parts = append(parts, last...)
	if n.site.follows(n.cfg) {
		parts = append(parts, part{name: "list of the peers", run: n.followPeers})
	}
	if n.handback != nil {
		parts = append(parts, part{name: "open connections", run: n.handBack})
	}
	if n.group != nil {
		parts = append(parts,
			part{name: "after the tenure", run: n.lingerAfterTenure},
			part{name: "group", run: n.group.Run},
			part{name: "group watch", run: n.followGroup},
			part{name: "tracks", run: n.tracker.Run},
			part{name: "members", run: n.followMembers},
			part{name: "keys", run: n.followKeys},
			part{name: "orders", run: n.followOrders},
			part{name: "fitness", run: n.followFitness},
			part{name: "chronicle", run: n.keepChronicle},
			// Last to start and first to stop: no answer without the rest.
			part{name: "tenure", run: func(ctx context.Context) error { return n.group.Lead(ctx, n.hold) }},
		)
	}
	return parts
}

// followDirect keeps the direct data plane's view of the link fresh, and lets
// the choice of plane and its rules follow it. Farewell ends that; the plane's
// rules stay.
func (n *node) followDirect(ctx context.Context, farewell <-chan struct{}) error {
	running, stop := context.WithCancel(ctx)
	defer stop()
	g, running := errgroup.WithContext(running)
	g.Go(func() error { return n.direct.Run(running) })
	g.Go(func() error {
		for {
			select {
			case <-n.direct.Changed():
				n.rememberWorkers()
				n.balancer.Reconsider()
				n.balancer.Reconcile()
			case <-farewell:
				stop()
				return nil
			case <-running.Done():
				return nil
			}
		}
	})
	return g.Wait()
}

// followRules puts back what somebody else takes out of our rules, without
// waiting for the next round: without the silence, the kernel would answer for
// the VIPs.
func (n *node) followRules(ctx context.Context) error {
	err := nft.Watch(ctx, func() {
		if n.wire != nil {
			n.wire.Recheck()
		}
		if n.handback != nil {
			n.handback.Recheck()
		}
		n.balancer.Reconcile()
	})
	if err != nil {
		n.log.Warn("rules that vanish are put back within seconds instead of at once", "reason", err)
		<-ctx.Done()
	}
	return nil
}

// followRefusals has backends checked at once that refuse clients.
func (n *node) followRefusals(ctx context.Context) error {
	if err := n.refusals.Run(ctx); err != nil {
		n.log.Warn("backends that refuse clients are found by the checks alone, which takes longer", "reason", err)
		<-ctx.Done()
	}
	return nil
}

// hold is a tenure.
func (n *node) hold(ctx context.Context, may func() bool) error {
	n.tell(hook.Event{Name: hook.Holder})
	defer func() {
		now := time.Now()
		n.tenureEnded.Store(&now)
		n.tell(hook.Event{Name: hook.Released})
	}()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.wire.Answer(ctx, may) })
	g.Go(func() error { return n.yieldWithoutCarrier(ctx) })
	return g.Wait()
}

// retryTransfer is the pause between two tries to hand over what this node can
// no longer answer for.
const retryTransfer = 5 * time.Second

// yieldWithoutCarrier hands the VIPs over when this node's own link is gone: a
// peer that clients can reach takes over without waiting for a timeout. If the
// group's traffic went over the same link, nobody hears it, and the timeout is
// what is left.
func (n *node) yieldWithoutCarrier(ctx context.Context) error {
	for {
		up, changed := n.wire.Carrier()
		var again <-chan time.Time
		if !up {
			// If it succeeds, ctx ends with the tenure.
			if err := n.group.Transfer(ctx, ""); err != nil && ctx.Err() == nil {
				n.log.Debug("no carrier, and nobody to hand over to", "error", err)
			}
			again = time.After(retryTransfer)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-again:
		}
	}
}

// linger says for how long the VIPs stay on lo after the node has stopped. Where
// the kernel moves the packets, it goes on moving those of open connections,
// and a new life finds everything as it was. User space ends with the process.
func (n *node) linger() time.Duration {
	for _, lb := range n.balancer.Health() {
		if n.cfg.Linger > 0 && lb.Plane != "" && lb.Plane != balancer.UserSpace {
			n.lingers = true
			return n.cfg.Linger
		}
	}
	return 0
}

// close gives back what newNode opened, but for what is to linger.
func (n *node) close() error {
	var errs []error
	for _, c := range n.closers {
		errs = append(errs, c.Close())
	}
	if n.lingers {
		return errors.Join(errs...)
	}
	for _, c := range n.kernel {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// loadBalancers turns the config's words into the balancer's.
func loadBalancers(cfg *configs.Config) []balancer.LoadBalancer {
	var lbs []balancer.LoadBalancer
	for _, c := range cfg.LoadBalancers {
		lb := balancer.LoadBalancer{
			Name:           c.Name,
			Scheduler:      balancer.Scheduler(c.Scheduler),
			Plane:          balancer.PlaneName(c.DataPlane),
			ConnectTimeout: c.ConnectTimeout,
			Check:          Check(c.Check),
			MaxFails:       c.MaxFails,
			FailTimeout:    c.FailTimeout,
			TryDown:        c.TryDown,
			Handling:       handling(c),
		}
		for _, b := range c.Backends {
			lb.Backends = append(lb.Backends, balancer.Backend{Name: b.Name, Addr: b.Address, Weight: b.Weight, Backup: b.Backup,
				MaxConn: b.MaxConn, MaxQueue: b.MaxQueue, SlowStart: b.SlowStart})
		}
		addrs := c.VIPs
		if !c.BindToVIP {
			addrs = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
		}
		for _, a := range addrs {
			lb.Frontends = append(lb.Frontends, netip.AddrPortFrom(a, c.Port))
		}
		if len(lb.Frontends) > 0 {
			lbs = append(lbs, byFamily(lb)...)
		}
		// The node's own addresses are user space's business: the kernel's data
		// planes cannot lead packets away from loopback.
		if len(c.Listen) > 0 {
			local := lb
			local.Name, local.Plane, local.Frontends = lb.Name+"-local", balancer.UserSpace, nil
			local.Backends = once(lb.Backends)
			for _, a := range c.Listen {
				local.Frontends = append(local.Frontends, netip.AddrPortFrom(a, c.Port))
			}
			lbs = append(lbs, local)
		}
	}
	return lbs
}

// once is backends with each server once: one that is there in both families
// has the same name twice.
func once(backends []balancer.Backend) []balancer.Backend {
	var list []balancer.Backend
	for _, b := range backends {
		if b.Name == "" || !slices.ContainsFunc(list, func(o balancer.Backend) bool { return o.Name == b.Name }) {
			list = append(list, b)
		}
	}
	return list
}

// byFamily splits a load balancer of both families in two, so that each gets
// the best data plane that its own backends allow. A family without backends
// of its own keeps all of them; user space translates.
func byFamily(lb balancer.LoadBalancer) []balancer.LoadBalancer {
	four, six := lb, lb
	six.Name += "-ipv6"
	is4 := func(a netip.AddrPort) bool { return a.Addr().Unmap().Is4() }
	four.Frontends, six.Frontends = split(lb.Frontends, is4)
	if len(four.Frontends) == 0 || len(six.Frontends) == 0 {
		return []balancer.LoadBalancer{lb}
	}
	own4, own6 := split(lb.Backends, func(b balancer.Backend) bool { return is4(b.Addr) })
	if len(own4) > 0 {
		four.Backends = own4
	}
	if len(own6) > 0 {
		six.Backends = own6
	}
	return []balancer.LoadBalancer{four, six}
}

// split separates the elements that are from those that are not.
func split[T any](all []T, is func(T) bool) (yes, no []T) {
	for _, one := range all {
		if is(one) {
			yes = append(yes, one)
		} else {
			no = append(no, one)
		}
	}
	return yes, no
}
