package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"appliance/balancer"
	"appliance/integration/scene"
)

// TestChoice leaves the choice of the data plane to the program, and then
// changes the network while it runs.
func TestChoice(t *testing.T) {
	if plane() != "" {
		t.Skip("a data plane is forced")
	}
	for _, family := range []scene.Family{scene.IPv4, scene.IPv6} {
		t.Run(string(family), func(t *testing.T) {
			t.Parallel() // most of it is waiting
			w := newWorld(t, family)
			peers := balance{name: "peers", port: scene.Port, backend: scene.Port, scheduler: "rr",
				nodes: []string{"n1", "n2", "n3"}}
			mixed := balance{name: "mixed", port: 443, backend: scene.Port, scheduler: "rr", nodes: []string{"n1", "s1", "s2"}}
			least := balance{name: "least", port: 444, backend: scene.Port, scheduler: "lc", nodes: []string{"n1", "s1", "s2"}}
			all := []balance{peers, mixed, least}
			w.start(t, "", all)
			for i := range w.apps[:worker] {
				w.chosen(t, i, "peers", balancer.Direct, nil)
				w.chosen(t, i, "mixed", balancer.NFTables, map[balancer.PlaneName]string{
					balancer.Direct: "another port", balancer.IPVS: "ip_vs",
				})
				w.chosen(t, i, "least", balancer.UserSpace, map[balancer.PlaneName]string{
					balancer.Direct: "counts connections", balancer.IPVS: "ip_vs", balancer.NFTables: "cannot count open connections",
				})
			}
			w.reached(t, w.client, all...)

			// The switch begins to look at source addresses.
			for _, n := range w.nodes {
				if err := n.Guard(w.vip()); err != nil {
					t.Fatal(err)
				}
			}
			for i := range w.apps[:worker] {
				w.chosen(t, i, "peers", balancer.NFTables, map[balancer.PlaneName]string{balancer.Direct: "address filter"})
			}
			w.reached(t, w.client, all...)
			w.reached(t, w.far, all...)

			if err := w.lab.Unguard(); err != nil {
				t.Fatal(err)
			}
			for i := range w.apps[:worker] {
				w.chosen(t, i, "peers", balancer.Direct, nil)
			}
			w.reached(t, w.client, all...)
		})
	}
}

// chosen waits until a node serves a load balancer with a plane, and says why
// with none of those before it.
func (w *world) chosen(t *testing.T, i int, lb string, plane balancer.PlaneName,
	refused map[balancer.PlaneName]string) {
	t.Helper()
	s := w.await(t, i, lb, served(plane, 3))
	for p, why := range refused {
		if !slices.ContainsFunc(s.Refused,
			func(r balancer.Refusal) bool { return r.Plane == p && strings.Contains(r.Reason, why) }) {
			t.Errorf("%s serves %s with %s, and does not say of %s that %q: %+v", w.nodes[i].Name, lb, plane, p, why, s.Refused)
		}
	}
	line := "data plane " + string(plane) + `" loadBalancer=` + lb
	eventually(t, func() error { // the log comes later than the service
		if !strings.Contains(w.apps[i].log(), line) {
			return fmt.Errorf("%s has not logged %q", w.nodes[i].Name, line)
		}
		return nil
	})
}

// TestRefusedAtStart starts with configurations that cannot work. The program must
// refuse each, say how to fix it, and leave nothing in the kernel.
func TestRefusedAtStart(t *testing.T) {
	w := newWorld(t, scene.IPv4)
	mixed := []string{"n1", "s1", "s2"}
	peers := []string{"n1", "n2", "n3"}
	lb := balance{name: "api", port: scene.Port, backend: scene.Port, scheduler: "rr", nodes: peers}
	with := func(change func(lb *balance)) balance {
		other := lb
		change(&other)
		return other
	}
	// With the key in place, a refusal has another cause.
	group, _ := w.keys(t)
	for _, tt := range []struct {
		name   string
		plane  balancer.PlaneName
		lb     balance
		before string // done by somebody on the node first
		want   []string
	}{
		{"unknown scheduler", balancer.Auto, with(func(lb *balance) { lb.scheduler = "rrr" }), "",
			[]string{"scheduler", "rrr", "rr"}},
		{"unknown data plane", "nftable", lb, "", []string{"dataPlane", "nftables"}},
		{"no ip_vs", balancer.IPVS, lb, "", []string{"ip_vs", "or set dataPlane"}},
		{"direct to a stranger", balancer.Direct, with(func(lb *balance) { lb.nodes = mixed }), "",
			[]string{"10.77.0.21", "make the node a peer", "another data plane"}},
		{"direct to another port", balancer.Direct, with(func(lb *balance) { lb.port = 443 }), "",
			[]string{"443", "dataPlane: auto"}},
		{"nftables that counts", balancer.NFTables, with(func(lb *balance) { lb.scheduler = "lc" }), "",
			[]string{`"lc"`, "cannot count", "userspace"}},
		{"another family", balancer.NFTables, with(func(lb *balance) { lb.more = "  - \"[fd77::99]:6443\"\n" }), "",
			[]string{"IPv6", "userspace"}},
		{"a port that somebody translates", balancer.NFTables, lb,
			"table ip theirs {\n chain pre {\n type nat hook prerouting priority dstnat;\n ip daddr 10.77.0.10 tcp dport 6443 " +
				"dnat to 10.77.0.99:6443\n }\n}\n",
			[]string{"10.77.0.10:6443", "theirs", "pre"}},
		{"iptables has the port", balancer.Auto, lb,
			"iptables -t nat -A PREROUTING -d 10.77.0.10/32 -p tcp --dport 6443 -j DNAT --to-destination 10.77.0.99:6443",
			[]string{"10.77.0.10:6443", "PREROUTING"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			switch {
			case strings.HasPrefix(tt.before, "iptables"):
				if _, err := exec.LookPath("iptables-nft"); err != nil {
					t.Skip("no iptables-nft to make such a rule with; install iptables")
				}
				w.shell(t, 0, append([]string{"iptables-nft"}, strings.Fields(tt.before)[1:]...)...)
			case tt.before != "":
				w.shell(t, 0, "nft", tt.before)
			}
			defer w.shell(t, 0, "nft", "flush", "ruleset")
			had := w.kernel(t, 0)
			config := filepath.Join(w.dir, "appliance.yaml")
			if err := os.WriteFile(config, []byte(w.config(string(tt.plane), group, []balance{tt.lb})), 0o644); err != nil {
				t.Fatal(err)
			}
			for _, command := range [][]string{{"config", "check", "--host"}, {"start"}} {
				var said strings.Builder
				cmd := exec.Command(binary, append(command, "--config", config, "--data-dir", filepath.Join(w.dir, "data"),
					"--socket", filepath.Join(w.dir, "socket"))...)
				cmd.Stderr, cmd.SysProcAttr = &said, asService()
				p, err := w.nodes[0].Start(cmd)
				if err != nil {
					t.Fatal(err)
				}
				ended := make(chan error, 1)
				go func() { ended <- p.Wait() }()
				var exit *exec.ExitError
				select {
				case err := <-ended:
					if !errors.As(err, &exit) || exit.ExitCode() <= 0 {
						t.Errorf("%v ended with %v, want a failed exit", command, err)
					}
				case <-patient(t).Done():
					p.Kill()
					t.Errorf("%v goes on", command)
				}
				for _, word := range tt.want {
					if !strings.Contains(said.String(), word) {
						t.Errorf("%v does not say %q:\n%s", command, word, said.String())
					}
				}
				t.Log(said.String())
			}
			if have := w.kernel(t, 0); have != had {
				t.Errorf("the kernel had\n%s\nand has\n%s", had, have)
			}
			if _, err := os.Stat(filepath.Join(w.dir, "socket")); err == nil {
				t.Error("the socket is left")
			}
		})
	}
}

// kernel is all that the program could have changed on a node.
func (w *world) kernel(t *testing.T, i int) string {
	t.Helper()
	var b strings.Builder
	for _, command := range [][]string{
		{"nft", "list", "ruleset"},
		{"ip", "-o", "addr", "show", "dev", "lo"},
		{"sysctl", "-n", "net.ipv4.ip_forward", "net.ipv4.conf.all.arp_ignore", "net.ipv4.conf.eth0.arp_ignore"},
	} {
		fmt.Fprintln(&b, w.shell(t, i, command...))
	}
	return b.String()
}
