package raft

import (
	"context"
	"errors"
	"time"
)

// clearOlder waits until no lease of an older term can be running any more:
// step 3 in lease.go. It fails if this peer is deposed first.
func (g *Group) clearOlder(ctx context.Context, term uint64) error {
	ctx, cancel := context.WithCancel(ctx)
	type told struct {
		by string
		account
		at time.Duration
	}
	span, now := g.cfg.span(), g.cfg.now
	// The election is over by now; after this every older lease is over too.
	latest := now() + span*driftNum/driftDen
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
		changed := g.change.next()
		if is, ok := g.leads(); !ok || is != term {
			return errDeposed
		}
		at := now()
		aged := map[string]account{g.cfg.ID: g.ledger.account(term)}
		for id, t := range accounts {
			aged[id] = t.account.aged(at - t.at)
		}
		left := latest - at
		if w, enough := wait(g.cfg.ID, term, span, voters, aged); enough {
			left = min(left, w)
		}
		if left <= 0 {
			g.lease.cleared(term)
			g.change.fire()
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

// aged is the account as it reads by later, if nothing has been added: what has been
// added since is of newer terms.
func (a account) aged(by time.Duration) account {
	a.Lived += by
	granted := make([]grantAge, len(a.Granted))
	for i, g := range a.Granted {
		g.Age += by
		granted[i] = g
	}
	a.Granted = granted
	return a
}
