package raft

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	hraft "github.com/hashicorp/raft"
)

// patience bounds one change of configuration or settings.
const patience = 5 * time.Second

// answer answers one control request.
func (g *Group) answer(ctx context.Context, from identity, r request) reply {
	var rep reply
	var err error
	if from.role != rolePeer && r.Op != opFollow {
		return reply{Error: fmt.Sprintf("a %s may not ask for %q", from.role, r.Op)}
	}
	switch r.Op {
	case opFollow:
		rep.Feed, err = g.serveFeed(ctx, r.After)
	case opHello:
		h := g.hello()
		if from.id != "" {
			r.From = from.id
		}
		h.Removed = g.removalOf(r.From)
		rep.Hello = &h
		if r.From != "" && from.role == rolePeer {
			g.heartbeats.Learn(r.From, r.Heartbeat)
		}
		// Who has the key gets grants: lease.go.
		if from.role == rolePeer && g.heartbeats.Fits(r.Heartbeat) {
			rep.Datagrams = g.detector.secret.keyOf(r.From)
		}
	case opAccount:
		raft := g.running()
		if raft == nil {
			err = errors.New("this peer has not started yet")
			break
		}
		a := g.grants.Account(raft.CurrentTerm())
		a.Lease = g.cfg.span()
		rep.Account = &a
	case opView:
		rep.View, err = g.view(from)
	case opAdmit, opPropose, opTransfer, opAdd, opRemove, opPromote, opDemote:
		if from.role != rolePeer {
			err = fmt.Errorf("a %s may not ask for this", from.role)
			break
		}
		if r.Op == opAdmit && !r.Forwarded && r.Peer != nil && from.id != "" && from.id != r.Peer.ID {
			err = fmt.Errorf("peer %q asks in the name of %q", from.id, r.Peer.ID)
			break
		}
		rep, err = g.atLeader(ctx, r)
	default:
		err = fmt.Errorf("unknown request %q: this peer runs version %s", r.Op, g.cfg.Version)
	}
	if err != nil {
		rep.Error = err.Error()
	}
	return rep
}

// atLeader does what only the leader can, here or there.
func (g *Group) atLeader(ctx context.Context, r request) (reply, error) {
	raft := g.running()
	if raft == nil {
		return reply{}, errors.New("this peer is not in the group yet; try again when it is")
	}
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	// An election takes a moment; a request that comes during one waits for it.
	election := time.After(10 * g.cfg.Heartbeat)
	for {
		changed := g.change.Next()
		if _, ok := g.leads(); ok && (r.Op == opRemove || r.Op == opDemote) && r.To == g.cfg.ID && g.others() > 0 {
			if err := g.stepAside(ctx, r); err != nil {
				return reply{}, err
			}
			r.Forwarded = false // the next leader is to do it
			continue
		} else if ok {
			return reply{}, g.lead(ctx, r)
		}
		_, id := raft.LeaderWithID()
		if l := g.link(string(id)); l != nil && !r.Forwarded {
			r.Forwarded = true
			return l.apart(ctx, r)
		}
		select {
		case <-changed:
		case <-election:
			return reply{}, errors.New("the group has no leader at this moment; try again, and see 'appliance status' for which peers are missing")
		case <-ctx.Done():
			return reply{}, ctx.Err()
		}
	}
}

// lead does a request on the leader.
func (g *Group) lead(ctx context.Context, r request) error {
	switch {
	case r.Op == opAdmit && r.Peer != nil:
		return g.admit(ctx, *r.Peer, r.Joins)
	case r.Op == opAdd && r.Peer != nil, (r.Op == opRemove || r.Op == opPromote || r.Op == opDemote) && r.To != "":
		return g.changeMembers(ctx, r)
	case r.Op == opPropose && r.Change != nil:
		return g.apply(*r.Change)
	case r.Op == opTransfer:
		return g.transfer(ctx, r.To)
	}
	return fmt.Errorf("incomplete request %q", r.Op)
}

// admit takes a peer without state into the group, as a non-voter: one that is
// expected or listed, or that was told to join. A group key, or a certificate
// that fits the list, is what makes it one of ours.
func (g *Group) admit(ctx context.Context, p Peer, joins bool) error {
	listed, ok := g.peer(p.ID)
	removed := g.removalOf(p.ID)
	switch {
	case removed != "":
		return g.refuse(p, removed)
	case !ok && !joins:
		return g.refuse(p, fmt.Sprintf("peer %s at %s is not listed by the leader %s; add it to the list there, or with 'appliance peers add', or start it with --join", p.ID, p.Addr, g.cfg.ID))
	case !listed.same(p) && !joins:
		return g.refuse(p, fmt.Sprintf("peer %s is known to the leader %s as %s (witness: %v), not %s (witness: %v); make the lists the same, or replace it with 'appliance peers add'",
			p.ID, g.cfg.ID, listed.Addr, listed.Witness, p.Addr, p.Witness))
	case p.ID == g.cfg.ID:
		return g.refuse(p, fmt.Sprintf("the id %s is the leader's own; give this peer another id", p.ID))
	}
	g.admitMu.Lock()
	defer g.admitMu.Unlock()
	if err := g.awaitLease(ctx); err != nil {
		return err
	}
	if why := g.taken(ctx, p); why != "" {
		return g.refuse(p, why)
	}
	if err := g.meet(ctx, p); err != nil {
		return g.refuse(p, fmt.Sprintf("the leader %s cannot reach peer %s at %s: %v; open the peer port between them, or correct the address", g.cfg.ID, p.ID, p.Addr, err))
	}
	m, _ := memberOf(g.settings.all(), p.ID)
	m.Addr, m.Witness = p.Addr, p.Witness
	if !joins || len(p.Further) > 0 {
		m.Further = p.Further
	}
	if err := g.apply(change{Set: map[string]string{memberPrefix + p.ID: m.text()}}); err != nil {
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
		// See Group.join: what it had before, its vote above all, is lost.
		if err := g.raft.RemoveServer(s.ID, 0, patience).Error(); err != nil {
			return fmt.Errorf("removing the former %s: %w", s.ID, err)
		}
		g.log.Info("removed a member that comes back without its state", "peer", string(s.ID))
	}
	if err := g.raft.AddNonvoter(id, addr, 0, patience).Error(); err != nil {
		return fmt.Errorf("admitting %s: %w", p.ID, err)
	}
	g.log.Info("admitted, it votes when it has caught up", "peer", p.ID, "address", addr)
	g.change.Fire()
	return nil
}

// meet proves that p is where it says, and that both understand each other.
func (g *Group) meet(ctx context.Context, p Peer) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	l := newLink(g.port, p.ID, p.Addr)
	defer l.close()
	rep, err := l.call(ctx, g.helloRequest())
	switch {
	case err != nil:
		return err
	case rep.Hello == nil || rep.Hello.ID != p.ID:
		return errors.New("somebody else answers there")
	}
	g.heartbeats.Learn(p.ID, rep.Hello.Heartbeat)
	if why := conflict(g.hello(), *rep.Hello); why != "" {
		return errors.New(why)
	}
	return nil
}

func (g *Group) refuse(p Peer, why string) error {
	g.log.Warn("refused a peer", "peer", p.ID, "address", p.Addr, "why", why)
	return errors.New(why)
}

// awaitLease waits until this leader's predecessors are silent: before that it must
// not change who votes, step 6 in package lease.
func (g *Group) awaitLease(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		changed := g.change.Next()
		term, ok := g.leads()
		if !ok {
			return errors.New("this peer does not lead any more; ask again")
		}
		if g.lease.Begun(term) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return errors.New("this leader has only just begun; ask again")
		}
	}
}

// duty is what a leader does without being asked, and what every peer checks
// while it is at it.
func (g *Group) duty(ctx context.Context) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := g.settings.err(); err != nil {
			g.fail(err)
		}
		g.rememberCluster()
		if term, ok := g.leads(); ok && !g.leading.Load() && !g.lease.Begun(term) {
			g.waitOutLeases(ctx, term) // nobody runs Lead, which does it otherwise
		}
		if term, ok := g.leads(); ok && g.lease.Begun(term) {
			if g.settings.get(clusterKey) == "" {
				err := g.apply(change{Set: map[string]string{clusterKey: rand.Text()}, Once: true})
				if err != nil {
					g.log.Debug("naming the group", "error", err)
				}
			}
			g.keepRecord(ctx)
			g.promote(ctx)
			g.giveWay(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// promote makes voters of non-voters that have caught up.
func (g *Group) promote(ctx context.Context) {
	for _, s := range g.raft.GetConfiguration().Configuration().Servers {
		l := g.link(string(s.ID))
		if m, _ := memberOf(g.settings.all(), string(s.ID)); s.Suffrage == hraft.Voter || l == nil || m.Standby {
			continue
		}
		once, cancel := context.WithTimeout(ctx, g.cfg.Heartbeat)
		h, err := g.greet(once, l)
		cancel()
		// A member that was admitted with an empty log is no voter before it
		// has this group's log: its term is in it.
		if err != nil || !h.HasState || h.LastIndex < g.raft.CommitIndex() || conflict(g.hello(), h) != "" {
			continue
		}
		if err := g.raft.AddVoter(s.ID, s.Address, 0, patience).Error(); err != nil {
			g.log.Debug("promoting", "peer", string(s.ID), "error", err)
			continue
		}
		g.log.Info("caught up, votes from now on", "peer", string(s.ID))
	}
}

// rememberCluster keeps the group's id where it can be read before raft runs.
func (g *Group) rememberCluster() {
	id := g.settings.get(clusterKey)
	g.mu.Lock()
	known := g.written
	g.mu.Unlock()
	if id == "" || id == known {
		return
	}
	if err := g.store.BoltStore.Set([]byte(clusterKey), []byte(id)); err != nil {
		return // told by the store already; again on the next tick
	}
	g.mu.Lock()
	g.written = id
	g.mu.Unlock()
}

// Propose changes the settings that the group shares: set, then remove. It
// returns when a majority has them on disk.
func (g *Group) Propose(ctx context.Context, set map[string]string, remove ...string) error {
	for _, key := range append(slices.Collect(maps.Keys(set)), remove...) {
		if reserved(key) {
			return fmt.Errorf("the setting %q belongs to the group itself; use another name", key)
		}
	}
	_, err := g.atLeader(ctx, request{Op: opPropose, Change: &change{Set: set, Remove: remove}})
	return err
}

// Settings are the settings that the group shares, as this peer knows them.
func (g *Group) Settings() map[string]string { return g.settings.all() }

func (g *Group) apply(c change) error {
	c.Version = formatVersion
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	asked := time.Now()
	f := g.raft.Apply(data, patience)
	if err := f.Error(); err != nil {
		return fmt.Errorf("changing the group's settings: %w", err)
	}
	took := time.Since(asked)
	g.tally(func(c *Counters) { c.Commits, c.CommitTime = c.Commits+1, c.CommitTime+took })
	if g.cfg.OnCommit != nil {
		g.cfg.OnCommit(took)
	}
	if err, ok := f.Response().(error); ok {
		return err
	}
	return nil
}

// probe says hello to a peer every second, for Status, and to notice a peer
// that does not belong. It also keeps the connection open on which a vote is
// asked for.
func (g *Group) probe(ctx context.Context, p Peer) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	defer g.stream.cool(p.Addr)
	for woken := false; ; {
		unmet := g.unmet.Next()
		_, known := g.heartbeats.Of(p.ID)
		if l := g.link(p.ID); l != nil && !(woken && known) {
			once, cancel := context.WithTimeout(ctx, askTimeout)
			h, err := g.greet(once, l)
			if err == nil {
				g.checkSplit(h)
				if g.running() != nil {
					g.stream.warm(once, p.Addr)
				}
			}
			cancel()
		}
		woken = false
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-unmet:
			woken = true
		}
	}
}

// checkSplit ends a group of one that was begun here while a listed peer
// already was in another: startAsLeader on a new disk, before the others could be asked.
func (g *Group) checkSplit(o hello) {
	self := g.hello()
	if self.Cluster == "" || o.Cluster == "" || self.Cluster == o.Cluster {
		return
	}
	if g.cfg.StartAsLeader && len(self.Members) == 1 && len(o.Members) > 1 {
		g.fail(fmt.Errorf("group: this peer began a group of its own although peer %s is in one; stop it, empty %s, and start it again to join", o.ID, g.cfg.DataDir))
	}
}

// onSilence makes use of a leaving process's word.
func (g *Group) onSilence(d death) {
	g.grants.Silenced(d.peer, d.term)
	if d.told {
		g.mu.Lock()
		g.left[d.peer] = time.Now()
		g.mu.Unlock()
	}
	g.change.Fire()
}

// onDeath makes use of the proof that a process is dead, or of its goodbye, which
// matters if it could not hand over.
func (g *Group) onDeath(ctx context.Context, d death) {
	g.detector.ended(d.peer)
	g.onSilence(d)
	rank, stands := g.rank(d)
	if !stands {
		return
	}
	// The first in rank stands at once, each other a third of a heartbeat later than
	// the one before, if nothing has happened until then: votes that are
	// split cost a whole election timeout.
	select {
	case <-time.After(time.Duration(rank) * g.cfg.Heartbeat / 3):
	case <-g.stopping:
		return
	case <-ctx.Done():
		return
	}
	if _, stands = g.rank(d); !stands {
		return
	}
	g.log.Info("the leader's process has ended, standing for election", "was", d.peer, "term", d.term)
	if !d.told {
		g.tally(func(c *Counters) { c.Deaths++ })
	}
	once, cancel := context.WithTimeout(ctx, g.cfg.Heartbeat)
	defer cancel()
	if err := g.trans.timeoutNow(once); err != nil {
		g.log.Warn("could not stand for election", "error", err)
	}
}

// rank is this peer's place among those that may take over from the dead, and
// whether it still should.
func (g *Group) rank(d death) (rank int, stands bool) {
	r := g.running()
	if r == nil || d.term == 0 || r.CurrentTerm() != d.term || r.State() != hraft.Follower {
		return 0, false
	}
	if _, leader := r.LeaderWithID(); leader != "" && leader != hraft.ServerID(d.peer) {
		return 0, false
	}
	voting := make(map[string]bool)
	for _, id := range g.voters(nil) {
		voting[id] = true
	}
	for _, p := range g.byStanding() { // the same order everywhere
		switch {
		case p.ID == d.peer || p.Witness || !voting[p.ID]:
		case p.ID == g.cfg.ID:
			return rank, true
		default:
			rank++
		}
	}
	return 0, false
}
