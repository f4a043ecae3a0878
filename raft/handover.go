package raft

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	hraft "github.com/hashicorp/raft"
)

// handover asks for the end of the tenure and for another leader.
type handover struct {
	to    string
	cause Cause
	done  chan error
}

// Transfer hands leadership to peer id, or to the best other one if id is empty: answers stop, then the other
// takes over. If it does not, this peer goes on. Asked on a peer that does not lead, it asks the leader.
func (g *Group) Transfer(ctx context.Context, id string) error {
	_, err := g.atLeader(ctx, request{Op: opTransfer, To: id})
	return err
}

// transfer is Transfer as the leader.
func (g *Group) transfer(ctx context.Context, id string, cause Cause) error {
	if id == g.cfg.ID {
		return nil // it has what it asks for
	}
	if _, err := g.successors(id); err != nil {
		return err // before anything has stopped
	}
	for {
		changed := g.change.Next()
		if _, ok := g.leads(); !ok {
			return errors.New("this peer does not lead any more; ask again")
		}
		if !g.leading.Load() {
			return g.handOver(ctx, id)
		}
		h := handover{to: id, cause: cause, done: make(chan error, 1)}
		select {
		case g.handover <- h:
			select {
			case err := <-h.done:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("the tenure has not begun yet; try again: %w", ctx.Err())
		}
	}
}

// stepAside hands over before a change that would depose this leader.
func (g *Group) stepAside(ctx context.Context, r request) error {
	if _, is := g.server(r.To); !is {
		return g.notMember(r.To)
	}
	if err := g.transfer(ctx, "", HandedOver); err != nil {
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

// successors are the peers that could lead instead, best first; only id if it is not empty.
func (g *Group) successors(id string) ([]hraft.Server, error) {
	term := g.raft.CurrentTerm()
	var found []hraft.Server
	for _, s := range g.raft.GetConfiguration().Configuration().Servers {
		p, listed := g.peer(string(s.ID))
		if s.ID == hraft.ServerID(g.cfg.ID) || (id != "" && string(s.ID) != id) {
			continue
		}
		switch {
		case s.Suffrage == hraft.Voter && listed && !p.Witness:
		case id == "":
			continue
		default:
			return nil, fmt.Errorf("peer %q cannot hold: it is a witness, or has not caught up yet; choose another", id)
		}
		if ago, ok := g.lease.GrantedAgo(term, string(s.ID)); !ok || ago > g.cfg.Heartbeat {
			if id != "" {
				return nil, fmt.Errorf("peer %q does not answer; choose another, or wait until it is back", id)
			}
			continue
		}
		found = append(found, s)
	}
	last := g.raft.LastIndex()
	// A peer that lacks entries takes over only when it has got them, and may be too late.
	ready := func(s hraft.Server) int {
		if g.trans.Behind(s.ID, term, last) > 0 {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(found, func(a, b hraft.Server) int {
		x, y := g.preferenceOf(string(a.ID)), g.preferenceOf(string(b.ID))
		return cmp.Or(cmp.Compare(x.cut, y.cut), cmp.Compare(y.class, x.class), cmp.Compare(ready(b), ready(a)),
			y.compare(x))
	})
	if len(found) == 0 {
		if id != "" {
			return nil, fmt.Errorf("peer %q is not a member of the group; see 'appliance status'", id)
		}
		return nil, errors.New("no other peer that could hold is in reach")
	}
	return found, nil
}

// preferred is the peer that should hold instead of this one, or "". A peer of higher priority has to have
// been connected for long enough. That does not matter for one that is pinned, or if this one is drained or
// less fit.
func (g *Group) preferred() string {
	found, err := g.successors("")
	if err != nil {
		return ""
	}
	id := string(found[0].ID)
	if g.trans.Behind(found[0].ID, g.raft.CurrentTerm(), g.raft.LastIndex()) > 0 {
		return "" // it has to catch up first
	}
	own, other := g.preferenceOf(g.cfg.ID), g.preferenceOf(id)
	fitter := other.fitter(own)
	switch {
	case fitter > 0:
		return id
	case fitter < 0:
		return ""
	case own.lowered && other.compare(own) > 0:
		return id
	case other.compare(own) <= 0 || !g.cfg.Preempt:
		return ""
	}
	l := g.links.to(id)
	if l == nil {
		return ""
	}
	if s := l.State(); !s.Connected || time.Since(s.Since) < g.cfg.PreemptAfter {
		return ""
	}
	return id
}

// handOver hands raft's leadership on. The caller has stopped answering. A late TimeoutNow that reaches the
// other peer after this has given up does no harm: a new leader asks for the grants before it answers.
func (g *Group) handOver(ctx context.Context, id string) error {
	found, err := g.successors(id)
	if err != nil {
		return err
	}
	for _, s := range found {
		if err = g.handOverTo(ctx, s); err == nil {
			g.log.Info("handed over", "to", string(s.ID))
			return nil
		}
		if _, ok := g.leads(); !ok || ctx.Err() != nil {
			break
		}
	}
	return fmt.Errorf("hand-over: %w", err)
}

// handOverTo hands leadership to one peer. The library answers an attempt a moment before it accepts the next
// one.
func (g *Group) handOverTo(ctx context.Context, s hraft.Server) error {
	for {
		err := g.command(func(r *hraft.Raft) hraft.Future { return r.LeadershipTransferToServer(s.ID, s.Address) })
		if !errors.Is(err, hraft.ErrLeadershipTransferInProgress) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Millisecond):
		}
	}
}

// others is how many voters there are besides this peer.
func (g *Group) others() int {
	n := 0
	for _, id := range g.voters(nil) {
		if id != g.cfg.ID {
			n++
		}
	}
	return n
}
