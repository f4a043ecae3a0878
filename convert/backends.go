package convert

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// asServers are the peers that kube-vip adds to the servers of b.
func (p *plan) asServers(b *portBalancer) []draft.ServerEntry {
	if !b.PeersAsBackends {
		return nil
	}
	port := b.port
	if b.BackendPort != 0 {
		port = b.BackendPort
	}
	var list []draft.ServerEntry
	for _, one := range p.peers {
		named := slices.ContainsFunc(b.LB.Servers, func(srv draft.ServerEntry) bool {
			return srv.Addr == one.Addr && (srv.Port == port || srv.Port == 0 && port == b.port)
		})
		if !named {
			list = append(list, draft.ServerEntry{Statement: syntax.Statement{Place: one.Place, Words: []string{one.Addr.String()}}, Name: one.ID, Addr: one.Addr, Port: port, Peer: true})
		}
	}
	return list
}

// planServers holds the servers of b against each other.
func planServers(d *draft.Draft, p *plan, b *portBalancer) string {
	heaviest, zeros := 0, 0
	for _, srv := range slices.Concat(b.LB.Servers, p.asServers(b)) {
		if srv.Port == 0 {
			srv.Port = b.port
		}
		at := netip.AddrPortFrom(srv.Addr, srv.Port)
		isPeerPort := slices.ContainsFunc(p.peers, func(one draft.PeerEntry) bool {
			return one.Addr == srv.Addr && (one.Port == srv.Port || one.Port == 0 && srv.Port == peerPort)
		})
		switch {
		case slices.Contains(p.vips, srv.Addr):
			d.Note(b.LB, srv.Statement, "%s is a virtual address, so connections would go in circles; write the server's own address", srv.Addr)
			continue
		case !p.worker && isPeerPort:
			d.Note(b.LB, srv.Statement, "%s is where that peer talks to the group; write another port here, or group.port", at)
			continue
		case slices.ContainsFunc(b.servers, func(other draft.ServerEntry) bool { return netip.AddrPortFrom(other.Addr, other.Port) == at }):
			d.Note(b.LB, srv.Statement, "%s is there twice; weight says how much a server gets", at)
			continue
		}
		if len(srv.Name) > 64 || strings.TrimSpace(srv.Name) != srv.Name || syntax.Printable(srv.Name) != srv.Name ||
			slices.ContainsFunc(b.servers, func(other draft.ServerEntry) bool { return other.Name == srv.Name }) {
			srv.Name = ""
		}
		if srv.MaxQueued.Value > 0 && srv.MaxConn.Value == 0 {
			d.Advise(b.LB, srv.Statement, "carried over without maxqueue, which says nothing without maxconn")
			srv.MaxQueued = draft.Number{}
		}
		if srv.Weight.Set {
			heaviest = max(heaviest, srv.Weight.Value)
			if srv.Weight.Value == 0 {
				zeros++
			}
		}
		if b.servers = append(b.servers, srv); len(b.servers) > draft.MaxList {
			return fmt.Sprintf("it has more than %d servers", draft.MaxList)
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
	if first := d.Services[0]; first.PeersAsBackends && b.PeersAsBackends && (first == b.LB || len(p.balancers) > 0 && p.balancers[0].LB == first) {
		p.peersAsBackends = true
	}
	scaleWeights(d, b, heaviest)
	if !slices.ContainsFunc(b.servers, func(srv draft.ServerEntry) bool { return !srv.Backup }) && len(b.servers) > 0 {
		d.Advise(b.LB, b.LB.Statement, "all its servers are backups; became ordinary ones")
		for i := range b.servers {
			b.servers[i].Backup = false
		}
	}
	if b.Queue.Set && !slices.ContainsFunc(b.servers, func(srv draft.ServerEntry) bool { return srv.MaxConn.Value > 0 }) {
		d.Moot(nil, b.QueueAt, "nobody queues, because no server has maxconn")
	}
	if !p.worker && b.everywhere && b.onPeers(p) {
		b.everywhere = false
		d.Note(b.LB, b.LB.Statement, "is served on the virtual addresses only, because servers on the peers have the same port")
	}
	if b.everywhere {
		b.listen = nil
	}
	return ""
}

// onPeers says that listening everywhere would be in the way of a server on a
// peer, or of the group's own port.
func (b *portBalancer) onPeers(p *plan) bool {
	for _, one := range p.peers {
		if one.Port == b.port || one.Port == 0 && b.port == peerPort {
			return true
		}
		for _, srv := range b.servers {
			if srv.Addr == one.Addr && srv.Port == b.port {
				return true
			}
		}
	}
	return false
}

// scaleWeights brings weights into our range, and takes the scheduler that
// counts them: haproxy's and nginx's all do, LVS's have the w for it.
func scaleWeights(d *draft.Draft, b *portBalancer, heaviest int) {
	first, uneven := -1, false
	for i := range b.servers {
		w := &b.servers[i].Weight
		if heaviest > draft.MaxWeight && w.Value > 0 {
			w.Value = max(1, w.Value*draft.MaxWeight/heaviest)
		}
		n := 1
		if w.Set {
			n = w.Value
		}
		if n == 0 {
			continue
		}
		uneven = uneven || first >= 0 && n != first
		first = n
	}
	if heaviest > draft.MaxWeight {
		d.Advise(b.LB, b.LB.Statement, "weights above %d were made smaller, all by the same factor", draft.MaxWeight)
	}
	if uneven && !b.LVS && (b.scheduler == "rr" || b.scheduler == "lc") {
		b.scheduler = "w" + b.scheduler
	}
}

// choosePlane forces a data plane only where it can carry the families.
func choosePlane(d *draft.Draft, p *plan, b *portBalancer) {
	if b.plane == "" || b.everywhere || len(p.vips) == 0 {
		return
	}
	if slices.ContainsFunc(b.servers, func(srv draft.ServerEntry) bool { return srv.MaxConn.Value > 0 }) {
		d.Advise(b.LB, b.LB.Statement, "no data plane was forced, because only user space limits the connections of a server")
		b.plane = ""
		return
	}
	families := func(four bool) (clients, servers bool) {
		clients = slices.ContainsFunc(p.vips, func(a netip.Addr) bool { return a.Is4() == four })
		servers = slices.ContainsFunc(b.servers, func(s draft.ServerEntry) bool { return s.Addr.Is4() == four })
		return clients, servers
	}
	for _, four := range []bool{true, false} {
		if clients, servers := families(four); clients != servers {
			d.Advise(b.LB, b.LB.Statement, "no data plane was forced, because virtual addresses and servers are not of the same families")
			b.plane = ""
			return
		}
	}
}
