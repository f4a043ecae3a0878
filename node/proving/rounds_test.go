package proving

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"appliance/balancer"
	"appliance/raft"
)

// A node that clients come to is tried more often than one that they would come to next, and both as often as said.
func TestPaceOfTrials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		var active atomic.Bool
		trials := New(Config{
			Self:          "n1",
			LoadBalancers: func() []balancer.LoadBalancer { return nil },
			Health:        func() []balancer.LoadBalancerStatus { return nil },
			Serves:        func() map[string]string { return nil },
			Active:        active.Load,
			Peers: func() []raft.PeerStatus {
				return []raft.PeerStatus{{ID: "n1", Self: true}, {ID: "n2", Connected: true}, {ID: "n3", Connected: true}}
			},
			Ask: func(context.Context, string, []byte) ([]byte, error) {
				asked.Add(1)
				return []byte("{}"), nil
			},
			Log: slog.New(slog.DiscardHandler),
		})
		go trials.Run(t.Context())
		for _, c := range []struct {
			active    bool
			low, high int64
		}{{false, 45, 56}, {true, 180, 223}, {false, 45, 56}} {
			active.Store(c.active)
			asked.Store(0)
			time.Sleep(10 * time.Minute)
			if n := asked.Load(); n < c.low || n > c.high {
				t.Errorf("active %v: %d questions in ten minutes, want %d to %d", c.active, n, c.low, c.high)
			}
		}
		asked.Store(0)
		trials.Activated()
		time.Sleep(time.Second)
		if asked.Load() == 0 {
			t.Error("a new holder is not tried at once")
		}
	})
}
