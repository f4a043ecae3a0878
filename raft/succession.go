package raft

import (
	"context"
	"slices"
	"sync"
	"time"

	hraft "github.com/hashicorp/raft"

	"appliance/raft/deathwatch"
)

// detect runs the detector on the group until ctx ends.
func (g *Group) detect(ctx context.Context) error {
	if g.packets == nil {
		return nil
	}
	e := &elections{Group: g, ctx: ctx}
	defer e.running.Wait()
	return g.detector.Run(ctx, g.packets, e)
}

// elections is what the detector knows of a group, and does in it.
type elections struct {
	*Group
	ctx     context.Context
	running sync.WaitGroup // attempts to be elected
}

func (e *elections) Term() uint64 { return e.raft.CurrentTerm() }

func (e *elections) LeadsIn() uint64 {
	if term, ok := e.leads(); ok {
		return term
	}
	return 0
}

func (e *elections) Follows() (leader string, term uint64) {
	term = e.raft.CurrentTerm()
	_, id := e.raft.LeaderWithID()
	if e.raft.State() != hraft.Follower || e.raft.CurrentTerm() != term {
		return "", 0
	}
	return string(id), term
}

func (e *elections) Electorate() (ids []string) {
	voters := e.voters(nil)
	for _, p := range e.byPreference() {
		if slices.Contains(voters, p.ID) {
			ids = append(ids, p.ID)
		}
	}
	for _, id := range voters { // a majority is one of all voters
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

func (e *elections) HeardFrom(peer string, term uint64) { e.heard(peer, term) }

func (e *elections) Granted(peer string, term uint64, t0 time.Duration) {
	e.lease.Grant(peer, term, t0)
}

func (e *elections) ReachChanged() { e.change.Fire() }

func (e *elections) Replace(leader string, term uint64) {
	e.running.Go(func() {
		e.log.Info("a majority does not hear the leader, standing for election", "was", leader, "term", term)
		e.tally(func(c *Counters) { c.Missed++ })
		ctx, cancel := context.WithTimeout(e.ctx, e.cfg.Heartbeat)
		defer cancel()
		if err := e.trans.Stand(ctx); err != nil && e.ctx.Err() == nil {
			e.log.Warn("could not stand for election", "error", err)
		}
	})
}

// onSilence notes that a process never answers again, by its own word or because it is dead.
func (g *Group) onSilence(d deathwatch.Death) {
	g.grants.Silenced(d.Peer, d.Term)
	g.history.departed(d.Peer, d.Term, d.Told)
	if d.Told {
		g.mu.Lock()
		g.left[d.Peer] = time.Now()
		g.mu.Unlock()
	}
	g.change.Fire()
}

// onDeath has this peer stand for election if the process that has ended led. That matters after a goodbye
// too, if the process could not hand over.
func (g *Group) onDeath(ctx context.Context, d deathwatch.Death) {
	g.detector.Ended(d.Peer)
	g.onSilence(d)
	rank, stands := g.rank(d)
	if !stands {
		return
	}
	// The first in rank stands at once, and each other a third of a heartbeat after the one before, if
	// nothing has happened by then: a split vote costs a whole election timeout.
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
	g.log.Info("the leader's process has ended, standing for election", "was", d.Peer, "term", d.Term)
	if !d.Told {
		g.tally(func(c *Counters) { c.Deaths++ })
	}
	once, cancel := context.WithTimeout(ctx, g.cfg.Heartbeat)
	defer cancel()
	if err := g.trans.Stand(once); err != nil {
		g.log.Warn("could not stand for election", "error", err)
	}
}

// rank is this peer's place among those that may take over from the dead process, and whether it still
// should.
func (g *Group) rank(d deathwatch.Death) (rank int, stands bool) {
	r := g.running()
	if r == nil || d.Term == 0 || r.CurrentTerm() != d.Term || r.State() != hraft.Follower {
		return 0, false
	}
	if _, leader := r.LeaderWithID(); leader != "" && leader != hraft.ServerID(d.Peer) {
		return 0, false
	}
	voting := make(map[string]bool)
	for _, id := range g.voters(nil) {
		voting[id] = true
	}
	for _, p := range g.byPreference() { // the same order everywhere
		switch {
		case p.ID == d.Peer || p.Witness || !voting[p.ID]:
		case p.ID == g.cfg.ID:
			return rank, true
		default:
			rank++
		}
	}
	return 0, false
}
