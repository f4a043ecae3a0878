package conntrack

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"appliance/balancer"
)

func TestLostBackends(t *testing.T) {
	ap := netip.MustParseAddrPort
	f, other := ap("192.0.2.10:6443"), ap("192.0.2.10:7443")
	a, b, c := ap("192.0.2.11:6443"), ap("192.0.2.12:6443"), ap("192.0.2.13:6443")
	svc := func(f netip.AddrPort, in, draining []netip.AddrPort) balancer.Service {
		s := balancer.Service{Frontend: f}
		for _, x := range in {
			s.Backends = append(s.Backends, balancer.Backend{Addr: x, Weight: 1})
		}
		for _, x := range draining {
			s.Draining = append(s.Draining, balancer.Backend{Addr: x})
		}
		return s
	}
	type list = []netip.AddrPort
	for what, tc := range map[string]struct {
		before, now []balancer.Service
		want        Lost
	}{
		"first Apply": {nil, []balancer.Service{svc(f, list{a}, nil)}, Lost{}},
		"same":        {[]balancer.Service{svc(f, list{a, b}, nil)}, []balancer.Service{svc(f, list{b, a}, nil)}, Lost{}},
		"one leaves": {[]balancer.Service{svc(f, list{a, b}, nil)}, []balancer.Service{svc(f, list{b}, nil)},
			Lost{f: {a}}},
		"one drains": {[]balancer.Service{svc(f, list{a, b}, nil)}, []balancer.Service{svc(f, list{b}, list{a})},
			Lost{}},
		"drained": {[]balancer.Service{svc(f, list{b}, list{a})}, []balancer.Service{svc(f, list{b}, nil)},
			Lost{f: {a}}},
		"comes back": {[]balancer.Service{svc(f, nil, list{a})}, []balancer.Service{svc(f, list{a}, nil)}, Lost{}},
		"all leave": {[]balancer.Service{svc(f, list{a, b}, list{c})}, []balancer.Service{svc(f, nil, nil)},
			Lost{f: {a, b, c}}},
		"service dropped": {[]balancer.Service{svc(f, list{a}, nil)}, nil, Lost{}},
		"of one service": {[]balancer.Service{svc(f, list{a}, nil), svc(other, list{a}, nil)},
			[]balancer.Service{svc(f, list{a}, nil), svc(other, list{b}, nil)}, Lost{other: {a}}},
	} {
		if got := LostBackends(tc.before, tc.now); !maps.EqualFunc(got, tc.want, slices.Equal) {
			t.Errorf("%s: got %v, want %v", what, got, tc.want)
		}
	}
}
