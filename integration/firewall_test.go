package integration

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/endpoints"
	"appliance/integration/scene"
	"appliance/lab"
)

// TestFirewalls has on every machine a firewall that lets in and on what `appliance endpoints` says, and nothing
// else, and tries every data plane with a client in every position.
func TestFirewalls(t *testing.T) {
	for _, plane := range planes() {
		for _, family := range []scene.Family{scene.IPv4, scene.IPv6} {
			t.Run(fmt.Sprintf("%s/%s", plane, family), func(t *testing.T) {
				w := newWorld(t, family)
				balances := balances(plane)
				group, own := w.keys(t)
				config := func(i int) string {
					if i == worker {
						return w.config(w.ofWorker(string(plane)), own, balances)
					}
					return w.config(string(plane), group, balances)
				}
				w.write(t, config)
				for i, p := range w.apps {
					w.fence(t, w.nodes[i], w.openings(t, p))
				}
				// The servers have no configuration of their own: the peers' says what they need.
				for _, m := range []*lab.Machine{w.s1, w.s2} {
					w.fence(t, m, w.openings(t, w.apps[0]))
				}
				for i, p := range w.apps {
					p.start(t)
					t.Cleanup(func() {
						if t.Failed() {
							t.Logf("%s has\n%s", p.node.Name, w.shell(t, i, "nft", "list", "table", "inet", "fence"))
						}
					})
				}
				for i := range w.apps {
					w.ready(t, i)
				}
				for i := range w.apps[:worker] {
					for _, lb := range balances {
						w.await(t, i, lb.name, func(s balancer.LoadBalancerStatus) bool {
							return s.Plane == plane && s.Proof != nil && s.Proof.State == balancer.Proved
						})
					}
				}
				w.positions(t, plane, balances)
			})
		}
	}
}

// behindFences gives every machine of a group that serves the firewall of TestFirewalls for a while, and tries load
// balancers from everywhere. New conversations of the peers themselves are TestFirewalls' business.
func (w *world) behindFences(t *testing.T, plane balancer.PlaneName, balances []balance) {
	t.Helper()
	for _, m := range []*lab.Machine{w.s1, w.s2} {
		w.fence(t, m, w.openings(t, w.apps[0]))
	}
	since := make([]time.Time, len(w.apps))
	for i, p := range w.apps {
		w.fence(t, w.nodes[i], w.openings(t, p))
		since[i] = time.Now() // it is tried because of that
	}
	for i := range w.apps[:worker] {
		for _, lb := range balances {
			w.await(t, i, lb.name, func(s balancer.LoadBalancerStatus) bool {
				return s.Plane == plane && s.Proof != nil && s.Proof.State == balancer.Proved && s.Proof.Last.After(since[i])
			})
		}
	}
	t.Run("behind firewalls", func(t *testing.T) { w.positions(t, plane, balances) })
	for _, m := range slices.Concat(w.nodes, []*lab.Machine{w.s1, w.s2}) {
		shell(t, m, "nft", "delete table inet fence")
	}
}

// openings are what the program says has to get through.
func (w *world) openings(t *testing.T, p *program) []endpoints.Opening {
	t.Helper()
	args := []string{"endpoints", "--json", "--config", p.path + ".yaml"}
	if slices.Contains(p.args, "worker") {
		args = append(args, "--role", "worker")
	}
	out, err := exec.Command(binary, args...).Output()
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	var guide endpoints.Guide
	if err := json.Unmarshal(out, &guide); err != nil {
		t.Fatal(err)
	}
	return guide.Firewall
}

// fence gives a machine a firewall with these openings, as far as they concern it.
func (w *world) fence(t *testing.T, m *lab.Machine, openings []endpoints.Opening) {
	t.Helper()
	isNode := slices.Contains(w.nodes, m)
	rules := map[string][]string{
		"input":   {"iif lo accept", "ct state established,related accept"},
		"forward": {"ct state established,related accept"},
	}
	for _, o := range openings {
		if rule, concerns := w.ruleOf(t, m, isNode, o); concerns {
			rules[o.Chain] = append(rules[o.Chain], rule)
		}
	}
	var b strings.Builder
	b.WriteString("table inet fence {\n")
	for _, chain := range []string{"input", "forward"} {
		fmt.Fprintf(&b, "chain %s { type filter hook %s priority 0; policy drop;\n", chain, chain)
		for _, rule := range rules[chain] {
			fmt.Fprintf(&b, "%s\n", rule)
		}
		b.WriteString("counter\n}\n")
	}
	b.WriteString("}\n")
	shell(t, m, "nft", b.String())
}

// ruleOf is the rule for one line of the table, and whether the machine needs it. Who sends is not looked at where the
// table names kinds of machines instead of addresses.
func (w *world) ruleOf(t *testing.T, m *lab.Machine, isNode bool, o endpoints.Opening) (rule string, concerns bool) {
	t.Helper()
	is4 := w.family == scene.IPv4
	from, to := addresses(o.From), addresses(o.To)
	switch {
	case o.Chain == "forward":
		concerns = isNode
	case o.To == "the same":
		concerns = true
	case len(to) == 0:
		t.Fatalf("the table names no address: %+v", o)
	default:
		concerns = slices.Contains(to, m.Addr(is4)) || isNode && slices.Contains(to, w.vip())
	}
	family := map[bool]string{true: "ip", false: "ip6"}[is4]
	var parts []string
	for key, list := range map[string][]netip.Addr{"saddr": from, "daddr": to} {
		if len(list) > 0 {
			parts = append(parts, fmt.Sprintf("%s %s { %s }", family, key, strings.Join(texts(list), ", ")))
		}
	}
	switch o.Protocol {
	case "TCP", "UDP":
		parts = append(parts, fmt.Sprintf("%s dport { %s }", strings.ToLower(o.Protocol), o.Ports))
	case "ICMPv6":
		parts = append(parts, fmt.Sprintf("icmpv6 type { %s }", strings.TrimPrefix(o.Ports, "types ")))
	case "ARP":
		return "", false // this firewall sees none
	default:
		t.Fatalf("what is %s? %+v", o.Protocol, o)
	}
	return strings.Join(append(parts, "accept"), " "), concerns
}

// addresses are those of a list in the table; none where it has words.
func addresses(list string) (all []netip.Addr) {
	for _, one := range strings.Split(list, ", ") {
		a, err := netip.ParseAddr(one)
		if err != nil {
			return nil
		}
		all = append(all, a)
	}
	return all
}

func texts(list []netip.Addr) (all []string) {
	for _, a := range list {
		all = append(all, a.String())
	}
	return all
}
