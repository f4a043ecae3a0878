package convert

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// asServers are the peers that kube-vip adds to the servers of b.
func (p *plan) asServers(b *balancer) []server {
	if !b.peersAsBackends {
		return nil
	}
	port := b.port
	if b.backendPort != 0 {
		port = b.backendPort
	}
	var list []server
	for _, one := range p.peers {
		named := slices.ContainsFunc(b.service.servers, func(srv server) bool {
			return srv.addr == one.addr && (srv.port == port || srv.port == 0 && port == b.port)
		})
		if !named {
			list = append(list, server{statement: statement{place: one.place, words: []string{one.addr.String()}}, name: one.id, addr: one.addr, port: port, peer: true})
		}
	}
	return list
}

// settleServers holds the servers of b against each other.
func (d *draft) settleServers(p *plan, b *balancer) string {
	heaviest, zeros := 0, 0
	for _, srv := range slices.Concat(b.service.servers, p.asServers(b)) {
		if srv.port == 0 {
			srv.port = b.port
		}
		at := netip.AddrPortFrom(srv.addr, srv.port)
		isPeerPort := slices.ContainsFunc(p.peers, func(one peer) bool {
			return one.addr == srv.addr && (one.port == srv.port || one.port == 0 && srv.port == peerPort)
		})
		switch {
		case slices.Contains(p.vips, srv.addr):
			d.note(b.service, srv.statement, "%s is a virtual address, so connections would go in circles; write the server's own address", srv.addr)
			continue
		case !p.worker && isPeerPort:
			d.note(b.service, srv.statement, "%s is where that peer talks to the group; write another port here, or group.port", at)
			continue
		case slices.ContainsFunc(b.servers, func(other server) bool { return netip.AddrPortFrom(other.addr, other.port) == at }):
			d.note(b.service, srv.statement, "%s is there twice; weight says how much a server gets", at)
			continue
		}
		if len(srv.name) > 64 || strings.TrimSpace(srv.name) != srv.name || printable(srv.name) != srv.name ||
			slices.ContainsFunc(b.servers, func(other server) bool { return other.name == srv.name }) {
			srv.name = ""
		}
		if srv.maxqueue.n > 0 && srv.maxconn.n == 0 {
			d.advise(b.service, srv.statement, "carried over without maxqueue, which says nothing without maxconn")
			srv.maxqueue = count{}
		}
		if srv.weight.said {
			heaviest = max(heaviest, srv.weight.n)
			if srv.weight.n == 0 {
				zeros++
			}
		}
		if b.servers = append(b.servers, srv); len(b.servers) > maxList {
			return fmt.Sprintf("it has more than %d servers", maxList)
		}
	}
	switch {
	case len(b.servers) == 0:
		return "none of its servers has an address that can be used"
	case zeros > 0 && zeros == len(b.servers):
		return "all its servers are out of rotation"
	}
	// The key is for the first load balancer and those that list no server; where
	// the first was not carried over, the peers are written out.
	if first := d.services[0]; first.peersAsBackends && b.peersAsBackends && (first == b.service || len(p.balancers) > 0 && p.balancers[0].service == first) {
		p.peersAsBackends = true
	}
	d.settleWeights(b, heaviest)
	if !slices.ContainsFunc(b.servers, func(srv server) bool { return !srv.backup }) && len(b.servers) > 0 {
		d.advise(b.service, b.service.statement, "all its servers are backups; became ordinary ones")
		for i := range b.servers {
			b.servers[i].backup = false
		}
	}
	if b.queue.said && !slices.ContainsFunc(b.servers, func(srv server) bool { return srv.maxconn.n > 0 }) {
		d.moot(nil, b.queueAt, "nobody queues, because no server has maxconn")
	}
	if !p.worker && b.everywhere && b.onPeers(p) {
		b.everywhere = false
		d.note(b.service, b.service.statement, "is served on the virtual addresses only, because servers on the peers have the same port")
	}
	if b.everywhere {
		b.listen = nil
	}
	return ""
}

// onPeers says that listening everywhere would be in the way of a server on a
// peer, or of the group's own port.
func (b *balancer) onPeers(p *plan) bool {
	for _, one := range p.peers {
		if one.port == b.port || one.port == 0 && b.port == peerPort {
			return true
		}
		for _, srv := range b.servers {
			if srv.addr == one.addr && srv.port == b.port {
				return true
			}
		}
	}
	return false
}

// settleWeights brings weights into our range, and takes the scheduler that
// counts them: haproxy's and nginx's all do, LVS's have the w for it.
func (d *draft) settleWeights(b *balancer, heaviest int) {
	first, uneven := -1, false
	for i := range b.servers {
		w := &b.servers[i].weight
		if heaviest > maxWeight && w.n > 0 {
			w.n = max(1, w.n*maxWeight/heaviest)
		}
		n := 1
		if w.said {
			n = w.n
		}
		if n == 0 {
			continue
		}
		uneven = uneven || first >= 0 && n != first
		first = n
	}
	if heaviest > maxWeight {
		d.advise(b.service, b.service.statement, "weights above %d were made smaller, all by the same factor", maxWeight)
	}
	if uneven && !b.lvs && (b.scheduler == "rr" || b.scheduler == "lc") {
		b.scheduler = "w" + b.scheduler
	}
}

// settlePlane forces a data plane only where it can carry the families.
func (d *draft) settlePlane(p *plan, b *balancer) {
	if b.plane == "" || b.everywhere || len(p.vips) == 0 {
		return
	}
	if slices.ContainsFunc(b.servers, func(srv server) bool { return srv.maxconn.n > 0 }) {
		d.advise(b.service, b.service.statement, "no data plane was forced, because only user space limits the connections of a server")
		b.plane = ""
		return
	}
	families := func(four bool) (clients, servers bool) {
		clients = slices.ContainsFunc(p.vips, func(a netip.Addr) bool { return a.Is4() == four })
		servers = slices.ContainsFunc(b.servers, func(s server) bool { return s.addr.Is4() == four })
		return clients, servers
	}
	for _, four := range []bool{true, false} {
		if clients, servers := families(four); clients != servers {
			d.advise(b.service, b.service.statement, "no data plane was forced, because virtual addresses and servers are not of the same families")
			b.plane = ""
			return
		}
	}
}
