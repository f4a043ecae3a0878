package nft

import (
	"net/netip"
	"slices"
	"testing"

	"appliance/balancer"
	"appliance/nft/ruleset"
)

func TestDigest(t *testing.T) {
	base := func() []balancer.Service {
		return []balancer.Service{{
			LoadBalancer: "api",
			Frontend:     netip.MustParseAddrPort("192.0.2.10:6443"),
			Backends: []balancer.Backend{
				{Name: "a", Addr: netip.MustParseAddrPort("192.0.2.11:6443"), Weight: 1},
				{Name: "b", Addr: netip.MustParseAddrPort("192.0.2.12:6443"), Weight: 2},
			},
		}}
	}
	digest := func(s []balancer.Service) string {
		d, err := natTable(ruleset.IPv4(), s, true).Digest()
		if err != nil {
			t.Fatal(err)
		}
		return d.Whole
	}
	seen := map[string]string{digest(base()): "nothing"}
	for what, change := range map[string]func(*balancer.Service){
		"name":         func(s *balancer.Service) { s.LoadBalancer = "x" },
		"port":         func(s *balancer.Service) { s.Frontend = netip.MustParseAddrPort("192.0.2.10:6444") },
		"scheduler":    func(s *balancer.Service) { s.Scheduler = balancer.WeightedRoundRobin },
		"hash":         func(s *balancer.Service) { s.Scheduler = balancer.SourceHash },
		"random":       func(s *balancer.Service) { s.Scheduler = balancer.Random },
		"backend port": func(s *balancer.Service) { s.Backends[0].Addr = netip.MustParseAddrPort("192.0.2.11:6444") },
		"backend":      func(s *balancer.Service) { s.Backends = s.Backends[:1] },
		"weight zero":  func(s *balancer.Service) { s.Backends[0].Weight = 0 },
		"none":         func(s *balancer.Service) { s.Backends = nil },
	} {
		s := base()
		change(&s[0])
		d := digest(s)
		if other, ok := seen[d]; ok {
			t.Errorf("changing %s gives the digest of changing %s", what, other)
		}
		seen[d] = what
	}
	s := base()
	slices.Reverse(s[0].Backends)
	if _, ok := seen[digest(s)]; !ok {
		t.Error("the order of backends changes the digest")
	}
}
