package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/integration/scene"
)

// stamp is how the logs tell the time.
const stamp = "15:04:05.000"

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

// TestGroupGrowsDirect is kubeadm's order, with hosts of both families: no load
// balancer leaves the direct data plane because a peer joins or goes.
func TestGroupGrowsDirect(t *testing.T) {
	if plane() != "" {
		t.Skip("a data plane is forced")
	}
	tr := gatherAll(t, scene.Dual)
	if err := tr.app.StartWith(0, "--start-as-leader"); err != nil {
		t.Fatal(err)
	}
	tr.holder(t, 0)
	tr.ready(t, 0)
	tr.Ask(t.Context())
	tr.steady(t, time.Now())
	clients := tr.patients(t)
	for _, i := range []int{1, 2} {
		if err := tr.app.Start(i); err != nil {
			t.Fatal(err)
		}
		tr.ready(t, []int{0, 1, 2}[:i+1]...)
	}
	tr.members(t, 0, 1, 2)
	tr.served(t, balancer.Direct, 0, 1, 2)
	four, err := tr.AddNode()
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.app.Join(four, 1, "--peers", tr.app.Peer(four)); err != nil {
		t.Fatal(err)
	}
	tr.members(t, 0, 1, 2, four)
	tr.served(t, balancer.Direct, 0, 1, 2, four)
	tr.ready(t, 0, 1, 2, four)
	tr.steady(t, time.Now())
	clients.noticed(t, "the growth")

	h := tr.holder(t, 0, 1, 2, four)
	rest := except(h, 0, 1, 2, four)
	tr.say(t, h, "peers", "remove", tr.Nodes[rest[0]].Name)
	tr.members(t, except(rest[0], 0, 1, 2, four)...)
	tr.served(t, balancer.Direct, except(rest[0], 0, 1, 2, four)...)
	tr.steady(t, time.Now())
	for _, p := range []balancer.PlaneName{balancer.IPVS, balancer.NFTables, balancer.UserSpace} {
		for line := range strings.Lines(tr.app.Log()) {
			if strings.Contains(line, fmt.Sprintf(`"data plane %s" loadBalancer=`, p)) {
				t.Errorf("a load balancer left the direct data plane: %s", line)
			}
		}
	}
	tr.oneAnswer(t)
}

// TestDirectWithoutGroupKey: where there is no group key, the group makes a
// secret of its own for the path probes, and a node that restarts has it, too.
func TestDirectWithoutGroupKey(t *testing.T) {
	if plane() != "" {
		t.Skip("a data plane is forced")
	}
	tr := gather(t)
	path := filepath.Join(tr.Dir, "appliance.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text = regexp.MustCompile("keyFile: .*").ReplaceAll(text, []byte("insecure: true"))
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	tr.begin(t)
	proved := func() {
		t.Helper()
		tr.served(t, balancer.Direct, 0, 1, 2)
		tr.until(t, "packets to be handed to all nodes", func(ctx context.Context) bool {
			for i := range 3 {
				s, err := tr.app.Status(ctx, i)
				if err != nil || slices.ContainsFunc(s.LoadBalancers[0].Backends,
					func(b balancer.BackendStatus) bool { return b.PassedOver != "" }) {
					return false
				}
			}
			return true
		})
	}
	tr.until(t, "all to have the secret", func(context.Context) bool {
		return strings.Count(tr.app.Log(), "path probes are signed with the group's own key") == 3
	})
	proved()
	tr.app.Kill(1)
	tr.until(t, "packets not to be handed to a node without appliance", func(ctx context.Context) bool {
		s, err := tr.app.Status(ctx, 0)
		return err == nil && slices.ContainsFunc(s.LoadBalancers[0].Backends,
			func(b balancer.BackendStatus) bool { return b.PassedOver != "" })
	})
	if err := tr.app.Start(1); err != nil {
		t.Fatal(err)
	}
	proved()
}
