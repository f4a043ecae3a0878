package integration

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

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

// TestVIPsAlone: where nothing is balanced, the holder's own servers have the VIP. It moves with the holder, also when a
// track finds that server gone, and each node reaches its own server there. Load balancers come and go with the file.
func TestVIPsAlone(t *testing.T) {
	for _, family := range []scene.Family{scene.IPv4, scene.IPv6} {
		t.Run(string(family), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, family)
			group, own := w.keys(t)
			lb := balance{name: "a", port: scene.Port, backend: scene.Port, scheduler: "rr", nodes: []string{"s1"}}
			config := func(i int) string {
				if i == worker {
					return w.config("", own, []balance{lb})
				}
				alone := strings.Replace(w.config("", group, nil), "loadBalancers:", "loadBalancers: []", 1)
				return alone + fmt.Sprintf("tracks: [{name: web, check: {type: tcp, address: %q}, inter: 200ms}]\n",
					netip.AddrPortFrom(w.addr(w.nodes[i].Name), scene.Port))
			}
			w.begin(t, config)
			w.resolve(t)
			holder := w.holder(t)
			for _, from := range []*lab.Machine{w.client, w.far, w.nodes[holder]} {
				w.leads(t, from, w.target(scene.Port), w.nodes[holder].Name)
			}
			second := others(holder)[0]
			w.leads(t, w.nodes[second], w.target(scene.Port), w.nodes[second].Name)
			s := w.ready(t, holder)
			if len(s.LoadBalancers) != 0 || s.VIPs[0].Interface == "" {
				t.Errorf("%s says %+v", s.ID, s)
			}

			w.byName[fmt.Sprintf("%s:%d", w.nodes[holder].Name, scene.Port)].Close()
			var next int
			eventually(t, func() error {
				if next = w.holder(t); next == holder {
					return fmt.Errorf("%s still holds, without a server", w.nodes[holder].Name)
				}
				return nil
			})
			w.leads(t, w.client, w.target(scene.Port), w.nodes[next].Name)
			// Who answers again so soon after another counts as one that has never stopped (lab.Replies.Overlap).
			time.Sleep(2 * lab.Turn)
			w.apps[next].stop(t)
			w.leads(t, w.nodes[next], w.target(scene.Port), w.nodes[next].Name) // for a restart, as with a kernel's data plane
			last := 3 - holder - next
			w.leads(t, w.client, w.target(scene.Port), w.nodes[last].Name)

			for _, lbs := range [][]balance{{lb}, nil} {
				text, server := config(last), w.nodes[last].Name
				if lbs != nil {
					text, server = w.config("", group, lbs), "s1"
				}
				if err := os.WriteFile(w.apps[last].path+".yaml", []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
				w.leads(t, w.client, w.target(scene.Port), server)
			}
			w.oneAnswer(t)
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
