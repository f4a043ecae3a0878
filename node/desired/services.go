package desired

import (
	"net/netip"
	"slices"

	"appliance/balancer"
	"appliance/configs"
)

// Services turns the config's words into the balancer's.
func Services(cfg *configs.Config) []balancer.LoadBalancer {
	var lbs []balancer.LoadBalancer
	for _, c := range cfg.LoadBalancers {
		lb := balancer.LoadBalancer{
			Name:           c.Name,
			Scheduler:      balancer.Scheduler(c.Scheduler),
			Plane:          balancer.PlaneName(c.DataPlane),
			ConnectTimeout: c.ConnectTimeout,
			Check:          Check(c.Check),
			MaxFails:       c.MaxFails,
			FailTimeout:    c.FailTimeout,
			TryDown:        c.TryDown,
			Handling:       handling(c),
		}
		for _, b := range c.Backends {
			lb.Backends = append(lb.Backends, balancer.Backend{Name: b.Name, Addr: b.Address, Weight: b.Weight, Backup: b.Backup,
				MaxConn: b.MaxConn, MaxQueue: b.MaxQueue, SlowStart: b.SlowStart})
		}
		addrs := c.VIPs
		if !c.BindToVIP {
			addrs = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
		}
		for _, a := range addrs {
			lb.Frontends = append(lb.Frontends, netip.AddrPortFrom(a, c.Port))
		}
		if len(lb.Frontends) > 0 {
			lbs = append(lbs, byFamily(lb)...)
		}
		// The node's own addresses are user space's business: the kernel's data
		// planes cannot lead packets away from loopback.
		if len(c.Listen) > 0 {
			local := lb
			local.Name, local.Plane, local.Frontends = lb.Name+"-local", balancer.UserSpace, nil
			local.Backends = once(lb.Backends)
			for _, a := range c.Listen {
				local.Frontends = append(local.Frontends, netip.AddrPortFrom(a, c.Port))
			}
			lbs = append(lbs, local)
		}
	}
	return lbs
}

// once is backends with each server once: one that is there in both families
// has the same name twice.
func once(backends []balancer.Backend) []balancer.Backend {
	var list []balancer.Backend
	for _, b := range backends {
		if b.Name == "" || !slices.ContainsFunc(list, func(o balancer.Backend) bool { return o.Name == b.Name }) {
			list = append(list, b)
		}
	}
	return list
}

// byFamily splits a load balancer of both families in two, so that each gets
// the best data plane that its own backends allow. A family without backends
// of its own keeps all of them; user space translates.
func byFamily(lb balancer.LoadBalancer) []balancer.LoadBalancer {
	four, six := lb, lb
	six.Name += "-ipv6"
	is4 := func(a netip.AddrPort) bool { return a.Addr().Unmap().Is4() }
	four.Frontends, six.Frontends = split(lb.Frontends, is4)
	if len(four.Frontends) == 0 || len(six.Frontends) == 0 {
		return []balancer.LoadBalancer{lb}
	}
	own4, own6 := split(lb.Backends, func(b balancer.Backend) bool { return is4(b.Addr) })
	if len(own4) > 0 {
		four.Backends = own4
	}
	if len(own6) > 0 {
		six.Backends = own6
	}
	return []balancer.LoadBalancer{four, six}
}

// split separates the elements that are from those that are not.
func split[T any](all []T, is func(T) bool) (yes, no []T) {
	for _, one := range all {
		if is(one) {
			yes = append(yes, one)
		} else {
			no = append(no, one)
		}
	}
	return yes, no
}

// Check turns the config's words into the balancer's.
func Check(c configs.Check) balancer.Check {
	out := balancer.Check{
		Type: c.Type, Inter: c.Inter, FastInter: c.FastInter, DownInter: c.DownInter, Timeout: c.Timeout,
		Rise: c.Rise, Fall: c.Fall, Port: c.Port,
		Method: c.Method, Path: c.Path, Host: c.Host, BearerTokenFile: c.BearerTokenFile,
		Expect: balancer.Expect{Contains: c.Expect.Contains, Matches: c.Expect.Matches},
		TLS:    balancer.Trust(c.TLS),
	}
	for _, h := range c.Headers {
		out.Headers = append(out.Headers, balancer.Header(h))
	}
	for _, s := range c.Expect.Status {
		out.Expect.Status = append(out.Expect.Status, balancer.StatusRange(s))
	}
	return out
}

// handling turns the config's wishes for connections into the balancer's.
func handling(c configs.LoadBalancer) balancer.Handling {
	h := c.Handling
	retries := h.Retries
	if retries == 0 {
		retries = -1 // none: the balancer's zero is its default
	}
	return balancer.Handling{
		MaxConn:         h.MaxConn,
		Persistence:     h.Persistence,
		ClientTimeout:   h.ClientTimeout,
		ServerTimeout:   h.ServerTimeout,
		QueueTimeout:    h.QueueTimeout,
		Retries:         retries,
		RequireTLS:      h.RequireTLS,
		AcceptProxyFrom: h.AcceptProxyFrom,
		SendProxy:       h.SendProxy,
		Allow:           h.Allow,
		Deny:            h.Deny,
		KeepDown:        c.KeepDown,
		EndBackup:       c.EndBackup,
	}
}
