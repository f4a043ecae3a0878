package integration

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/integration/scene"
)

// TestNothingIsAnsweredLate: the holder is killed, frozen, or starved, which is frozen again and again, while it is
// asked for the VIP in every form. Its successor takes over, and from then on nothing of the old holder is on the wire,
// from its process or from a queue of its kernel.
func TestNothingIsAnsweredLate(t *testing.T) {
	// The kernel looks for a receiver's link-layer address for three seconds.
	const queuePatience = 4 * time.Second
	for _, end := range []struct {
		name string
		do   func(t *testing.T, w *world, holder int)
	}{
		{"killed", func(t *testing.T, w *world, holder int) { w.apps[holder].proc.Kill() }},
		{"frozen", func(t *testing.T, w *world, holder int) {
			if err := w.apps[holder].freeze(); err != nil {
				t.Fatal(err)
			}
			w.moved(t, holder)
			if err := w.apps[holder].thaw(); err != nil {
				t.Fatal(err)
			}
		}},
		{"starved", func(t *testing.T, w *world, holder int) {
			for end := time.Now().Add(queuePatience); time.Now().Before(end); {
				if err := w.apps[holder].freeze(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(rand.N(800 * time.Millisecond)) // the heartbeat is 500 ms
				if err := w.apps[holder].thaw(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(rand.N(20 * time.Millisecond))
			}
		}},
	} {
		for _, family := range []scene.Family{scene.IPv4, scene.IPv6} {
			t.Run(fmt.Sprintf("%s/%s", end.name, family), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, family)
				w.start(t, "", []balance{balances(balancer.Direct)[0]})
				var macs []net.HardwareAddr
				for _, n := range w.nodes[:worker] {
					macs = append(macs, n.MAC())
				}
				w.resolve(t, macs...)
				holder := w.holder(t)
				eventually(t, func() error {
					if len(w.resolver.Replies()) < 100 {
						return fmt.Errorf("%d answers", len(w.resolver.Replies()))
					}
					return nil
				})
				end.do(t, w, holder)
				if end.name == "killed" {
					w.moved(t, holder)
				}
				time.Sleep(queuePatience)
				w.oneAnswer(t)
			})
		}
	}
}
