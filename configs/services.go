package configs

import (
	"cmp"
	"net/netip"
	"slices"

	"appliance/balancer"
)

// ForBalancer gives every load balancer in the form that the balancer serves.
func (c *Config) ForBalancer() []balancer.LoadBalancer {
	var lbs []balancer.LoadBalancer
	for _, entry := range c.LoadBalancers {
		lbs = append(lbs, entry.ForBalancer()...)
	}
	return lbs
}

// ForBalancer is the entry in the form that the balancer serves: one load balancer
// for each family of its VIPs, and one for the addresses in Listen.
func (lb LoadBalancerEntry) ForBalancer() []balancer.LoadBalancer {
	all := lb.withoutFrontends()
	addrs := lb.VIPs
	if !lb.BindToVIP {
		addrs = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	var lbs []balancer.LoadBalancer
	if all.Frontends = lb.frontends(addrs); len(all.Frontends) > 0 {
		lbs = byFamily(all)
	}
	// User space serves the node's own addresses: the kernel's data planes cannot
	// lead packets away from loopback.
	if local := all; len(lb.Listen) > 0 {
		local.Name, local.Plane, local.Frontends = lb.Name+"-local", balancer.UserSpace, lb.frontends(lb.Listen)
		local.Backends = uniqueNames(all.Backends)
		lbs = append(lbs, local)
	}
	return lbs
}

// withoutFrontends is the entry as one load balancer that listens nowhere yet.
func (lb LoadBalancerEntry) withoutFrontends() balancer.LoadBalancer {
	out := balancer.LoadBalancer{
		Name:           lb.Name,
		Scheduler:      lb.Scheduler,
		Plane:          lb.DataPlane,
		ConnectTimeout: lb.ConnectTimeout,
		Check:          lb.Check,
		MaxFails:       lb.MaxFails,
		FailTimeout:    lb.FailTimeout,
		TryDown:        lb.TryDown,
		ConnOptions:    lb.ConnOptions,
	}
	for _, b := range lb.Backends {
		if !b.Resolved() {
			out.Missing = append(out.Missing, balancer.MissingBackend{
				Name: cmp.Or(b.Name, b.Where()), Reason: cmp.Or(b.Unresolved, "its name was not looked up yet"),
			})
			continue
		}
		out.Backends = append(out.Backends, b.Backend)
	}
	return out
}

func (lb LoadBalancerEntry) frontends(addrs []netip.Addr) []netip.AddrPort {
	var list []netip.AddrPort
	for _, a := range addrs {
		list = append(list, netip.AddrPortFrom(a, lb.Port))
	}
	return list
}

// uniqueNames keeps the first backend of each name: a server that is there in both
// families has the same name twice.
func uniqueNames(backends []balancer.Backend) []balancer.Backend {
	var list []balancer.Backend
	for _, b := range backends {
		if b.Name == "" || !slices.ContainsFunc(list, func(o balancer.Backend) bool { return o.Name == b.Name }) {
			list = append(list, b)
		}
	}
	return list
}

// byFamily splits a load balancer of both families in two, so that each gets the
// best data plane that its own backends allow. A family without backends of its
// own keeps all of them; user space translates.
func byFamily(lb balancer.LoadBalancer) []balancer.LoadBalancer {
	four, six := lb, lb
	six.Name += "-ipv6"
	is4 := func(a netip.AddrPort) bool { return a.Addr().Unmap().Is4() }
	four.Frontends, six.Frontends = partition(lb.Frontends, is4)
	if len(four.Frontends) == 0 || len(six.Frontends) == 0 {
		return []balancer.LoadBalancer{lb}
	}
	own4, own6 := partition(lb.Backends, func(b balancer.Backend) bool { return is4(b.Addr) })
	if len(own4) > 0 {
		four.Backends = own4
	}
	if len(own6) > 0 {
		six.Backends = own6
	}
	return []balancer.LoadBalancer{four, six}
}

// partition separates the elements for which is holds from the others.
func partition[T any](all []T, is func(T) bool) (yes, no []T) {
	for _, one := range all {
		if is(one) {
			yes = append(yes, one)
		} else {
			no = append(no, one)
		}
	}
	return yes, no
}
