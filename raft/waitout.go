package raft

import (
	"context"
	"errors"
	"time"

	"appliance/raft/lease"
)

// waitOutLeases waits until no lease of an older term can be running any more:
// step 3 in package lease. It fails if this peer is deposed first.
func (g *Group) waitOutLeases(ctx context.Context, term uint64) error {
	ctx, cancel := context.WithCancel(ctx)
	type told struct {
		by string
		lease.Account
		at time.Duration
	}
	span, now := g.cfg.span(), g.cfg.now
	// The election is over by now; after this every older lease is over too.
	latest := now() + lease.Stretch(span)
	voters := g.voters(nil)
	replies := make(chan told, len(voters))
	asked := 0
	for _, id := range voters {
		l := g.link(id)
		if l == nil {
			continue // this peer, or one that is not listed here
		}
		asked++
		go func() {
			once, cancel := context.WithTimeout(ctx, span)
			defer cancel()
			if rep, err := l.call(once, request{Op: opAccount}); err == nil && rep.Account != nil {
				replies <- told{id, *rep.Account, now()}
				return
			}
			replies <- told{}
		}()
	}
	defer func() {
		cancel()
		for ; asked > 0; asked-- {
			<-replies
		}
	}()
	accounts := make(map[string]told)
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
