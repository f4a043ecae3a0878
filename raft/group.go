package raft

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	hraft "github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"

	"appliance/raft/auth"
	"appliance/raft/deathwatch"
	"appliance/raft/detector"
	"appliance/raft/feed"
	"appliance/raft/fence"
	"appliance/raft/giveway"
	"appliance/raft/lease"
	"appliance/raft/notify"
	"appliance/raft/peerport"
	"appliance/raft/raftlog"
	"appliance/raft/settings"
	"appliance/raft/standstill"
	"appliance/raft/store"
	"appliance/raft/transport"
)

// A Group is this peer's part in the group.
type Group struct {
	cfg  Config
	log  *slog.Logger
	hlog hclog.Logger

	port     *peerport.Port
	stream   *transport.Stream
	store    *store.Store
	settings *settings.FSM
	lease    *lease.Lease
	machine  *standstill.Watch // whether it stood still
	stood    atomic.Uint64     // how often it did
	grants   *lease.Grants
	fence    *fence.Fence // tells strangers from members
	twins    fence.Twins  // tells two processes with one id from one that was restarted
	// heartbeats are what the others have told this process of theirs
	heartbeats *lease.Heartbeats
	untold     notify.Signal // a peer that has told no heartbeat yet wants something
	// refitted fires when this peer, or another, is more or less fit; untoldCarrier when the others have to know.
	refitted, untoldCarrier notify.Signal
	watched                 *deathwatch.Watched
	detector                *detector.Detector
	packets                 detector.Packets // the detector's; nil without UDP
	links                   links
	feed                    feed.Publisher
	history                 *history
	known                   bool           // there was state when the process began
	position                store.Position // of the disk then
	replaces                string         // the group that was recovered as this one, as the disk has it

	change   notify.Signal
	grown    notify.Signal // the log has
	alone    chan struct{} // closed when no other process answers at this peer's address
	started  chan struct{} // closed when raft and trans are set
	raft     *hraft.Raft
	trans    *transport.Transport
	stopping chan struct{} // closed when Run is about to leave
	// fail makes Run end by itself; what fails first counts
	fail    context.CancelCauseFunc
	holding chan struct{} // one place: taken while hold may run
	ran     atomic.Bool
	closing sync.Once

	leading  atomic.Bool // Lead runs
	handover chan handover

	admitting chan struct{}  // one place: taken by who changes the members
	settling  chan struct{}  // one place: taken by who changes withheld, in memory and on disk
	commands  sync.WaitGroup // that raft has not answered yet
	giving    givingWay      // the leader loop's own
	slow      bool           // the log says that a disk is slow; the leader loop's own
	gaveWay   giveway.Limiter

	mu       sync.Mutex
	intent   intent
	phase    string
	down     bool // raft takes no more commands
	hellos   map[string]hello
	twice    map[string]string    // by who says so: that another process lives with this peer's id
	far      map[string]int       // by peer: how often in a row it was found too far for the heartbeat
	left     map[string]time.Time // by peer: when a process of it said that it leaves
	tenure   tenureState
	count    Counters
	written  string // the cluster id that is in the store
	learned  []Peer // the roster that is in the store, or that a member told
	latest   rosterKept
	refused  string // why the group does not want this peer, or ""
	disk     fence.Told
	floor    uint64 // the term up to which this peer gives no vote, after its disk went backwards
	withheld withheld
	fitness  Fitness
	onLink   []netip.Addr
	serves   bool
	// twiceSaid says that the log has that another process lives.
	twiceSaid bool
}

// Open takes what the peer needs from the host: data directory, keys, port. The group hears nothing of it
// before Run.
func Open(cfg Config) (*Group, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("group: %w", err)
	}
	g := &Group{
		cfg: cfg, log: cfg.Log, hlog: raftlog.New(cfg.Log),
		grants: lease.NewGrants(cfg.now),
		hellos: make(map[string]hello),
		twice:  make(map[string]string),
		far:    make(map[string]int),
		left:   make(map[string]time.Time),
		alone:  make(chan struct{}), started: make(chan struct{}), stopping: make(chan struct{}),
		handover: make(chan handover), holding: make(chan struct{}, 1), admitting: make(chan struct{}, 1),
		settling: make(chan struct{}, 1),
		phase:    "starting",
	}
	cred, err := cfg.Security.Credentials(cfg.ID, g.listed)
	if err != nil {
		return nil, fmt.Errorf("group: %w", err)
	}
	g.count.Ended = make(map[string]uint64)
	g.feed = feed.Publisher{Removed: g.isRemoved, HasLeader: g.hasLeader, Addrs: g.peerAddrs, Stopping: g.stopping}
	var process deathwatch.Incarnation
	rand.Read(process[:])
	g.watched = deathwatch.NewWatched(process)
	g.settings = settings.New(g.change.Fire)
	if g.store, err = store.Open(cfg.DataDir, cfg.disk, g.hlog); err != nil {
		return nil, err
	}
	if to, err := g.store.PutAside(); err != nil {
		return nil, err
	} else if to != "" {
		cfg.Log.Warn("this peer's own group has ended; its data is put aside, and the peer joins the other group",
			"data", to)
		if g.store, err = store.Open(cfg.DataDir, cfg.disk, g.hlog); err != nil {
			return nil, err
		}
	}
	if beat, ok := stretchedFrom(g.store.Own(store.StretchKey), cfg.floor); ok {
		cfg.Heartbeat, g.cfg.Heartbeat = beat, beat
	}
	g.history = newHistory(cfg.ID, cfg.Heartbeat, cfg.Log)
	g.heartbeats = lease.NewHeartbeats(cfg.Heartbeat, g.untold.Fire)
	g.lease = lease.New(cfg.ID, cfg.span(), cfg.now, func(peer string) bool {
		return g.heartbeats.Same(peer) && g.fence.Refusal(peer) == nil
	})
	g.detector = detector.New(hostOf(cfg.self()), process, cfg.Heartbeat, cfg.now, cfg.Log)
	g.detector.Follow(hostsOf(cfg.Peers))
	g.store.OnError, g.store.OnGrown, g.store.OnSlower = g.onDiskError, g.grown.Fire, g.change.Fire
	if err := g.store.CheckFormat(settings.FormatVersion); err != nil {
		g.store.Close()
		return nil, fmt.Errorf("data directory %s: %w", cfg.DataDir, err)
	}
	if g.known, err = g.store.HasState(); err != nil {
		g.store.Close()
		return nil, fmt.Errorf("data directory %s is %w: %w; "+
			"move it away, and this peer joins its group again as a new one",
			cfg.DataDir, store.ErrDamaged, err)
	}
	if err := g.readDisk(hex.EncodeToString(process[:])); err != nil {
		g.store.Close()
		return nil, fmt.Errorf("data directory %s is %w: %w; move it away, and this peer joins its group again as "+
			"a new one", cfg.DataDir, store.ErrDamaged, err)
	}
	g.learned = g.storedRoster()
	bind := cfg.Bind
	if cfg.SingleNode {
		bind = netip.AddrPort{}
	}
	if g.port, err = peerport.Listen(bind, cred, cfg.network, cfg.Log); err != nil {
		g.store.Close()
		return nil, err
	}
	if bind.IsValid() {
		if g.packets, err = cfg.packets(bind); err != nil {
			cfg.Log.Warn("no datagrams without the peer port's number in UDP; the loss of a host takes four "+
				"heartbeats or more to notice instead of half of one; find the program that has it", "port", bind, "error", err)
		}
	}
	g.machine = cfg.watchMachine()
	g.machine.Stood = func() {
		g.lease.Lapse()
		g.stood.Add(1)
	}
	g.stream = transport.NewStream(g.port, cfg.Addr)
	g.links = links{by: make(map[string]*peerport.ControlLink), open: func(p Peer) *peerport.ControlLink {
		l := g.port.Link(p.ID, p.Addr)
		l.Changed = func(s peerport.LinkState) { g.noteReach(p.ID, s) }
		return l
	}}
	g.relink(g.roster())
	return g, nil
}

// listed are the peers that an operator's certificate may be for.
func (g *Group) listed() []auth.Listed {
	var all []auth.Listed
	for _, p := range g.roster() {
		all = append(all, auth.Listed{ID: p.ID, Addr: p.Addr})
	}
	for _, at := range g.cfg.Join {
		all = append(all, auth.Listed{ID: at.String(), Addr: at})
	}
	return all
}

// SetKeys puts other group keys into force: the peer accepts all of them and shows the first on connections
// that begin from now on. Open connections stay, and so do the keys of datagrams, which belong to the
// process: somebody who has got hold of a group key is shut out for good only when every process has been
// restarted after the rotation.
func (g *Group) SetKeys(keys []auth.Key) error {
	if len(keys) == 0 || g.port.Insecure() || len(g.cfg.Security.Keys) == 0 {
		return errors.New("this group does not know its peers by a group key; restart the appliance to change that")
	}
	cred, err := auth.Security{Keys: keys, KeyFile: g.cfg.Security.KeyFile}.Credentials(g.cfg.ID, g.listed)
	if err != nil {
		return err
	}
	g.port.SetCredentials(cred)
	return nil
}

// Close gives back what Open took. It is for a Group on which Run was not called; Run closes it itself.
func (g *Group) Close() error {
	var err error
	g.closing.Do(func() {
		g.history.close()
		g.port.Close()
		if g.packets != nil {
			g.packets.Close()
		}
		g.machine.Close()
		g.stream.Close()
		err = g.store.Close()
	})
	return err
}

// Run takes part in the group until ctx ends. Then it leaves in order: no more answers, leadership handed
// over, goodbye, raft stopped, port and disk closed. It is called once.
func (g *Group) Run(ctx context.Context) error {
	if g.ran.Swap(true) {
		return errors.New("group: Run was called before")
	}
	defer g.Close()
	// The parts outlive ctx: leaving needs them.
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	parts, inner := errgroup.WithContext(inner)
	going, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	g.fail = fail
	parts.Go(func() error {
		return g.port.Serve(map[byte]func(net.Conn, auth.Identity){
			peerport.PreambleRaft:  func(c net.Conn, _ auth.Identity) { g.stream.Handle(c) },
			peerport.PreambleWatch: func(c net.Conn, _ auth.Identity) { g.watched.Handle(c) },
			peerport.PreambleControl: func(c net.Conn, who auth.Identity) {
				quiet := false
				peerport.AnswerLines(inner, c, who, func(ctx context.Context, r request) reply {
					if r.Op == opTry && !quiet { // the other end's Beside
						peerport.Quiet(c)
						quiet = true
					}
					return g.answer(ctx, who, peerport.Source(c), r)
				})
			},
		})
	})
	parts.Go(func() error { return g.followRoster(inner) })
	parts.Go(func() error { return g.report(inner) })
	parts.Go(func() error {
		if err := g.machine.Listen(inner, func() { g.lookAtMachine() }); err != nil {
			g.log.Debug("the kernel does not tell when the machine is started from a snapshot", "error", err)
		}
		return nil
	})

	err := g.begin(going, parts, inner)
	if err == nil {
		select {
		case <-going.Done():
		case <-inner.Done():
		}
	}
	if going.Err() != nil {
		err = nil
		if ctx.Err() == nil {
			err = context.Cause(going)
			level := slog.LevelError
			if errors.Is(err, ErrHeartbeat) {
				level = slog.LevelWarn
			}
			g.log.Log(ctx, level, "leaving the group", "error", err)
		}
	}
	g.leave()
	cancel()
	g.port.Close()
	if failure := parts.Wait(); err == nil {
		err = failure
	}
	for _, l := range g.links.all() {
		l.Close()
	}
	return err
}

// begin gets state if there is none, and starts raft.
func (g *Group) begin(ctx context.Context, parts *errgroup.Group, inner context.Context) error {
	if err := g.awaitTwin(ctx); err != nil {
		return err
	}
	close(g.alone)
	if g.known {
		if err := g.checkCluster(ctx); err != nil {
			return err
		}
		// A peer that has just restarted does not know whether there is a leader, and would vote for anybody.
		// After one heartbeat there is either no leader, or its message is on the way. By then the grants
		// that the former process made, and that this one knows nothing of, are too old to matter; so the
		// wait is the former process's heartbeat if that was longer.
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

// lastHeartbeat is the heartbeat of the process before this one, 0 if it is not known.
func (g *Group) lastHeartbeat() time.Duration {
	beat, _ := time.ParseDuration(g.store.Own(store.HeartbeatKey))
	return beat
}

// ErrHeartbeat ends Run where the peers are farther apart than the heartbeat allows. The next Open takes the longer one
// that Run has stored: within a process every lease has one length, package lease.
var ErrHeartbeat = errors.New("the group takes a longer heartbeat")

// looksAtFar is how often in a row a peer has to be found too far for the heartbeat.
const looksAtFar = 3

// followHeartbeat has this peer begin anew with a longer heartbeat if o has one, or if the round trip to o asks for it.
// Only what was stretched from the same value counts: a file that says something else is its operator's word.
func (g *Group) followHeartbeat(o hello, trip time.Duration) error {
	if o.Floor != g.cfg.floor || !lease.Stretches(o.Floor, o.Heartbeat) {
		return nil
	}
	beat, why := o.Heartbeat, "peer "+o.ID+" has it"
	fitting := lease.Fitting(g.cfg.floor, g.cfg.Heartbeat, trip)
	if trip != 0 {
		g.mu.Lock()
		g.far[o.ID]++
		if fitting <= g.cfg.Heartbeat {
			g.far[o.ID] = 0
		}
		// A single look may have met a host that stood still.
		if g.far[o.ID] < looksAtFar {
			fitting = 0
		}
		g.mu.Unlock()
	}
	if fitting > beat {
		beat, why = fitting, fmt.Sprintf("a round trip to peer %s takes %v", o.ID, trip.Round(time.Millisecond))
	}
	if beat <= g.cfg.Heartbeat {
		return nil
	}
	err := g.store.SetOwn(store.StretchKey, g.cfg.floor.String()+" "+beat.String())
	if err != nil {
		g.log.Warn("cannot take the longer heartbeat that the group needs: free some space", "heartbeat", beat,
			"because", why, "dir", g.cfg.DataDir, "error", err)
		return nil
	}
	err = fmt.Errorf("%w: %v instead of %v, because %s", ErrHeartbeat, beat, g.cfg.Heartbeat, why)
	g.fail(err)
	return err
}

// stretchedFrom is the heartbeat that this peer is to have instead of floor, from the store.
func stretchedFrom(stored string, floor time.Duration) (beat time.Duration, ok bool) {
	from, to, _ := strings.Cut(stored, " ")
	if was, err := time.ParseDuration(from); err != nil || was != floor {
		return 0, false // the operator has written another one since
	}
	beat, err := time.ParseDuration(to)
	return beat, err == nil && lease.Stretches(floor, beat)
}

// rememberHeartbeat stores the heartbeat. It comes before the first grant of this process.
func (g *Group) rememberHeartbeat() error {
	if g.lastHeartbeat() == g.cfg.Heartbeat {
		return nil
	}
	if err := g.store.SetOwn(store.HeartbeatKey, g.cfg.Heartbeat.String()); err != nil {
		return fmt.Errorf("data directory %s: %w; free some space, and start again", g.cfg.DataDir, err)
	}
	return nil
}

// electionTimeout is raft's while disks are fast.
func (g *Group) electionTimeout() time.Duration {
	if g.cfg.self().Witness {
		// A witness can only hand leadership on; let the others stand first.
		return 2 * g.cfg.raftTimeout()
	}
	return g.cfg.raftTimeout()
}

func (g *Group) raftConfig(notify chan<- bool) *hraft.Config {
	c := hraft.DefaultConfig()
	c.LocalID = hraft.ServerID(g.cfg.ID)
	c.HeartbeatTimeout = g.electionTimeout()
	c.ElectionTimeout = c.HeartbeatTimeout
	// The leader steps down soon after its lease has run out; until then it can renew it in the same term.
	c.LeaderLeaseTimeout = g.cfg.raftTimeout()
	c.CommitTimeout = 50 * time.Millisecond
	c.NotifyCh = notify
	c.Logger = g.hlog
	c.ShutdownOnRemove = false // a removed peer says so and does not vanish
	c.NoLegacyTelemetry = true
	// Settings are small and rarely change: a snapshot every 1,024 changes.
	c.SnapshotThreshold = 1024
	c.TrailingLogs = 1024
	return c
}

func (g *Group) start(parts *errgroup.Group, inner context.Context) error {
	g.trans = transport.New(g.stream, g.cfg.Heartbeat, transport.Rules{
		Heard: g.heard, Granted: g.lease.Grant, Now: g.cfg.now, Removed: g.isRemoved, Refusal: g.refusalOf,
		Withheld: g.withholds, Follow: g.grants.Follow, Admits: g.fence.Admits, Grown: &g.grown, Patience: g.Patience,
		Stamp: func(peer string) (string, bool) {
			t, told := g.fence.Told(peer)
			return g.cluster(), !told || t.Fenced
		},
	}, g.hlog)
	notify := make(chan bool, 16)
	r, err := hraft.NewRaft(g.raftConfig(notify), g.settings, g.store, g.store, g.store.Snaps, g.trans)
	if broken := g.settings.Err(); err != nil && broken != nil {
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
	parts.Go(func() error { return g.trans.Relay(inner) })
	parts.Go(func() error { return g.signals(inner, notify, seen) })
	parts.Go(func() error { return g.leaderLoop(inner) })
	parts.Go(func() error { return g.tellCarrier(inner) })
	parts.Go(func() error { return g.detect(inner) })
	parts.Go(func() error { g.standFirst(inner); return nil })
	g.change.Fire()
	return nil
}

// standFirst has the most wanted of those who begin at the same time stand for election at once: raft's own timeout is
// for a leader that was there. When a group is founded it waits for all, since nobody may begin it after a vote
// (justBootstrapped); later a majority will do. If it cannot be said who that is, the timeout decides.
func (g *Group) standFirst(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, g.cfg.raftTimeout())
	defer cancel()
	for {
		voters := g.voters(nil)
		begun := map[string]bool{g.cfg.ID: true}
		if len(voters) > 1 {
			for _, h := range g.ask(ctx) {
				if h.Leader != "" {
					return
				}
				begun[h.ID] = h.HasState
			}
		}
		all := len(voters)
		voters = slices.DeleteFunc(voters, func(id string) bool { return !begun[id] })
		if leader, _ := (&elections{Group: g}).Follows(); leader != "" || g.raft.State() != hraft.Follower {
			return
		}
		if n := len(voters); n == all || n > all/2 && g.raft.CurrentTerm() > 1 {
			for _, p := range g.byPreference() {
				if !p.Witness && slices.Contains(voters, p.ID) {
					if p.ID == g.cfg.ID {
						_ = g.trans.Stand(ctx)
					}
					return
				}
			}
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(g.cfg.Heartbeat / 10):
		}
	}
}

// running is raft once it has been started, and nil before.
func (g *Group) running() *hraft.Raft {
	select {
	case <-g.started:
		return g.raft
	default:
		return nil
	}
}

// command waits for raft's answer to what ask has asked of it. Raft answers everything within an election, but forgets
// some of what it has not answered when it is shut down, and whoever waits for that waits for ever: so leave shuts it
// down when nobody waits.
func (g *Group) command(ask func(*hraft.Raft) hraft.Future) error {
	g.mu.Lock()
	if g.down {
		g.mu.Unlock()
		return hraft.ErrRaftShutdown
	}
	g.commands.Add(1)
	g.mu.Unlock()
	defer g.commands.Done()
	return ask(g.raft).Error()
}

// leave ends this peer's part, in the order that Run promises.
func (g *Group) leave() {
	close(g.stopping)
	g.holding <- struct{}{} // hold has returned, and is not called again: no more answers
	defer func() { <-g.holding }()
	g.watched.Silent()
	g.store.Stop()
	select {
	case <-g.started:
	default:
		g.watched.Goodbye()
		g.stream.Close()
		return
	}
	if g.raft.State() == hraft.Leader && g.others() > 0 && g.store.Own(store.AsideKey) == "" {
		ctx, cancel := context.WithTimeout(context.Background(), 10*g.cfg.Heartbeat)
		if err := g.handOver(ctx, ""); err != nil {
			g.log.Warn("leaving without a hand-over; the others elect after a heartbeat", "error", err)
		}
		cancel()
	}
	g.watched.Goodbye()
	g.mu.Lock()
	g.down = true
	g.mu.Unlock()
	g.commands.Wait()
	done := g.raft.Shutdown()
	g.trans.Close() // ends RPCs that Shutdown would wait for
	g.trans.CloseStreams()
	if err := done.Error(); err != nil {
		g.log.Warn("raft did not stop cleanly", "error", err)
	}
	g.change.Fire()
}

// signals passes raft's notifications on as changes. It never waits for anybody, because raft's main loop
// waits for it.
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
		g.log.Error("cannot write to the data directory: this peer neither votes nor holds until it can; "+
			"free some space",
			"dir", g.cfg.DataDir, "free", store.Free(g.cfg.DataDir), "error", err)
	} else {
		g.log.Info("the data directory can be written again", "dir", g.cfg.DataDir)
	}
	g.change.Fire()
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
