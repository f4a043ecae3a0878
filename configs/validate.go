package configs

import (
	"fmt"
	"net/netip"
	"slices"

	"appliance/balancer"
)

// validate checks the parts against each other.
func (b *builder) validate() {
	if b.cfg.Worker() {
		b.validateWorker()
	} else {
		b.validatePeers()
		b.validateTrust()
	}
	b.validateVIPs()
	b.validateAnnounce()
	b.validateAdmin()
	for i := range b.cfg.LoadBalancers {
		b.validateLoadBalancer(i)
	}
}

// validateWorker does not look at the group, since a worker is outside of it: the
// peers are only its backends.
func (b *builder) validateWorker() {
	c := b.cfg
	if c.StartAsLeader || c.SingleNode {
		b.bad("role", "is worker, which is outside the group, but startAsLeader or singleNode is true; "+
			"write role: peer, or remove them")
	}
	if len(c.LoadBalancers) == 0 {
		b.bad("role", "is worker, which serves load balancers, and loadBalancers%s is empty; write role: peer, or list some",
			b.lineOf(keyLBs))
	}
	for i, lb := range c.LoadBalancers {
		if len(lb.VIPs) == 0 && len(lb.Listen) == 0 && lb.BindToVIP {
			b.missing(keyVIPs, "is missing, and %s listens nowhere else; write vips, or %s: [127.0.0.1, \"::1\"] (--listen)",
				printable(lb.Name), b.lbKey(i, "listen"))
		}
	}
}

func (b *builder) validatePeers() {
	c := b.cfg
	ids, addrs := map[string]Origin{}, map[netip.Addr]Origin{}
	voters, holders := 0, 0
	for _, p := range c.Peers {
		first, twice := ids[p.ID]
		if twice {
			b.problem(p.Origin, c.peersKey, "id %s is there twice%s; every peer needs its own",
				printable(p.ID), otherLine(first, p.Origin))
		}
		for _, a := range p.Addrs() {
			if first, dup := addrs[a]; dup && !twice {
				b.problem(p.Origin, c.peersKey, "%s is there twice%s; every peer is another machine", a, otherLine(first, p.Origin))
			}
			addrs[a] = p.Origin
			if a.IsLoopback() && len(c.Peers) > 1 {
				b.problem(p.Origin, c.peersKey, "%s is a loopback address, at which no other peer can reach this one; "+
					"write its address on the network", a)
			}
		}
		ids[p.ID] = p.Origin
		voters++
		if p.Role != RoleWitness {
			holders++
		}
	}
	if b.peersUnsure {
		return // peers may be missing from the list, so their number means nothing
	}
	switch {
	case c.SingleNode && voters > 1:
		b.bad(keySingle, "is true, but %d peers are listed; write singleNode: false, or list only this node", voters)
	case len(c.Join) > 0:
		b.validateJoin() // the group knows who votes
	case !c.SingleNode && voters == 0:
		b.missing(keyPeers, "is missing; list every node's address, or write singleNode: true for a group of one")
	case voters > 0 && holders == 0:
		b.problem(c.Peers[0].Origin, c.peersKey, "all are witnesses, which never hold; "+
			"write role: peer for the nodes that serve the virtual address")
	case voters == 2:
		b.warn(c.Peers[1].Origin, c.peersKey, "two voters survive the loss of none: "+
			"when one dies, the other has no majority and falls silent; "+
			"list a third on any machine, with role: witness if it must never hold")
	case voters > 0 && voters%2 == 0:
		b.warn(c.Peers[voters-1].Origin, c.peersKey, "%d voters survive the loss of %d, as %d would; "+
			"list one more, with role: witness if it must never hold",
			voters, (voters-1)/2, voters-1)
	}
	if c.ID != "" && voters > 0 && len(c.Join) == 0 && !hasPeer(c.Peers, c.ID) {
		b.bad(keySelf, "%s is none of the peers; write one of %s", printable(c.ID), peerIDs(c.Peers))
	}
}

// validateJoin refuses a node that joins a group and would also found one.
func (b *builder) validateJoin() {
	c := b.cfg
	for _, other := range []struct {
		key string
		on  bool
	}{{"startAsLeader", c.StartAsLeader}, {keySingle, c.SingleNode}} {
		if other.on {
			b.bad(keyJoin, "enters a group that exists, and %s: true begins one; remove one of the two", other.key)
		}
	}
	for _, v := range c.VIPs {
		for i, at := range c.Join {
			if at.Addr() == v {
				b.bad(fmt.Sprintf("%s[%d]", keyJoin, i),
					"%s is a virtual address, and may lead here; write the address of a peer", v)
			}
		}
	}
}

// validateTrust refuses a group whose members cannot authenticate each other.
func (b *builder) validateTrust() {
	c, g := b.cfg, b.cfg.Group
	files := []struct{ key, value string }{
		{"group.caFile", g.CAFile}, {"group.certFile", g.CertFile}, {"group.certKeyFile", g.CertKeyFile},
	}
	given := 0
	for _, f := range files {
		if b.get(f.key).value != "" {
			given++
		}
	}
	for _, f := range files {
		if given > 0 && given < len(files) && b.get(f.key).value == "" {
			b.problem(b.origin("group"), f.key, "is missing; caFile, certFile and certKeyFile are needed together")
		}
	}
	noTrust := given == 0 && g.KeyFile == "" && b.get("group.keyFile").value == "" && !g.Insecure
	switch {
	case given > 0 && g.KeyFile != "":
		b.bad("group.keyFile", "and group.caFile are two ways to trust each other; keep one of them")
	case g.Insecure && (given > 0 || g.KeyFile != ""):
		b.bad("group.insecure", "is true, but keys are given; remove one of the two")
	case g.Insecure && len(c.Peers) > 1:
		b.warn(b.origin("group.insecure"), "group.insecure", "anybody who reaches the peer port can take the virtual "+
			"address; "+
			"run `appliance keygen > %s`, copy it to every peer and remove the line", DefaultKeyFile)
	case g.OldKeyFile != "" && g.KeyFile == "":
		b.bad("group.oldKeyFile", "is the key of before, and there is no group.keyFile; write the new one there")
	case len(c.Join) > 0 && noTrust:
		b.problem(b.origin("group"), "group.keyFile", "is missing, and joining a group needs the group's key; "+
			"copy it from a peer, to %s", DefaultKeyFile)
	case len(c.Peers) > 1 && noTrust:
		b.problem(b.origin("group"), "group.keyFile", "is missing, and a group of %d needs one; "+
			"run `appliance keygen > %s` and copy it to every peer, "+
			"or write group: {insecure: true} (--insecure) where you trust everybody on the network",
			len(c.Peers), DefaultKeyFile)
	}
}

func (b *builder) validateVIPs() {
	b.validatePeerFamilies()
	for _, p := range b.cfg.Peers {
		for _, v := range b.cfg.VIPs {
			if slices.Contains(p.Addrs(), v) {
				b.problem(p.Origin, b.cfg.peersKey, "%s is a virtual address%s; a peer's own address never moves, write that",
					v, b.vipLine(v, p.Origin))
			}
		}
	}
}

// validatePeerFamilies warns of peers without an address of a family that other peers
// have: clients of that family do not reach their servers.
func (b *builder) validatePeerFamilies() {
	c := b.cfg
	if !slices.ContainsFunc(c.LoadBalancers, func(lb LoadBalancerEntry) bool { return lb.AddPeersAt > 0 }) {
		return
	}
	for _, f := range []struct {
		name string
		is   func(netip.Addr) bool
	}{{"IPv4", netip.Addr.Is4}, {"IPv6", netip.Addr.Is6}} {
		has := func(p PeerEntry) bool { return p.Role == RoleWitness || slices.ContainsFunc(p.Addrs(), f.is) }
		some := func(p PeerEntry) bool { return p.Role != RoleWitness && has(p) }
		if !slices.ContainsFunc(c.VIPs, f.is) || !slices.ContainsFunc(c.Peers, some) {
			continue
		}
		for _, p := range c.Peers {
			other := func(a netip.Addr) bool { return !f.is(a) }
			if !has(p) && slices.ContainsFunc(ServersAt(p.Addrs(), c.VIPs), other) {
				b.warn(p.Origin, c.peersKey, "%s has no %s address, so %s clients get the servers of other peers only; "+
					"write it too: addresses: […]", printable(p.ID), f.name, f.name)
			}
		}
	}
}

// vipLine says where the virtual address v was written.
func (b *builder) vipLine(v netip.Addr, near Origin) string { return otherLine(b.vipOrigins[v], near) }

func (b *builder) validateLoadBalancer(i int) {
	c, lb := b.cfg, b.cfg.LoadBalancers[i]
	switch key := b.lbKey(i, "backends"); {
	case len(lb.Backends) > 0 || b.lists[key] > 0 || b.peersUnsure:
	case len(c.Peers) > 0 && b.lists[keyLBs] > 0:
		b.missing(key, "is missing; list the servers' addresses, or write addPeersAsBackends: true to take the peers")
	case len(c.Join) > 0: // its backends are the peers of the group
	case len(c.Peers) == 0 && (c.SingleNode || c.Worker()):
		b.missing(key, "is missing, and there are no peers to take; "+
			"list the servers' addresses, or this node's own in peers")
	}
	for _, other := range c.LoadBalancers[:i] {
		if other.Name == lb.Name {
			b.bad(b.lbKey(i, "name"), "%s is the name of two load balancers%s; write another",
				printable(lb.Name), otherLine(other.Origin, lb.Origin))
		}
		switch at, shared := lb.sharesAddress(other); {
		case !shared:
		case at.IsValid() && (lb.OwnVIPs || other.OwnVIPs):
			b.bad(b.lbKey(i, "port"), "%s is already that of %s%s; write another port, or vips: for each which the other lacks",
				netip.AddrPortFrom(at, lb.Port), printable(other.Name), otherLine(other.Origin, lb.Origin))
		default:
			b.bad(b.lbKey(i, "port"), "%d is already the port of %s%s; write another, or make the two one",
				lb.Port, printable(other.Name), otherLine(other.Origin, lb.Origin))
		}
	}
	for _, p := range c.Peers {
		if !lb.BindToVIP && p.Port == lb.Port {
			b.bad(b.lbKey(i, "port"), "%d is the port on which peers talk to each other, "+
				"and bindToVip: false takes it on every address; write another, or bindToVip: true", lb.Port)
			break
		}
	}
	primary := func(be BackendEntry) bool { return !be.Backup }
	if len(lb.Backends) > 0 && !slices.ContainsFunc(lb.Backends, primary) {
		b.bad(b.lbKey(i, "backends"), "are all backups, which serve only while the others are down; "+
			"remove backup: true from one of them at least")
	}
	for _, be := range lb.Backends {
		b.validateBackend(i, be)
	}
	b.validateFamilies(i)
	b.validateConnOptions(i)
	hasWeight := func(be BackendEntry) bool { return be.Weight > 0 }
	if len(lb.Backends) > 0 && !slices.ContainsFunc(lb.Backends, hasWeight) {
		b.bad(b.lbKey(i, "backends"), "all have weight 0, so none gets a connection; write 1 for one of them at least")
	} else if (lb.Scheduler == balancer.RoundRobin || lb.Scheduler == balancer.LeastConn) && uneven(lb.Backends) {
		b.warn(b.origin(b.lbKey(i, "backends")), b.lbKey(i, "scheduler"), "%s gives every backend the same share; "+
			"write w%s for the weights to count", lb.Scheduler, lb.Scheduler)
	}
}

// userSpaceServes reports whether user space may serve lb.
func (lb LoadBalancerEntry) userSpaceServes() bool {
	return lb.DataPlane == balancer.Auto || lb.DataPlane == balancer.UserSpace
}

func (b *builder) validateBackend(i int, be BackendEntry) {
	c, lb := b.cfg, b.cfg.LoadBalancers[i]
	key := b.lbKey(i, "backends")
	for _, v := range c.VIPs {
		// validateVIPs has reported a peer at a virtual address.
		if be.Addr.Addr() == v && !slices.Contains(peerAddrs(c.Peers), v) {
			b.problem(be.Origin, key, "%s is a virtual address%s, so connections would go in circles; "+
				"write the server's own address", v, b.vipLine(v, be.Origin))
		}
	}
	if lb.DataPlane == balancer.Direct && be.Addr.Port() != lb.Port {
		b.problem(be.Origin, key, "%s cannot be served by direct, which leaves packets as they are: "+
			"the server must listen on %d; change its port, or write dataPlane: auto", be.Where(), lb.Port)
	}
	for _, p := range c.Peers {
		switch {
		case be.Addr == p.AddrPort():
			b.problem(be.Origin, key, "%s is where peer %s talks to the group, not a server; write the server's port",
				be.Addr, printable(p.ID))
		case !lb.BindToVIP && slices.Contains(p.Addrs(), be.Addr.Addr()) && be.Addr.Port() == lb.Port:
			b.problem(be.Origin, key, "%s is where bindToVip: false listens on that peer itself; "+
				"write bindToVip: true, or another port", be.Addr)
		}
	}
	switch {
	case !slices.ContainsFunc(c.LoadBalancers, func(next LoadBalancerEntry) bool {
		return next.listensAt(be.Addr) && c.leadsTo(next, lb, make(map[string]bool))
	}):
	case lb.listensAt(be.Addr) && lb.BindToVIP:
		b.problem(be.Origin, key, "%s is where this load balancer itself listens, so connections would go in circles; "+
			"write the server's own address, or another port", be.Addr)
	case lb.listensAt(be.Addr):
		b.problem(be.Origin, key, "%s is where bindToVip: false listens, so connections would go in circles; "+
			"write bindToVip: true, or another port", be.Addr)
	default:
		b.problem(be.Origin, key, "%s is another load balancer, which leads back to this one, so connections would go in "+
			"circles; write the server's own address", be.Addr)
	}
}

// listensAt reports whether lb has the port of a loopback address, or of one of listen. A backend there is a load
// balancer, and no server.
func (lb LoadBalancerEntry) listensAt(at netip.AddrPort) bool {
	return at.Port() == lb.Port && at.Addr().IsValid() &&
		(slices.Contains(lb.Listen, at.Addr()) || !lb.BindToVIP && at.Addr().IsLoopback())
}

// leadsTo reports whether connections to lb come to other. seen are load balancers that do not, or are looked at.
func (c *Config) leadsTo(lb, other LoadBalancerEntry, seen map[string]bool) bool {
	if lb.Name == other.Name {
		return true
	}
	if seen[lb.Name] {
		return false
	}
	seen[lb.Name] = true
	return slices.ContainsFunc(lb.Backends, func(be BackendEntry) bool {
		return slices.ContainsFunc(c.LoadBalancers, func(next LoadBalancerEntry) bool {
			return next.listensAt(be.Addr) && c.leadsTo(next, other, seen)
		})
	})
}

// ComesBack reports whether lb itself listens there, or does so on a peer.
func (c *Config) ComesBack(lb LoadBalancerEntry, at netip.AddrPort) bool {
	atPeer := func(p PeerEntry) bool { return slices.Contains(p.Addrs(), at.Addr()) }
	return lb.listensAt(at) ||
		!lb.BindToVIP && at.Port() == lb.Port && slices.ContainsFunc(c.Peers, atPeer)
}

// validateFamilies refuses what a forced data plane cannot carry: only user space ends
// a connection and opens another one, which may be of the other family.
func (b *builder) validateFamilies(i int) {
	lb := b.cfg.LoadBalancers[i]
	if lb.userSpaceServes() || !lb.BindToVIP || len(lb.Backends) == 0 {
		return
	}
	name := map[bool]string{true: "IPv4", false: "IPv6"}
	clients, servers := map[bool]bool{}, map[bool]bool{}
	for _, v := range lb.VIPs {
		clients[v.Is4()] = true
	}
	for _, be := range lb.Backends {
		if !be.Resolved() {
			return // its families are known when its name is
		}
		servers[be.Addr.Addr().Is4()] = true
	}
	key := b.lbKey(i, "dataPlane")
	if b.get(key).value == "" {
		key = "dataPlane"
	}
	for _, four := range []bool{true, false} {
		if clients[four] && !servers[four] {
			b.bad(key, "%s cannot carry %s clients to %s backends, and %s has no other; "+
				"add %s backends, or write auto or userspace",
				lb.DataPlane, name[four], name[!four], printable(lb.Name), name[four])
		}
		if servers[four] && !clients[four] {
			b.bad(key, "%s cannot carry %s clients to %s backends, and there is no %s virtual address; "+
				"add one, or write auto or userspace",
				lb.DataPlane, name[!four], name[four], name[four])
		}
	}
}

// uneven reports whether weights differ among backends that get connections. Every
// scheduler honours the weight 0.
func uneven(list []BackendEntry) bool {
	first := 0
	for _, be := range list {
		if be.Weight == 0 {
			continue
		}
		if first != 0 && be.Weight != first {
			return true
		}
		first = be.Weight
	}
	return false
}

// validateConnOptions checks a load balancer's connection options against its backends
// and its data plane.
func (b *builder) validateConnOptions(i int) {
	lb := b.cfg.LoadBalancers[i]
	limited := false
	for _, be := range lb.Backends {
		limited = limited || be.MaxConn > 0
		if be.MaxQueue > 0 && be.MaxConn == 0 {
			b.problem(be.Origin, b.lbKey(i, "backends"), "%s has maxqueue without maxconn, so nobody ever queues for it; "+
				"write maxconn, or remove maxqueue", be.Where())
		}
	}
	if lb.ConnOptions.QueueTimeout > 0 && !limited {
		b.bad(b.lbKey(i, "timeouts.queue"), "has no effect: no backend has maxconn, so nobody ever queues; "+
			"write maxconn for the backends, or remove it")
	}
	if slices.Contains(kernelSchedulers, string(lb.Scheduler)) &&
		lb.DataPlane != balancer.IPVS && lb.DataPlane != balancer.Auto {
		b.bad(b.lbKey(i, "scheduler"), "%s is the kernel's, which only the data plane ipvs asks; "+
			"write dataPlane: ipvs, or another scheduler", lb.Scheduler)
	}
	if lb.userSpaceServes() {
		return
	}
	for _, name := range lb.withoutFrontends().Unsupported(lb.DataPlane) {
		key, what := b.lbKey(i, name), ""
		if _, ok := setting(key); !ok { // a backend's
			key, what = b.lbKey(i, "dataPlane"), name+" "
		}
		b.bad(key, "%sis done by user space, but dataPlane is %s; write dataPlane: auto or userspace, or remove it",
			what, lb.DataPlane)
	}
}
