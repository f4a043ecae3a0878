package raft

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

// standing says how much a peer is wanted as holder.
type standing struct {
	class    class
	blind    int // load balancers without a healthy backend
	priority int
	lowered  bool // priority is less than the operator gave
}

type class int

const (
	barred  class = iota - 2 // only if there is nobody else
	drained                  // only if there is nobody else who is not barred
	ordinary
	pinned
)

func (s standing) compare(o standing) int {
	return cmp.Or(cmp.Compare(s.class, o.class), cmp.Compare(o.blind, s.blind), cmp.Compare(s.priority, o.priority))
}

// standingOf is how much peer id is wanted as holder.
func (g *Group) standingOf(id string) standing {
	s := standing{priority: g.cfg.Priority}
	if id != g.cfg.ID {
		h, _ := g.helloOf(id)
		s.priority = h.Priority
	}
	c := g.claimOf(id)
	s.blind, s.lowered = c.Blind, c.Lowered > 0
	s.priority -= c.Lowered
	switch {
	case c.Barred != "":
		s.class = barred
	case g.settings.get(drainPrefix+id) != "":
		s.class = drained
	case g.settings.get(pinKey) == id && c.Blind == 0:
		s.class = pinned
	}
	return s
}

// byStanding is the roster, the most wanted first, the same on every peer.
func (g *Group) byStanding() []Peer {
	roster := g.roster()
	slices.SortStableFunc(roster, func(a, b Peer) int { return g.standingOf(b.ID).compare(g.standingOf(a.ID)) })
	return roster
}

// better is the peer that should hold instead of this one, or "". A peer that
// is only preferred has to have been connected for long enough; one that is
// pinned, or not drained or unfit as this one is, has not.
func (g *Group) better() string {
	heirs, err := g.heirs("")
	if err != nil {
		return ""
	}
	id := string(heirs[0].ID)
	if g.trans.replicas.behind(heirs[0].ID, g.raft.CurrentTerm(), g.raft.LastIndex()) > 0 {
		return "" // it has to catch up first
	}
	own, other := g.standingOf(g.cfg.ID), g.standingOf(id)
	switch {
	case other.class > own.class:
		return id
	case other.class == own.class && other.blind < own.blind:
		return id
	case own.lowered && other.compare(own) > 0:
		return id
	case other.compare(own) <= 0 || !g.cfg.Preempt:
		return ""
	}
	l := g.link(id)
	if l == nil {
		return ""
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.connected || time.Since(l.since) < g.cfg.PreemptAfter {
		return ""
	}
	return id
}

// giveWayPause lies between two tries to hand over to a better peer, so that
// one that cannot take over does not cost answers over and over.
const giveWayPause = 10 * time.Second

// giveWay hands over to a peer that should hold instead.
func (g *Group) giveWay(ctx context.Context) {
	if !g.leading.Load() || g.cfg.now() < g.gaveWay+giveWayPause && g.gaveWay > 0 {
		return
	}
	if g.better() == "" {
		return
	}
	// What is known of the others may be a second old: what ails this peer may
	// have come over the one that is better in the same moment.
	once, stop := context.WithTimeout(ctx, g.cfg.Heartbeat)
	g.ask(once)
	stop()
	id := g.better()
	if id == "" {
		return
	}
	g.log.Info("gives way to a peer that is preferred", "to", id, "reason", g.claimOf(g.cfg.ID))
	ctx, cancel := context.WithTimeout(ctx, 10*g.cfg.Heartbeat+time.Second)
	defer cancel()
	if err := g.transfer(ctx, id); err != nil {
		g.gaveWay = g.cfg.now()
		g.log.Warn("could not give way", "to", id, "error", err)
	}
}

// Drain has peer id give up holding, for as long as there is another that
// can, until Undrain. Both survive restarts.
func (g *Group) Drain(ctx context.Context, id string) error {
	if _, ok := g.peer(id); !ok {
		return g.notMember(id)
	}
	return g.propose(ctx, change{Set: map[string]string{drainPrefix + id: time.Now().UTC().Format(time.RFC3339)}})
}

// Undrain is the end of Drain.
func (g *Group) Undrain(ctx context.Context, id string) error {
	return g.propose(ctx, change{Remove: []string{drainPrefix + id}})
}

// Pin has peer id hold whenever it can, and nobody in particular if id is "".
func (g *Group) Pin(ctx context.Context, id string) error {
	if id == "" {
		return g.propose(ctx, change{Remove: []string{pinKey}})
	}
	p, ok := g.peer(id)
	switch {
	case !ok:
		return g.notMember(id)
	case p.Witness:
		return fmt.Errorf("peer %s is a witness, which never holds; pin another", id)
	}
	return g.propose(ctx, change{Set: map[string]string{pinKey: id}})
}

func (g *Group) propose(ctx context.Context, c change) error {
	_, err := g.atLeader(ctx, request{Op: opPropose, Change: &c})
	return err
}
