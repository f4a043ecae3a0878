package pathprobe

import (
	"context"
	"crypto/rand"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"appliance/neighbours"
)

// Config is what New needs to know.
type Config struct {
	// Interfaces says on which interface each VIP is answered.
	Interfaces map[netip.Addr]string
	// Tunnel is the name of a link on which nodes are that are not on that of the VIP; see Routed. Empty: there is none.
	Tunnel string
	// Routed are the VIPs whose nodes may be there.
	Routed []netip.Addr
	// Nodes are all nodes, this one too, until SetNodes says otherwise.
	Nodes []Node
	// Self is the ID of this node.
	Self string
	// Keys are secrets of the group, which keep strangers from answering. All are
	// accepted. The first one signs, except to a node that signs with another.
	// No key means the empty one. SetKeys replaces them.
	Keys [][]byte
	// WorkerKeys are the same for machines outside the group. All workers may know
	// them, so they sign for no node of the group. Without any, no worker is heard.
	WorkerKeys [][]byte
	// Worker says that this node is a worker. The group's nodes on the link sign
	// with its own Keys to it, and it takes clients' packets only for what its
	// rules serve: nobody knows what another data plane of a worker does with the
	// rest.
	Worker bool
	// ProvedWorkers are addresses of workers to which an earlier process on this
	// node has proved a path.
	ProvedWorkers []netip.Addr
	// Every is the time between two probes of a path. Zero means 2 s.
	Every time.Duration
	// Log gets one line for each change. Nil means slog.Default().
	Log *slog.Logger
}

// probeEvery is so short because the probes also tell that a node's appliance is
// gone. Its VIPs go with it, while its server may live.
const probeEvery = 2 * time.Second

// An EthernetProber proves paths by packets on the wire. It sends each node, in
// turn, a packet as a forwarded client's would be: a TCP segment from a foreign
// address to the frontend, with the node's MAC address. The node answers in the
// frontend's name, as it would answer a client. A second probe, between the nodes'
// own addresses, tells a network that filters from a node that is down.
//
// The answer says whether the node takes clients' packets from the asker: not
// before it has the VIPs and the rules, and, if it is new, not before it and the
// others know each other. See readiness, pathState and discovery for the states.
//
// Probes cannot be forged or repeated: see sighting. A recording changes nothing, and
// only the answer to a challenge of ours changes an entry of the kernel's table of
// neighbours. In a group that is being upgraded, this holds for the nodes that have the
// new version: those that have not are taken at their word, but change no neighbour, and
// a leave notice is at most a moment's doubt.
//
// Probes are resets with a payload (RFC 9293 section 3.5.3 allows one): no kernel
// answers a reset, and a packet socket sees it whatever a firewall of the host
// does.
//
//	goroutine   owns
//	Run         the sockets, the rounds
//	receive     one socket's reading, one per interface
type EthernetProber struct {
	cfg  Config
	keys keyring
	kick chan struct{}
	// process and sent number what this process sends.
	process process
	sent    atomic.Uint64
	// moved carries the MAC addresses of senders to Run.
	moved chan sender

	mu      sync.Mutex                   // guards what follows
	nodes   []Node                       // replaced as a whole
	wanted  map[netip.AddrPort]time.Time // since when
	paths   pathTable
	workers discovery
	self    readiness
	silent  map[string]bool // peers whose hosts have vanished
	senders map[senderID]*sighting
}

// New returns a prober that does nothing before Run.
func New(cfg Config) *EthernetProber {
	if cfg.Every == 0 {
		cfg.Every = probeEvery
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	p := &EthernetProber{
		cfg:     cfg,
		kick:    make(chan struct{}, 1),
		moved:   make(chan sender, 16),
		nodes:   cfg.Nodes,
		wanted:  make(map[netip.AddrPort]time.Time),
		workers: discovery{proofs: make(map[netip.Addr]Proof), calls: make(map[string]*call)},
		self:    readiness{announced: true},
		senders: make(map[senderID]*sighting),
	}
	p.paths = pathTable{
		states: make(map[pathID]*pathState), logged: make(map[string]Path), log: cfg.Log,
		way: p.way, turns: make(map[way]int), doubted: make(map[way]bool),
	}
	rand.Read(p.process[:])
	for _, a := range cfg.ProvedWorkers {
		p.workers.proofs[a] = ProofPath
	}
	p.SetKeys(cfg.Keys, cfg.WorkerKeys)
	return p
}

// SetKeys replaces the keys. Keys are rotated from node to node: two nodes
// understand each other as long as they have one key in common, and the one that
// signs last chooses it.
func (p *EthernetProber) SetKeys(group, workers [][]byte) {
	if len(group) == 0 {
		group = [][]byte{nil}
	}
	p.keys.set(deriveKeys(group), deriveKeys(workers))
}

// SetNodes replaces the nodes to which paths are proved. The path to a node that
// has another address is proved anew.
func (p *EthernetProber) SetNodes(nodes []Node) {
	nodes = CloneNodes(nodes)
	p.mu.Lock()
	defer p.mu.Unlock()
	stays := make(map[string]bool)
	for _, n := range nodes {
		stays[n.ID] = slices.ContainsFunc(p.nodes, n.IsAt)
	}
	p.nodes = nodes
	maps.DeleteFunc(p.paths.states, func(id pathID, _ *pathState) bool { return !stays[id.node] })
	maps.DeleteFunc(p.senders, func(id senderID, _ *sighting) bool {
		_, known := NodeAt(nodes, id.addr)
		return !known
	})
	p.workers.keep(nodes)
	p.Hurry()
}

// Open says that this node has the VIPs now: others may send it clients' packets
// once it has met them.
func (p *EthernetProber) Open() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.self.opened = time.Now()
	p.announce()
}

// SetVanished says which peers' hosts have vanished from the group, and whether this node is cut off. No path to them is
// proved before they answer again, and a node that was cut off meets the others anew. SetVanished returns true if a path
// has changed.
func (p *EthernetProber) SetVanished(peers map[string]bool, cutOff bool) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.self.setCutOff(cutOff) {
		p.announce()
	}
	if maps.Equal(p.silent, peers) {
		return false
	}
	for id, s := range p.paths.states {
		if peers[id.node] && !p.silent[id.node] {
			changed = p.paths.change(id, s, s.leave) || changed
		}
	}
	p.silent = maps.Clone(peers)
	p.Hurry()
	return changed
}

// InForce says which nodes the rules of this node know as nodes, and, for each
// frontend that is served, which nodes get its packets handed on. Nil nodes mean
// that there are no rules.
func (p *EthernetProber) InForce(known map[string]bool, handsTo map[netip.AddrPort]map[string]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.self.inForce(known, handsTo) {
		p.announce()
	}
}

// announce has the others ask this node again. Called with mu held.
func (p *EthernetProber) announce() {
	p.self.announced = false
	p.Hurry()
}

// Want adds frontends to those to which paths are proved.
func (p *EthernetProber) Want(frontends []netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range frontends {
		if p.wanted[f].IsZero() {
			p.wanted[f] = time.Now()
			p.Hurry()
		}
	}
}

// Hurry has the nodes to which no path is proved probed at once: a path may have
// opened.
func (p *EthernetProber) Hurry() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// Path says what is known of the path to a node.
func (p *EthernetProber) Path(frontend netip.AddrPort, node string) Path {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s, ok := p.paths.states[pathID{frontend, node}]; ok {
		return s.path
	}
	return PathNoAnswer
}

// Proof says what a worker has proved of itself.
func (p *EthernetProber) Proof(node string) Proof {
	p.mu.Lock()
	defer p.mu.Unlock()
	best := ProofNone
	for _, n := range p.nodes {
		if n.ID == node {
			best = max(best, p.workers.proof(n))
		}
	}
	return best
}

// ProvedWorkers are the addresses of the workers to which a path is or was proved,
// sorted.
func (p *EthernetProber) ProvedWorkers() []netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.workers.proved(p.nodes)
}

func (p *EthernetProber) nodeAt(addr netip.Addr) (Node, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return NodeAt(p.nodes, addr)
}

// Run probes until ctx ends, and calls changed whenever the answer of Path has
// changed.
func (p *EthernetProber) Run(ctx context.Context, changed func()) error {
	var g errgroup.Group
	sockets := make(map[string]probeSocket)
	defer func() {
		p.leave(sockets)
		for _, s := range sockets {
			s.conn.Close() // ends its receiver
		}
		g.Wait()
	}()
	tick := time.NewTicker(p.cfg.Every)
	defer tick.Stop()
	complained, newRound := false, true
	for {
		err := p.listen(sockets, &g, changed)
		if err != nil && !complained {
			p.cfg.Log.Warn("cannot prove the paths of data plane direct", "error", err)
		}
		complained = err != nil
		if newRound && p.endRound() {
			changed()
		}
		for _, o := range p.probes(sockets, newRound) {
			p.send(o)
		}
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return nil
			case s := <-p.moved:
				// The answer to our challenge is signed, so it is better founded than any ARP.
				s.link.Correct(s.addr, s.mac)
				continue
			case <-p.kick:
				newRound = false
			case <-tick.C:
				newRound = true
			}
			waiting = false
		}
	}
}

// way is the way of a path.
func (p *EthernetProber) way(id pathID) way {
	return way{id.node, p.cfg.Interfaces[id.frontend.Addr()], id.frontend.Addr().Is4()}
}

func (p *EthernetProber) endRound() (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.paths.end()
}

// A target is a node as it is probed for one frontend.
type target struct {
	pathID
	sock     probeSocket
	own, its netip.Addr
	mac      [6]byte
	isWorker bool
}

// An outgoing probe is one that is to be sent.
type outgoing struct {
	target
	kind  probeKind
	nonce nonce
}

// probes are those to send now: by all paths that are not proved or are in doubt, and
// in a new round by some of the others, in turn. A node that is about to meet the others
// asks by all.
func (p *EthernetProber) probes(sockets map[string]probeSocket, newRound bool) (out []outgoing) {
	macs := knownMACs(sockets)
	p.mu.Lock()
	defer p.mu.Unlock()
	announced := p.self.announced
	p.self.announced = true
	vips := slices.SortedFunc(maps.Keys(p.cfg.Interfaces), netip.Addr.Compare)
	for _, n := range p.nodes {
		if !p.isUnproved(n) {
			continue
		}
		for _, vip := range vips {
			t, ok := p.target(netip.AddrPortFrom(vip, callPort), n, sockets, macs)
			if !ok {
				continue
			}
			if nonce, due := p.workers.due(n.ID, newRound); due {
				out = append(out, outgoing{t, kindControl, nonce})
			}
			break
		}
	}
	ask := func(t target) {
		for kind, n := range p.paths.of(t.pathID).begin() {
			out = append(out, outgoing{t, probeKind(kind), n})
		}
	}
	proved := make(map[way][]target)
	meets := p.meetsAny()
	for _, t := range p.targets(sockets, macs) {
		if !announced {
			out = append(out, outgoing{t, kindAskAgain, nonce{}})
		}
		if s := p.paths.of(t.pathID); s.path != PathProved || s.doubt || newRound && meets {
			ask(t)
		} else if newRound {
			proved[p.way(t.pathID)] = append(proved[p.way(t.pathID)], t)
		}
	}
	for w, all := range proved {
		for _, t := range p.paths.rested(w, all) {
			ask(t)
		}
	}
	return out
}

// leave sends a leave notice to all, so that they need not find out by silence. A
// node that never had the VIPs does not leave.
func (p *EthernetProber) leave(sockets map[string]probeSocket) {
	macs := knownMACs(sockets)
	p.mu.Lock()
	var targets []target
	if !p.self.opened.IsZero() {
		targets = p.targets(sockets, macs)
	}
	p.mu.Unlock()
	for _, t := range targets {
		p.send(outgoing{t, kindLeave, nonce{}})
	}
}

// isUnproved says that a node may run no appliance. Called with mu held.
func (p *EthernetProber) isUnproved(n Node) bool {
	return n.Worker && n.ID != p.cfg.Self && p.workers.proof(n) == ProofNone
}

// targets are all that can be reached now. Called with mu held.
func (p *EthernetProber) targets(sockets map[string]probeSocket, macs linkMACs) (ts []target) {
	for _, f := range slices.SortedFunc(maps.Keys(p.wanted), netip.AddrPort.Compare) {
		for _, n := range p.nodes {
			if p.isUnproved(n) {
				continue
			}
			if t, ok := p.target(f, n, sockets, macs); ok {
				ts = append(ts, t)
			}
		}
	}
	return ts
}

// target is a node as it is reached for a frontend, if it is. Called with mu held.
func (p *EthernetProber) target(f netip.AddrPort, n Node, sockets map[string]probeSocket, macs linkMACs) (t target,
	ok bool) {
	sock, open := sockets[p.cfg.Interfaces[f.Addr()]]
	own, haveOwn := AddrOf(p.nodes, p.cfg.Self, f.Addr())
	its, haveIts := AddrOf(p.nodes, n.ID, f.Addr())
	if !open || !haveOwn || !haveIts || n.ID == p.cfg.Self {
		return t, false
	}
	mac, ok := macs[sock.link.Name][its]
	if out, exists := sockets[p.cfg.Tunnel]; exists && slices.Contains(p.cfg.Routed, f.Addr()) {
		// The tunnel knows nobody who is on the link.
		if far, is := macs[p.cfg.Tunnel][its]; is {
			sock, mac, ok = out, far, true
		}
	}
	return target{pathID{f, n.ID}, sock, own, its, mac, n.Worker}, ok
}

// linkMACs are the MAC addresses that the kernel knows, by the name of the link.
type linkMACs map[string]map[netip.Addr][6]byte

func knownMACs(sockets map[string]probeSocket) linkMACs {
	macs := make(linkMACs)
	for name, s := range sockets {
		macs[name], _ = s.link.Neighbours()
	}
	return macs
}

// hear takes an answer or a leave notice, and says whether a path has changed, or
// what a worker has proved.
func (p *EthernetProber) hear(m probe) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	node, ok := NodeAt(p.nodes, m.from)
	if !ok {
		return false
	}
	if p.workers.answer(node, m) {
		p.Hurry()
		return true
	}
	id := pathID{m.frontend, node.ID}
	s, ok := p.paths.states[id]
	if !ok {
		return false
	}
	kind, word := m.kind.asks()
	if m.kind == kindLeave {
		if !m.isSecondForm() {
			p.Hurry() // it may be a recording: whether the node is there is asked at once
		}
		return p.paths.change(id, s, s.leave)
	}
	knewUs := s.knowsUs
	wasProved := s.path == PathProved
	defer func() {
		if wasProved && s.path != PathProved {
			p.paths.doubt(p.way(id)) // a node that begins anew, most often
			p.Hurry()
		}
	}()
	return p.paths.change(id, s, func() {
		if !s.answer(kind, word, m.nonce) {
			return
		}
		if !knewUs && s.knowsUs && !p.self.met[m.frontend] {
			p.announce()
		}
		if kind == kindPath && word == kindReady && node.Worker {
			p.workers.proofs[m.from] = ProofPath
		}
	})
}

// askAgain takes a node's word that its answer for a frontend may have changed.
func (p *EthernetProber) askAgain(m probe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	node, _ := NodeAt(p.nodes, m.from)
	if s, ok := p.paths.states[pathID{m.frontend, node.ID}]; ok {
		s.doubt = true
	}
	p.Hurry()
}

// answerTo is the kind of the answer to a probe.
func (p *EthernetProber) answerTo(m probe) probeKind {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, _ := NodeAt(p.nodes, m.from)
	return m.kind + p.self.answer(n.ID, m.frontend, p.cfg.Worker, p.meets(m.frontend))
}

// Meets says that this node is new, and that it and the others do not know each other yet: what is handed on here does
// not reach all that may have the connection.
func (p *EthernetProber) Meets() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.meetsAny()
}

// meetsAny is Meets, called with mu held.
func (p *EthernetProber) meetsAny() (meets bool) {
	for f := range p.wanted {
		meets = p.meets(f) || meets
	}
	return meets
}

// meets is Meets for a frontend. Called with mu held.
func (p *EthernetProber) meets(f netip.AddrPort) bool {
	alone := !slices.ContainsFunc(p.nodes, func(n Node) bool { return n.ID != p.cfg.Self })
	return p.self.meets(f, p.wanted[f], meetingRounds*p.cfg.Every, alone, func() bool { return p.hasMet(f) })
}

// hasMet says whether this node and all others know each other: what it hands on
// reaches no node that takes it for a client's packet, and reaches all that may
// have the connection. Called with mu held.
func (p *EthernetProber) hasMet(f netip.AddrPort) bool {
	for _, n := range p.nodes {
		a, ok := AddrOf(p.nodes, n.ID, f.Addr())
		if !ok || n.ID == p.cfg.Self || n.Worker && p.workers.proofs[a] != ProofPath {
			continue
		}
		s := p.paths.states[pathID{f, n.ID}]
		if s == nil || !s.knowsUs || s.path == PathNoAnswer || s.path == PathUnmet {
			return false
		}
		// The node may have connections whose packets come here, even more so
		// while the balancer here does not know its backend yet.
		if s.path == PathProved && slices.Contains(n.Serves, f) && !p.self.handsTo[f][n.ID] {
			return false
		}
	}
	return true
}

// A sender is where the answer to a challenge came from.
type sender struct {
	link neighbours.Link
	addr netip.Addr
	mac  [6]byte
}
