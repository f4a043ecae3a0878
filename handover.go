package main

import (
	"context"
	"time"
)

// handoverGrace is how long a holder that stops keeps serving after it has
// handed over: the new holder's announcement takes a moment to reach everybody,
// and packets that were on the way when it did are still for this node.
const handoverGrace = time.Second

// lingerAfterTenure is the last thing that stops before the VIP and the data
// plane do.
func (n *node) lingerAfterTenure(ctx context.Context) error {
	<-ctx.Done()
	if ended := n.tenureEnded.Load(); ended != nil && time.Since(*ended) < 10*handoverGrace {
		time.Sleep(handoverGrace)
	}
	return nil
}
