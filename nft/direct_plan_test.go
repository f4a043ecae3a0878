package nft

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"appliance/balancer"
)

func testPlane() *Direct {
	return NewDirect(DirectConfig{
		Interfaces: map[netip.Addr]string{netip.MustParseAddr("10.77.0.10"): "eth0", netip.MustParseAddr("fd77::10"): "eth0"},
		Nodes: []Node{
			{ID: "a", Addrs: []netip.Addr{netip.MustParseAddr("10.77.0.11"), netip.MustParseAddr("fd77::11")}},
			{ID: "b", Addrs: []netip.Addr{netip.MustParseAddr("10.77.0.12"), netip.MustParseAddr("fd77::12")}},
		},
		Self: "a",
	})
}

func backends(addrs ...string) (bs []balancer.Backend) {
	for _, a := range addrs {
		bs = append(bs, balancer.Backend{Addr: netip.MustParseAddrPort(a), Weight: 1})
	}
	return bs
}

// What a load balancer may not ask for is refused with what is missing.
func TestDirectSuits(t *testing.T) {
	for _, c := range []struct {
		name, frontend, want string
		scheduler            balancer.Scheduler
		backends             []balancer.Backend
	}{
		{"fits", "10.77.0.10:6443", "", balancer.RoundRobin, backends("10.77.0.11:6443", "10.77.0.12:6443")},
		{"both families", "[fd77::10]:6443", "", "", backends("10.77.0.11:6443", "[fd77::12]:6443")},
		{"another port", "10.77.0.10:443", "another port", "", backends("10.77.0.11:6443")},
		{"no node", "10.77.0.10:6443", "none of the peers", "", backends("10.77.0.99:6443")},
		{"no VIP", "127.0.0.1:6443", "not a VIP", "", backends("10.77.0.11:6443")},
		{"another family", "[fd77::10]:6443", "own family", "", backends("10.77.0.11:6443")},
		{"no backend", "[fd77::10]:6443", "own family", "", nil},
		{"counting scheduler", "10.77.0.10:6443", "scheduler lc", balancer.LeastConn, backends("10.77.0.11:6443")},
	} {
		err := testPlane().suits(balancer.LoadBalancer{
			Frontends: []netip.AddrPort{netip.MustParseAddrPort(c.frontend)},
			Backends:  c.backends, Scheduler: c.scheduler,
		})
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q in it", c.name, err, c.want)
		}
	}
}

var testSurroundings = surroundings{
	links: map[string]link{"eth0": {name: "eth0", index: 7, mac: [6]byte{2, 0, 0, 0, 0, 1}}},
	macs: map[place][6]byte{
		{"eth0", netip.MustParseAddr("10.77.0.12")}: {2, 0, 0, 0, 0, 2},
	},
}

// Two nodes in the same situation must come to the same table, whatever they
// went through, and in whatever order they were told.
func TestDirectPlanHasNoHistory(t *testing.T) {
	service := balancer.Service{
		LoadBalancer: "api", Frontend: netip.MustParseAddrPort("10.77.0.10:6443"),
		Backends: backends("10.77.0.11:6443", "10.77.0.12:6443"),
	}
	reversed := service
	reversed.Backends = backends("10.77.0.12:6443", "10.77.0.11:6443")
	away := service
	away.Backends = backends("10.77.0.11:6443")

	young, old := testPlane(), testPlane()
	for _, d := range []*Direct{young, old} {
		d.configured["api"] = service.Backends
	}
	old.plan([]balancer.Service{away}, testSurroundings)
	old.plan(nil, testSurroundings)
	want := young.plan([]balancer.Service{service}, testSurroundings).tables()
	for i, got := range old.plan([]balancer.Service{reversed}, testSurroundings).tables() {
		a, err := got.digest()
		if err != nil {
			t.Fatal(err)
		}
		b, err := want[i].digest()
		if err != nil {
			t.Fatal(err)
		}
		if a.whole != b.whole {
			t.Errorf("%v differs", got)
		}
	}
}

// A backend of weight 0 keeps its place, as one that drains: setting the
// weight moves its own slots only.
func TestDirectPlanWeightZero(t *testing.T) {
	d := testPlane()
	d.configured["api"] = backends("10.77.0.11:6443", "10.77.0.12:6443")
	s := balancer.Service{
		LoadBalancer: "api", Frontend: netip.MustParseAddrPort("10.77.0.10:6443"),
		Backends: backends("10.77.0.11:6443", "10.77.0.12:6443"),
	}
	before := d.plan([]balancer.Service{s}, testSurroundings).services[0]
	s.Backends[1].Weight = 0
	after := d.plan([]balancer.Service{s}, testSurroundings).services[0]
	for i := range after.slots {
		if after.slots[i].owner != s.Backends[0].Addr || len(after.slots[i].ring) != 2 {
			t.Fatalf("slot %d: %+v", i, after.slots[i])
		}
		if before.slots[i].ring[0] != after.slots[i].ring[0] {
			t.Fatalf("slot %d has another order", i)
		}
	}
}

// A node whose MAC address is not known gets nothing.
func TestDirectPlanUnknownNeighbour(t *testing.T) {
	d := testPlane()
	p := d.plan([]balancer.Service{{
		Frontend: netip.MustParseAddrPort("[fd77::10]:6443"), Backends: backends("[fd77::12]:6443"),
	}, {
		Frontend: netip.MustParseAddrPort("10.77.0.10:6443"), Backends: backends("10.77.0.12:6443"),
	}}, surroundings{links: testSurroundings.links})
	for _, s := range p.services {
		if !s.refuse || len(s.hops) != 0 {
			t.Errorf("%v: %+v", s.frontend, s.hops)
		}
	}
}

// Who is passed over is named, with the reason.
func TestDirectPassedOver(t *testing.T) {
	d := testPlane()
	d.cfg.Prober = paths{"b": PathFiltered}
	service := balancer.Service{LoadBalancer: "api", Frontend: netip.MustParseAddrPort("10.77.0.10:6443"), Backends: backends("10.77.0.11:6443", "10.77.0.12:6443")}
	plan := func() string {
		return fmt.Sprint(d.plan([]balancer.Service{service}, testSurroundings).passed)
	}
	const b = "map[{api 10.77.0.12:6443}:"
	if got := plan(); got != b+"the network does not carry packets of clients to node b]" {
		t.Errorf("filtered: %s", got)
	}
	d.cfg.Prober = paths{}
	if got := plan(); got != b+"the appliance on node b answers no probe of the path, so nothing is handed to it]" {
		t.Errorf("silent: %s", got)
	}
	d.cfg.Prober = paths{"b": PathUnready}
	if got := plan(); got != b+"node b does not take packets of clients from here yet: it has just begun, or does not know this node]" {
		t.Errorf("unready: %s", got)
	}
	d.cfg.Prober = paths{"b": PathProved}
	if got := plan(); got != "map[]" {
		t.Errorf("proved: %s", got)
	}
	if got := d.plan([]balancer.Service{service}, surroundings{links: testSurroundings.links}).passed; !strings.Contains(fmt.Sprint(got), "MAC address of node b is not known") {
		t.Errorf("unknown: %v", got)
	}
}

// paths is a Prober that knows.
type paths map[string]Path

func (paths) SetNodes([]Node)                                             {}
func (paths) InForce(map[string]bool, map[netip.AddrPort]map[string]bool) {}
func (paths) Want([]netip.AddrPort)                                       {}
func (p paths) Path(_ netip.AddrPort, node string) Path                   { return p[node] }
func (paths) Run(ctx context.Context, _ func()) error                     { <-ctx.Done(); return nil }
func (paths) Proof(string) Proof                                          { return ProofReached }
func (paths) Hurry()                                                      {}

// Whatever way the rules say it in, with few members and with many, each slot
// leads where its owner is, and only the verdicts of who has gone change.
func TestDirectSlotsLeadToOwners(t *testing.T) {
	for _, n := range []int{1, 2, 3, 5, 6, 20} {
		var members []member
		for i := range n {
			members = append(members, member{netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 77, 0, byte(20 + i)}), 6443), 1})
		}
		pref := prefer(members)
		if few := n <= 5; few != (pref.kinds <= mostKinds) {
			t.Errorf("%d members: %d kinds of slots", n, pref.kinds)
		}
		var before table
		for gone := -1; gone < min(n, 3); gone++ {
			s := directService{frontend: netip.MustParseAddrPort("10.77.0.10:6443"), preference: pref, hops: make(map[netip.AddrPort]hop)}
			for i, m := range members {
				if i != gone {
					s.hops[m.addr] = hop{addr: m.addr, self: i == 0}
				}
			}
			in := func(a netip.AddrPort) bool { _, ok := s.hops[a]; return ok }
			s.slots = pref.table(in, in)
			ingress := directPlan{services: []directService{s}}.ingress()
			for i, slot := range s.slots {
				if len(s.hops) == 0 {
					continue
				}
				want := expr.Verdict{Kind: expr.VerdictAccept}
				if h := s.hops[slot.owner]; !h.self {
					want = expr.Verdict{Kind: expr.VerdictGoto, Chain: "to_" + name(s.frontend) + "_" + name(slot.owner)}
				}
				if got := ingress.leads(t, "slots_"+name(s.frontend), i); got != want {
					t.Fatalf("%d members, %d gone: slot %d of %v leads to %+v", n, gone, i, slot.owner, got)
				}
			}
			if gone >= 0 && n > 1 && n <= 5 && !before.framesLike(ingress) {
				t.Errorf("%d members: who goes changes more than rules", n)
			}
			if gone < 0 {
				before = ingress
			}
		}
	}
}

// leads is the verdict at the end of a map of slots.
func (t table) leads(tb testing.TB, slotMap string, slot int) expr.Verdict {
	tb.Helper()
	m := slices.IndexFunc(t.sets, func(s set) bool { return s.name == slotMap })
	if m < 0 {
		tb.Fatalf("no map %s", slotMap)
	}
	e := slices.IndexFunc(t.sets[m].elements, func(e nftables.SetElement) bool { return bytes.Equal(e.Key, native(uint32(slot))) })
	if e < 0 {
		return expr.Verdict{}
	}
	v := *t.sets[m].elements[e].VerdictData
	if v.Kind != expr.VerdictJump {
		return v
	}
	c := slices.IndexFunc(t.chains, func(c chain) bool { return c.name == v.Chain })
	if c < 0 || len(t.chains[c].rules) != 1 {
		tb.Fatalf("chain %s is missing, or says nothing", v.Chain)
	}
	return *t.chains[c].rules[0].exprs[0].(*expr.Verdict)
}
