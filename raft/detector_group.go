package raft

import (
	"context"
	"slices"
	"sync"
	"time"

	hraft "github.com/hashicorp/raft"
)

// detect runs the detector on the group until ctx ends.
func (g *Group) detect(ctx context.Context) error {
	if g.packets == nil {
		return nil
	}
	w := &groupWorld{Group: g, ctx: ctx}
	defer w.standing.Wait()
	g.detector.world = w
	return g.detector.run(ctx, g.packets)
}

// groupWorld is the detector's world in a group.
type groupWorld struct {
	*Group
	ctx      context.Context
	standing sync.WaitGroup
}

func (w *groupWorld) term() uint64 { return w.raft.CurrentTerm() }

func (w *groupWorld) leadsIn() uint64 {
	if term, ok := w.leads(); ok {
		return term
	}
	return 0
}

func (w *groupWorld) follows() (leader string, term uint64) {
	term = w.raft.CurrentTerm()
	_, id := w.raft.LeaderWithID()
	if w.raft.State() != hraft.Follower || w.raft.CurrentTerm() != term {
		return "", 0
	}
	return string(id), term
}

func (w *groupWorld) electorate() (ids []string) {
	voters := w.voters(nil)
	for _, p := range w.byStanding() {
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

func (w *groupWorld) heardFrom(peer string, term uint64) { w.grants.Heard(peer, term) }

func (w *groupWorld) granted(peer string, term uint64, t0 time.Duration) {
	w.lease.Grant(peer, term, t0)
}

func (w *groupWorld) reachChanged() { w.change.Fire() }

func (w *groupWorld) replace(leader string, term uint64) {
	w.standing.Go(func() {
		w.log.Info("a majority does not hear the leader, standing for election", "was", leader, "term", term)
		w.tally(func(c *Counters) { c.Missed++ })
		ctx, cancel := context.WithTimeout(w.ctx, w.cfg.Heartbeat)
		defer cancel()
		if err := w.trans.timeoutNow(ctx); err != nil && w.ctx.Err() == nil {
			w.log.Warn("could not stand for election", "error", err)
		}
	})
}
