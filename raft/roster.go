package raft

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	hraft "github.com/hashicorp/raft"
)

// The settings that belong to the group itself. Who votes, and where, is in
// raft's own configuration; what else there is to know of a member is here.
const (
	memberPrefix  = "member/"  // + id: a member, or one that is expected
	removedPrefix = "removed/" // + id: when it was removed
	drainPrefix   = "drain/"   // + id: it gives up holding
	pinKey        = "pin"      // the id of who shall hold
)

// reserved says that a setting is not for Propose to change.
func reserved(key string) bool {
	return key == clusterKey || strings.HasPrefix(key, memberPrefix) || strings.HasPrefix(key, removedPrefix)
}

// member is what the group knows of one of its peers.
type member struct {
	Addr    netip.AddrPort `json:"address"`
	Further []netip.Addr   `json:"addresses,omitempty"`
	Witness bool           `json:"witness,omitempty"`
	// Standby has the log and no vote, until it is promoted.
	Standby bool   `json:"standby,omitempty"`
	Version string `json:"version,omitempty"`
}

// memberOf reads what the group knows of id.
func memberOf(settings map[string]string, id string) (m member, ok bool) {
	text, ok := settings[memberPrefix+id]
	if !ok || json.Unmarshal([]byte(text), &m) != nil {
		return member{}, false
	}
	return m, true
}

func (m member) text() string {
	text, err := json.Marshal(m)
	if err != nil {
		panic("raft: a member has no text: " + err.Error()) // strings and booleans have
	}
	return string(text)
}

// roster is who the peers are, as this peer knows it now, by id.
func (g *Group) roster() []Peer {
	g.mu.Lock()
	met := g.met
	g.mu.Unlock()
	return rosterOf(&g.cfg, met, g.settings.all(), g.servers())
}

// rosterOf is the members, those that the group expects, and listed peers that
// may still join. What the group says goes before what a file says. What this
// peer knew before, in met, is what the group said last: it holds where the log
// is not there yet or is still being read, and is behind it.
func rosterOf(cfg *Config, met []Peer, settings map[string]string, configured []hraft.Server) []Peer {
	by := make(map[string]Peer)
	removed := func(id string) bool { return settings[removedPrefix+id] != "" }
	for _, p := range cfg.Peers {
		if !removed(p.ID) {
			by[p.ID] = p
		}
	}
	firm := make(map[netip.AddrPort]string)
	put := func(p Peer) {
		// Who says nothing of further addresses is of an older version, or has
		// a file that lists nobody.
		if was := by[p.ID]; len(p.Further) == 0 && was.Addr == p.Addr {
			p.Further = was.Further
		}
		by[p.ID] = p
		firm[p.Addr] = p.ID
	}
	known := make(map[string]Peer) // in met, and without a record
	member := slices.ContainsFunc(configured, func(s hraft.Server) bool { return string(s.ID) == cfg.ID })
	for _, p := range met {
		known[p.ID] = p
		if !member && !removed(p.ID) {
			put(p)
		}
	}
	for key := range settings {
		if id, ok := strings.CutPrefix(key, memberPrefix); ok {
			if m, ok := memberOf(settings, id); ok {
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
		delete(by, self.ID) // its file says all of it
	}
	put(self)
	maps.DeleteFunc(by, func(id string, p Peer) bool { return firm[p.Addr] != "" && firm[p.Addr] != id })
	return slices.SortedFunc(maps.Values(by), func(a, b Peer) int { return strings.Compare(a.ID, b.ID) })
}

// servers is a copy of raft's configuration, the newest that this peer has.
func (g *Group) servers() []hraft.Server {
	r := g.running()
	if r == nil {
		return nil
	}
	return slices.Clone(r.GetConfiguration().Configuration().Servers)
}

// server is the member id as raft's configuration has it.
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

// link is the control connection to id, or nil.
func (g *Group) link(id string) *link {
	g.linksMu.Lock()
	defer g.linksMu.Unlock()
	return g.links[id]
}

// allLinks are the control connections to everybody else, by id.
func (g *Group) allLinks() []*link {
	g.linksMu.Lock()
	defer g.linksMu.Unlock()
	var all []*link
	for _, id := range slices.Sorted(maps.Keys(g.links)) {
		all = append(all, g.links[id])
	}
	return all
}

// relink makes the links those of roster, and returns the ones that are not
// needed any more: the caller closes them.
func (g *Group) relink(roster []Peer) (gone []*link) {
	g.port.list(roster, g.cfg.Join)
	g.linksMu.Lock()
	defer g.linksMu.Unlock()
	want := make(map[string]Peer)
	for _, p := range roster {
		if p.ID != g.cfg.ID {
			want[p.ID] = p
		}
	}
	for id, l := range g.links {
		if want[id].Addr != l.addr {
			gone = append(gone, l)
			delete(g.links, id)
		}
	}
	for id, p := range want {
		if g.links[id] == nil {
			g.links[id] = newLink(g.port, id, p.Addr)
		}
	}
	return gone
}

// rosterPause is the longest that a change of the roster goes unnoticed: raft
// tells followers nothing of it.
const rosterPause = 200 * time.Millisecond

// followRoster watches and greets every peer of the roster, for as long as it
// is in it.
func (g *Group) followRoster(ctx context.Context) error {
	type tie struct {
		peer Peer
		cut  context.CancelFunc
	}
	ties := make(map[string]tie)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() {
		for _, t := range ties {
			t.cut()
		}
	}()
	tick := time.NewTicker(rosterPause)
	defer tick.Stop()
	for {
		roster := g.roster()
		g.rememberRoster(roster)
		g.detector.follow(roster)
		for _, l := range g.relink(roster) {
			wg.Go(l.close)
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
				g.port.watch(own, p, g.cfg.Heartbeat/2, g.onSilence, func(d death) { g.onDeath(own, d) })
			})
			wg.Go(func() { g.probe(own, p) })
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// rosterKey is where the roster is on disk: a peer whose file lists nobody has
// to find the others after a restart.
const rosterKey = "roster"

func (g *Group) rememberRoster(roster []Peer) {
	if len(g.servers()) == 0 {
		return
	}
	g.mu.Lock()
	same := slices.EqualFunc(roster, g.met, Peer.equal)
	g.mu.Unlock()
	if same {
		return
	}
	text, err := json.Marshal(roster)
	if err != nil || g.store.BoltStore.Set([]byte(rosterKey), text) != nil {
		return // told by the store already; again on the next tick
	}
	g.mu.Lock()
	g.met = roster
	g.mu.Unlock()
	g.change.Fire()
}

// storedRoster is the roster as it was when this peer last ran.
func (g *Group) storedRoster() []Peer {
	var roster []Peer
	text, err := g.store.Get([]byte(rosterKey))
	if err != nil || json.Unmarshal(text, &roster) != nil {
		return nil
	}
	return slices.DeleteFunc(roster, func(p Peer) bool { return p.ID == g.cfg.ID })
}

// introduceTo asks the addresses to join for the group's members.
func (g *Group) introduceTo(ctx context.Context) (problems []string) {
	for _, addr := range g.cfg.Join {
		l := newLink(g.port, "", addr)
		once, cancel := context.WithTimeout(ctx, askTimeout)
		rep, err := l.call(once, g.helloRequest())
		cancel()
		l.close()
		switch {
		case err != nil:
			problems = append(problems, err.Error())
		case rep.Hello == nil:
			problems = append(problems, fmt.Sprintf("%s does not say who it is; is it an appliance's peer port?", addr))
		case rep.Hello.Cluster == "":
			problems = append(problems, fmt.Sprintf("peer %s at %s is in no group yet", rep.Hello.ID, addr))
		default:
			g.mu.Lock()
			g.met = slices.DeleteFunc(slices.Clone(rep.Hello.Peers), func(p Peer) bool { return p.ID == g.cfg.ID })
			g.mu.Unlock()
			for _, l := range g.relink(g.roster()) {
				l.close()
			}
			return nil
		}
	}
	return problems
}
