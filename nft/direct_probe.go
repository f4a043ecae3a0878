package nft

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// ProberConfig is what NewProber needs to know.
type ProberConfig struct {
	// Interfaces, Nodes and Self are those of DirectConfig. SetNodes replaces
	// the nodes.
	Interfaces map[netip.Addr]string
	Nodes      []Node
	Self       string
	// Keys are secrets of the group, which keep strangers from answering. All
	// are accepted; the first one is spoken in, but to a node that speaks in
	// another. None is an empty one. SetKeys replaces them.
	Keys [][]byte
	// WorkerKeys are the same for who is outside the group: they may be known to
	// all workers, so nobody speaks for a node of the group with them. None is
	// that no worker is heard.
	WorkerKeys [][]byte
	// Worker says that this node is one. It has the group's nodes on the link
	// speak to it with its own Keys, and takes clients' packets only for what
	// its rules serve: what another data plane of a worker does with the rest,
	// nobody knows.
	Worker bool
	// Reached are addresses of workers to which a way was proved in an earlier
	// life.
	Reached []netip.Addr
	// Every is the time between two probes of a path. Zero means 2 s.
	Every time.Duration
	// Log gets one line for each change. Nil means slog.Default().
	Log *slog.Logger
}

const (
	// probeEvery is so short because the probes also tell that a node's
	// appliance is gone, whose VIP goes with it while its server may live.
	probeEvery = 2 * time.Second
	// probeFall lost probes in a row end a proof: one may get lost.
	probeFall = 3
)

// EthernetProber is the Prober for real networks. It sends each node, in turn,
// a packet as a forwarded client's would be: a TCP segment from a foreign
// address to the frontend, with the node's MAC address. The node answers in
// the frontend's name, as it would answer a client. A second probe, between
// the nodes' own addresses, tells a network that filters from a node that is
// down.
//
// The answer tells whether the node takes clients' packets from who asks: not
// before it has the VIPs and the rules, and, where it is new, not before it and
// the others know each other.
//
// A worker, which nobody lists, has to answer a first word before it gets such a
// packet; see call.
//
// Probes are resets with a payload (RFC 9293 section 3.5.3 lets them have
// one): no kernel answers a reset, and a packet socket sees what no firewall
// of the host does.
//
//	goroutine   owns
//	Run         the sockets, the round
//	receive     one socket's reading, one per interface
type EthernetProber struct {
	cfg  ProberConfig
	kick chan struct{}
	// moved carries what probes tell of their senders' cards to Run.
	moved chan sender

	nodes atomic.Pointer[[]Node]
	mu    sync.Mutex
	// keys are derived from the group's, so that nothing signed here means
	// anything elsewhere. spoken has the one in which a node spoke last.
	keys, workerKeys []probeKey
	spoken           map[netip.Addr]probeKey
	proofs           map[netip.Addr]Proof // of workers
	calls            map[string]*call     // to workers without a proof
	opened           time.Time            // zero before Open
	// fellows and handed are those of InForce.
	fellows map[string]bool
	handed  map[netip.AddrPort]map[string]bool
	settled bool // see isSettled
	told    bool // the others know what this node says now
	wanted  map[netip.AddrPort]bool
	paths   map[pathID]*pathState
	logged  map[string]Path // what the log says of each node
}

type pathID struct {
	frontend netip.AddrPort
	node     string
}

// A sender is where a signed probe came from.
type sender struct {
	link link
	addr netip.Addr
	mac  [6]byte
}

type pathState struct {
	path Path
	// nonces are those of the last round, heard says which came back.
	nonces [2]nonce // control, path
	heard  [2]bool
	sent   bool
	knows  bool // the node's last word was that it knows this one
	lost   int  // rounds in a row in which the path answered nothing
	silent int  // rounds in a row in which the node answered nothing
}

// NewProber returns a prober that begins with Run.
func NewProber(cfg ProberConfig) *EthernetProber {
	if cfg.Every == 0 {
		cfg.Every = probeEvery
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	p := &EthernetProber{
		cfg:    cfg,
		kick:   make(chan struct{}, 1),
		moved:  make(chan sender, 16),
		wanted: make(map[netip.AddrPort]bool),
		paths:  make(map[pathID]*pathState),
		spoken: make(map[netip.Addr]probeKey),
		proofs: make(map[netip.Addr]Proof),
		calls:  make(map[string]*call),
		told:   true,
		logged: make(map[string]Path),
	}
	p.nodes.Store(&cfg.Nodes)
	for _, a := range cfg.Reached {
		p.proofs[a] = ProofReached
	}
	p.SetKeys(cfg.Keys, cfg.WorkerKeys)
	return p
}

type probeKey [sha256.Size]byte

// SetKeys replaces the keys. Who rotates keys goes from node to node; two nodes
// understand each other as long as they have one in common, and who speaks last
// chooses it.
func (p *EthernetProber) SetKeys(secrets, workers [][]byte) {
	if len(secrets) == 0 {
		secrets = [][]byte{nil}
	}
	keys, workerKeys := probeKeysOf(secrets), probeKeysOf(workers)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys, p.workerKeys = keys, workerKeys
	maps.DeleteFunc(p.spoken, func(_ netip.Addr, k probeKey) bool {
		return !slices.Contains(keys, k) && !slices.Contains(workerKeys, k)
	})
}

func probeKeysOf(secrets [][]byte) (keys []probeKey) {
	for _, s := range secrets {
		keys = append(keys, sha256.Sum256(append([]byte("appliance path probe\x00"), s...)))
	}
	return keys
}

// keyTo is the key that a node understands, if there is any.
func (p *EthernetProber) keyTo(node netip.Addr) (key probeKey, ok bool) {
	n, _ := p.nodeAt(node)
	p.mu.Lock()
	defer p.mu.Unlock()
	keys := p.keys
	if n.Worker {
		keys = p.workerKeys
	}
	key, ok = p.spoken[node]
	if ok && (n.Worker || slices.Contains(keys, key)) {
		return key, true // a worker that has become a peer has another
	}
	if len(keys) == 0 {
		return key, false
	}
	return keys[0], true
}

// parse reads a frame that was signed with any of the keys that its sender may
// sign with.
func (p *EthernetProber) parse(frame []byte) (m probe, mac [6]byte, ok bool) {
	p.mu.Lock()
	keys, ours := slices.Concat(p.keys, p.workerKeys), len(p.keys)
	p.mu.Unlock()
	for i, k := range keys {
		if m, mac, ok = parseProbe(frame, k[:]); !ok {
			continue
		}
		if n, _ := p.nodeAt(m.from); i >= ours && !n.Worker {
			return m, mac, false
		}
		p.mu.Lock()
		if slices.Contains(p.keys, k) || slices.Contains(p.workerKeys, k) {
			p.spoken[m.from] = k
		}
		p.mu.Unlock()
		return m, mac, true
	}
	return m, mac, false
}

// nodeAt is the node that has an address.
func (p *EthernetProber) nodeAt(addr netip.Addr) (Node, bool) {
	return nodeAt(*p.nodes.Load(), addr)
}

// SetNodes implements Prober. A node that has got another address is proved
// anew.
func (p *EthernetProber) SetNodes(nodes []Node) {
	nodes = cloneNodes(nodes)
	p.mu.Lock()
	before := *p.nodes.Swap(&nodes)
	stays := make(map[string]bool)
	for _, n := range nodes {
		stays[n.ID] = slices.ContainsFunc(before, n.isAt)
	}
	maps.DeleteFunc(p.paths, func(id pathID, _ *pathState) bool { return !stays[id.node] })
	p.forget(nodes)
	p.mu.Unlock()
	p.hurry()
}

// settling is, in rounds, how long a node that has just got the VIP waits until
// the others know it, and it them. Who does not by then is down, or in no touch
// with the group.
const settling = 3

// Open tells that this node has the VIPs now: the others may send it clients'
// packets, once it has met them.
func (p *EthernetProber) Open() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.opened = time.Now()
	p.tellAgain()
}

// InForce implements Prober.
func (p *EthernetProber) InForce(fellows map[string]bool, handed map[netip.AddrPort]map[string]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if (p.fellows == nil) != (fellows == nil) || !maps.Equal(p.fellows, fellows) || !maps.EqualFunc(p.handed, handed, maps.Equal) {
		p.fellows, p.handed = fellows, handed
		p.tellAgain()
	}
}

// tellAgain has the others ask this node anew. It is called with mu held.
func (p *EthernetProber) tellAgain() {
	p.told = false
	p.hurry()
}

// word is what this node says to one that asks about a frontend. A peer that
// serves with another data plane has no rules that could harm.
func (p *EthernetProber) word(to netip.Addr, frontend netip.AddrPort) probeKind {
	n, ok := p.nodeAt(to)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.fellows == nil && p.opened.IsZero(), p.fellows != nil && (!ok || !p.fellows[n.ID]):
		return kindStranger
	case p.opened.IsZero(), p.fellows != nil && !p.isSettled(*p.nodes.Load()),
		p.cfg.Worker && p.handed[frontend] == nil:
		return kindKnows
	}
	return kindAnswer
}

// isSettled says whether this node and all others know each other, or have had
// the time for it: what it hands on reaches no node that takes it for a
// client's packet, and reaches all that may have the connection. It is called
// with mu held.
func (p *EthernetProber) isSettled(nodes []Node) bool {
	p.settled = p.settled || time.Since(p.opened) > settling*p.cfg.Every || p.hasMet(nodes)
	return p.settled
}

func (p *EthernetProber) hasMet(nodes []Node) bool {
	for f := range p.wanted {
		for _, n := range nodes {
			a, ok := p.addrOf(n.ID, f.Addr())
			if !ok || n.ID == p.cfg.Self || n.Worker && p.proofs[a] != ProofReached {
				continue
			}
			s := p.paths[pathID{f, n.ID}]
			if s == nil || !s.knows {
				return false
			}
			// It may have connections whose packets come here, and more so when
			// the balancer here does not yet know its backend.
			if s.path == PathProved && slices.Contains(n.Serves, f) && !p.handed[f][n.ID] {
				return false
			}
		}
	}
	return true
}

// Hurry implements Prober.
func (p *EthernetProber) Hurry() { p.hurry() }

// hurry has those be probed at once to which no way is proved.
func (p *EthernetProber) hurry() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// Want implements Prober.
func (p *EthernetProber) Want(frontends []netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range frontends {
		if p.wanted[f] {
			continue
		}
		p.wanted[f] = true
		p.hurry()
	}
}

// Path implements Prober.
func (p *EthernetProber) Path(frontend netip.AddrPort, node string) Path {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s, ok := p.paths[pathID{frontend, node}]; ok {
		return s.path
	}
	return PathSilent
}

// A probeSocket hears the probes of one interface, as long as that lives.
type probeSocket struct {
	link link
	conn *packet.Conn
}

// Run implements Prober.
func (p *EthernetProber) Run(ctx context.Context, changed func()) error {
	var g errgroup.Group
	sockets := make(map[string]probeSocket)
	defer func() {
		p.farewell(sockets)
		for _, s := range sockets {
			s.conn.Close() // ends its receiver
		}
		g.Wait()
	}()
	tick := time.NewTicker(p.cfg.Every)
	defer tick.Stop()
	complained, all := false, true
	for {
		err := p.listen(sockets, &g, changed)
		if err != nil && !complained {
			p.cfg.Log.Warn("cannot prove the paths of data plane direct", "error", err)
		}
		complained = err != nil
		if all && p.judge() {
			changed()
		}
		p.send(sockets, all)
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return nil
			case s := <-p.moved:
				s.believe()
				continue
			case <-p.kick:
				all = false
			case <-tick.C:
				all = true
			}
			waiting = false
		}
	}
}

// believe corrects the kernel's neighbour table if it has another MAC address.
// The probe is signed, so it is better founded than any ARP.
func (s sender) believe() {
	if mac, ok := neighboursOn(s.link)[s.addr]; !ok || mac == s.mac {
		return
	}
	family := unix.AF_INET6
	if s.addr.Is4() {
		family = unix.AF_INET
	}
	// An error means that the link is gone, and the entry with it.
	_ = netlink.NeighSet(&netlink.Neigh{
		LinkIndex: int(s.link.index), Family: family, State: unix.NUD_STALE,
		IP: s.addr.AsSlice(), HardwareAddr: s.mac[:],
	})
}

// listen opens a socket on every interface that has none, or that has become
// another since. A node that has no others listens to nobody.
func (p *EthernetProber) listen(sockets map[string]probeSocket, g *errgroup.Group, changed func()) error {
	var errs []error
	alone := len(*p.nodes.Load()) < 2
	for _, name := range slices.Compact(slices.Sorted(maps.Values(p.cfg.Interfaces))) {
		l, err := readLink(name)
		have, open := sockets[name]
		if open && (alone || err != nil || have.link != l) {
			have.conn.Close()
			delete(sockets, name)
			open = false
		}
		if err != nil && !alone {
			errs = append(errs, err)
		}
		if err != nil || open || alone {
			continue
		}
		filter, err := probeFilter()
		if err != nil {
			return err
		}
		conn, err := packet.Listen(&net.Interface{Index: int(l.index), Name: name, MTU: 1500, HardwareAddr: l.mac[:]},
			packet.Raw, unix.ETH_P_ALL, &packet.Config{Filter: filter})
		if err != nil {
			errs = append(errs, fmt.Errorf("packet socket on %s: %w; give the container the capability NET_RAW", name, err))
			continue
		}
		ignoreOutgoing(conn)
		s := probeSocket{l, conn}
		sockets[name] = s
		g.Go(func() error {
			p.receive(s, changed)
			return nil
		})
	}
	return errors.Join(errs...)
}

// ignoreOutgoing spares the kernel a copy of each packet that it sends, for the
// filter to refuse. Before Linux 4.20 it makes them.
func ignoreOutgoing(conn *packet.Conn) {
	if raw, err := conn.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
		})
	}
}

// judge closes the last round: it draws conclusions from what was heard.
func (p *EthernetProber) judge() (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, s := range p.paths {
		if !s.sent {
			continue
		}
		s.sent = false
		was := s.path
		control, path := s.heard[kindControl], s.heard[kindPath]
		switch {
		case path:
			s.lost, s.silent = 0, 0 // hear has set it proved
		case control:
			s.silent = 0
			if s.lost++; s.lost >= probeFall || was == PathSilent && s.lost > 1 {
				s.path = PathFiltered
			}
		default:
			if s.silent++; s.silent >= probeFall {
				// What was filtered is taken for filtered until the node is back.
				if was == PathProved || was == PathUnready {
					s.path = PathSilent
				}
				s.lost, s.knows = 0, false
			}
		}
		if s.path != was {
			changed = true
			p.report(id, s.path)
		}
	}
	return changed
}

// report logs what has become of a node, once for all its frontends. Called
// with mu held.
func (p *EthernetProber) report(id pathID, path Path) {
	if p.logged[id.node] == path {
		return
	}
	p.logged[id.node] = path
	switch path {
	case PathProved:
		p.cfg.Log.Info("the network carries clients' packets", "frontend", id.frontend, "node", id.node)
	case PathFiltered:
		p.cfg.Log.Warn("the network filters clients' packets", "frontend", id.frontend, "node", id.node)
	case PathUnready:
		p.cfg.Log.Info("a node does not take clients' packets yet", "frontend", id.frontend, "node", id.node)
	case PathSilent:
		p.cfg.Log.Warn("a node does not answer path probes", "frontend", id.frontend, "node", id.node)
	}
}

// A target is a node as it is probed for one frontend.
type target struct {
	pathID
	sock     probeSocket
	own, its netip.Addr
	mac      [6]byte
}

// targets are those that can be reached now.
func (p *EthernetProber) targets(sockets map[string]probeSocket, macs map[string]map[netip.Addr][6]byte) (ts []target) {
	p.mu.Lock()
	wanted := slices.SortedFunc(maps.Keys(p.wanted), netip.AddrPort.Compare)
	p.mu.Unlock()
	for _, f := range wanted {
		sock, open := sockets[p.cfg.Interfaces[f.Addr()]]
		own, ok := p.addrOf(p.cfg.Self, f.Addr())
		if !open || !ok {
			continue
		}
		for _, n := range *p.nodes.Load() {
			its, ok := p.addrOf(n.ID, f.Addr())
			if !ok || n.ID == p.cfg.Self || n.Worker && p.Proof(n.ID) == ProofNone {
				continue
			}
			if mac, ok := macs[sock.link.name][its]; ok {
				ts = append(ts, target{pathID{f, n.ID}, sock, own, its, mac})
			}
		}
	}
	return ts
}

// tell sends a probe of the kind to the target.
func (p *EthernetProber) tell(t target, kind probeKind, n nonce) {
	m := probe{
		kind: kind, nonce: n, from: t.own, to: t.its, frontend: t.frontend,
		src: netip.AddrPortFrom(t.own, probePort), dst: netip.AddrPortFrom(t.its, probePort),
	}
	if kind == kindPath {
		m.src, m.dst = madeUpClient(t.frontend.Addr(), n), t.frontend
	}
	key, ok := p.keyTo(t.its)
	if !ok {
		return
	}
	// What is not sent is not heard.
	_, _ = t.sock.conn.WriteTo(m.frame(t.sock.link.mac, t.mac, key[:]), &packet.Addr{HardwareAddr: t.mac[:]})
}

// send begins a round, for all or for those to which no way is proved.
func (p *EthernetProber) send(sockets map[string]probeSocket, all bool) {
	p.mu.Lock()
	told := p.told
	p.told = true
	p.mu.Unlock()
	macs := heardOn(sockets)
	p.call(sockets, macs, all)
	for _, t := range p.targets(sockets, macs) {
		if !told {
			p.tell(t, kindWelcome, nonce{})
		}
		if !all && p.Path(t.frontend, t.node) == PathProved {
			continue
		}
		var nonces [2]nonce
		for i := range nonces {
			rand.Read(nonces[i][:])
		}
		p.mu.Lock()
		s := p.paths[t.pathID]
		if s == nil {
			s = &pathState{}
			p.paths[t.pathID] = s
		}
		s.nonces, s.heard, s.sent = nonces, [2]bool{}, true
		p.mu.Unlock()
		p.tell(t, kindControl, nonces[kindControl])
		p.tell(t, kindPath, nonces[kindPath])
	}
}

// heardOn are the neighbours that the kernel knows where the sockets are.
func heardOn(sockets map[string]probeSocket) map[string]map[netip.Addr][6]byte {
	macs := make(map[string]map[netip.Addr][6]byte)
	for name, s := range sockets {
		macs[name] = neighboursOn(s.link)
	}
	return macs
}

// farewell tells everybody that this node no longer has the VIP, so that they
// need not find out by silence. Who never had it has nothing to tell.
func (p *EthernetProber) farewell(sockets map[string]probeSocket) {
	p.mu.Lock()
	opened := !p.opened.IsZero()
	p.mu.Unlock()
	if !opened {
		return
	}
	for _, t := range p.targets(sockets, heardOn(sockets)) {
		p.tell(t, kindFarewell, nonce{})
	}
}

// receive answers and hears probes until the socket is closed or its
// interface is gone.
func (p *EthernetProber) receive(s probeSocket, changed func()) {
	buf := make([]byte, 2048)
	cards := make(map[netip.Addr][6]byte)
	for {
		n, _, err := s.conn.ReadFrom(buf)
		if errors.Is(err, unix.ENETDOWN) {
			continue // once, when the link goes down; it may come up again
		}
		if err != nil {
			return
		}
		m, mac, ok := p.parse(buf[:n])
		if !ok {
			continue
		}
		if self, _ := p.nodeAt(m.to); self.ID != p.cfg.Self || p.cfg.Interfaces[m.frontend.Addr()] != s.link.name {
			continue // ours, on its way out, or handed on, or for a VIP that is not here
		}
		if m.kind == kindControl && cards[m.from] != mac {
			select {
			case p.moved <- sender{s.link, m.from, mac}:
				cards[m.from] = mac
			default: // the next one will do
			}
		}
		p.called(m.from)
		switch m.kind {
		case kindControl, kindPath:
			answer := probe{
				kind: m.kind + p.word(m.from, m.frontend), nonce: m.nonce,
				from: m.to, to: m.from, frontend: m.frontend,
				src: m.dst, dst: netip.AddrPortFrom(m.from, probePort),
			}
			if key, ok := p.keyTo(m.from); ok {
				_, _ = s.conn.WriteTo(answer.frame(s.link.mac, mac, key[:]), &packet.Addr{HardwareAddr: mac[:]})
			}
		case kindWelcome:
			p.hurry()
		default:
			if p.hear(m) {
				changed()
			}
		}
	}
}

// hear notes an answer or a farewell.
func (p *EthernetProber) hear(m probe) (changed bool) {
	node, ok := p.nodeAt(m.from)
	p.mu.Lock()
	defer p.mu.Unlock()
	if !ok {
		return false
	}
	if p.answered(node, m) {
		return true
	}
	id := pathID{m.frontend, node.ID}
	s := p.paths[id]
	if s == nil {
		return false
	}
	was := s.path
	kind, word := m.kind.asks()
	switch {
	case m.kind == kindFarewell:
		if was == PathProved || was == PathUnready {
			s.path = PathSilent
			s.sent = false
		}
		s.knows = false
	case m.nonce == s.nonces[kind]:
		s.heard[kind] = true
		met := !s.knows && word != kindStranger
		s.knows = word != kindStranger
		if met && !p.settled {
			p.tellAgain()
		}
		switch {
		case kind == kindControl:
		case word == kindAnswer:
			s.path = PathProved
			if node.Worker {
				p.proofs[m.from] = ProofReached
			}
		default:
			s.path = PathUnready
		}
	}
	if s.path != was {
		p.report(id, s.path)
	}
	return s.path != was
}

func (p *EthernetProber) addrOf(node string, frontend netip.Addr) (netip.Addr, bool) {
	return addrOf(*p.nodes.Load(), node, frontend)
}

// addrOf is a node's address of the family of the frontend's.
func addrOf(nodes []Node, node string, frontend netip.Addr) (netip.Addr, bool) {
	for _, n := range nodes {
		if n.ID != node {
			continue
		}
		for _, a := range n.Addrs {
			if a.Is4() == frontend.Is4() {
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}
