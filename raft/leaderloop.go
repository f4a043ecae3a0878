package raft

import (
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	hraft "github.com/hashicorp/raft"

	"appliance/raft/giveway"
	"appliance/raft/peerport"
	"appliance/raft/settings"
)

// How long a leader waits until it looks again at what it keeps up, and a follower, for which a change is enough.
const (
	leaderPause   = 200 * time.Millisecond
	followerPause = time.Second
)

// leaderLoop does what a leader does without being asked, and what every peer has to look at now and then.
func (g *Group) leaderLoop(ctx context.Context) error {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		refitted, changed := g.refitted.Next(), g.change.Next()
		g.lookAtMachine()
		if err := g.settings.Err(); err != nil {
			g.fail(err)
		}
		g.rememberCluster()
		g.settle()
		g.keepPatience()
		if term, ok := g.leads(); ok && !g.leading.Load() && !g.lease.Begun(term) {
			g.waitOutLeases(ctx, term) // nobody runs Lead, which does it otherwise
		}
		if term, ok := g.leads(); ok && g.lease.Begun(term) && g.withholds() != nil {
			if err := g.transfer(ctx, "", HandedOver); err != nil {
				g.log.Debug("a disk that went backwards leads, and nobody can take over", "error", err)
			}
		}
		if term, ok := g.leads(); ok && g.lease.Begun(term) {
			g.giveWay(ctx) // before what may wait for a disk
			if g.settings.Get(settings.ClusterKey) == "" {
				err := g.apply(settings.Command{Set: map[string]string{settings.ClusterKey: rand.Text()}, Once: true})
				if err != nil {
					g.log.Debug("naming the group", "error", err)
				}
			}
			g.keepRecord(ctx)
			g.promote(ctx)
		}
		if _, ok := g.leads(); ok || g.withholds() != nil {
			pause.Reset(leaderPause)
			changed = nil // a leader is in no hurry: each change would make it look at everything
		} else {
			pause.Reset(followerPause)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-pause.C:
		case <-changed:
		case <-refitted:
		}
	}
}

// awaitLease waits until older leases are over: before that a leader must not change who votes, step 6 in
// package lease.
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

// promote makes voters of non-voters that have caught up.
func (g *Group) promote(ctx context.Context) {
	for _, s := range g.raft.GetConfiguration().Configuration().Servers {
		l := g.links.to(string(s.ID))
		if m, _ := settings.MemberOf(g.settings.All(), string(s.ID)); s.Suffrage == hraft.Voter || l == nil ||
			m.Standby {
			continue
		}
		once, cancel := context.WithTimeout(ctx, g.cfg.Heartbeat)
		h, err := g.greet(once, l)
		cancel()
		// A member that was admitted with an empty log must not vote before it has this group's log, which
		// holds its term.
		if err != nil || !h.HasState || h.LastIndex < g.raft.CommitIndex() || conflict(g.hello(), h) != "" {
			continue
		}
		err = g.command(func(r *hraft.Raft) hraft.Future { return r.AddVoter(s.ID, s.Address, 0, patience) })
		if err != nil {
			g.log.Debug("promoting", "peer", string(s.ID), "error", err)
			continue
		}
		g.log.Info("caught up, votes from now on", "peer", string(s.ID))
	}
}

// keepRecord keeps what the settings say of the members up to date. It also takes in expected peers that
// know the group: those that were removed and added again.
func (g *Group) keepRecord(ctx context.Context) {
	select {
	case g.admitting <- struct{}{}:
		defer func() { <-g.admitting }()
	default:
		return // somebody is changing the members
	}
	known := g.settings.All()
	set := make(map[string]string)
	members := make(map[string]bool)
	for _, s := range g.servers() {
		id := string(s.ID)
		members[id] = true
		p, ok := g.peer(id)
		if !ok {
			continue
		}
		m, _ := settings.MemberOf(known, id)
		m.Addr, m.Witness, m.Further = p.Addr, p.Witness, p.Further
		if h, ok := g.helloOf(id); ok && h.Self.ID == id {
			m.Version = h.Version
			if h.Self.Addr == p.Addr {
				m.Witness = h.Self.Witness // it knows itself best
				if !h.Joins || len(h.Self.Further) > 0 {
					m.Further = h.Self.Further
				}
			}
		}
		if id == g.cfg.ID { // the roster has the rest already
			m.Version = g.cfg.Version
		}
		if text := m.Text(); known[settings.MemberPrefix+id] != text {
			set[settings.MemberPrefix+id] = text
		}
	}
	if len(set) > 0 {
		if err := g.apply(settings.Command{Set: set}); err != nil {
			g.log.Debug("keeping the record of members", "error", err)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(known)) {
		id, ok := strings.CutPrefix(id, settings.MemberPrefix)
		if ok && !members[id] {
			g.takeBack(ctx, id)
		}
	}
}

func (g *Group) takeBack(ctx context.Context, id string) {
	l := g.links.to(id)
	if l == nil || !l.State().Connected {
		return
	}
	once, cancel := context.WithTimeout(ctx, g.cfg.Heartbeat)
	defer cancel()
	h, err := g.greet(once, l)
	self := g.hello()
	// One without a log that knows the group was admitted, and removed before it had the log: it does not ask again.
	if err != nil || h.Cluster == "" || h.Cluster != self.Cluster || conflict(self, h) != "" {
		return // a peer without state asks by itself: Group.join
	}
	err = g.command(func(r *hraft.Raft) hraft.Future {
		return r.AddNonvoter(hraft.ServerID(id), hraft.ServerAddress(l.Addr.String()), 0, patience)
	})
	if err != nil {
		g.log.Debug("taking back", "peer", id, "error", err)
		return
	}
	g.log.Info("took back, it votes when it has caught up", "peer", id)
}

// rememberCluster keeps the group's id where it can be read before raft runs.
func (g *Group) rememberCluster() {
	id := g.settings.Get(settings.ClusterKey)
	g.mu.Lock()
	known := g.written
	g.mu.Unlock()
	if id == "" || id == known {
		return
	}
	if err := g.store.SetOwn(settings.ClusterKey, id); err != nil {
		return // again on the next tick
	}
	g.mu.Lock()
	g.written = id
	g.mu.Unlock()
}

// giveWayPause lies between two attempts to hand over to a better peer that failed, so that a peer that cannot take
// over does not interrupt the service over and over.
const giveWayPause = 10 * time.Second

// givingWay is what the leader loop remembers of its attempts to give way.
type givingWay struct {
	failedFor giveway.Reason // of the last one that failed
	failedAt  time.Duration
	patient   giveway.Reason // for which the log says that this peer stays
}

// giveWay hands over to a peer that should hold instead.
func (g *Group) giveWay(ctx context.Context) {
	if !g.leading.Load() {
		return
	}
	id := g.preferred()
	if id == "" {
		g.giving.patient = ""
		return
	}
	now := g.cfg.now()
	why := g.reasonToGiveWay(id)
	if g.giving.failedFor == why && now < g.giving.failedAt+giveWayPause {
		return
	}
	// What is known of the others may be a second old, and the better peer may have got the same trouble as
	// this one at the same moment. One that does not tell now is asked again at the next tick.
	once, stop := context.WithTimeout(ctx, g.cfg.Heartbeat)
	told := g.askAmong(once, g.successorLinks())
	stop()
	id = g.preferred()
	if id == "" || !slices.ContainsFunc(told, func(h hello) bool { return h.ID == id }) {
		return
	}
	why = g.reasonToGiveWay(id)
	if !g.gaveWay.Allowed(why, id, now) {
		if g.giving.patient != why {
			g.giving.patient = why
			g.log.Warn("stays holder although another peer is fitter: handing over for this reason has not helped lately; "+
				"it tries again within a minute", "fitter", id, "reason", g.fitnessOf(g.cfg.ID))
		}
		return
	}
	g.log.Info("gives way to a peer that is preferred", "to", id, "reason", g.fitnessOf(g.cfg.ID))
	ctx, cancel := context.WithTimeout(ctx, 10*g.cfg.Heartbeat+time.Second)
	defer cancel()
	if why.Unfit() {
		g.gaveWay.Note(why, now)
	}
	if err := g.transfer(ctx, id, g.causeToGiveWay(id)); err != nil {
		g.giving.failedFor, g.giving.failedAt = why, now
		g.log.Warn("could not give way", "to", id, "error", err)
	}
}

// successorLinks lead to the peers that could lead instead. Others are not waited for.
func (g *Group) successorLinks() (links []*peerport.ControlLink) {
	found, _ := g.successors("")
	for _, s := range found {
		if l := g.links.to(string(s.ID)); l != nil {
			links = append(links, l)
		}
	}
	return links
}

// causeToGiveWay is why this peer gives way to the peer id, as events tell it.
func (g *Group) causeToGiveWay(id string) Cause {
	switch why := g.reasonToGiveWay(id); {
	case why == giveway.Drain:
		return Drained
	case why.Unfit():
		return Unfit
	}
	return Preferred
}

// reasonToGiveWay is the worst that speaks for peer id instead of this one, in the order of preference.compare.
func (g *Group) reasonToGiveWay(id string) giveway.Reason {
	own, other := g.preferenceOf(g.cfg.ID), g.preferenceOf(id)
	switch {
	case own.cut > other.cut:
		return giveway.Carrier
	case own.class == drained:
		return giveway.Drain
	case own.class == barred && other.class > barred:
		return giveway.Tracks
	case own.unserved > other.unserved && own.class == other.class:
		return giveway.Unserved
	case other.class == pinned && own.class != pinned:
		return giveway.Pin
	case own.lowered:
		return giveway.Lowered
	}
	return giveway.Priority
}
