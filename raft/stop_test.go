package raft

import (
	"sync"
	"testing"

	hraft "github.com/hashicorp/raft"

	"appliance/raft/settings"
)

// TestStopForgetsNoCommand stops a leader that is being asked for changes and hand-overs all the time. Raft forgets what
// it has not answered when it is shut down: who asked waited for ever, and Run with it.
func TestStopForgetsNoCommand(t *testing.T) {
	for name, ask := range map[string]func(g *Group) error{
		"a change": func(g *Group) error { return g.apply(settings.Command{Set: map[string]string{"x": "y"}}) },
		"a hand-over": func(g *Group) error {
			return g.handOverTo(t.Context(), hraft.Server{ID: "b", Address: "127.0.0.1:1"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, 1)
			b.start("a")
			b.holder()
			g := b.nodes["a"].Group
			var asking sync.WaitGroup
			over := make(chan struct{})
			for range 20 {
				asking.Go(func() {
					for {
						_ = ask(g)
						select {
						case <-over:
							return
						default:
						}
					}
				})
			}
			b.stop("a")
			close(over)
			asking.Wait()
		})
	}
}
