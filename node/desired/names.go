package desired

import (
	"net/netip"
	"slices"

	"appliance/configs"
	"appliance/dns"
)

// withNames returns cfg with a backend for each address of the names of its servers. Of a name without a known address
// the entry stays as it is, with the reason.
func withNames(cfg *configs.Config, known map[string]dns.NameAnswer) *configs.Config {
	out := *cfg
	out.LoadBalancers = slices.Clone(cfg.LoadBalancers)
	for i := range out.LoadBalancers {
		lb := &out.LoadBalancers[i]
		named := func(be configs.BackendEntry) bool { return !be.Resolved() }
		if !slices.ContainsFunc(lb.Backends, named) {
			continue
		}
		taken := make(map[netip.AddrPort]bool)
		for _, be := range lb.Backends {
			if be.Resolved() { // what is written as an address goes before names
				taken[be.Addr] = true
			}
		}
		var all []configs.BackendEntry
		for _, be := range lb.Backends {
			if be.Resolved() {
				all = append(all, be)
				continue
			}
			all = append(all, resolved(be, known[be.Host], cfg, *lb, taken)...)
		}
		lb.Backends = all
	}
	return &out
}

// resolved are the backends that be, a server by name, stands for. taken are the addresses of other entries.
func resolved(
	be configs.BackendEntry, a dns.NameAnswer, cfg *configs.Config, lb configs.LoadBalancerEntry,
	taken map[netip.AddrPort]bool,
) (all []configs.BackendEntry) {
	why := a.Error
	for _, addr := range a.Addrs {
		if be.MaxAddresses > 0 && len(all) == be.MaxAddresses {
			break
		}
		at := netip.AddrPortFrom(addr, be.Addr.Port())
		switch {
		case slices.Contains(cfg.VIPs, addr):
			why = "its address " + addr.String() + " is a virtual address, so connections would go in circles"
			continue
		case cfg.ComesBack(lb, at):
			why = "at " + at.String() + " this load balancer itself listens, so connections would go in circles"
			continue
		case addr.IsUnspecified() || addr.IsMulticast():
			why = "its address " + addr.String() + " is that of no machine"
			continue
		case taken[at]:
			why = "its address " + addr.String() + " is that of another backend"
			continue
		}
		taken[at] = true
		one := be
		one.Addr = at
		// By the address too, so that the name stays when another address joins.
		if one.Name == "" {
			one.Name = be.Host
		}
		one.Name += "/" + addr.String()
		all = append(all, one)
	}
	if len(all) == 0 {
		be.Unresolved = "no address of " + be.Host + " is known: " + why
		all = append(all, be)
	}
	return all
}
