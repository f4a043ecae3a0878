package raft

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	hraft "github.com/hashicorp/raft"
)

// Why a tenure ends.
var (
	errDeposed  = errors.New("another peer leads, or a majority is out of reach")
	errLeaving  = errors.New("this peer leaves the group")
	errHandover = errors.New("handed over")
	errHoldOver = errors.New("hold returned by itself")
)

// holdPause is how long a peer whose hold has failed leaves office to others
// before it tries again.
const holdPause = time.Second

// handover asks the tenure to end and leadership to be passed on.
type handover struct {
	to   string
	done chan error
}

// tenureState is what Status tells of the tenure.
type tenureState struct {
	term  uint64
	since time.Time
	may   func() bool
}

// Lead calls hold each time this peer becomes the holder, and waits for it to
// return. The context of hold ends with the tenure. May says whether the
// lease runs at this moment; ask it immediately before every packet. A
// witness never holds. A hold that returns before its context ends gives the
// office to another peer. Lead returns nil when ctx ends or Run leaves the group;
// the two contexts should end together, and Run waits for hold to return.
func (g *Group) Lead(ctx context.Context, hold func(ctx context.Context, may func() bool) error) error {
	if g.leading.Swap(true) {
		return errors.New("group: Lead is running already")
	}
	defer g.leading.Store(false)
	for {
		changed := g.change.Next()
		pause := (<-chan time.Time)(nil)
		if term, ok := g.leads(); ok && ctx.Err() == nil {
			if err := g.serveTerm(ctx, term, hold); err == nil {
				continue
			}
			pause = time.After(holdPause)
			changed = g.change.Next()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-g.stopping:
			return nil
		case <-changed:
		case <-pause:
		}
	}
}

// leads returns the term in which this peer is the leader.
func (g *Group) leads() (term uint64, ok bool) {
	r := g.running()
	if r == nil {
		return 0, false
	}
	// The same term before and after: it is the one that raft leads in.
	term = r.CurrentTerm()
	ok = r.State() == hraft.Leader
	return term, ok && r.CurrentTerm() == term
}

// serveTerm spends one term as leader. A non-nil error says that this peer
// still leads but should not try again at once.
func (g *Group) serveTerm(ctx context.Context, term uint64, hold func(context.Context, func() bool) error) error {
	if g.cfg.self().Witness {
		err := g.pass(ctx, "")
		if err != nil {
			g.log.Warn("this witness leads and finds nobody to hand over to; the address is not answered for", "error", err)
		}
		return err
	}
	g.holding.Lock()
	defer g.holding.Unlock()
	select {
	case <-g.stopping:
		return nil
	default:
	}
	if id := g.better(); id != "" && g.standingOf(g.cfg.ID).class == drained {
		if err := g.pass(ctx, id); err == nil {
			return nil
		}
	}
	if cause := g.holdTerm(ctx, term, hold); errors.Is(cause, errHoldOver) {
		return g.pass(ctx, "")
	}
	return nil
}

var errNeverHeld = errors.New("deposed before the tenure began")

// holdTerm runs hold for as long as this peer leads in term and returns why it ended.
func (g *Group) holdTerm(ctx context.Context, term uint64, hold func(context.Context, func() bool) error) error {
	// Before the first answer: watchers have to know that this process led term, see watch.go.
	g.watched.leads(term)
	if err := g.waitOutLeases(ctx, term); err != nil {
		return errNeverHeld
	}
	var over atomic.Bool
	may := func() bool { return !over.Load() && g.lawful(term) }
	tenure, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	began := time.Now()
	g.mu.Lock()
	g.tenure = tenureState{term: term, since: began, may: may}
	g.count.Tenures++
	g.mu.Unlock()
	g.log.Info("holder", "term", term)
	g.change.Fire()

	returned := make(chan error, 1)
	go func() { returned <- hold(tenure, may) }()
	request, cause := g.tenureEnd(ctx, term, returned)
	over.Store(true) // no answer from here on, even before hold has noticed
	cancel(cause)
	if !errors.Is(cause, errHoldOver) {
		if err := <-returned; err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, cause) {
			g.log.Warn("the tenure did not end cleanly", "error", err)
		}
	}
	g.mu.Lock()
	g.tenure = tenureState{}
	g.causes[reason(cause)]++
	g.mu.Unlock()
	g.log.Info("no longer holder", "term", term, "cause", cause, "held", time.Since(began).Round(time.Millisecond))
	if request != nil {
		request.done <- g.pass(ctx, request.to)
	}
	g.change.Fire()
	return cause
}

// tenureEnd waits for whatever ends the tenure first.
func (g *Group) tenureEnd(ctx context.Context, term uint64, returned <-chan error) (*handover, error) {
	for {
		changed := g.change.Next()
		if now, ok := g.leads(); !ok || now != term {
			return nil, errDeposed
		}
		select {
		case err := <-returned:
			return nil, fmt.Errorf("%w: %v", errHoldOver, err)
		case <-ctx.Done():
			return nil, errLeaving
		case <-g.stopping:
			return nil, errLeaving
		case h := <-g.handover:
			return &h, errHandover
		case <-changed:
		}
	}
}

// reason is the short form of a cause, for counting.
func reason(cause error) string {
	switch {
	case errors.Is(cause, errDeposed):
		return "deposed"
	case errors.Is(cause, errLeaving):
		return "leaving"
	case errors.Is(cause, errHandover):
		return "handover"
	}
	return "failed"
}

// lawful says whether this peer may answer now, for term. See package lease.
func (g *Group) lawful(term uint64) bool {
	if now, ok := g.leads(); !ok || now != term {
		return false
	}
	var buf [9]string
	return g.lease.Left(term, g.voters(buf[:0])) > 0
}

// voters appends the ids of the group's voters, as the newest configuration has them.
func (g *Group) voters(to []string) []string {
	for _, s := range g.raft.GetConfiguration().Configuration().Servers {
		if s.Suffrage == hraft.Voter {
			to = append(to, string(s.ID))
		}
	}
	return to
}

// Transfer hands leadership to peer id, or to the best other one if id is
// empty: answers stop, then the other takes over. If it does not, this peer
// goes on. Asked on a peer that does not lead, it asks the leader.
func (g *Group) Transfer(ctx context.Context, id string) error {
	_, err := g.atLeader(ctx, request{Op: opTransfer, To: id})
	return err
}

// transfer is Transfer on the leader.
func (g *Group) transfer(ctx context.Context, id string) error {
	if id == g.cfg.ID {
		return nil // it has what it asks for
	}
	if _, err := g.heirs(id); err != nil {
		return err // before anything has stopped
	}
	for {
		changed := g.change.Next()
		if _, ok := g.leads(); !ok {
			return errors.New("this peer does not lead any more; ask again")
		}
		if !g.leading.Load() {
			return g.pass(ctx, id)
		}
		h := handover{to: id, done: make(chan error, 1)}
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

// heirs are the peers that could lead instead, best first.
func (g *Group) heirs(id string) ([]hraft.Server, error) {
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
	// One that lacks entries takes over after it has got them, if it does in time.
	ready := func(s hraft.Server) int {
		if g.trans.replicas.behind(s.ID, term, last) > 0 {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(found, func(a, b hraft.Server) int {
		x, y := g.standingOf(string(a.ID)), g.standingOf(string(b.ID))
		return cmp.Or(cmp.Compare(y.class, x.class), cmp.Compare(ready(b), ready(a)), y.compare(x))
	})
	if len(found) == 0 {
		if id != "" {
			return nil, fmt.Errorf("peer %q is not a member of the group; see 'appliance status'", id)
		}
		return nil, errors.New("no other peer that could hold is in reach")
	}
	return found, nil
}

// pass hands raft's leadership on. The caller has stopped answering. That a late TimeoutNow may
// still reach the other after this has given up does no harm: the new
// leader asks for the ledgers before it answers.
func (g *Group) pass(ctx context.Context, id string) error {
	heirs, err := g.heirs(id)
	if err != nil {
		return err
	}
	for _, s := range heirs {
		if err = g.passTo(ctx, s); err == nil {
			g.log.Info("handed over", "to", string(s.ID))
			return nil
		}
		if _, ok := g.leads(); !ok || ctx.Err() != nil {
			break
		}
	}
	return fmt.Errorf("hand-over: %w", err)
}

// passTo hands leadership to one peer. The library answers a moment before it
// has forgotten the attempt that came before.
func (g *Group) passTo(ctx context.Context, s hraft.Server) error {
	for {
		err := g.raft.LeadershipTransferToServer(s.ID, s.Address).Error()
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
