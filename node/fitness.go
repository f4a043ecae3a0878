package node

import (
	"context"
	"time"

	"appliance/balancer"
	"appliance/raft"
	"appliance/track"
)

const (
	// How long a load balancer must have been without a healthy backend here
	// until the group is told, and with one until it is told that. A holder
	// gives way to a peer that sees more, so that what flaps must not move the
	// VIP back and forth; the first is longer than the checks of two nodes are
	// apart, which mostly see the same.
	blindAfter   = 2 * time.Second
	sightedAfter = 10 * time.Second
	fitnessEvery = 500 * time.Millisecond
)

// tracked takes what the tracks say of this node.
func (n *node) tracked(c track.Claim) {
	n.claim.Store(&c)
	select {
	case n.claimed <- struct{}{}:
	default:
	}
}

// followFitness tells the group how fit this node is to hold.
func (n *node) followFitness(ctx context.Context) error {
	tick := time.NewTicker(fitnessEvery)
	defer tick.Stop()
	var d damped
	for {
		sightless := d.look(time.Now(), blind(n.balancer.Health()))
		n.group.SetClaim(fitness(sightless, n.claim.Load(), n.group.Status().Trouble))
		select {
		case <-ctx.Done():
			return nil
		case <-n.claimed:
		case <-tick.C:
		}
	}
}

// fitness puts together what speaks against this node as holder: load balancers
// that are blind, what the tracks say, if there are any, and trouble with the
// group. Whose disk is full cannot vote, nor take over: who hands over to it
// is silent for nothing.
func fitness(blind int, tracks *track.Claim, trouble string) raft.Claim {
	c := raft.Claim{Blind: blind}
	if tracks != nil {
		c.Barred, c.Lowered = tracks.Barred, tracks.Lowered
	}
	if c.Barred == "" {
		c.Barred = trouble
	}
	return c
}

// blind counts the load balancers of which no backend is known to be healthy,
// and every one has been looked at.
func blind(lbs []balancer.LoadBalancerStatus) (count int) {
	for _, lb := range lbs {
		known := true
		for _, b := range lb.Backends {
			known = known && b.State != balancer.Unknown
		}
		if known && !anyUp(lb) {
			count++
		}
	}
	return count
}

// damped is a number that follows another with a delay: soon where it grows,
// late where it shrinks.
type damped struct {
	value, next int
	since       time.Time // of next
}

func (d *damped) look(now time.Time, n int) int {
	if n != d.next {
		d.next, d.since = n, now
	}
	wait := blindAfter
	if n < d.value {
		wait = sightedAfter
	}
	if now.Sub(d.since) >= wait {
		d.value = n
	}
	return d.value
}
