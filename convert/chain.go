package convert

import (
	"net/netip"
	"slices"

	"appliance/convert/draft"
)

// followChains joins load balancers that stand in a row on these machines, such as a virtual_server whose real servers
// are haproxy's frontends on the same machines: nobody listens between them any more. The first one's addresses then
// lead to the last one's servers.
func (p *plan) followChains() {
	const longest = 8
	for range longest {
		first, next := p.nextChain()
		if first == nil {
			return
		}
		p.joinChain(first, next)
	}
}

// nextChain finds a load balancer all of whose servers are another one on these machines.
func (p *plan) nextChain() (first, next *draft.LB) {
	for _, first := range p.LoadBalancers {
		if first.Refused != "" || len(first.Servers) == 0 || slices.ContainsFunc(first.Servers, p.isElsewhere) {
			continue
		}
		for _, next := range p.LoadBalancers {
			if next != first && !next.Stays && p.leadsTo(first, next) {
				return first, next
			}
		}
	}
	return nil, nil
}

// isElsewhere reports whether a server is on none of these machines.
func (p *plan) isElsewhere(srv draft.ServerEntry) bool {
	return !srv.Addr.IsLoopback() && !p.hasPeer(srv.Addr) && !slices.Contains(p.Own, srv.Addr)
}

// leadsTo reports whether every server of first, which are all on these machines, is next.
func (p *plan) leadsTo(first, next *draft.LB) bool {
	for _, srv := range first.Servers {
		isNext := slices.ContainsFunc(next.Binds, func(b draft.Bind) bool {
			for _, at := range first.Binds {
				if srv.Port == b.Port || srv.Port == 0 && at.Port == b.Port {
					return b.Has(srv.Addr)
				}
			}
			return false
		})
		if !isNext {
			return false
		}
	}
	return true
}

// joinChain gives next the addresses of first. What first refuses or limits has to hold as well; if it cannot be said
// in one load balancer, neither is carried over.
func (p *plan) joinChain(first, next *draft.LB) {
	otherwise := func(srv draft.ServerEntry) bool { return srv.SendProxy != "" }
	clean := func(lb *draft.LB) bool { return len(lb.Allow)+len(lb.Deny) == 0 && !lb.AcceptProxy }
	switch {
	case next.Refused != "":
		first.Refused = "its servers are " + next.Place.String() + " on these machines, which was not carried over: " +
			next.Refused
		return
	case !first.LVS && !clean(next) && !(first.SendProxy != "" && !slices.ContainsFunc(first.Servers, otherwise) &&
		next.AcceptProxy && len(next.Allow)+len(next.Deny) == 0):
		first.Refused = "its servers are " + next.Place.String() + " on these machines, " +
			"which looks at the address of the one before it; write one load balancer of the two"
		return
	case first.RequireTLS.Set && !next.RequireTLS.Set:
		next.RequireTLS = first.RequireTLS
	}
	next.Allow, next.Deny = slices.Concat(next.Allow, first.Allow), slices.Concat(next.Deny, first.Deny)
	if !first.LVS {
		next.AcceptProxy, next.AcceptProxyFrom = first.AcceptProxy, first.AcceptProxyFrom
	}
	if first.Persistence.Set && (!next.Persistence.Set || next.Persistence.Value < first.Persistence.Value) {
		next.Persistence = first.Persistence
	}
	if first.MaxConn.Value > 0 && (next.MaxConn.Value == 0 || first.MaxConn.Value < next.MaxConn.Value) {
		next.MaxConn = first.MaxConn
	}
	for _, quiet := range []struct{ of, into *draft.Span }{{&first.Client, &next.Client}, {&first.Server, &next.Server}} {
		if quiet.of.Value > 0 && (quiet.into.Value == 0 || quiet.of.Value < quiet.into.Value) {
			*quiet.into = *quiet.of
		}
	}
	// The port between the two was for the first alone, unless it is also one of a virtual address.
	next.Binds = slices.DeleteFunc(next.Binds, func(b draft.Bind) bool {
		isSame := func(at draft.Bind) bool { return at.Port == b.Port }
		return b.Addr.IsValid() && (b.Addr.IsLoopback() || p.hasPeer(b.Addr)) ||
			!b.Addr.IsValid() && slices.ContainsFunc(first.Binds, isSame) &&
				!slices.ContainsFunc(p.vips, func(a netip.Addr) bool { return b.Has(a) && !p.isBound(first, a, b.Port) })
	})
	next.Binds = append(next.Binds, first.Binds...)
	if !first.LVS { // which leaves the header to the next one
		next.RefuseMixed()
	}
	next.Joined = append(next.Joined, first)
	next.Joined = append(next.Joined, first.Joined...)
	p.Advise(next, first.Statement, "leads to line %s on these machines, so its addresses lead to the servers there; "+
		"the check is the one of those servers", next.Place)
	p.LoadBalancers = slices.DeleteFunc(p.LoadBalancers, func(lb *draft.LB) bool { return lb == first })
}

// isBound reports whether lb listens on that address and port by name.
func (p *plan) isBound(lb *draft.LB, a netip.Addr, port uint16) bool {
	return slices.ContainsFunc(lb.Binds, func(b draft.Bind) bool { return b.Addr == a && b.Port == port })
}
