package raft

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	hraft "github.com/hashicorp/raft"
)

// howBack is the way into the group for who was removed from it.
const howBack = "'appliance peers add' on a member takes it back"

// AddPeer has the group expect p: it is admitted when it asks, whatever the
// files of the others say. A member that is gone for good is replaced so, under
// its id and another address; without force it has to be gone.
func (g *Group) AddPeer(ctx context.Context, p Peer, force bool) error {
	_, err := g.atLeader(ctx, request{Op: opAdd, Peer: &p, Force: force})
	return err
}

// RemovePeer takes peer id out of the group. The holder hands over first.
// Without force it is refused where those that are left would have no majority.
func (g *Group) RemovePeer(ctx context.Context, id string, force bool) error {
	_, err := g.atLeader(ctx, request{Op: opRemove, To: id, Force: force})
	return err
}

// PromotePeer gives peer id a vote, DemotePeer takes it away: it goes on to
// follow the group, and never holds.
func (g *Group) PromotePeer(ctx context.Context, id string, force bool) error {
	_, err := g.atLeader(ctx, request{Op: opPromote, To: id, Force: force})
	return err
}

// DemotePeer is the opposite of PromotePeer.
func (g *Group) DemotePeer(ctx context.Context, id string, force bool) error {
	_, err := g.atLeader(ctx, request{Op: opDemote, To: id, Force: force})
	return err
}

// changeMembers does such a request on the leader.
func (g *Group) changeMembers(ctx context.Context, r request) error {
	g.admitMu.Lock()
	defer g.admitMu.Unlock()
	if err := g.awaitLease(ctx); err != nil {
		return err
	}
	if g.settings.get(clusterKey) == "" {
		return errors.New("the group has only just begun; try again")
	}
	switch r.Op {
	case opAdd:
		return g.expect(ctx, *r.Peer, r.Force)
	case opRemove:
		return g.remove(ctx, r.To, r.Force)
	case opPromote:
		return g.promoteTo(ctx, r.To, r.Force)
	case opDemote:
		return g.demote(ctx, r.To, r.Force)
	}
	return fmt.Errorf("incomplete request %q", r.Op)
}

func (g *Group) expect(ctx context.Context, p Peer, force bool) error {
	if p.ID == "" || !p.Addr.IsValid() || p.Addr.Port() == 0 || p.Addr.Addr().IsUnspecified() {
		return fmt.Errorf("a peer needs an id and an address with its port, not %q at %s", p.ID, p.Addr)
	}
	if why := g.taken(ctx, p); why != "" && !force {
		return errors.New(why)
	}
	s, is := g.server(p.ID)
	if is && string(s.Address) == p.Addr.String() {
		return fmt.Errorf("peer %s at %s is a member already", p.ID, p.Addr)
	}
	if is {
		// Its successor gets no vote before it has the log, so whoever was
		// there before is removed first, as any other.
		if err := g.drop(ctx, s, force); err != nil {
			return err
		}
	}
	m := member{Addr: p.Addr, Further: p.Further, Witness: p.Witness}
	err := g.apply(change{Set: map[string]string{memberPrefix + p.ID: m.text()}, Remove: []string{removedPrefix + p.ID}})
	if err == nil {
		g.log.Info("expects a peer", "peer", p.ID, "address", p.Addr)
	}
	return err
}

// taken says who else has p's id or address and is alive, or "".
func (g *Group) taken(ctx context.Context, p Peer) string {
	for _, q := range g.roster() {
		// A port tells peers on one host apart, so first addresses may be the same.
		if at := slices.IndexFunc(p.Further, func(a netip.Addr) bool { return slices.Contains(q.Addrs(), a) }); at >= 0 && q.ID != p.ID {
			return fmt.Sprintf("peer %s has the address %s; give %s addresses of its own", q.ID, p.Further[at], p.ID)
		}
		if (q.ID != p.ID) == (q.Addr != p.Addr) {
			continue // p itself, or somebody else
		}
		if q.ID == g.cfg.ID {
			return fmt.Sprintf("peer %s is at %s, which leads the group; give %s at %s an id and an address of its own", q.ID, q.Addr, p.ID, p.Addr)
		}
		once, cancel := context.WithTimeout(ctx, askTimeout)
		l := newLink(g.port, q.ID, q.Addr)
		rep, err := l.call(once, g.helloRequest())
		l.close()
		cancel()
		if err == nil && rep.Hello != nil && rep.Hello.ID == q.ID {
			return fmt.Sprintf("peer %s is at %s, and answers there; give %s at %s an id and an address of its own, or stop the other first", q.ID, q.Addr, p.ID, p.Addr)
		}
	}
	return ""
}

func (g *Group) remove(ctx context.Context, id string, force bool) error {
	settings := g.settings.all()
	s, is := g.server(id)
	_, expected := memberOf(settings, id)
	if !is && !expected {
		return g.notMember(id)
	}
	if is {
		if err := g.drop(ctx, s, force); err != nil {
			return err
		}
	}
	gone := []string{memberPrefix + id, drainPrefix + id}
	if settings[pinKey] == id {
		gone = append(gone, pinKey)
	}
	err := g.apply(change{
		Set:    map[string]string{removedPrefix + id: time.Now().UTC().Format(time.RFC3339)},
		Remove: gone,
	})
	if err != nil {
		return err
	}
	g.log.Info("removed a peer", "peer", id)
	g.change.Fire()
	return nil
}

// drop takes s out of raft's configuration.
func (g *Group) drop(ctx context.Context, s hraft.Server, force bool) error {
	var after []hraft.Server
	for _, o := range g.servers() {
		if o.ID != s.ID {
			after = append(after, o)
		}
	}
	if err := g.survives(ctx, after, fmt.Sprintf("without %s", s.ID), force); err != nil {
		return err
	}
	if err := g.raft.RemoveServer(s.ID, 0, patience).Error(); err != nil {
		return fmt.Errorf("removing %s: %w", s.ID, err)
	}
	return nil
}

func (g *Group) promoteTo(ctx context.Context, id string, force bool) error {
	s, is := g.server(id)
	if !is {
		return g.notMember(id)
	}
	if s.Suffrage == hraft.Voter {
		return fmt.Errorf("peer %s votes already", id)
	}
	after := g.servers()
	for i := range after {
		if after[i].ID == s.ID {
			after[i].Suffrage = hraft.Voter
		}
	}
	if err := g.survives(ctx, after, "with "+id+" as a voter", force); err != nil {
		return err
	}
	// Duty does the rest, once the peer has caught up.
	m, _ := memberOf(g.settings.all(), id)
	m.Standby = false
	if !m.Addr.IsValid() {
		m.Addr, _ = netip.ParseAddrPort(string(s.Address))
	}
	return g.apply(change{Set: map[string]string{memberPrefix + id: m.text()}})
}

func (g *Group) demote(ctx context.Context, id string, force bool) error {
	s, is := g.server(id)
	if !is {
		return g.notMember(id)
	}
	if s.Suffrage != hraft.Voter {
		return fmt.Errorf("peer %s has no vote", id)
	}
	var after []hraft.Server
	for _, o := range g.servers() {
		if o.ID == s.ID {
			o.Suffrage = hraft.Nonvoter
		}
		after = append(after, o)
	}
	if err := g.survives(ctx, after, "without the vote of "+id, force); err != nil {
		return err
	}
	p, _ := g.peer(id)
	m, _ := memberOf(g.settings.all(), id)
	m.Addr, m.Further, m.Witness, m.Standby = p.Addr, p.Further, p.Witness, true
	// First the wish, or duty would promote it again.
	if err := g.apply(change{Set: map[string]string{memberPrefix + id: m.text()}}); err != nil {
		return err
	}
	if err := g.raft.DemoteVoter(s.ID, 0, patience).Error(); err != nil {
		return fmt.Errorf("demoting %s: %w", id, err)
	}
	g.log.Info("demoted, it follows without a vote", "peer", id)
	g.change.Fire()
	return nil
}

func (g *Group) notMember(id string) error {
	return fmt.Errorf("peer %q is not a member of the group, which has %s; see 'appliance peers list'", id, names(g.roster()))
}

// survives says why the group should not become after: nobody could hold, or
// the voters that answer now would be no majority.
func (g *Group) survives(ctx context.Context, after []hraft.Server, how string, force bool) error {
	answers := make(map[string]bool)
	for _, h := range g.ask(ctx) {
		answers[h.ID] = true
	}
	voters, silent, holders := 0, []string{}, 0
	for _, s := range after {
		if s.Suffrage != hraft.Voter {
			continue
		}
		voters++
		id := string(s.ID)
		if p, ok := g.peer(id); ok && !p.Witness {
			holders++
		}
		if id != g.cfg.ID && !answers[id] {
			silent = append(silent, id)
		}
	}
	switch need := voters/2 + 1; {
	case voters == 0:
		return fmt.Errorf("%s nobody would be left; stop the appliance instead, or add another peer first", how)
	case holders == 0:
		return fmt.Errorf("%s there would be only witnesses, and nobody could hold; add another peer first", how)
	case voters-len(silent) < need && !force:
		return fmt.Errorf("%s the group would have %d voters and need %d of them, but %s cannot be reached: the virtual address would go unanswered; "+
			"bring them back, or remove them first, or use --force if you know that they come back", how, voters, need, strings.Join(silent, ", "))
	case voters-len(silent) < need:
		g.log.Warn("a change of members was forced that may cost the majority", "silent", silent, "voters", voters)
	}
	return nil
}

func (l *link) isConnected() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.connected
}

// stepAside hands over before a change that would depose this leader.
func (g *Group) stepAside(ctx context.Context, r request) error {
	if _, is := g.server(r.To); !is {
		return g.notMember(r.To)
	}
	if err := g.transfer(ctx, ""); err != nil {
		return fmt.Errorf("peer %s leads the group, and nobody can take over: %w", r.To, err)
	}
	for {
		changed := g.change.Next()
		if _, leads := g.leads(); !leads {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// keepRecord keeps what the settings say of the members true, and takes in
// peers that are expected and have their state: one that was removed and is
// taken back.
func (g *Group) keepRecord(ctx context.Context) {
	if !g.admitMu.TryLock() {
		return // the members are about to be others
	}
	defer g.admitMu.Unlock()
	settings := g.settings.all()
	set := make(map[string]string)
	members := make(map[string]bool)
	for _, s := range g.servers() {
		id := string(s.ID)
		members[id] = true
		p, ok := g.peer(id)
		if !ok {
			continue
		}
		m, _ := memberOf(settings, id)
		m.Addr, m.Witness, m.Further = p.Addr, p.Witness, p.Further
		if h, ok := g.helloOf(id); ok && h.Self.ID == id {
			m.Version = h.Version
			if h.Self.Addr == p.Addr {
				m.Witness = h.Self.Witness // its own word
				if !h.Joins || len(h.Self.Further) > 0 {
					m.Further = h.Self.Further
				}
			}
		}
		if id == g.cfg.ID { // the roster has its own word
			m.Version = g.cfg.Version
		}
		if text := m.text(); settings[memberPrefix+id] != text {
			set[memberPrefix+id] = text
		}
	}
	if len(set) > 0 {
		if err := g.apply(change{Set: set}); err != nil {
			g.log.Debug("keeping the record of members", "error", err)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(settings)) {
		id, ok := strings.CutPrefix(id, memberPrefix)
		if ok && !members[id] {
			g.takeBack(ctx, id)
		}
	}
}

func (g *Group) takeBack(ctx context.Context, id string) {
	l := g.link(id)
	if l == nil || !l.isConnected() {
		return
	}
	once, cancel := context.WithTimeout(ctx, g.cfg.Heartbeat)
	defer cancel()
	h, err := g.greet(once, l)
	self := g.hello()
	if err != nil || !h.HasState || h.Cluster == "" || h.Cluster != self.Cluster || conflict(self, h) != "" {
		return // without state it asks by itself, see Group.join
	}
	if err := g.raft.AddNonvoter(hraft.ServerID(id), hraft.ServerAddress(l.addr.String()), 0, patience).Error(); err != nil {
		g.log.Debug("taking back", "peer", id, "error", err)
		return
	}
	g.log.Info("took back, it votes when it has caught up", "peer", id)
}

// removalOf is what a removed peer is told, or "".
func (g *Group) removalOf(id string) string {
	when := g.settings.get(removedPrefix + id)
	if when == "" || id == "" {
		return ""
	}
	return fmt.Sprintf("peer %s was removed from the group at %s; %s", id, when, howBack)
}

// heardOfRemoval takes another peer's word for it that this one was removed.
func (g *Group) heardOfRemoval(h hello) {
	g.mu.Lock()
	cluster := g.written
	g.mu.Unlock()
	if h.Cluster == "" || h.Cluster != cluster || !h.HasState {
		return
	}
	switch {
	case h.Removed != "":
		g.setRefused(h.Removed)
	case slices.Contains(h.Members, g.cfg.ID):
		g.setRefused("")
	}
}

// setRefused notes why the group does not want this peer; "" is that it does.
func (g *Group) setRefused(why string) {
	g.mu.Lock()
	was := g.refused
	g.refused = why
	g.mu.Unlock()
	if was == why {
		return
	}
	if why != "" {
		g.log.Warn("not wanted in the group", "why", why)
		g.fed.Fire() // workers are to ask another peer
	}
	g.change.Fire()
}

func (g *Group) refusal() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.refused
}

// isRemoved says that the group has removed this peer while its own log
// may not tell: it asks nobody for votes.
func (g *Group) isRemoved() bool { return g.refusal() != "" }
