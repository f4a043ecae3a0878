package main

import (
	"context"
	"slices"
	"time"

	"appliance/raft"
)

// handoverGrace is how long a holder that stops keeps serving after it has
// handed over: the new holder's announcement takes a moment to reach everybody,
// and packets that were on the way when it did are still for this node.
const handoverGrace = time.Second

// heir says that there is another peer that could hold: without one nobody has
// been handed over to, so there is nothing to wait for.
func heir(peers []raft.PeerStatus) bool {
	return slices.ContainsFunc(peers, func(p raft.PeerStatus) bool { return !p.Self && p.Role == "voter" })
}

// lingerAfterTenure is the last thing that stops before the VIP and the data
// plane do.
func (n *node) lingerAfterTenure(ctx context.Context) error {
	<-ctx.Done()
	ended := n.tenureEnded.Load()
	if ended != nil && time.Since(*ended) < 10*handoverGrace && heir(n.group.Status().Peers) {
		time.Sleep(handoverGrace)
	}
	return nil
}
