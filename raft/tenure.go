package raft

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	hraft "github.com/hashicorp/raft"

	"appliance/raft/lease"
)

// Why a tenure ends.
var (
	errDeposed  = errors.New("another peer leads, or a majority is out of reach")
	errLeaving  = errors.New("this peer leaves the group")
	errHandover = errors.New("handed over")
	errHoldOver = errors.New("hold returned by itself")
)

var errNeverHeld = errors.New("deposed before the tenure began")

// holdPause is how long a peer whose hold has failed leaves the holding to others before it tries again.
const holdPause = time.Second

// tenureState is what Status shows of the tenure.
type tenureState struct {
	term  uint64
	since time.Time
	may   func() bool
}

// Lead calls hold each time this peer becomes the holder, and waits for it to return. The context of hold
// ends with the tenure. May says whether the lease runs at this moment; ask it immediately before every
// packet. A witness never holds. If hold returns before its context ends, another peer takes over. Lead
// returns nil when ctx ends or Run leaves the group; the two contexts should end together, and Run waits for
// hold to return.
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
	// If the term is the same before and after, it is the one that raft leads in.
	term = r.CurrentTerm()
	ok = r.State() == hraft.Leader
	return term, ok && r.CurrentTerm() == term
}

// serveTerm spends one term as leader. A non-nil error says that this peer still leads but should not try
// again at once.
func (g *Group) serveTerm(ctx context.Context, term uint64, hold func(context.Context, func() bool) error) error {
	if g.cfg.self().Witness {
		err := g.handOver(ctx, "")
		if err != nil {
			g.log.Warn("this witness leads and finds nobody to hand over to; the address is not answered for",
				"error", err)
		}
		return err
	}
	g.holding <- struct{}{}
	defer func() { <-g.holding }()
	select {
	case <-g.stopping:
		return nil
	default:
	}
	if id := g.preferred(); id != "" && g.preferenceOf(g.cfg.ID).class == drained {
		if err := g.handOver(ctx, id); err == nil {
			return nil
		}
	}
	if cause := g.holdTerm(ctx, term, hold); errors.Is(cause, errHoldOver) {
		return g.handOver(ctx, "")
	}
	return nil
}

// holdTerm runs hold for as long as this peer leads in term and returns why it ended.
func (g *Group) holdTerm(ctx context.Context, term uint64, hold func(context.Context, func() bool) error) error {
	// Before the first answer the watchers have to know that this process leads term: package deathwatch.
	g.watched.Leads(term)
	if err := g.waitOutLeases(ctx, term); err != nil {
		return errNeverHeld
	}
	var over atomic.Bool
	may := func() bool { return !over.Load() && g.mayAnswer(term) }
	tenure, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	began := time.Now()
	g.mu.Lock()
	g.tenure = tenureState{term: term, since: began, may: may}
	g.count.Tenures++
	g.mu.Unlock()
	vanished, why := g.whyGiveWay(g.cfg.ID)
	g.history.tenureBegan(term, began, vanished, why)
	g.log.Info("holder", "term", term)
	g.change.Fire()

	returned := make(chan error, 1)
	go func() { returned <- hold(tenure, may) }()
	request, cause := g.tenureEnd(ctx, term, returned)
	over.Store(true) // no answer from here on, even before hold has noticed
	ended := causeOf(cause, request)
	g.history.tenureEnded(term, ended)
	cancel(cause)
	if !errors.Is(cause, errHoldOver) {
		if err := <-returned; err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, cause) {
			g.log.Warn("the tenure did not end cleanly", "error", err)
		}
	}
	g.mu.Lock()
	g.tenure = tenureState{}
	g.count.Ended[countedAs(ended)]++
	g.mu.Unlock()
	g.change.Fire()
	g.log.Info("no longer holder", "term", term, "cause", cause, "held", time.Since(began).Round(time.Millisecond))
	if request != nil {
		request.done <- g.handOver(ctx, request.to)
	}
	return cause
}

// answersBefore says that hold of a tenure before term has not returned yet: a thread of it may have looked at the lease,
// and stand still before its answer. It waits a little for that, because who asks would wait for longer.
func (g *Group) answersBefore(ctx context.Context, term uint64) bool {
	patience := time.NewTimer(g.cfg.span() / 2)
	defer patience.Stop()
	for {
		changed := g.change.Next()
		g.mu.Lock()
		t := g.tenure
		g.mu.Unlock()
		if t.may == nil || t.term >= term {
			return false
		}
		select {
		case <-changed:
		case <-patience.C:
			return true
		case <-ctx.Done():
			return true
		}
	}
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

// countedAs is the short form of a cause in Counters.Ended.
func countedAs(cause Cause) string {
	switch cause {
	case Deposed:
		return "deposed"
	case Stopped:
		return "leaving"
	case Failed:
		return "failed"
	}
	return "handover"
}

// waitOutLeases waits until no lease of an older term can be running any more: step 3 in package lease. It
// fails if this peer is deposed first.
func (g *Group) waitOutLeases(ctx context.Context, term uint64) error {
	ctx, cancel := context.WithCancel(ctx)
	type report struct {
		by string
		lease.Account
		at time.Duration
	}
	span, now, own := g.cfg.span(), g.cfg.now, g.cluster()
	// The election is over by now; after this every older lease is over too.
	latest := now() + lease.Stretch(span)
	voters := g.voters(nil)
	replies := make(chan report, len(voters))
	asked := 0
	for _, id := range voters {
		l := g.links.to(id)
		if l == nil {
			continue // this peer, or one that is not listed here
		}
		asked++
		go func() {
			once, cancel := context.WithTimeout(ctx, span)
			defer cancel()
			if rep, err := ask(once, l, request{Op: opAccount, Cluster: own}); err == nil && rep.Account != nil &&
				(own == "" || rep.Cluster == "" || rep.Cluster == own) && g.fence.Refusal(id) == nil {
				replies <- report{id, *rep.Account, now()}
				return
			}
			replies <- report{}
		}()
	}
	defer func() {
		cancel()
		for ; asked > 0; asked-- {
			<-replies
		}
	}()
	accounts := make(map[string]report)
	for {
		changed := g.change.Next()
		if is, ok := g.leads(); !ok || is != term {
			return errDeposed
		}
		at := now()
		aged := map[string]lease.Account{g.cfg.ID: g.grants.Account(term)}
		for id, t := range accounts {
			aged[id] = t.Account.Aged(at - t.at)
		}
		left := latest - at
		if w, enough := lease.Wait(g.cfg.ID, term, span, voters, aged); enough {
			left = min(left, w)
		}
		if left <= 0 {
			g.lease.Begin(term)
			g.change.Fire()
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-g.stopping:
			return errors.New("leaving")
		case t := <-replies:
			asked--
			if t.by != "" {
				accounts[t.by] = t
			}
		case <-time.After(left):
		case <-changed:
		}
	}
}

// mayAnswer says whether this peer may answer now, in term: package lease.
func (g *Group) mayAnswer(term uint64) bool {
	g.lookAtMachine()
	if now, ok := g.leads(); !ok || now != term {
		return false
	}
	var buf [9]string
	return g.lease.Left(term, g.voters(buf[:0])) > 0
}

// lookAtMachine ends this peer's leases (Lapse) if the machine stood still and the clock with it: others may hold by now.
// The look comes before the lease is asked for, so that what was left of it is never used. A machine that is paused
// between the two is not noticed; but a thread that waits here asks for the lease when it goes on.
func (g *Group) lookAtMachine() {
	why := g.machine.Look()
	if why == "" {
		return
	}
	g.log.Warn("this machine stood still, and its clock with it, or somebody has set the time: its leases are over, "+
		"and it holds again when a majority has said so", "because", why)
	g.history.stoodStill(why)
	g.change.Fire()
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
