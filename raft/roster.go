package raft

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	hraft "github.com/hashicorp/raft"

	"appliance/raft/deathwatch"
	"appliance/raft/detector"
	"appliance/raft/fence"
	"appliance/raft/peerport"
	"appliance/raft/settings"
	"appliance/raft/store"
)

// roster is all peers that are known now, sorted by id.
func (g *Group) roster() []Peer {
	g.mu.Lock()
	learned, last := g.learned, g.latest
	g.mu.Unlock()
	from := rosterSource{edits: g.settings.Edits(), learned: learned, servers: g.servers()} // before the settings
	if last.roster == nil || !last.from.equal(from) {
		last = rosterKept{from, rosterOf(&g.cfg, learned, g.settings.All(), from.servers)}
		g.mu.Lock()
		g.latest = last
		g.mu.Unlock()
	}
	return slices.Clone(last.roster)
}

// rosterKept is the roster as it was last, and what it was made of: it is asked for hundreds of times in a second.
type rosterKept struct {
	from   rosterSource
	roster []Peer
}

type rosterSource struct {
	edits   uint64
	learned []Peer // is replaced, and not changed
	servers []hraft.Server
}

func (s rosterSource) equal(o rosterSource) bool {
	same := len(s.learned) == len(o.learned) && (len(s.learned) == 0 || &s.learned[0] == &o.learned[0])
	return same && s.edits == o.edits && slices.Equal(s.servers, o.servers)
}

// rosterOf is the members, the peers that the group expects, and listed peers that may still join. The
// group's word overrides a file's. What this peer learned before is the group's last word: it counts as long
// as the log is missing or still being read.
func rosterOf(cfg *Config, learned []Peer, replicated map[string]string, configured []hraft.Server) []Peer {
	by := make(map[string]Peer)
	removed := func(id string) bool { return replicated[settings.RemovedPrefix+id] != "" }
	for _, p := range cfg.Peers {
		if !removed(p.ID) {
			by[p.ID] = p
		}
	}
	firm := make(map[netip.AddrPort]string)
	put := func(p Peer) {
		// A peer that tells no further addresses is of an older version, or its file lists nobody.
		if was := by[p.ID]; len(p.Further) == 0 && was.Addr == p.Addr {
			p.Further = was.Further
		}
		by[p.ID] = p
		firm[p.Addr] = p.ID
	}
	known := make(map[string]Peer) // those learned that have no record
	member := slices.ContainsFunc(configured, func(s hraft.Server) bool { return string(s.ID) == cfg.ID })
	for _, p := range learned {
		known[p.ID] = p
		if !member && !removed(p.ID) {
			put(p)
		}
	}
	for key := range replicated {
		if id, ok := strings.CutPrefix(key, settings.MemberPrefix); ok {
			if m, ok := settings.MemberOf(replicated, id); ok {
				put(Peer{ID: id, Addr: m.Addr, Further: m.Further, Witness: m.Witness})
				delete(known, id)
			}
		}
	}
	for _, s := range configured {
		id := string(s.ID)
		addr, err := netip.ParseAddrPort(string(s.Address))
		if err != nil {
			continue
		}
		if was := known[id]; was.Addr == addr {
			put(was) // the log is read up to who is a member, and not yet up to the record
		} else {
			put(Peer{ID: id, Addr: addr, Witness: by[id].Witness})
		}
	}
	self := cfg.self()
	delete(firm, self.Addr)
	if len(cfg.Join) == 0 {
		delete(by, self.ID) // its own file is the truth
	}
	put(self)
	maps.DeleteFunc(by, func(id string, p Peer) bool { return firm[p.Addr] != "" && firm[p.Addr] != id })
	return slices.SortedFunc(maps.Values(by), func(a, b Peer) int { return strings.Compare(a.ID, b.ID) })
}

// peerAddrs are where the peers are.
func (g *Group) peerAddrs() []netip.AddrPort {
	var all []netip.AddrPort
	for _, p := range g.roster() {
		all = append(all, p.Addr)
	}
	return all
}

func hostOf(p Peer) detector.Host { return detector.Host{ID: p.ID, Addr: p.Addr, Witness: p.Witness} }

func hostsOf(peers []Peer) []detector.Host {
	var all []detector.Host
	for _, p := range peers {
		all = append(all, hostOf(p))
	}
	return all
}

// hasLeader says that this peer knows who leads.
func (g *Group) hasLeader() bool {
	r := g.running()
	if r == nil {
		return false
	}
	_, id := r.LeaderWithID()
	return id != ""
}

// servers is a copy of the newest configuration of raft that this peer has.
func (g *Group) servers() []hraft.Server {
	r := g.running()
	if r == nil {
		return nil
	}
	return slices.Clone(r.GetConfiguration().Configuration().Servers)
}

// server is the member id in raft's configuration.
func (g *Group) server(id string) (hraft.Server, bool) {
	servers := g.servers()
	i := slices.IndexFunc(servers, func(s hraft.Server) bool { return string(s.ID) == id })
	if i < 0 {
		return hraft.Server{}, false
	}
	return servers[i], true
}

// peer finds id in the roster.
func (g *Group) peer(id string) (Peer, bool) {
	roster := g.roster()
	i := slices.IndexFunc(roster, func(p Peer) bool { return p.ID == id })
	if i < 0 {
		return Peer{}, false
	}
	return roster[i], true
}

// links are the control connections to everybody in the roster but this peer.
type links struct {
	open func(Peer) *peerport.ControlLink

	mu sync.Mutex
	by map[string]*peerport.ControlLink // by id
}

// to is the control connection to id, or nil.
func (l *links) to(id string) *peerport.ControlLink {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.by[id]
}

// all are the control connections, by id.
func (l *links) all() []*peerport.ControlLink {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []*peerport.ControlLink
	for _, id := range slices.Sorted(maps.Keys(l.by)) {
		all = append(all, l.by[id])
	}
	return all
}

// follow makes the links those to peers, and returns the others: the caller closes them.
func (l *links) follow(peers []Peer) (gone []*peerport.ControlLink) {
	l.mu.Lock()
	defer l.mu.Unlock()
	want := make(map[string]Peer)
	for _, p := range peers {
		want[p.ID] = p
	}
	for id, is := range l.by {
		if want[id].Addr != is.Addr {
			gone = append(gone, is)
			delete(l.by, id)
		}
	}
	for id, p := range want {
		if l.by[id] == nil {
			l.by[id] = l.open(p)
		}
	}
	return gone
}

// relink has the port and the links follow roster, and returns the links to close.
func (g *Group) relink(roster []Peer) (gone []*peerport.ControlLink) {
	expected := slices.Clone(g.cfg.Join)
	for _, p := range roster {
		expected = append(expected, p.Addr)
	}
	g.port.Expect(expected)
	return g.links.follow(slices.DeleteFunc(slices.Clone(roster), func(p Peer) bool { return p.ID == g.cfg.ID }))
}

// rosterPause bounds how long a change of the roster goes unnoticed. Raft does not tell followers of it, but the log
// grows with it: the roster is looked at then, once more after rosterPause, and every rosterRound otherwise.
const (
	rosterPause = 200 * time.Millisecond
	rosterRound = time.Second
)

// followRoster watches and greets every other peer, for as long as it is in the roster.
func (g *Group) followRoster(ctx context.Context) error {
	type tie struct {
		peer Peer
		cut  context.CancelFunc
	}
	select { // what a process says that has to wait could be taken for the word of one that was restarted
	case <-g.alone:
	case <-ctx.Done():
		return nil
	}
	ties := make(map[string]tie)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() {
		for _, t := range ties {
			t.cut()
		}
	}()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for wait := rosterPause; ; {
		grown, changed := g.grown.Next(), g.change.Next()
		roster := g.roster()
		g.rememberRoster(roster)
		g.detector.Follow(hostsOf(roster))
		for _, l := range g.relink(roster) {
			wg.Go(l.Close)
		}
		now := make(map[string]Peer)
		for _, p := range roster {
			now[p.ID] = p
		}
		for id, t := range ties {
			if now[id].Addr != t.peer.Addr {
				t.cut()
				delete(ties, id)
			}
		}
		for _, p := range roster {
			if _, tied := ties[p.ID]; tied || p.ID == g.cfg.ID {
				continue
			}
			own, cut := context.WithCancel(ctx)
			ties[p.ID] = tie{p, cut}
			wg.Go(func() {
				deathwatch.Watch(own, g.port, p.ID, p.Addr, g.cfg.Heartbeat/2, g.onSilence,
					func(d deathwatch.Death) { g.onDeath(own, d) })
			})
			wg.Go(func() { g.keepGreeting(own, p) })
		}
		pause.Reset(wait)
		select {
		case <-ctx.Done():
			return nil
		case <-grown:
			wait = rosterPause
		case <-changed:
			wait = rosterPause
		case <-pause.C:
			wait = rosterRound
		}
	}
}

// keepGreeting says hello to a peer every second, for Status and to notice a peer that does not belong. It
// also keeps an idle connection open, on which a vote can be asked for.
func (g *Group) keepGreeting(ctx context.Context, p Peer) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	defer g.stream.Cool(p.Addr)
	for woken := false; ; {
		untold := g.untold.Next()
		_, known := g.heartbeats.Of(p.ID)
		if l := g.links.to(p.ID); l != nil && !(woken && known) {
			once, cancel := context.WithTimeout(ctx, askTimeout)
			h, err := g.greet(once, l)
			if err == nil {
				g.checkSplit(h)
				if g.running() != nil {
					g.stream.Warm(once, p.Addr)
				}
			}
			cancel()
		}
		woken = false
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-untold:
			woken = true
		}
	}
}

func (g *Group) rememberRoster(roster []Peer) {
	if len(g.servers()) == 0 {
		return
	}
	g.mu.Lock()
	same := slices.EqualFunc(roster, g.learned, Peer.equal)
	g.mu.Unlock()
	if same {
		return
	}
	text, err := json.Marshal(roster)
	if err != nil || g.store.SetOwn(store.RosterKey, string(text)) != nil {
		return // again on the next tick
	}
	g.mu.Lock()
	g.learned = roster
	g.mu.Unlock()
	g.change.Fire()
}

// storedRoster is the roster as it was when this peer last ran.
func (g *Group) storedRoster() []Peer {
	var roster []Peer
	if json.Unmarshal([]byte(g.store.Own(store.RosterKey)), &roster) != nil {
		return nil
	}
	return slices.DeleteFunc(roster, func(p Peer) bool { return p.ID == g.cfg.ID })
}

// Two processes with one id
//
// A copied machine or configuration starts as a peer that lives elsewhere. Both could vote, and each for another: so the
// later one takes no part. Before it says a word to the others it asks who answers at its own address. Where its file
// has another address for it than the group has, another peer asks there before it believes it. Only a process that
// answers on a new connection counts as alive: connections of a former one may linger, and one that stands still says
// nothing. A peer with several addresses answers at each of them as the same process.

const (
	// twinTimeout bounds such a question, which takes three round trips. Where nothing answers at a peer's own address,
	// as behind some routers that translate addresses, each start waits for so long.
	twinTimeout = time.Second
	// twinPause lies between two questions of a process that waits.
	twinPause    = time.Second
	waitsForTwin = "waiting for another process with this peer's id to end"
)

// ErrTwice ends Run when another process with this peer's id lives. The next one waits for its end.
var ErrTwice = errors.New("another process with the id of this peer lives")

// processAt asks a peer at an address, on a new connection, which of its processes it is, "" if none answers.
func (g *Group) processAt(ctx context.Context, p Peer, r request) (process string) {
	ctx, cancel := context.WithTimeout(ctx, twinTimeout)
	defer cancel()
	l := g.port.Link(p.ID, p.Addr)
	defer l.Close()
	rep, err := ask(ctx, l, r)
	if err != nil || rep.Hello == nil || rep.Hello.ID != p.ID || rep.Hello.Fence == nil {
		return ""
	}
	return rep.Hello.Fence.Process
}

// awaitTwin returns when no other process answers at this peer's address. One that did may be on its way back.
func (g *Group) awaitTwin(ctx context.Context) error {
	if g.cfg.SingleNode {
		return nil
	}
	var lived time.Time
	for {
		self := g.cfg.self()
		lives := g.processAt(ctx, self, g.helloRequest())
		if lives == g.disk.Process || lives == "" && time.Since(lived) > fence.TwinLasts {
			g.setTwice(g.cfg.ID, reply{})
			return ctx.Err()
		}
		if lives != "" {
			lived = time.Now()
		}
		g.setTwice(g.cfg.ID, reply{Twice: true, Error: fmt.Sprintf("another process with the id %s lives at %s: this one "+
			"waits for its end; if it is to be a peer of its own, give it another localPeer.id and address, and remove %s",
			g.cfg.ID, self.Addr, g.cfg.DataDir)})
		g.setPhase(waitsForTwin)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(twinPause):
		}
	}
}

// livesElsewhere refuses a process that says that its peer is where the group does not have it, while another process
// of the peer answers where it does, or did a moment ago.
func (g *Group) livesElsewhere(ctx context.Context, h hello) error {
	p, known := g.peer(h.ID)
	told, _ := g.fence.Told(h.ID)
	if h.Fence == nil || told.Process == h.Fence.Process || !known || !h.Self.Addr.IsValid() || h.Self.Addr == p.Addr {
		return nil
	}
	here, there := p.Addr.String(), h.Self.Addr.String()
	// Without a hello of its own the question makes nobody ask back.
	lives := g.processAt(ctx, p, request{Op: opHello, From: g.cfg.ID, Heartbeat: g.cfg.Heartbeat})
	switch {
	case lives == h.Fence.Process:
		return nil
	case lives != "":
		g.noteTwins(h.ID, g.twins.Prove(h.ID, here, there, time.Now()))
	case g.twins.Of(h.ID, time.Now()) == "":
		return nil
	}
	return errors.New(fence.Twice(h.ID, here, there))
}

// hearTwin notes that another process asks at this peer's address who is there: it waits for the end of this one.
func (g *Group) hearTwin(at netip.Addr, h *hello) {
	if h != nil && h.Fence != nil && h.Fence.Process != g.disk.Process {
		g.noteTwins(g.cfg.ID, g.twins.Prove(g.cfg.ID, g.cfg.self().Addr.Addr().String(), at.String(), time.Now()))
	}
}

// noteTwins says that two processes run as one peer, if why is not "".
func (g *Group) noteTwins(id, why string) {
	if why == "" {
		return
	}
	g.log.Warn("two processes run as one peer", "peer", id, "why", why)
	g.history.doubled(id, why)
	g.change.Fire()
}

// setTwice notes whether by, a peer or an address to join, says that another process with this peer's id lives. If this
// one runs, it has begun where nobody could ask: it ends its part at once.
func (g *Group) setTwice(by string, rep reply) {
	g.mu.Lock()
	was := g.twice[by]
	if rep.Twice {
		g.twice[by] = rep.Error
	} else {
		delete(g.twice, by)
	}
	now := g.twice[by]
	said := now == "" || g.twiceSaid
	g.twiceSaid = g.twiceSaid || now != ""
	g.mu.Unlock()
	if !said {
		g.log.Error("this process takes no part", "says", by, "why", now)
	}
	if now != "" && g.running() != nil {
		g.fail(fmt.Errorf("group: %w: %s", ErrTwice, now))
	}
	if was != now {
		g.change.Fire()
	}
}

// doubled says that another process with this peer's id lives, or "". Who is not asked any more has no say.
func (g *Group) doubled() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, by := range slices.Sorted(maps.Keys(g.twice)) {
		if by == g.cfg.ID || g.links.to(by) != nil ||
			slices.ContainsFunc(g.cfg.Join, func(at netip.AddrPort) bool { return at.String() == by }) {
			return g.twice[by]
		}
	}
	return ""
}
