package desired

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"appliance/balancer"
)

func TestByFamily(t *testing.T) {
	at := netip.MustParseAddrPort
	four, six := at("192.0.2.10:6443"), at("[2001:db8::10]:6443")
	backend4 := balancer.Backend{Addr: at("192.0.2.11:6443")}
	backend6 := balancer.Backend{Addr: at("[2001:db8::11]:6443")}
	type lb = balancer.LoadBalancer
	for name, test := range map[string]struct {
		in   lb
		want []lb
	}{
		"one family stays whole": {
			lb{Name: "a", Frontends: []netip.AddrPort{four}, Backends: []balancer.Backend{backend4, backend6}},
			[]lb{{Name: "a", Frontends: []netip.AddrPort{four}, Backends: []balancer.Backend{backend4, backend6}}},
		},
		"each family has its own backends": {
			lb{Name: "a", Frontends: []netip.AddrPort{six, four}, Backends: []balancer.Backend{backend4, backend6}},
			[]lb{
				{Name: "a", Frontends: []netip.AddrPort{four}, Backends: []balancer.Backend{backend4}},
				{Name: "a-ipv6", Frontends: []netip.AddrPort{six}, Backends: []balancer.Backend{backend6}},
			},
		},
		"a family without backends borrows": {
			lb{Name: "a", Frontends: []netip.AddrPort{four, six}, Backends: []balancer.Backend{backend4}},
			[]lb{
				{Name: "a", Frontends: []netip.AddrPort{four}, Backends: []balancer.Backend{backend4}},
				{Name: "a-ipv6", Frontends: []netip.AddrPort{six}, Backends: []balancer.Backend{backend4}},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(test.want, byFamily(test.in), cmpopts.EquateComparable(netip.AddrPort{})); d != "" {
				t.Error(d)
			}
		})
	}
}
