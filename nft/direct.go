package nft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"appliance/balancer"
)

// A Node is a machine that runs the appliance and may have a backend.
type Node struct {
	ID string
	// Addrs are the node's own addresses on the link, of either family.
	Addrs []netip.Addr
	// Serves are the frontends of the load balancers that have a backend on the
	// node, or will have when the balancer has read what is new.
	Serves []netip.AddrPort
	// Worker says that the node is none of the group's. Whether it runs the
	// appliance at all is for its answers to the probes to prove; see Proof.
	Worker bool
}

func (n Node) equal(o Node) bool {
	return n.isAt(o) && slices.Equal(n.Serves, o.Serves)
}

// isAt says that nothing is new about where the node is.
func (n Node) isAt(o Node) bool {
	return n.ID == o.ID && n.Worker == o.Worker && slices.Equal(n.Addrs, o.Addrs)
}

// String is what messages call the node.
func (n Node) String() string {
	if n.Worker {
		return n.ID
	}
	return "node " + n.ID
}

// DirectConfig is what Direct needs to know.
type DirectConfig struct {
	// Interfaces says on which interface each VIP is answered.
	Interfaces map[netip.Addr]string
	// Nodes are all nodes, this one too, until SetNodes says otherwise.
	Nodes []Node
	// Self is the ID of this node.
	Self string
	// Worker says that this node is outside the group: who has no backend here
	// hands nothing to it.
	Worker bool
	// Prober tells which paths are proved. Nil takes all of them for good.
	Prober Prober
	// Log gets one line for each change. Nil means slog.Default().
	Log *slog.Logger
}

// A Prober proves that the network carries a client's packets from this node
// to another. Hypervisors with address filters drop them.
type Prober interface {
	// Want sets what is to be proved, beside what is already.
	Want(frontends []netip.AddrPort)
	// SetNodes replaces the nodes to which ways are proved.
	SetNodes(nodes []Node)
	// InForce tells which nodes the plane's rules have for fellows, and, for
	// each frontend that is served, which nodes get its packets handed on. Nil
	// fellows are that there are no rules.
	InForce(fellows map[string]bool, handed map[netip.AddrPort]map[string]bool)
	// Path says what is known of the way to a node.
	Path(frontend netip.AddrPort, node string) Path
	// Proof says what a worker has proved of itself.
	Proof(node string) Proof
	// Hurry asks those at once to whom no way is proved: it may have opened.
	Hurry()
	// Run probes until ctx ends and calls changed whenever the answer of
	// Path has changed.
	Run(ctx context.Context, changed func()) error
}

// A Path is what is known of the way to a node.
type Path int

// What a Prober knows. A silent node is down, or runs no appliance; it has no
// VIP then, and nothing may be sent to it.
const (
	PathSilent   Path = iota // the node answers nothing
	PathProved               // a client's packet arrived unaltered, and so did the answer
	PathFiltered             // the node answers, but a client's packet does not arrive
	PathUnready              // packets arrive, but the node does not take clients' yet
)

// Direct is the data plane that hands a client's packet to the chosen node as
// it is, by its MAC address. See prefer for how the node is chosen, and
// directPlan for the rules.
//
// No node keeps state about connections but the servers, in their sockets. A
// packet goes to the owner of its slot; who does not have the connection
// hands it on until somebody has it; see directService.next. So an open
// connection survives a change of the holder, of the set of backends, and of
// both at once; and while one backend is in the files of some nodes only,
// nothing breaks. A new connection that meets a node without a listener goes on
// in the same way.
//
// What this does not cover: a client that says nothing hears nothing of the
// death of its server's host, until its keepalive speaks; nobody knows of its
// connection. IP fragments stay with the holder, as do TCP packets behind IPv6
// extension headers.
//
// Run's goroutine follows links and neighbours; the Prober has its own. Apply
// may be called at the same time.
type Direct struct {
	cfg        DirectConfig
	nodes      atomic.Pointer[[]Node]
	neighbours *neighbours
	changed    chan struct{}
	shown      atomic.Pointer[directShown] // nil before the first Apply

	mu sync.Mutex
	// configured are the backends of each load balancer, healthy or not: the
	// table is made for all of them, so that the absence of one moves nothing
	// of the others.
	configured map[string][]balancer.Backend
	preferred  map[string]preference // by fingerprint of the members
	// newcomers have been added to the nodes, and have not yet been sent
	// anything: they have no connections.
	newcomers map[string]bool
	added     map[string]time.Time // when workers were, or could be asked first
	running   bool
	tables    [3]keeper
	applied   []balancer.Service
	needed    time.Time // when clients here were led to other nodes; zero is unknown
	tried     bool      // the kernel takes our rules
}

// NewDirect returns the plane. It touches nothing before Apply.
func NewDirect(cfg DirectConfig) *Direct {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	d := &Direct{
		cfg:        cfg,
		changed:    make(chan struct{}, 1),
		configured: make(map[string][]balancer.Backend),
		preferred:  make(map[string]preference),
		newcomers:  make(map[string]bool),
		added:      make(map[string]time.Time),
		neighbours: &neighbours{},
	}
	d.meet(cfg.Nodes)
	links := slices.Sorted(maps.Values(cfg.Interfaces))
	d.neighbours.links = slices.Compact(links)
	d.nodes.Store(&cfg.Nodes)
	d.neighbours.follow(cfg.Nodes, cfg.Self)
	return d
}

// SetNodes replaces the nodes. What is known of those that stay is kept. For
// backends to stay served, a node comes before its backend and goes after it.
// The prober is told, too.
func (d *Direct) SetNodes(nodes []Node) {
	nodes = cloneNodes(nodes)
	before := *d.nodes.Swap(&nodes)
	if slices.EqualFunc(before, nodes, Node.equal) {
		return
	}
	d.mu.Lock()
	newcomers := make(map[string]bool)
	for _, n := range nodes {
		if d.newcomers[n.ID] || !slices.ContainsFunc(before, func(o Node) bool { return o.ID == n.ID }) {
			newcomers[n.ID] = true
		}
	}
	d.newcomers = newcomers
	d.meet(nodes)
	d.mu.Unlock()
	d.neighbours.follow(nodes, d.cfg.Self)
	if d.cfg.Prober != nil {
		d.cfg.Prober.SetNodes(nodes)
	}
	d.notify()
}

func cloneNodes(nodes []Node) []Node {
	nodes = slices.Clone(nodes)
	for i := range nodes {
		nodes[i].Addrs = slices.Clone(nodes[i].Addrs)
		nodes[i].Serves = slices.Clone(nodes[i].Serves)
	}
	return nodes
}

// Name implements balancer.Plane.
func (*Direct) Name() balancer.PlaneName { return balancer.Direct }

// Changed tells that Apply or Usable would do or say another thing than the
// last time: a neighbour, a link or a path has changed.
func (d *Direct) Changed() <-chan struct{} { return d.changed }

func (d *Direct) notify() {
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

const (
	// resolveEvery keeps neighbours fresh: the kernel asks at most once in
	// base_reachable_time, 15 to 45 s, of those that answer.
	resolveEvery = 2 * time.Second
	// settle is how long Usable waits for the first answers of the network.
	settle = time.Second
)

// Run follows links, neighbours and paths until ctx ends.
func (d *Direct) Run(ctx context.Context) error {
	d.begin()
	g, ctx := errgroup.WithContext(ctx)
	if d.cfg.Prober != nil {
		g.Go(func() error { return d.cfg.Prober.Run(ctx, d.notify) })
	}
	err := d.follow(ctx)
	return errors.Join(err, g.Wait())
}

func (d *Direct) follow(ctx context.Context) error {
	tick := time.NewTicker(resolveEvery)
	defer tick.Stop()
	// Closing done ends the goroutines of the subscriptions; they end on
	// their own when the kernel drops messages, and are begun again then.
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
		// A host with many containers has many events that are not for us.
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
				d.neighbours.resolve()
				waiting = false
			case u, ok := <-links:
				if !ok {
					links = nil
				}
				waiting = ok && !slices.Contains(d.neighbours.links, u.Attrs().Name)
			case u, ok := <-neighs:
				if !ok {
					neighs = nil
				}
				waiting = ok && !d.neighbours.isNews(u)
			}
		}
	}
}

// look sees what is around, and tells of changes.
func (d *Direct) look() (surroundings, error) {
	now, changed, err := d.neighbours.look()
	if changed {
		d.neighbours.resolve()
		if d.cfg.Prober != nil {
			d.cfg.Prober.Hurry()
		}
		d.notify()
	}
	return now, err
}

// Usable implements balancer.Plane.
func (d *Direct) Usable(ctx context.Context, lb balancer.LoadBalancer) error {
	if err := d.suits(lb); err != nil {
		return err
	}
	d.mu.Lock()
	d.configured[lb.Name] = slices.Clone(lb.Backends)
	d.mu.Unlock()
	now, err := d.look()
	if err != nil {
		return err
	}
	for _, f := range lb.Frontends {
		if err := d.onLink(now, f, lb); err != nil {
			return err
		}
	}
	if err := d.acquaint(ctx, lb); err != nil {
		return err
	}
	if d.cfg.Prober != nil {
		d.cfg.Prober.Want(lb.Frontends)
	}
	now = d.await(ctx, lb)
	if err := d.reached(lb); err != nil {
		return err
	}
	if err := d.try(now, lb); err != nil {
		return err
	}
	for _, f := range lb.Frontends {
		for _, n := range *d.nodes.Load() {
			if n.ID != d.cfg.Self && d.hasBackend(n, f, lb) && d.path(f, n.ID) == PathFiltered {
				return fmt.Errorf("the network does not carry packets of clients from this node to %s, though it carries ours: "+
					"allow foreign source addresses on the port (address filter of the hypervisor or switch, port security, security group), or use another data plane", n)
			}
		}
	}
	return nil
}

// suits looks at what lb asks for, without looking at the host.
func (d *Direct) suits(lb balancer.LoadBalancer) error {
	switch lb.Scheduler {
	case balancer.RoundRobin, balancer.WeightedRoundRobin, balancer.SourceHash, balancer.Random, "mh", "":
	case balancer.LeastConn, balancer.WeightedLeastConn:
		return fmt.Errorf("scheduler %s counts connections, and data plane direct knows none: use rr, wrr or sh, or another data plane", lb.Scheduler)
	default:
		return fmt.Errorf("data plane direct has no scheduler %s, it spreads by a hash: use rr, wrr or sh, or another data plane", lb.Scheduler)
	}
	for _, f := range lb.Frontends {
		if _, ok := d.cfg.Interfaces[f.Addr()]; !ok {
			return fmt.Errorf("frontend %v is not a VIP that is answered on an interface: data plane direct serves only those", f)
		}
		n, here := 0, false
		for _, b := range lb.Backends {
			if b.Addr.Addr().Is4() != f.Addr().Is4() {
				continue
			}
			n++
			if b.Addr.Port() != f.Port() {
				return fmt.Errorf("backend %v has another port than %v, and data plane direct changes none: use the same, or another data plane", b, f)
			}
			node, ok := d.node(b.Addr.Addr())
			here = here || ok && node.ID == d.cfg.Self
			if !ok {
				return fmt.Errorf("backend %v is at none of the peers' addresses, so data plane direct does not know that its node has the VIP: make the node a peer with that address among its addresses, or use another data plane", b)
			}
		}
		if n == 0 {
			return fmt.Errorf("frontend %v has no backend of its own family, and data plane direct translates none: list backends by such addresses, or use another data plane", f)
		}
		if d.cfg.Worker && !here && !d.leaves(lb) {
			return fmt.Errorf("this node is a worker and has none of the backends of %v, so no peer hands packets to it: use another data plane", f)
		}
	}
	return nil
}

func (d *Direct) onLink(now surroundings, f netip.AddrPort, lb balancer.LoadBalancer) error {
	name := d.cfg.Interfaces[f.Addr()]
	if _, ok := now.links[name]; !ok {
		return fmt.Errorf("interface %s of VIP %v does not exist: create it, or set `interface`", name, f.Addr())
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	why, err := severalSources(link)
	if err != nil {
		return err
	}
	if why != "" {
		return fmt.Errorf("nodes would not know each other's frames: %s; use a mode that keeps to one, such as active-backup or 802.3ad, or another data plane", why)
	}
	for _, b := range lb.Backends {
		if why := now.off[place{name, b.Addr.Addr()}]; why != "" {
			return fmt.Errorf("backend %v is not on the link of %s: %s; use another data plane", b, name, why)
		}
	}
	return nil
}

// await gives the network a moment to answer, if something is still unknown.
func (d *Direct) await(ctx context.Context, lb balancer.LoadBalancer) surroundings {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	d.neighbours.resolve()
	for {
		now, _ := d.look()
		if d.knows(now, lb) {
			return now
		}
		select {
		case <-ctx.Done():
			return now
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (d *Direct) knows(now surroundings, lb balancer.LoadBalancer) bool {
	for _, f := range lb.Frontends {
		for _, n := range *d.nodes.Load() {
			if n.ID == d.cfg.Self || !d.hasBackend(n, f, lb) {
				continue
			}
			if _, ok := mac(now, d.cfg.Interfaces[f.Addr()], n, netip.Addr{}); !ok || d.path(f, n.ID) == PathSilent {
				return false
			}
		}
	}
	return true
}

// try asks the kernel whether it takes our rules.
func (d *Direct) try(now surroundings, lb balancer.LoadBalancer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tried {
		return nil
	}
	var services []balancer.Service
	for _, f := range lb.Frontends {
		services = append(services, balancer.Service{LoadBalancer: lb.Name, Frontend: f, Backends: lb.Backends})
	}
	plan := d.plan(services, now)
	plan.nat = true // it may become needed
	for _, t := range plan.tables() {
		if err := try(t); err != nil {
			return err
		}
	}
	d.tried = true
	return nil
}

// Apply implements balancer.Plane.
func (d *Direct) Apply(_ context.Context, services []balancer.Service) (repaired int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(services) == 0 {
		return 0, d.remove()
	}
	now, _, err := d.neighbours.look()
	if err != nil {
		return 0, err
	}
	plan := d.plan(services, now)
	if plan.nat, err = d.translates(plan); err != nil {
		return 0, err
	}
	for i, t := range plan.tables() {
		n, err := d.tables[i].apply(t)
		repaired += n
		if err != nil {
			return repaired, err
		}
	}
	if d.cfg.Prober != nil {
		d.cfg.Prober.InForce(d.fellowNodes(now), plan.handed)
	}
	d.shown.Store(&directShown{slices.Clone(services), plan.passed})
	_, err = disconnect(left(d.applied, services))
	d.applied = slices.Clone(services)
	return repaired, err
}

// Close implements balancer.Plane.
func (d *Direct) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.remove()
}

func (d *Direct) remove() error {
	d.applied = nil
	d.shown.Store(&directShown{})
	if d.cfg.Prober != nil {
		d.cfg.Prober.InForce(nil, nil)
	}
	var errs []error
	for i, t := range (directPlan{}).tables() {
		_, err := d.tables[i].remove(t)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
