package raft

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	hraft "github.com/hashicorp/raft"

	"appliance/raft/settings"
)

// howBack tells a removed peer how to get back into the group.
const howBack = "'appliance peers add' on a member takes it back"

// AddPeer has the group expect p: it is admitted when it asks, whatever the files of the others say. This is
// also how a member that is gone for good is replaced, under its id and another address; without force it
// must not answer any more.
func (g *Group) AddPeer(ctx context.Context, p Peer, force bool) error {
	_, err := g.atLeader(ctx, request{Op: opAdd, Peer: &p, Force: force})
	return err
}

// RemovePeer takes peer id out of the group. The holder hands over first. Without force it is refused if the
// remaining voters that answer would be no majority.
func (g *Group) RemovePeer(ctx context.Context, id string, force bool) error {
	_, err := g.atLeader(ctx, request{Op: opRemove, To: id, Force: force})
	return err
}

// PromotePeer gives peer id a vote. DemotePeer takes it away: the peer goes on following the group and never
// holds.
func (g *Group) PromotePeer(ctx context.Context, id string, force bool) error {
	_, err := g.atLeader(ctx, request{Op: opPromote, To: id, Force: force})
	return err
}

// DemotePeer is the opposite of PromotePeer.
func (g *Group) DemotePeer(ctx context.Context, id string, force bool) error {
	_, err := g.atLeader(ctx, request{Op: opDemote, To: id, Force: force})
	return err
}

// changeMembers does such a request as the leader.
func (g *Group) changeMembers(ctx context.Context, r request) error {
	select {
	case g.admitting <- struct{}{}:
		defer func() { <-g.admitting }()
	case <-ctx.Done():
		return errors.New("the members are being changed; ask again")
	}
	if err := g.awaitLease(ctx); err != nil {
		return err
	}
	if g.settings.Get(settings.ClusterKey) == "" {
		return errors.New("the group has only just begun; try again")
	}
	switch r.Op {
	case opAdd:
		return g.expectPeer(ctx, *r.Peer, r.Force)
	case opRemove:
		return g.remove(ctx, r.To, r.Force)
	case opPromote:
		return g.promoteTo(ctx, r.To, r.Force)
	case opDemote:
		return g.demote(ctx, r.To, r.Force)
	}
	return fmt.Errorf("incomplete request %q", r.Op)
}

func (g *Group) expectPeer(ctx context.Context, p Peer, force bool) error {
	if p.ID == "" || !p.Addr.IsValid() || p.Addr.Port() == 0 || p.Addr.Addr().IsUnspecified() {
		return fmt.Errorf("a peer needs an id and an address with its port, not %q at %s", p.ID, p.Addr)
	}
	if why := g.takenBy(ctx, p); why != "" && !force {
		return errors.New(why)
	}
	s, is := g.server(p.ID)
	if is && string(s.Address) == p.Addr.String() {
		return fmt.Errorf("peer %s at %s is a member already", p.ID, p.Addr)
	}
	if is {
		// The new peer gets no vote before it has the log, so the old one is removed first, like any other.
		if err := g.removeServer(ctx, s, force); err != nil {
			return err
		}
	}
	m := settings.Member{Addr: p.Addr, Further: p.Further, Witness: p.Witness}
	err := g.apply(settings.Command{Set: map[string]string{settings.MemberPrefix + p.ID: m.Text()},
		Remove: []string{settings.RemovedPrefix + p.ID}})
	if err == nil {
		g.log.Info("expects a peer", "peer", p.ID, "address", p.Addr)
	}
	return err
}

// admit takes a peer without state into the group, as a non-voter: one that is expected or listed, or that
// was told to join. The group key, or a certificate that fits the list, proves that it is one of ours.
func (g *Group) admit(ctx context.Context, p Peer, joins bool) error {
	listed, ok := g.peer(p.ID)
	removed := g.removalOf(p.ID)
	switch {
	case removed != "":
		return g.refuse(p, removed)
	case !ok && !joins:
		return g.refuse(p, fmt.Sprintf("peer %s at %s is not listed by the leader %s; add it to the list there, "+
			"or with 'appliance peers add', or start it with --join", p.ID, p.Addr, g.cfg.ID))
	case !listed.same(p) && !joins:
		return g.refuse(p, fmt.Sprintf("peer %s is known to the leader %s as %s (witness: %v), not %s (witness: "+
			"%v); make the lists the same, or replace it with 'appliance peers add'",
			p.ID, g.cfg.ID, listed.Addr, listed.Witness, p.Addr, p.Witness))
	case p.ID == g.cfg.ID:
		return g.refuse(p, fmt.Sprintf("the id %s is the leader's own; give this peer another id", p.ID))
	}
	select {
	case g.admitting <- struct{}{}:
		defer func() { <-g.admitting }()
	case <-ctx.Done():
		return errors.New("the members are being changed; ask again")
	}
	if err := g.awaitLease(ctx); err != nil {
		return err
	}
	if g.cluster() == "" {
		return errors.New("the group has only just begun; ask again") // it has to have a name: package fence
	}
	if why := g.takenBy(ctx, p); why != "" {
		return g.refuse(p, why)
	}
	if err := g.verifyPeer(ctx, p); err != nil {
		return g.refuse(p, fmt.Sprintf("the leader %s cannot reach peer %s at %s: %v; open the peer port between "+
			"them, or correct the address", g.cfg.ID, p.ID, p.Addr, err))
	}
	m, _ := settings.MemberOf(g.settings.All(), p.ID)
	m.Addr, m.Witness = p.Addr, p.Witness
	if !joins || len(p.Further) > 0 {
		m.Further = p.Further
	}
	if err := g.apply(settings.Command{Set: map[string]string{settings.MemberPrefix + p.ID: m.Text()}}); err != nil {
		return err
	}
	id, addr := hraft.ServerID(p.ID), hraft.ServerAddress(p.Addr.String())
	for _, s := range g.raft.GetConfiguration().Configuration().Servers {
		if s.ID != id && s.Address != addr {
			continue
		}
		if s.ID == hraft.ServerID(g.cfg.ID) {
			return g.refuse(p, fmt.Sprintf("%s is the leader's own address; correct the lists", addr))
		}
		// It has lost its vote: see Group.join.
		err := g.command(func(r *hraft.Raft) hraft.Future { return r.RemoveServer(s.ID, 0, patience) })
		if err != nil {
			return fmt.Errorf("removing the former %s: %w", s.ID, err)
		}
		g.log.Info("removed a member that comes back without its state", "peer", string(s.ID))
	}
	err := g.command(func(r *hraft.Raft) hraft.Future { return r.AddNonvoter(id, addr, 0, patience) })
	if err != nil {
		return fmt.Errorf("admitting %s: %w", p.ID, err)
	}
	g.log.Info("admitted, it votes when it has caught up", "peer", p.ID, "address", addr)
	g.change.Fire()
	return nil
}

// verifyPeer proves that p is where it says, and that both understand each other.
func (g *Group) verifyPeer(ctx context.Context, p Peer) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	l := g.port.Link(p.ID, p.Addr)
	defer l.Close()
	rep, err := ask(ctx, l, g.helloRequest())
	switch {
	case err != nil:
		return err
	case rep.Hello == nil || rep.Hello.ID != p.ID:
		return errors.New("somebody else answers there")
	}
	g.learnHeartbeat(p.ID, rep.Hello.Heartbeat)
	if why := conflict(g.hello(), *rep.Hello); why != "" {
		return errors.New(why)
	}
	return nil
}

func (g *Group) refuse(p Peer, why string) error {
	g.log.Warn("refused a peer", "peer", p.ID, "address", p.Addr, "why", why)
	return errors.New(why)
}

// takenBy says who else has p's id or address and is alive, or "".
func (g *Group) takenBy(ctx context.Context, p Peer) string {
	for _, q := range g.roster() {
		// Peers on one host differ by their ports, so their first addresses may be the same.
		if at := slices.IndexFunc(p.Further, func(a netip.Addr) bool {
			return slices.Contains(q.Addrs(), a)
		}); at >= 0 && q.ID != p.ID {
			return fmt.Sprintf("peer %s has the address %s; give %s addresses of its own", q.ID, p.Further[at], p.ID)
		}
		if (q.ID != p.ID) == (q.Addr != p.Addr) {
			continue // p itself, or somebody else
		}
		if q.ID == g.cfg.ID {
			return fmt.Sprintf("peer %s is at %s, which leads the group; give %s at %s an id and an address of "+
				"its own", q.ID, q.Addr, p.ID, p.Addr)
		}
		once, cancel := context.WithTimeout(ctx, askTimeout)
		l := g.port.Link(q.ID, q.Addr)
		rep, err := ask(once, l, g.helloRequest())
		l.Close()
		cancel()
		if err == nil && rep.Hello != nil && rep.Hello.ID == q.ID {
			return fmt.Sprintf("peer %s is at %s, and answers there; give %s at %s an id and an address of its "+
				"own, or stop the other first", q.ID, q.Addr, p.ID, p.Addr)
		}
	}
	return ""
}

func (g *Group) remove(ctx context.Context, id string, force bool) error {
	known := g.settings.All()
	s, is := g.server(id)
	_, expected := settings.MemberOf(known, id)
	if !is && !expected {
		return g.notMember(id)
	}
	if is {
		if err := g.removeServer(ctx, s, force); err != nil {
			return err
		}
	}
	gone := []string{settings.MemberPrefix + id, settings.DrainPrefix + id}
	if known[settings.PinKey] == id {
		gone = append(gone, settings.PinKey)
	}
	err := g.apply(settings.Command{
		Set:    map[string]string{settings.RemovedPrefix + id: time.Now().UTC().Format(time.RFC3339)},
		Remove: gone,
	})
	if err != nil {
		return err
	}
	g.log.Info("removed a peer", "peer", id)
	g.change.Fire()
	return nil
}

// removeServer takes s out of raft's configuration.
func (g *Group) removeServer(ctx context.Context, s hraft.Server, force bool) error {
	var after []hraft.Server
	for _, o := range g.servers() {
		if o.ID != s.ID {
			after = append(after, o)
		}
	}
	if err := g.checkMajority(ctx, after, fmt.Sprintf("without %s", s.ID), force); err != nil {
		return err
	}
	err := g.command(func(r *hraft.Raft) hraft.Future { return r.RemoveServer(s.ID, 0, patience) })
	if err != nil {
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
	if err := g.checkMajority(ctx, after, "with "+id+" as a voter", force); err != nil {
		return err
	}
	// The leader loop does the rest, once the peer has caught up.
	m, _ := settings.MemberOf(g.settings.All(), id)
	m.Standby = false
	if !m.Addr.IsValid() {
		m.Addr, _ = netip.ParseAddrPort(string(s.Address))
	}
	return g.apply(settings.Command{Set: map[string]string{settings.MemberPrefix + id: m.Text()}})
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
	if err := g.checkMajority(ctx, after, "without the vote of "+id, force); err != nil {
		return err
	}
	p, _ := g.peer(id)
	m, _ := settings.MemberOf(g.settings.All(), id)
	m.Addr, m.Further, m.Witness, m.Standby = p.Addr, p.Further, p.Witness, true
	// The record comes first, or the leader loop would promote the peer again.
	if err := g.apply(settings.Command{Set: map[string]string{settings.MemberPrefix + id: m.Text()}}); err != nil {
		return err
	}
	err := g.command(func(r *hraft.Raft) hraft.Future { return r.DemoteVoter(s.ID, 0, patience) })
	if err != nil {
		return fmt.Errorf("demoting %s: %w", id, err)
	}
	g.log.Info("demoted, it follows without a vote", "peer", id)
	g.change.Fire()
	return nil
}

func (g *Group) notMember(id string) error {
	return fmt.Errorf("peer %q is not a member of the group, which has %s; see 'appliance peers list'", id,
		names(g.roster()))
}

// checkMajority says why the group's servers should not become after: nobody could hold, or the voters that
// take part now would be no majority. One that answers and has lost its disk, or whose votes do not count, does not.
func (g *Group) checkMajority(ctx context.Context, after []hraft.Server, how string, force bool) error {
	answers := make(map[string]bool)
	for _, h := range g.ask(ctx) {
		answers[h.ID] = h.HasState && g.refusalOf(h.ID) == nil
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
		return fmt.Errorf("%s the group would have %d voters and need %d of them, but %s cannot be reached, or "+
			"cannot vote now: the virtual address would go unanswered; bring them back, or remove them first, or "+
			"use --force if you know that they come back", how, voters, need, strings.Join(silent, ", "))
	case voters-len(silent) < need:
		g.log.Warn("a change of members was forced that may cost the majority", "silent", silent, "voters", voters)
	}
	return nil
}

// removalOf is what a removed peer is told, or "".
func (g *Group) removalOf(id string) string {
	when := g.settings.Get(settings.RemovedPrefix + id)
	if when == "" || id == "" {
		return ""
	}
	return fmt.Sprintf("peer %s was removed from the group at %s; %s", id, when, howBack)
}

// heardOfRemoval notes that another peer says that this one was removed, or is a member.
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

// setRefused notes why the group refuses this peer; "" if it does not.
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
		g.feed.Wake() // workers are to ask another peer
	}
	g.change.Fire()
}

func (g *Group) refusal() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.refused
}

// isRemoved says that the group refuses this peer, which its own log may not show: it then asks nobody for
// votes.
func (g *Group) isRemoved() bool { return g.refusal() != "" }
