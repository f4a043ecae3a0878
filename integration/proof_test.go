package integration

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"appliance/balancer"
	"appliance/integration/scene"
	"appliance/status"
)

// TestProofs has everything well but for what clients need, and expects the nodes to notice: the next data plane
// serves, or what is wrong is said.
func TestProofs(t *testing.T) {
	if plane() != "" {
		t.Skip("a data plane is forced")
	}
	for _, family := range []scene.Family{scene.IPv4, scene.IPv6} {
		t.Run(string(family), func(t *testing.T) {
			peers := balance{name: "peers", port: scene.Port, backend: scene.Port, scheduler: "rr",
				nodes: []string{"n1", "n2", "n3"}}

			// As kube-apiserver --bind-address has it.
			t.Run("servers bound to the node's address", func(t *testing.T) {
				t.Parallel() // most of it is waiting
				w := newWorld(t, family)
				for _, n := range peers.nodes {
					w.rebind(t, n, w.addr(n))
				}
				w.start(t, "", []balance{peers})
				for i := range w.apps[:worker] {
					w.chosen(t, i, "peers", balancer.NFTables, map[balancer.PlaneName]string{balancer.Direct: "only"})
				}
				w.reached(t, w.client, peers)
				for _, n := range peers.nodes {
					w.rebind(t, n, w.anywhere())
				}
				for i := range w.apps[:worker] {
					w.chosen(t, i, "peers", balancer.Direct, nil)
				}
				w.proved(t, "peers", func(p *balancer.ProofStatus) bool { return p.State == balancer.Proved })
				w.reached(t, w.client, peers)
			})

			// Nobody connects but those who prove.
			t.Run("proofs are no connections", func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, family)
				others := balance{name: "others", port: scene.Port + 1, backend: scene.Port, scheduler: "rr",
					nodes: []string{"s1", "s2"}}
				w.start(t, "", []balance{peers, others})
				for _, lb := range []balance{peers, others} {
					plane := map[bool]balancer.PlaneName{true: balancer.Direct, false: balancer.NFTables}[lb.name == peers.name]
					for i := range w.apps[:worker] {
						w.await(t, i, lb.name, func(s balancer.LoadBalancerStatus) bool {
							if s.Proof == nil || s.Proof.Last == nil || s.Plane != plane {
								return false
							}
							counted := false
							for _, b := range s.Backends {
								counted = counted || b.Traffic != nil
								if b.Traffic != nil && b.Traffic.Total != 0 {
									t.Fatalf("%s counts %+v at %s of %s, and nobody connected", w.nodes[i].Name, b.Traffic, b.Name, lb.name)
								}
							}
							return counted
						})
					}
				}
			})

			// As docker has it.
			t.Run("a forward chain with policy drop", func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, family)
				others := balance{name: "others", port: scene.Port, backend: scene.Port, scheduler: "rr",
					nodes: []string{"s1", "s2"}}
				w.start(t, "", []balance{others})
				w.proved(t, "others", func(p *balancer.ProofStatus) bool { return p.State == balancer.Proved })
				for i := range w.apps[:worker] {
					w.shell(t, i, "nft", "add table inet theirs; add chain inet theirs forward "+
						"{ type filter hook forward priority 0; policy drop; }")
				}
				for i := range w.apps[:worker] {
					s := w.await(t, i, "others", served(balancer.UserSpace, 2))
					if !slices.ContainsFunc(s.Refused, func(r balancer.Refusal) bool {
						return r.Plane == balancer.NFTables && strings.Contains(r.Reason, "forward chain")
					}) {
						t.Errorf("%s does not say what is wrong with nftables: %+v", w.nodes[i].Name, s.Refused)
					}
				}
				w.proved(t, "others", func(p *balancer.ProofStatus) bool { return p.State == balancer.Proved })
				w.reached(t, w.client, others)
			})

			// There is no plane left, so it has to be said.
			t.Run("a firewall in front of user space", func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, family)
				least := balance{name: "least", port: scene.Port, backend: scene.Port, scheduler: "lc", nodes: []string{"s1", "s2"}}
				w.start(t, "", []balance{least})
				for i := range w.nodes[:worker] {
					w.shell(t, i, "nft", "add table inet theirs; add chain inet theirs input { type filter hook input priority 0; }; "+
						"add rule inet theirs input iifname eth0 tcp dport != { 22, 10000 } tcp flags & (syn | ack) == syn drop")
				}
				w.proved(t, "least", func(p *balancer.ProofStatus) bool {
					return p.State == balancer.Unproved && strings.Contains(p.Reason, "is not answered") &&
						strings.Contains(p.Reason, "input chain")
				})
				for i, p := range w.apps[:worker] {
					s, err := p.client.Snapshot(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					if !slices.ContainsFunc(s.NotReadyTexts(), func(why string) bool {
						return strings.Contains(why, "load balancer least serves no clients here")
					}) {
						t.Errorf("%s is ready: %v", w.nodes[i].Name, s.NotReadyTexts())
					}
					w.shell(t, i, "nft", "delete table inet theirs")
				}
				w.proved(t, "least", func(p *balancer.ProofStatus) bool { return p.State == balancer.Proved })
				w.reached(t, w.client, least)
			})
		})
	}
}

// anywhere is the address of a server that takes all of its family.
func (w *world) anywhere() netip.Addr {
	if w.family == scene.IPv4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// rebind has the server of a machine listen at another address.
func (w *world) rebind(t *testing.T, name string, at netip.Addr) {
	t.Helper()
	key := name + ":6443"
	w.byName[key].Close()
	s, err := w.servers.Serve(w.machine(name), name, netip.AddrPortFrom(at, scene.Port), nil)
	if err != nil {
		t.Fatal(err)
	}
	w.byName[key] = s
}

// proved waits until all peers say so of a load balancer.
func (w *world) proved(t *testing.T, lb string, ok func(*balancer.ProofStatus) bool) {
	t.Helper()
	for i := range w.apps[:worker] {
		w.await(t, i, lb, func(s balancer.LoadBalancerStatus) bool { return s.Proof != nil && ok(s.Proof) })
	}
}

// TestPeersDiffer has one node of three with another VIP in its file. It must not hold, and all say why.
func TestPeersDiffer(t *testing.T) {
	if plane() != "" {
		t.Skip("a data plane is forced")
	}
	w := newWorld(t, scene.IPv4)
	lb := balance{name: "peers", port: scene.Port, backend: scene.Port, scheduler: "rr", nodes: []string{"n1", "n2", "n3"}}
	group, own := w.keys(t)
	w.begin(t, func(i int) string {
		if i == worker {
			return w.config(w.ofWorker(""), own, []balance{lb})
		}
		config := w.config("", group, []balance{lb})
		if i == 1 {
			config = strings.Replace(config, w.vip().String(), "10.77.0.99", 1)
		}
		return config
	})
	differs := func(i int, of string) func() error {
		return func() error {
			s, err := w.apps[i].client.Snapshot(t.Context())
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(s.Differences, func(d status.Difference) bool { return d.Key == "vips" && d.Peer == of }) {
				return fmt.Errorf("%s names no other VIP: %v", s.ID, s.Differences)
			}
			return nil
		}
	}
	eventually(t, differs(0, "n2"))
	eventually(t, differs(1, "n3"))
	eventually(t, func() error {
		s, err := w.apps[1].client.Snapshot(t.Context())
		if err != nil {
			return err
		}
		if s.Holder == "n2" || !slices.ContainsFunc(s.NotReadyTexts(), func(why string) bool {
			return strings.Contains(why, w.target(scene.Port).String()+", which n1 and n3 serve")
		}) {
			return fmt.Errorf("%s holds, and n2 is ready but for %v", s.Holder, s.NotReadyTexts())
		}
		return nil
	})
	lb.nodes = []string{"n1", "n3"} // direct hands nothing to a node that does not have the VIP
	w.reached(t, w.client, lb)
}

// TestSurvivorIsNotReady leaves one node of three, which may not hold.
func TestSurvivorIsNotReady(t *testing.T) {
	w := newWorld(t, scene.IPv4)
	lb := balance{name: "peers", port: scene.Port, backend: scene.Port, scheduler: "rr", nodes: []string{"n1", "n2", "n3"}}
	w.start(t, plane(), []balance{lb})
	w.apps[1].stop(t)
	w.apps[2].proc.Kill()
	eventually(t, func() error {
		s, err := w.apps[0].client.Snapshot(t.Context())
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(s.NotReadyTexts(), func(why string) bool { return strings.Contains(why, "nobody holds") }) {
			return fmt.Errorf("%s holds, not ready: %v", s.Holder, s.NotReadyTexts())
		}
		return nil
	})
}

// TestDirectLetsGo has the servers of direct on workers whose appliances end. The servers live, and have to be served.
func TestDirectLetsGo(t *testing.T) {
	if plane() != "" {
		t.Skip("a data plane is forced")
	}
	w := newWorld(t, scene.IPv4)
	lb := balance{name: "worker", port: scene.Port, backend: scene.Port, scheduler: "rr", nodes: []string{"w1"}}
	w.start(t, "", []balance{lb})
	for i := range w.apps[:worker] {
		w.await(t, i, "worker", served(balancer.Direct, 1))
	}
	w.reached(t, w.client, lb)
	w.apps[worker].stop(t)
	for i := range w.apps[:worker] {
		w.await(t, i, "worker", served(balancer.NFTables, 1))
	}
	w.reached(t, w.client, lb)
	w.apps[worker].start(t)
	for i := range w.apps[:worker] {
		w.await(t, i, "worker", served(balancer.Direct, 1))
	}
	w.reached(t, w.client, lb)
}
