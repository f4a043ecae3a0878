package direct

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables/expr"

	"appliance/balancer"
	"appliance/neighbours"
	"appliance/nft/ruleset"
	"appliance/pathprobe"
)

func testPlane() *DataPlane {
	return New(Config{
		Interfaces: map[netip.Addr]string{netip.MustParseAddr("10.77.0.10"): "eth0", netip.MustParseAddr("fd77::10"): "eth0"},
		Nodes: []pathprobe.Node{
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

// A load balancer that the plane cannot serve is rejected with the reason.
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
		err := testPlane().suitable(balancer.LoadBalancer{
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

var testSurroundings = neighbours.View{
	Links: map[string]neighbours.Link{"eth0": {Name: "eth0", Index: 7, MAC: [6]byte{2, 0, 0, 0, 0, 1}}},
	MACs: map[neighbours.Location][6]byte{
		{Link: "eth0", Addr: netip.MustParseAddr("10.77.0.12")}: {2, 0, 0, 0, 0, 2},
	},
}

// Two nodes in the same situation must have the same table, whatever their history,
// and in whatever order they learnt things.
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
	for _, d := range []*DataPlane{young, old} {
		d.configured["api"] = service.Backends
	}
	old.plan([]balancer.Service{away}, testSurroundings)
	old.plan(nil, testSurroundings)
	want := young.plan([]balancer.Service{service}, testSurroundings).tables()
	for i, got := range old.plan([]balancer.Service{reversed}, testSurroundings).tables() {
		a, err := got.Digest()
		if err != nil {
			t.Fatal(err)
		}
		b, err := want[i].Digest()
		if err != nil {
			t.Fatal(err)
		}
		if a.Whole != b.Whole {
			t.Errorf("%v differs", got)
		}
	}
}

// A backend of weight 0 keeps its place, like one that drains: the weight moves its
// own slots only.
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
	was := slotsOf(before.slots)
	for i, slot := range slotsOf(after.slots) {
		if slot.owner != s.Backends[0].Addr || len(slot.ring) != 2 {
			t.Fatalf("slot %d: %+v", i, slot)
		}
		if was[i].ring[0] != slot.ring[0] {
			t.Fatalf("slot %d has another order", i)
		}
	}
}

// VIPs of a load balancer that differ in nothing else have their rules in common, so that two hundred cost little more
// than one; one that leads elsewhere has its own.
func TestDirectPlanOfManyVIPs(t *testing.T) {
	const n = 200
	cfg := testPlane().cfg
	var services []balancer.Service
	for i := range n {
		vip := netip.AddrFrom4([4]byte{10, 77, 1, byte(i)})
		cfg.Interfaces[vip] = "eth0"
		services = append(services, balancer.Service{LoadBalancer: "api", Frontend: netip.AddrPortFrom(vip, 6443),
			Backends: backends("10.77.0.11:6443", "10.77.0.12:6443")})
	}
	size := func(p rulePlan) (n int) {
		for _, t := range p.tables() {
			for _, c := range t.Chains {
				n += len(c.Rules)
			}
			for _, s := range t.Sets {
				n += len(s.Elements)
			}
		}
		return n
	}
	d := New(cfg)
	one, all := d.plan(services[:1], testSurroundings), d.plan(services, testSurroundings)
	if len(all.services) != 1 || len(all.services[0].frontends) != n {
		t.Fatalf("%d services, want one for all", len(all.services))
	}
	if more := size(all) - size(one); more > 4*n {
		t.Errorf("%d VIPs take %d rules and elements more than one", n, more)
	}
	d.SetCut(map[netip.Addr][]string{services[3].Frontend.Addr(): {"b"}})
	if got := d.plan(services, testSurroundings).services; len(got) != 2 || len(got[1].frontends) != 1 ||
		got[1].frontends[0] != services[3].Frontend {
		t.Errorf("a VIP to whose link a node is cut: %d services", len(got))
	}
	services[5].LoadBalancer = "other"
	if got := d.plan(services, testSurroundings).services; len(got) != 3 {
		t.Errorf("a VIP of another load balancer: %d services", len(got))
	}
}

// A node whose MAC address is unknown gets nothing.
func TestDirectPlanUnknownNeighbour(t *testing.T) {
	d := testPlane()
	p := d.plan([]balancer.Service{{
		Frontend: netip.MustParseAddrPort("[fd77::10]:6443"), Backends: backends("[fd77::12]:6443"),
	}, {
		Frontend: netip.MustParseAddrPort("10.77.0.10:6443"), Backends: backends("10.77.0.12:6443"),
	}}, neighbours.View{Links: testSurroundings.Links})
	for _, s := range p.services {
		if !s.reject || len(s.hops) != 0 {
			t.Errorf("%v: %+v", s.frontends, s.hops)
		}
	}
}

// A backend that is passed over is named, with the reason.
func TestDirectPassedOver(t *testing.T) {
	d := testPlane()
	d.cfg.Prober = paths{"b": pathprobe.PathFiltered}
	service := balancer.Service{LoadBalancer: "api", Frontend: netip.MustParseAddrPort("10.77.0.10:6443"),
		Backends: backends("10.77.0.11:6443", "10.77.0.12:6443")}
	plan := func() string {
		return fmt.Sprint(d.plan([]balancer.Service{service}, testSurroundings).passedOver)
	}
	const b = "map[{api 10.77.0.12:6443}:"
	if got := plan(); got != b+"the network does not carry packets of clients to node b]" {
		t.Errorf("filtered: %s", got)
	}
	d.cfg.Prober = paths{}
	if got := plan(); got != b+"the appliance on node b answers no probe of the path, so nothing is handed to it]" {
		t.Errorf("silent: %s", got)
	}
	d.cfg.Prober = paths{"b": pathprobe.PathUnready}
	if got := plan(); got != b+"node b does not take packets of clients from here yet: it has just begun, or does not "+
		"know this node]" {
		t.Errorf("unready: %s", got)
	}
	d.cfg.Prober = paths{"b": pathprobe.PathProved}
	if got := plan(); got != "map[]" {
		t.Errorf("proved: %s", got)
	}
	got := d.plan([]balancer.Service{service}, neighbours.View{Links: testSurroundings.Links}).passedOver
	if !strings.Contains(fmt.Sprint(got), "MAC address of node b is not known") {
		t.Errorf("unknown: %v", got)
	}
}

// paths is a PathProber with given answers.
type paths map[string]pathprobe.Path

func (paths) SetNodes([]pathprobe.Node) {}

func (paths) SetVanished(map[string]bool, bool) bool { return false }

func (paths) InForce(map[string]bool, map[netip.AddrPort]map[string]bool) {}

func (paths) Want([]netip.AddrPort) {}

func (p paths) Path(_ netip.AddrPort, node string) pathprobe.Path { return p[node] }

func (paths) Run(ctx context.Context, _ func()) error { <-ctx.Done(); return nil }

func (paths) Proof(string) pathprobe.Proof { return pathprobe.ProofPath }

func (paths) Hurry() {}

// With few members and with many, in whichever form the rules have it, each slot leads
// to its owner, and only the verdicts of members that left change.
func TestDirectSlotsLeadToOwners(t *testing.T) {
	for _, n := range []int{1, 2, 3, 5, 6, 20} {
		var members []member
		for i := range n {
			members = append(members, member{netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 77, 0, byte(20 + i)}), 6443), 1})
		}
		pref := prefer(members)
		if few := n <= 5; few != (len(pref.orders) <= maxKinds) {
			t.Errorf("%d members: %d kinds of slots", n, len(pref.orders))
		}
		var before ruleset.Table
		for gone := -1; gone < min(n, 3); gone++ {
			s := service{frontends: []netip.AddrPort{netip.MustParseAddrPort("10.77.0.10:6443")}, preference: pref,
				hops: make(map[netip.AddrPort]hop)}
			for i, m := range members {
				if i != gone {
					s.hops[m.addr] = hop{addr: m.addr, self: i == 0}
				}
			}
			in := func(a netip.AddrPort) bool { _, ok := s.hops[a]; return ok }
			s.slots = pref.table(in, in)
			ingress := rulePlan{services: []service{s}}.ingress()
			if len(s.hops) == 0 {
				continue
			}
			verdicts := leads(t, ingress, "slots_"+s.name())
			for i, slot := range slotsOf(s.slots) {
				want := expr.Verdict{Kind: expr.VerdictAccept}
				if h := s.hops[slot.owner]; !h.self {
					want = expr.Verdict{Kind: expr.VerdictGoto, Chain: "to_" + s.name() + "_" +
						ruleset.NameOf(slot.owner)}
				}
				if got := verdicts[i]; got != want {
					t.Fatalf("%d members, %d gone: slot %d of %v leads to %+v", n, gone, i, slot.owner, got)
				}
			}
			if gone >= 0 && n > 1 && n <= 5 && !before.DiffersInRulesOnly(ingress) {
				t.Errorf("%d members: who goes changes more than rules", n)
			}
			if gone < 0 {
				before = ingress
			}
		}
	}
}

// leads is the verdict at the end of a map of slots, for each slot.
func leads(tb testing.TB, t ruleset.Table, slotMap string) (verdicts map[int]expr.Verdict) {
	tb.Helper()
	m := slices.IndexFunc(t.Sets, func(s ruleset.Set) bool { return s.Name == slotMap })
	if m < 0 {
		tb.Fatalf("no map %s", slotMap)
	}
	elements := t.Sets[m].Elements
	if t.Sets[m].Make != nil {
		elements = t.Sets[m].Make()
	}
	verdicts = make(map[int]expr.Verdict)
	for _, e := range elements {
		v := *e.VerdictData
		if v.Kind == expr.VerdictJump {
			c := slices.IndexFunc(t.Chains, func(c ruleset.Chain) bool { return c.Name == v.Chain })
			if c < 0 || len(t.Chains[c].Rules) != 1 {
				tb.Fatalf("chain %s is missing, or says nothing", v.Chain)
			}
			v = *t.Chains[c].Rules[0].Exprs[0].(*expr.Verdict)
		}
		verdicts[int(binary.NativeEndian.Uint32(e.Key))] = v
	}
	return verdicts
}
