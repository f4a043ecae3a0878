package integration

import (
	"context"
	"fmt"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/integration/scene"
)

// served waits until on each of the given nodes every load balancer is served by
// the plane, with all the nodes' servers.
func (tr *trial) served(t *testing.T, plane balancer.PlaneName, nodes ...int) {
	t.Helper()
	problem := ""
	look := func(ctx context.Context) bool {
		for _, i := range nodes {
			s, err := tr.app.Status(ctx, i)
			if err != nil {
				problem = err.Error()
				return false
			}
			if len(s.LoadBalancers) != len(tr.VIPs) {
				problem = fmt.Sprintf("%s has %d load balancers", s.ID, len(s.LoadBalancers))
				return false
			}
			for _, lb := range s.LoadBalancers {
				if len(lb.Backends) != len(nodes) || !served(plane, len(nodes))(lb) {
					problem = fmt.Sprintf("%s says of %s: %+v", s.ID, lb.Name, lb)
					return false
				}
			}
		}
		return true
	}
	for ctx := patient(t); !look(ctx); time.Sleep(20 * time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatalf("not served by %s on all of %v: %s", plane, nodes, problem)
		}
	}
}

// TestBothFamiliesAreDirect: hosts of both families say so, and no client of
// either needs another data plane.
func TestBothFamiliesAreDirect(t *testing.T) {
	if plane() != "" {
		t.Skip("a data plane is forced")
	}
	tr := gatherAll(t, scene.Dual)
	if err := tr.app.StartAll(); err != nil {
		t.Fatal(err)
	}
	tr.holder(t, 0, 1, 2)
	tr.Ask(t.Context())
	tr.served(t, balancer.Direct, 0, 1, 2)
	tr.steady(t, time.Now())

	// A host is gone, and with it its servers of both families.
	h := tr.holder(t, 0, 1, 2)
	if err := tr.Nodes[h].Unplug(); err != nil {
		t.Fatal(err)
	}
	tr.holder(t, others(h)...)
	tr.until(t, "both servers of the host to be out of rotation", func(ctx context.Context) bool {
		for _, i := range others(h) {
			s, err := tr.app.Status(ctx, i)
			if err != nil {
				return false
			}
			for _, lb := range s.LoadBalancers {
				if !served(balancer.Direct, 2)(lb) {
					return false
				}
			}
		}
		return true
	})
	tr.oneAnswer(t)
}
