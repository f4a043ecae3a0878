package integration

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"appliance/integration/scene"
	"appliance/lab"
)

// TestLoadBalancersNameTheirVIPs: one port of two VIPs leads to different servers, and a port that is served on one VIP
// alone is closed on the other, whatever the data plane and wherever the client.
func TestLoadBalancersNameTheirVIPs(t *testing.T) {
	for _, plane := range planes() {
		t.Run(string(plane), func(t *testing.T) {
			w := newWorld(t, scene.IPv4)
			outer := w.prefix(9).Addr()
			group, own := w.keys(t)
			w.begin(t, func(i int) string {
				key, p := group, string(plane)
				if i == worker {
					key, p = own, w.ofWorker(p)
				}
				config := strings.Replace(w.config(p, key, nil), "vips: [", fmt.Sprintf("vips: [%q, ", outer), 1)
				for _, lb := range []struct {
					name, backend string
					port          int
					vip           netip.Addr
				}{
					{"inner", "n1", scene.Port, w.vip()},
					{"outer", "n2", scene.Port, outer},
					{"inner-only", "n3", twin, w.vip()},
				} {
					config += fmt.Sprintf("- {name: %s, port: %d, vips: [%q], check: {type: tcp, inter: 1s}, backends: [%q]}\n",
						lb.name, lb.port, lb.vip, w.addr(lb.backend))
				}
				return config
			})
			for i := range w.apps[:worker] {
				for _, name := range []string{"inner", "outer", "inner-only"} {
					w.await(t, i, name, served(plane, 1))
				}
			}
			holder := w.holder(t)
			for _, from := range []*lab.Machine{w.client, w.far, w.nodes[holder], w.nodes[others(holder)[0]]} {
				w.leads(t, from, netip.AddrPortFrom(w.vip(), scene.Port), "n1")
				w.leads(t, from, netip.AddrPortFrom(outer, scene.Port), "n2")
				w.leads(t, from, netip.AddrPortFrom(w.vip(), twin), "n3")
			}
			// Nothing is served there, so the node's own server has it, as at any other port of the VIP.
			w.leads(t, w.client, netip.AddrPortFrom(outer, twin), w.nodes[holder].Name)
		})
	}
}

// leads waits until a connection from a machine reaches a server, and checks that those after it do, too.
func (w *world) leads(t *testing.T, from *lab.Machine, to netip.AddrPort, server string) {
	t.Helper()
	ask := func() error {
		c, a, err := dial(t.Context(), from, to)
		if err != nil {
			return err
		}
		c.Close()
		if a.Server != server {
			return fmt.Errorf("%s leads %s to %s, not %s", to, from.Name, a.Server, server)
		}
		return nil
	}
	eventually(t, ask)
	for range 5 {
		if err := ask(); err != nil {
			t.Error(err)
		}
	}
}
