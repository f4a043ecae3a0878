package integration

import (
	"testing"

	"appliance/balancer"
	"appliance/integration/scene"
)

// TestRefusalIsSeen: refused connections of clients take a server out of rotation. The
// checks alone would need a hundred failures, for longer than the test waits. No client
// fails. Peers see it by their own trials, which count as clients, or by their checks.
func TestRefusalIsSeen(t *testing.T) {
	for _, plane := range planes() {
		if plane == balancer.Direct {
			continue // nobody is refused there: the next server gets the packet
		}
		t.Run(string(plane), func(t *testing.T) {
			lb := balance{
				name: "api", port: scene.Port, backend: scene.Port, scheduler: "rr", nodes: []string{"s1", "s2"},
				check: "type: tcp, fall: 100, fastInter: 1s",
			}
			w := newWorld(t, scene.IPv4)
			w.start(t, string(plane), []balance{lb})
			w.resolve(t)
			for i := range w.apps {
				w.await(t, i, lb.name, served(plane, 2))
			}
			holder := w.holder(t)
			w.byName["s1:6443"].Close()
			w.await(t, holder, lb.name, func(now balancer.LoadBalancerStatus) bool {
				c, a, err := dial(t.Context(), w.client, w.target(lb.port))
				switch {
				case err != nil:
					t.Fatalf("a client failed: %v", err)
				case err == nil:
					c.Close()
					if a.Server != "s2" {
						t.Fatalf("%s answers", a.Server)
					}
				}
				return served(plane, 1)(now)
			})
		})
	}
}
