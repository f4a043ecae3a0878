package integration

import (
	"context"
	"fmt"
	"math"
	"net"
	"net/netip"
	"testing"

	"appliance/balancer"
	"appliance/integration/scene"
	"appliance/lab"
)

// planes are the data planes under test on this kernel. In the virtual machine, the
// environment names one.
func planes() []balancer.PlaneName {
	if p := plane(); p != "" {
		return []balancer.PlaneName{balancer.PlaneName(p)}
	}
	return []balancer.PlaneName{balancer.Direct, balancer.NFTables, balancer.UserSpace}
}

// balances are the load balancers for the tests of a plane: on the port of a server on
// the node itself and, where the plane can, on another one.
func balances(plane balancer.PlaneName) []balance {
	if plane == balancer.Direct {
		peers := []string{"n1", "n2", "n3"}
		return []balance{
			{name: "same", port: scene.Port, backend: scene.Port, scheduler: "rr", nodes: peers},
			{name: "weights", port: twin, backend: twin, scheduler: "wrr", nodes: peers, weights: []int{3, 2, 1}},
		}
	}
	// One backend is on a node of the group, two are on machines of their own.
	mixed := []string{"n1", "s1", "s2"}
	all := []balance{
		{name: "same", port: scene.Port, backend: scene.Port, scheduler: "rr", nodes: mixed},
		{name: "weights", port: 443, backend: scene.Port, scheduler: "wrr", nodes: mixed, weights: []int{3, 2, 1}},
		{name: "hash", port: 444, backend: scene.Port, scheduler: "sh", nodes: mixed},
	}
	if plane != balancer.NFTables {
		all = append(all, balance{name: "least", port: 445, backend: scene.Port, scheduler: "lc", nodes: mixed})
	}
	return all
}

// TestPlanes tests every data plane with a client in every position.
func TestPlanes(t *testing.T) {
	for _, plane := range planes() {
		for _, family := range []scene.Family{scene.IPv4, scene.IPv6} {
			t.Run(fmt.Sprintf("%s/%s", plane, family), func(t *testing.T) {
				w := newWorld(t, family)
				w.start(t, string(plane), balances(plane))
				w.resolve(t)
				w.positions(t, plane, balances(plane))
				w.oneAnswer(t)
			})
		}
	}
}

// positions tries load balancers from everywhere.
func (w *world) positions(t *testing.T, plane balancer.PlaneName, balances []balance) {
	for _, lb := range balances {
		for i := range w.apps {
			if i == worker && plane == balancer.Direct {
				continue
			}
			w.await(t, i, lb.name, served(plane, len(lb.nodes)))
		}
	}
	w.reached(t, w.client, balances...)
	holder := w.holder(t)
	for _, from := range []struct {
		where string
		node  *lab.Machine
		plane balancer.PlaneName // that serves clients there
	}{
		{"on the same link", w.client, plane},
		{"behind a router", w.far, plane},
		{"on the holder", w.nodes[holder], plane},
		{"on another peer", w.nodes[others(holder)[0]], plane},
		{"on a worker", w.nodes[worker], w.planeOfWorker(t)},
	} {
		for _, lb := range balances {
			t.Run(fmt.Sprintf("%s, %s", from.where, lb.name), func(t *testing.T) {
				w.spread(t, from.node, lb, from.plane)
			})
		}
	}
}

// planeOfWorker is what serves the clients on the worker.
func (w *world) planeOfWorker(t *testing.T) balancer.PlaneName {
	return w.await(t, worker, "same", func(lb balancer.LoadBalancerStatus) bool { return lb.Plane != "" }).Plane
}

// reached waits until connections from a machine reach every backend. In direct, a
// backend on another node gets none before a probe has proved the path.
func (w *world) reached(t *testing.T, from *lab.Machine, balances ...balance) {
	t.Helper()
	for _, lb := range balances {
		if lb.scheduler == "sh" {
			continue
		}
		got := map[string]bool{}
		eventually(t, func() error {
			c, a, err := dial(t.Context(), from, w.target(lb.port))
			if err != nil {
				return err
			}
			got[a.Server] = true
			if err := c.Close(); err != nil || len(got) == len(lb.nodes) {
				return err
			}
			return fmt.Errorf("%s leads to %v alone", lb.name, got)
		})
	}
}

// spread opens connections from a machine, and checks that they went where the
// scheduler would have them.
func (w *world) spread(t *testing.T, from *lab.Machine, lb balance, plane balancer.PlaneName) {
	t.Helper()
	local := from != w.client && from != w.far
	// The weights add up to 3 or 6, so this is whole rounds.
	n := 6
	if plane == balancer.Direct && !local {
		n = 240
	}
	got := map[string]int{}
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	for range n {
		c, a, err := dial(t.Context(), from, w.target(lb.port))
		if err != nil {
			t.Fatalf("connection %d, after %v: %v", len(open)+1, got, err)
		}
		open = append(open, c)
		got[a.Server]++
		if plane == balancer.Direct && !local && a.Client != addrPort(c.LocalAddr()) {
			t.Fatalf("%s sees the client as %v, and it is %v", a.Server, a.Client, c.LocalAddr())
		}
	}
	if problem := judge(got, n, lb, from.Name, plane); problem != "" {
		t.Errorf("%d connections went to %v: %s", n, got, problem)
	}
}

// judge says what is wrong if connections did not go as the scheduler would have them.
func judge(got map[string]int, n int, lb balance, from string, plane balancer.PlaneName) string {
	if plane == balancer.Direct && got[from] > 0 && got[from] != n {
		return "a client on a node with a backend has that one, always"
	}
	if plane == balancer.Direct && got[from] == n {
		return ""
	}
	if lb.scheduler == "sh" {
		if len(got) != 1 {
			return "one client has one backend"
		}
		return ""
	}
	sum := 0
	for i := range lb.nodes {
		sum += lb.weight(i)
	}
	for i, name := range lb.nodes {
		p := float64(lb.weight(i)) / float64(sum)
		// A node that tries the load balancer as a client takes a turn of the scheduler, too.
		mean, slack := p*float64(n), 1.0
		if plane == balancer.Direct {
			// Ports are hashed: five standard deviations of a binomial
			// distribution, which is missed once in a million, and what a
			// table of 1021 slots rounds.
			slack = 5*math.Sqrt(float64(n)*p*(1-p)) + 0.01*float64(n)
		}
		if math.Abs(float64(got[name])-mean) > slack {
			return fmt.Sprintf("%s should have %.0f with a deviation of %.0f at most", name, mean, slack)
		}
		delete(got, name)
	}
	if len(got) > 0 {
		return "these are no backends"
	}
	return ""
}

func (lb balance) weight(i int) int {
	if i < len(lb.weights) {
		return lb.weights[i]
	}
	return 1
}

// dial connects, and asks the server who it is.
func dial(ctx context.Context, from *lab.Machine, to netip.AddrPort) (net.Conn, lab.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := from.Dial(ctx, to)
	if err != nil {
		return nil, lab.Answer{}, err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	a, err := lab.Ask(c, "who")
	if err != nil {
		c.Close()
		return nil, a, err
	}
	// A server that listens for both families writes IPv4 in its own way.
	a.Client = netip.AddrPortFrom(a.Client.Addr().Unmap(), a.Client.Port())
	return c, a, nil
}

func addrPort(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
