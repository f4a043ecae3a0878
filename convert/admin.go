package convert

import (
	"net/netip"

	"appliance/convert/draft"
)

// planAdmin keeps the admin listener out of the way of load balancers.
func planAdmin(d *draft.Draft, p *plan) {
	a := &d.Admin
	taken := func(at netip.AddrPort) bool {
		for _, b := range p.balancers {
			if b.port != at.Port() {
				continue
			}
			for _, l := range b.listen {
				if l == at.Addr() {
					return true
				}
			}
			if b.everywhere {
				return true
			}
		}
		return false
	}
	var free []netip.AddrPort
	for _, at := range a.Listen {
		double := false
		for _, other := range free {
			double = double || other == at
		}
		if !double && !taken(at) {
			free = append(free, at)
		}
	}
	a.Listen = free
	if len(free) == 0 && taken(usualAdmin) {
		a.Off = true
		p.hints["admin"] = []string{"Port 10001, where the state is shown else, is that of a load balancer."}
	}
}

// usualAdmin is where the state is shown when nobody says where.
var usualAdmin = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 10001)
