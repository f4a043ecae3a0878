package configs

import (
	"net/netip"
	"slices"
)

// relate holds the parts against each other.
func (b *builder) relate() {
	if b.cfg.Worker() {
		b.relateWorker()
	} else {
		b.relatePeers()
		b.relateTrust()
	}
	b.relateVIPs()
	b.relateAdmin()
	for i := range b.cfg.LoadBalancers {
		b.relateLoadBalancer(i)
	}
}

// relateWorker holds nothing against the group, which a worker is not in: the
// peers are only where its backends are.
func (b *builder) relateWorker() {
	c := b.cfg
	if c.StartAsLeader || c.SingleNode {
		b.bad("role", "is worker, which is outside the group, but startAsLeader or singleNode is true; write role: peer, or remove them")
	}
	for i, lb := range c.LoadBalancers {
		if len(lb.VIPs) == 0 && len(lb.Listen) == 0 && lb.BindToVIP {
			b.missing(keyVIPs, "is missing, and %s listens nowhere else; write vips, or %s: [127.0.0.1, \"::1\"] (--listen)", printable(lb.Name), b.lbKey(i, "listen"))
		}
	}
}

func (b *builder) relatePeers() {
	c := b.cfg
	ids, addrs := map[string]Origin{}, map[netip.Addr]Origin{}
	voters, holders := 0, 0
	for _, p := range c.Peers {
		first, twice := ids[p.ID]
		if twice {
			b.problem(p.Origin, c.peersKey, "id %s is there twice%s; every peer needs its own", printable(p.ID), seen(first, p.Origin))
		}
		for _, a := range p.Addrs() {
			if first, dup := addrs[a]; dup && !twice {
				b.problem(p.Origin, c.peersKey, "%s is there twice%s; every peer is another machine", a, seen(first, p.Origin))
			}
			addrs[a] = p.Origin
			if a.IsLoopback() && len(c.Peers) > 1 {
				b.problem(p.Origin, c.peersKey, "%s is a loopback address, at which no other peer can reach this one; write its address on the network", a)
			}
		}
		ids[p.ID] = p.Origin
		voters++
		if p.Role != RoleWitness {
			holders++
		}
	}
	if b.halfRead {
		return // to count them would only confuse
	}
	switch {
	case c.SingleNode && voters > 1:
		b.bad(keySingle, "is true, but %d peers are listed; write singleNode: false, or list only this node", voters)
	case len(c.Join) > 0 && voters <= 1:
		b.relateJoin() // who votes is for the group to say
	case !c.SingleNode && voters == 0:
		b.missing(keyPeers, "is missing; list every node's address, or write singleNode: true for a group of one")
	case voters > 0 && holders == 0:
		b.problem(c.Peers[0].Origin, c.peersKey, "all are witnesses, which never hold; write role: peer for the nodes that serve the virtual address")
	case voters == 2:
		b.warn(c.Peers[1].Origin, c.peersKey, "two voters survive the loss of none: when one dies, the other has no majority and falls silent; "+
			"list a third on any machine, with role: witness if it must never hold")
	case voters > 0 && voters%2 == 0:
		b.warn(c.Peers[voters-1].Origin, c.peersKey, "%d voters survive the loss of %d, as %d would; list one more, with role: witness if it must never hold",
			voters, (voters-1)/2, voters-1)
	}
	if c.ID != "" && voters > 0 && !hasPeer(c.Peers, c.ID) {
		b.bad(keySelf, "%s is none of the peers; write one of %s", printable(c.ID), peerIDs(c.Peers))
	}
}

// relateTrust refuses a group whose members have no way to know each other.
func (b *builder) relateTrust() {
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
			b.problem(b.at("group"), f.key, "is missing; caFile, certFile and certKeyFile are needed together")
		}
	}
	switch {
	case given > 0 && g.KeyFile != "":
		b.bad("group.keyFile", "and group.caFile are two ways to trust each other; keep one of them")
	case g.Insecure && (given > 0 || g.KeyFile != ""):
		b.bad("group.insecure", "is true, but keys are given; remove one of the two")
	case g.Insecure && len(c.Peers) > 1:
		b.warn(b.at("group.insecure"), "group.insecure", "anybody who reaches the peer port can take the virtual address; run `appliance keygen > %s`, copy it to every peer and remove the line", DefaultKeyFile)
	case g.OldKeyFile != "" && g.KeyFile == "":
		b.bad("group.oldKeyFile", "is the key of before, and there is no group.keyFile; write the new one there")
	case len(c.Join) > 0 && given == 0 && g.KeyFile == "" && b.get("group.keyFile").value == "" && !g.Insecure:
		b.problem(b.at("group"), "group.keyFile", "is missing, and joining a group needs the group's key; copy it from a peer, to %s", DefaultKeyFile)
	case len(c.Peers) > 1 && given == 0 && g.KeyFile == "" && b.get("group.keyFile").value == "" && !g.Insecure:
		b.problem(b.at("group"), "group.keyFile", "is missing, and a group of %d needs one; run `appliance keygen > %s` and copy it to every peer, "+
			"or write group: {insecure: true} (--insecure) where you trust everybody on the network", len(c.Peers), DefaultKeyFile)
	}
}

func (b *builder) relateVIPs() {
	b.relatePeerFamilies()
	for _, p := range b.cfg.Peers {
		for _, v := range b.cfg.VIPs {
			if slices.Contains(p.Addrs(), v) {
				b.problem(p.Origin, b.cfg.peersKey, "%s is a virtual address%s; a peer's own address never moves, write that", v, b.vipLine(v, p.Origin))
			}
		}
	}
}

// relatePeerFamilies tells of peers whose servers clients of one family do not
// get, while they get those of others.
func (b *builder) relatePeerFamilies() {
	c := b.cfg
	if !slices.ContainsFunc(c.LoadBalancers, func(lb LoadBalancer) bool { return lb.AddPeersAt > 0 }) {
		return
	}
	for _, f := range []struct {
		name string
		is   func(netip.Addr) bool
	}{{"IPv4", netip.Addr.Is4}, {"IPv6", netip.Addr.Is6}} {
		has := func(p Peer) bool { return p.Role == RoleWitness || slices.ContainsFunc(p.Addrs(), f.is) }
		some := func(p Peer) bool { return p.Role != RoleWitness && has(p) }
		if !slices.ContainsFunc(c.VIPs, f.is) || !slices.ContainsFunc(c.Peers, some) {
			continue
		}
		for _, p := range c.Peers {
			if !has(p) && slices.ContainsFunc(ServersAt(p.Addrs(), c.VIPs), func(a netip.Addr) bool { return !f.is(a) }) {
				b.warn(p.Origin, c.peersKey, "%s has no %s address, so %s clients get the servers of other peers only; write it too: addresses: […]", printable(p.ID), f.name, f.name)
			}
		}
	}
}

// vipLine says where the virtual address v was written.
func (b *builder) vipLine(v netip.Addr, near Origin) string { return seen(b.vipAt[v], near) }

func (b *builder) relateLoadBalancer(i int) {
	c, lb := b.cfg, b.cfg.LoadBalancers[i]
	switch key := b.lbKey(i, "backends"); {
	case len(lb.Backends) > 0 || b.lists[key] > 0 || b.halfRead:
	case len(c.Peers) > 0 && b.lists[keyLBs] > 0:
		b.missing(key, "is missing; list the servers' addresses, or write addPeersAsBackends: true to take the peers")
	case len(c.Join) > 0: // the peers that it takes are those of the group
	case len(c.Peers) == 0 && (c.SingleNode || c.Worker()):
		b.missing(key, "is missing, and there are no peers to take; list the servers' addresses, or this node's own in peers")
	}
	for _, other := range c.LoadBalancers[:i] {
		if other.Name == lb.Name {
			b.bad(b.lbKey(i, "name"), "%s is the name of two load balancers%s; write another", printable(lb.Name), seen(other.Origin, lb.Origin))
		}
		if other.Port == lb.Port && lb.Port != 0 {
			b.bad(b.lbKey(i, "port"), "%d is already the port of %s%s; write another, or make the two one", lb.Port, printable(other.Name), seen(other.Origin, lb.Origin))
		}
	}
	for _, p := range c.Peers {
		if !lb.BindToVIP && p.Port == lb.Port {
			b.bad(b.lbKey(i, "port"), "%d is the port on which peers talk to each other, and bindToVip: false takes it on every address; write another, or bindToVip: true", lb.Port)
			break
		}
	}
	if n := len(lb.Backends); n > 0 && !slices.ContainsFunc(lb.Backends, func(be Backend) bool { return !be.Backup }) {
		b.bad(b.lbKey(i, "backends"), "are all backups, which serve only while the others are down; remove backup: true from one of them at least")
	}
	for _, be := range lb.Backends {
		b.relateBackend(i, be)
	}
	b.relateFamilies(i)
	b.relateHandling(i)
	if w := weights(lb.Backends); len(lb.Backends) > 0 && w == 0 {
		b.bad(b.lbKey(i, "backends"), "all have weight 0, so none gets a connection; write 1 for one of them at least")
	} else if (lb.Scheduler == "rr" || lb.Scheduler == "lc") && uneven(lb.Backends) {
		b.warn(b.at(b.lbKey(i, "backends")), b.lbKey(i, "scheduler"), "%s gives every backend the same share; write w%s for the weights to count", lb.Scheduler, lb.Scheduler)
	}
}

func (b *builder) relateBackend(i int, be Backend) {
	c, lb := b.cfg, b.cfg.LoadBalancers[i]
	key := b.lbKey(i, "backends")
	for _, v := range c.VIPs {
		// A peer at a virtual address has been reported as such.
		if be.Address.Addr() == v && !slices.Contains(peerAddrs(c.Peers), v) {
			b.problem(be.Origin, key, "%s is a virtual address%s, so connections would go in circles; write the server's own address", v, b.vipLine(v, be.Origin))
		}
	}
	if lb.DataPlane == "direct" && be.Address.Port() != lb.Port {
		b.problem(be.Origin, key, "%s cannot be served by direct, which leaves packets as they are: the server must listen on %d; change its port, or write dataPlane: auto", be.Address, lb.Port)
	}
	for _, p := range c.Peers {
		switch {
		case be.Address == p.AddrPort():
			b.problem(be.Origin, key, "%s is where peer %s talks to the group, not a server; write the server's port", be.Address, printable(p.ID))
		case !lb.BindToVIP && slices.Contains(p.Addrs(), be.Address.Addr()) && be.Address.Port() == lb.Port:
			b.problem(be.Origin, key, "%s is where bindToVip: false listens on that peer itself; write bindToVip: true, or another port", be.Address)
		}
	}
}

// relateFamilies refuses what a data plane that was forced cannot carry: only
// user space ends a connection and opens another, in whatever family.
func (b *builder) relateFamilies(i int) {
	lb := b.cfg.LoadBalancers[i]
	if lb.DataPlane == "auto" || lb.DataPlane == "userspace" || !lb.BindToVIP || len(lb.Backends) == 0 {
		return
	}
	name := map[bool]string{true: "IPv4", false: "IPv6"}
	clients, servers := map[bool]bool{}, map[bool]bool{}
	for _, v := range lb.VIPs {
		clients[v.Is4()] = true
	}
	for _, be := range lb.Backends {
		servers[be.Address.Addr().Is4()] = true
	}
	key := b.lbKey(i, "dataPlane")
	if b.get(key).value == "" {
		key = "dataPlane"
	}
	for _, four := range []bool{true, false} {
		if clients[four] && !servers[four] {
			b.bad(key, "%s cannot carry %s clients to %s backends, and %s has no other; add %s backends, or write auto or userspace",
				lb.DataPlane, name[four], name[!four], printable(lb.Name), name[four])
		}
		if servers[four] && !clients[four] {
			b.bad(key, "%s cannot carry %s clients to %s backends, and there is no %s virtual address; add one, or write auto or userspace",
				lb.DataPlane, name[!four], name[four], name[four])
		}
	}
}

func weights(list []Backend) int {
	sum := 0
	for _, be := range list {
		sum += be.Weight
	}
	return sum
}

// uneven reports whether weights differ among backends that get connections;
// 0 is understood by every scheduler.
func uneven(list []Backend) bool {
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
