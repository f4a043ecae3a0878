package direct

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"appliance/balancer"
	"appliance/neighbours"
	"appliance/nft/conntrack"
	"appliance/nft/ruleset"
	"appliance/nft/tunnel"
	"appliance/pathprobe"
)

// Config is what New needs to know.
type Config struct {
	// Interfaces says on which interface each VIP is answered.
	Interfaces map[netip.Addr]string
	// Nodes are all nodes, this one too, until SetNodes says otherwise.
	Nodes []pathprobe.Node
	// Self is the ID of this node.
	Self string
	// Worker says that this node is outside the group: nobody hands packets to it
	// for a load balancer without a backend here.
	Worker bool
	// Tunnel leads to nodes behind another router. Nil: there is none.
	Tunnel Tunnel
	// Routed are the VIPs that routers lead to any node, wherever that is.
	Routed []netip.Addr
	// Prober says which paths are proved. Nil takes all of them for proved.
	Prober PathProber
	// Owner owns the tables. Nil means that anybody may change them.
	Owner *ruleset.Owner
	// Log gets one line for each change. Nil means slog.Default().
	Log *slog.Logger
}

// A Tunnel is a link of this node's own, on which it has nodes that are on none of the others.
type Tunnel interface {
	// Lead has the tunnel lead from this node's own address to the ends. Without any, there is no link.
	Lead(own netip.Addr, ends []tunnel.End) error
	// Carries is how long a packet may be that is carried in one piece.
	Carries() int
}

// A PathProber proves that the network carries a client's packets from this node to
// another. Hypervisors with address filters drop them.
type PathProber interface {
	// Want adds frontends to those to which paths are proved.
	Want(frontends []netip.AddrPort)
	// SetNodes replaces the nodes to which paths are proved.
	SetNodes(nodes []pathprobe.Node)
	// InForce says which nodes the plane's rules know as nodes, and, for each
	// frontend that is served, to which nodes its packets are handed on. Nil nodes
	// mean that there are no rules.
	InForce(known map[string]bool, handsTo map[netip.AddrPort]map[string]bool)
	// SetVanished says which peers' hosts are silent, and whether this node is cut off. It returns true if that changes
	// the answer of Path.
	SetVanished(peers map[string]bool, cutOff bool) bool
	// Path says what is known of the path to a node.
	Path(frontend netip.AddrPort, node string) pathprobe.Path
	// Proof says what a worker has proved of itself.
	Proof(node string) pathprobe.Proof
	// Hurry has the nodes to which no path is proved probed at once.
	Hurry()
	// Run probes until ctx ends, and calls changed whenever the answer of Path has
	// changed.
	Run(ctx context.Context, changed func()) error
}

// DataPlane is the data plane that hands a client's packet to the chosen node
// unchanged, by its MAC address. See prefer for how the node is chosen, and
// rulePlan for the rules.
//
// Only the servers keep state about connections, in their sockets. A packet goes to
// the owner of its slot; a node that does not have the connection hands the packet
// on until a node has it; see service.next. So an open connection survives a change
// of the holder, of the set of backends, and of both at once. Nothing breaks while
// one backend is in the files of some nodes only. A new connection that reaches a
// node without a listener goes on in the same way.
//
// This does not cover idle clients: nobody knows of their connections, so they do
// not learn of the death of their server's host before their keepalive.
//
// The fragments of a packet, of which only the first has ports, all stay with the
// holder, whatever their order: its kernel puts them together, and the whole packet goes
// to the owner of its slot from there, as do TCP packets behind IPv6 extension headers.
// So every node chooses by the same addresses and ports, and nobody remembers anything.
//
// Run's goroutine follows links and neighbours; the prober has its own goroutines.
// Apply may be called at the same time.
type DataPlane struct {
	cfg        Config
	links      []string // the names of the interfaces, sorted
	nodes      atomic.Pointer[[]pathprobe.Node]
	neighbours *neighbours.Cache
	changed    chan struct{}
	last       atomic.Pointer[applyResult] // nil before the first Apply
	cut        atomic.Pointer[map[netip.Addr][]string]

	mu sync.Mutex
	// configured are the backends of each load balancer, healthy or not: the table
	// is made for all of them, so that the absence of one moves no slot of the
	// others.
	configured  map[string][]balancer.Backend
	preferences map[string]preference // by fingerprint of the members
	// newcomers have been added to the nodes and were never ready yet: they have no connections, and may not know to whom
	// to hand on those of others.
	newcomers    map[string]bool
	workersSince map[string]time.Time // when workers were added, or could be asked first
	// leads says that the tunnel leads somewhere. The device of an earlier process stays until then, or until Close.
	leads   bool
	leadErr string // why it does not lead where it should
	// mayTunnel are the frontends of each load balancer that this plane could serve through the tunnel.
	mayTunnel map[string][]netip.AddrPort
	running   bool
	tables    [3]ruleset.Reconciler
	defrag    ruleset.Defragmenter
	applied   []balancer.Service
	inForce   rulePlan
	natNeeded time.Time // when clients here last needed other nodes; zero: unknown
	tried     bool      // the kernel takes the rules
}

// New returns the plane. It touches nothing before Apply.
func New(cfg Config) *DataPlane {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	d := &DataPlane{
		cfg:          cfg,
		changed:      make(chan struct{}, 1),
		configured:   make(map[string][]balancer.Backend),
		preferences:  make(map[string]preference),
		newcomers:    make(map[string]bool),
		workersSince: make(map[string]time.Time),
		mayTunnel:    make(map[string][]netip.AddrPort),
		links:        slices.Compact(slices.Sorted(maps.Values(cfg.Interfaces))),
	}
	for i := range d.tables {
		d.tables[i].Owner = cfg.Owner
	}
	d.neighbours = neighbours.New(d.links...)
	if cfg.Tunnel != nil {
		d.neighbours.Fix(tunnel.Name)
	}
	d.noteWorkers(cfg.Nodes)
	d.nodes.Store(&cfg.Nodes)
	d.followNeighbours(cfg.Nodes)
	return d
}

// followNeighbours has the neighbour cache follow the addresses of the other nodes.
func (d *DataPlane) followNeighbours(nodes []pathprobe.Node) {
	var others [][]netip.Addr
	for _, n := range nodes {
		if n.ID != d.cfg.Self {
			others = append(others, n.Addrs)
		}
	}
	d.neighbours.Follow(others)
}

// SetNodes replaces the nodes, here and in the prober. What is known of those that
// stay is kept. For backends to stay served, a node is added before its backend and
// removed after it.
func (d *DataPlane) SetNodes(nodes []pathprobe.Node) {
	nodes = pathprobe.CloneNodes(nodes)
	before := *d.nodes.Swap(&nodes)
	if slices.EqualFunc(before, nodes, pathprobe.Node.Same) {
		return
	}
	d.mu.Lock()
	newcomers := make(map[string]bool)
	for _, n := range nodes {
		if d.newcomers[n.ID] || !slices.ContainsFunc(before, func(o pathprobe.Node) bool { return o.ID == n.ID }) {
			newcomers[n.ID] = true
		}
	}
	d.newcomers = newcomers
	d.noteWorkers(nodes)
	d.mu.Unlock()
	d.followNeighbours(nodes)
	if d.cfg.Prober != nil {
		d.cfg.Prober.SetNodes(nodes)
	}
	d.notify()
}

// Name implements balancer.Plane.
func (*DataPlane) Name() balancer.PlaneName { return balancer.Direct }

// Changed gets a value when Apply or Usable would have another result than last
// time: a neighbour, a link or a path has changed.
func (d *DataPlane) Changed() <-chan struct{} { return d.changed }

func (d *DataPlane) notify() {
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

const (
	// resolveEvery keeps neighbours fresh: the kernel asks neighbours that answer
	// at most once in base_reachable_time, 15 to 45 s.
	resolveEvery = 2 * time.Second
	// firstAnswer is how long Usable waits for the first answers of the network.
	firstAnswer = time.Second
)

// Run follows links, neighbours and paths until ctx ends.
func (d *DataPlane) Run(ctx context.Context) error {
	d.start()
	g, ctx := errgroup.WithContext(ctx)
	if d.cfg.Prober != nil {
		g.Go(func() error { return d.cfg.Prober.Run(ctx, d.notify) })
	}
	err := d.follow(ctx)
	return errors.Join(err, g.Wait())
}

func (d *DataPlane) follow(ctx context.Context) error {
	tick := time.NewTicker(resolveEvery)
	defer tick.Stop()
	// Closing done ends the goroutines of the subscriptions. They end by themselves
	// when the kernel drops messages, and are then started again.
	done := make(chan struct{})
	var links chan netlink.LinkUpdate
	var neighs chan netlink.NeighUpdate
	defer func() {
		close(done)
		// Their goroutines close the channels as they end.
		if links != nil {
			for range links {
			}
		}
		if neighs != nil {
			for range neighs {
			}
		}
	}()
	complained := false
	for {
		if links == nil {
			c := make(chan netlink.LinkUpdate)
			if err := netlink.LinkSubscribe(c, done); err != nil {
				return fmt.Errorf("following links: %w", err)
			}
			links = c
		}
		if neighs == nil {
			c := make(chan netlink.NeighUpdate)
			if err := netlink.NeighSubscribe(c, done); err != nil {
				return fmt.Errorf("following neighbours: %w", err)
			}
			neighs = c
		}
		_, err := d.look()
		if err != nil && !complained {
			d.cfg.Log.Warn("cannot follow the link", "data plane", balancer.Direct, "error", err)
		}
		complained = err != nil
		// A host with many containers has many events about others.
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
				d.neighbours.Resolve(0)
				waiting = false
			case u, ok := <-links:
				if !ok {
					links = nil
				}
				waiting = ok && !d.neighbours.Has(u.Attrs().Name)
			case u, ok := <-neighs:
				if !ok {
					neighs = nil
				}
				waiting = ok && !d.neighbours.IsNews(u)
			}
		}
	}
}

// SetCut says for each VIP which nodes have no carrier on its link. They get no new connections, without waiting until
// probes go unanswered.
func (d *DataPlane) SetCut(nodes map[netip.Addr][]string) {
	before := d.cut.Swap(&nodes)
	if before == nil && len(nodes) == 0 || before != nil && maps.EqualFunc(*before, nodes, slices.Equal) {
		return
	}
	d.notify()
}

// SetVanished says which peers' hosts have vanished from the group, and whether this node is cut off. Nodes on these hosts
// get no new connections before they have said again that they take them.
func (d *DataPlane) SetVanished(peers map[string]bool, cutOff bool) {
	if d.cfg.Prober != nil && d.cfg.Prober.SetVanished(peers, cutOff) {
		d.notify()
	}
}

func (d *DataPlane) isCut(vip netip.Addr, node string) bool {
	cut := d.cut.Load()
	return cut != nil && slices.Contains((*cut)[vip], node)
}

// look reads links and neighbours, and reports changes.
func (d *DataPlane) look() (neighbours.View, error) { return d.lookOrRecall(0) }

// lookOrRecall is look, unless somebody has looked less than age ago.
func (d *DataPlane) lookOrRecall(age time.Duration) (neighbours.View, error) {
	now, changed, err := d.neighbours.LookOrRecall(age)
	if changed {
		d.neighbours.Resolve(0)
		if d.cfg.Prober != nil {
			d.cfg.Prober.Hurry()
		}
		d.notify()
	}
	return now, err
}

// Apply implements balancer.Plane.
func (d *DataPlane) Apply(_ context.Context, services []balancer.Service) (repaired int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(services) == 0 {
		return 0, d.remove()
	}
	now, _, err := d.neighbours.Look()
	if err != nil {
		return 0, err
	}
	now = d.leadOn(now)
	plan := d.plan(services, now)
	if plan.nat, err = d.needsNAT(plan); err != nil {
		return 0, err
	}
	if !reflect.DeepEqual(plan, d.inForce) || !d.undisturbed() {
		d.inForce = rulePlan{}
		for i, t := range plan.tables() {
			n, err := d.tables[i].Apply(t)
			repaired += n
			if err != nil {
				return repaired, err
			}
		}
		d.inForce = plan
	}
	if d.cfg.Prober != nil {
		d.cfg.Prober.InForce(d.knownNodes(now), plan.handsTo)
	}
	d.last.Store(&applyResult{slices.Clone(services), plan.passedOver})
	_, err = conntrack.Cut(conntrack.LostBackends(d.applied, services))
	d.applied = slices.Clone(services)
	return repaired, err
}

// undisturbed says that the kernel has the plan that is in force, without a look at each of its rules.
func (d *DataPlane) undisturbed() bool {
	for i := range d.tables {
		if !d.tables[i].Undisturbed() {
			return false
		}
	}
	return true
}

// Close implements balancer.Plane.
func (d *DataPlane) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.remove()
}

func (d *DataPlane) remove() error {
	d.applied, d.inForce = nil, rulePlan{}
	d.last.Store(&applyResult{})
	if d.cfg.Prober != nil {
		d.cfg.Prober.InForce(nil, nil)
	}
	var errs []error
	for i, t := range (rulePlan{}).tables() {
		_, err := d.tables[i].Remove(t)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
