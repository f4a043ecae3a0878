package nft

import (
	"context"
	"net/netip"
	"testing"

	"appliance/balancer"
	"appliance/nft/ruleset"
)

func vip(f ruleset.IPFamily, port uint16) netip.AddrPort {
	if f.Has(vip4) {
		return netip.AddrPortFrom(vip4, port)
	}
	return netip.AddrPortFrom(vip6, port)
}

// apply makes the node serve services.
func (w *world) apply(n *NAT, services ...balancer.Service) int {
	w.t.Helper()
	var repaired int
	w.node.in(func() {
		var err error
		if repaired, err = n.Apply(context.Background(), services); err != nil {
			w.t.Fatal(err)
		}
	})
	return repaired
}

func (w *world) newNAT() *NAT {
	n := NewNAT("", nil)
	w.t.Cleanup(func() {
		w.node.in(func() {
			if err := n.Close(); err != nil {
				w.t.Error(err)
			}
		})
	})
	return n
}

func TestNATServesClientsAnywhere(t *testing.T) {
	w := newWorld(t)
	n := w.newNAT()
	for _, b := range w.backends {
		b.serve(b.name, ":6443")
	}
	// A process of the node listens on every address, at the VIP's port.
	w.node.serve("node", ":6443")

	var services []balancer.Service
	for _, f := range ruleset.Families() {
		var remote, local []balancer.Backend
		for _, b := range w.backends {
			remote = append(remote, balancer.Backend{Name: b.name, Addr: netip.AddrPortFrom(b.addr(f), 6443), Weight: 1})
		}
		local = append(local, balancer.Backend{Name: "node", Addr: netip.AddrPortFrom(w.node.addr(f), 6443), Weight: 1})
		for port, backends := range map[uint16][]balancer.Backend{6443: remote, 7443: remote, 6444: local} {
			services = append(services, balancer.Service{LoadBalancer: "api", Frontend: vip(f, port), Backends: backends})
		}
	}
	w.apply(n, services...)
	clients := map[string]*machine{"same subnet": w.client, "routed": w.far, "on the node": w.node,
		"on a backend": w.backends[0]}
	for where, client := range clients {
		for _, f := range ruleset.Families() {
			for _, c := range []struct {
				what string
				port uint16
				want []string
			}{
				{"same port", 6443, []string{"b1", "b2", "b3"}},
				{"another port", 7443, []string{"b1", "b2", "b3"}},
				{"backend on the node itself", 6444, []string{"node"}},
			} {
				t.Run(where+"/IPv"+f.Name+"/"+c.what, func(t *testing.T) {
					got := make(map[string]int)
					for range 6 {
						got[client.ask(vip(f, c.port))]++
					}
					for _, name := range c.want {
						if got[name] != 6/len(c.want) {
							t.Errorf("answers by server are %v, want %d of each of %v", got, 6/len(c.want), c.want)
						}
					}
				})
			}
		}
	}
}
