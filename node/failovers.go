package node

import (
	"context"
	"fmt"
	"time"

	"appliance/raft"
	"appliance/status"
)

// A chronicle turns what the group's status was and is into events. One
// goroutine owns it.
type chronicle struct {
	self      string
	heartbeat time.Duration
	note      func(status.Event)
	// tookOver is told the measured length of a failover to this node.
	tookOver func(time.Duration)

	holder  string
	term    uint64
	sign    time.Time // last heartbeat of the holder, zero: of none
	away    map[string]time.Time
	met     map[string]bool
	ended   map[string]uint64
	trouble string
}

// lookEvery finds what changes without an event, such as who is in reach.
const lookEvery = 250 * time.Millisecond

// gaveWay is all that others know of a holder that lost its office alive.
const gaveWay = " gave way"

// noteFailovers writes down what happens in the group until ctx ends.
func (n *node) noteFailovers(ctx context.Context) error {
	c := &chronicle{
		self: n.site.self.ID, heartbeat: n.cfg.Group.Heartbeat, note: n.observer.Note, tookOver: n.observer.Metrics.TookOver,
		away: make(map[string]time.Time), met: make(map[string]bool), ended: make(map[string]uint64),
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		changed := n.group.Changed()
		s := n.group.Status()
		c.see(s, n.holder(s), time.Now())
		select {
		case <-ctx.Done():
			// The end of the own tenure comes with the end of everything.
			s := n.group.Status()
			c.see(s, n.holder(s), time.Now())
			return nil
		case <-changed:
		case <-tick.C:
		}
	}
}

// see compares a status with the one before.
func (c *chronicle) see(s raft.Status, holder string, now time.Time) {
	c.tenures(s)
	c.peers(s, now)
	if s.Trouble != c.trouble {
		if c.trouble = s.Trouble; s.Trouble != "" {
			c.note(status.Event{Kind: status.OfProcess, Bad: true, What: "has trouble in the group", Reason: s.Trouble})
		} else {
			c.note(status.Event{Kind: status.OfProcess, What: "takes part in the group fully again"})
		}
	}
	c.listen(s, now)
	if holder == c.self && !s.Holder {
		holder = "" // elected, and not yet free to answer
	}
	if holder != "" && (holder != c.holder || holder == c.self && s.Term != c.term) {
		c.moved(s, holder, now)
	}
	if holder != "" && holder == c.holder {
		c.term = s.Term
		c.listen(s, now)
	}
}

// listen notes the last sign of the holder.
func (c *chronicle) listen(s raft.Status, now time.Time) {
	if at, ok := lastSign(s, c.holder, c.term, now); ok {
		c.sign = at
	}
}

// moved notes a new holder.
func (c *chronicle) moved(s raft.Status, holder string, now time.Time) {
	e := status.Event{Time: now, Kind: status.OfHolder, Subject: holder, What: "holds", From: c.holder, To: holder, Term: s.Term}
	if holder == c.self && !s.Since.IsZero() {
		e.Time = s.Since
	}
	// From the last sign of the old holder to the new one: what clients may have
	// missed at most. An old holder itself does not know.
	if !c.sign.IsZero() {
		e.Took = max(e.Time.Sub(c.sign), 0)
	}
	switch {
	case c.holder == "":
		e.Took, e.Reason = 0, "the first that this node knows of in this life"
	case c.holder == holder:
		e.Reason = "elected again"
	case dead(s, c.holder, c.term):
		e.Bad, e.Reason = true, "the process of "+c.holder+" ended"
	case c.holder != c.self && (e.Took > c.heartbeat*9/10 || vanished(s, c.holder)):
		e.Bad, e.Reason = true, fmt.Sprintf("nothing was heard of %s for %s", c.holder, e.Took.Round(time.Millisecond))
	default:
		e.Reason = c.holder + gaveWay // its own journal says why
	}
	if holder == c.self && c.holder != "" && c.holder != c.self {
		c.tookOver(e.Took)
	}
	c.holder, c.term, c.sign = holder, s.Term, time.Time{}
	c.note(e)
}

// tenures notes the ends of this node's own tenures, with their causes.
func (c *chronicle) tenures(s raft.Status) {
	for cause, count := range s.Counters.Ended {
		if count == c.ended[cause] {
			continue
		}
		c.ended[cause] = count
		c.note(status.Event{Kind: status.OfTenure, Subject: c.self, What: "holds no more", Bad: cause == "deposed" || cause == "failed", Reason: map[string]string{
			"deposed":  "another peer leads, or a majority is out of reach",
			"leaving":  "this node stops",
			"handover": "handed over",
			"failed":   "it could not answer",
		}[cause], Term: c.term})
	}
}

// peers notes who comes and goes.
func (c *chronicle) peers(s raft.Status, now time.Time) {
	for _, p := range s.Peers {
		switch {
		case p.Self:
		case p.Connected && !c.met[p.ID]:
			c.met[p.ID] = true
			c.note(status.Event{Kind: status.OfPeer, Subject: p.ID, What: "is in reach"})
		case p.Connected && !c.away[p.ID].IsZero():
			c.note(status.Event{Kind: status.OfPeer, Subject: p.ID, What: "is in reach again", Took: now.Sub(c.away[p.ID])})
			delete(c.away, p.ID)
		case !p.Connected && c.met[p.ID] && c.away[p.ID].IsZero():
			c.away[p.ID] = now
			c.note(status.Event{Kind: status.OfPeer, Bad: true, Subject: p.ID, What: "is out of reach", Reason: p.Problem})
		}
	}
}

// lastSign is when this peer last heard from the holder of term. What it says in
// later terms, it says as one that wants to be elected again.
func lastSign(s raft.Status, holder string, term uint64, now time.Time) (time.Time, bool) {
	for _, p := range s.Peers {
		if p.ID == holder && p.Heard > 0 && p.HeardTerm <= term {
			return now.Add(-p.Heard), true
		}
	}
	return time.Time{}, false
}

// dead is whether this peer has proof that the process which led term has ended.
func dead(s raft.Status, holder string, term uint64) bool {
	for _, p := range s.Peers {
		if p.ID == holder {
			return term > 0 && p.Died >= term
		}
	}
	return false
}

// vanished is whether the probes of the holder's host have stopped.
func vanished(s raft.Status, holder string) bool {
	for _, p := range s.Peers {
		if p.ID == holder {
			return p.Vanished
		}
	}
	return false
}
