package convert

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"appliance/convert/draft"
)

// peerServers are the peers that kube-vip adds to the servers of b.
func (p *plan) peerServers(b *balancer) (list []draft.ServerEntry) {
	if !b.PeersAsBackends {
		return nil
	}
	port := b.port
	if b.BackendPort != 0 {
		port = b.BackendPort
	}
	for _, one := range p.peers {
		named := slices.ContainsFunc(b.Servers, func(srv draft.ServerEntry) bool {
			return srv.Addr == one.Addr && (srv.Port == port || srv.Port == 0 && port == b.port)
		})
		if !named {
			list = append(list, draft.ServerEntry{
				Statement: headOf(one.Place, one.Addr.String()), Name: one.ID, Addr: one.Addr, Port: port, Peer: true,
			})
		}
	}
	return list
}

// planServers gives b its servers, or says why it cannot have any.
func (p *plan) planServers(b *balancer) (refused string) {
	for _, srv := range slices.Concat(b.Servers, p.peerServers(b)) {
		p.addServer(b, srv)
		if len(b.servers) > draft.MaxList {
			return fmt.Sprintf("it has more than %d servers", draft.MaxList)
		}
	}
	isFirst := func(srv draft.ServerEntry) bool { return !srv.Backup }
	isBackup := func(srv draft.ServerEntry) bool { return srv.Backup }
	isOut := func(srv draft.ServerEntry) bool { return srv.Weight.Set && srv.Weight.Value == 0 && !srv.Disabled }
	switch {
	case len(b.servers) == 0:
		return "none of its servers has an address that can be used"
	case !slices.ContainsFunc(b.servers, func(srv draft.ServerEntry) bool { return !isOut(srv) }):
		return "all its servers are out of rotation"
	case (b.LostFirst || slices.ContainsFunc(b.Servers, isFirst)) && !slices.ContainsFunc(b.servers, isFirst):
		return "none of its servers but backups has an address that can be used"
	}
	// The key is for the first load balancer and those that list no server. If the first was not carried over, the peers
	// are written out.
	first := p.LoadBalancers[0]
	isLeading := first == b.LB || len(p.balancers) > 0 && p.balancers[0].LB == first
	if first.PeersAsBackends && b.PeersAsBackends && isLeading {
		p.peersAsBackends = true
	}
	p.scaleWeights(b)
	if !slices.ContainsFunc(b.servers, isFirst) {
		p.Advise(b.LB, b.Statement, "all its servers are backups; became ordinary ones")
		for i := range b.servers {
			b.servers[i].Backup = false
		}
	}
	p.limitBackups(b)
	if !b.MaxFails.Set && (b.scheduler == "first" || slices.ContainsFunc(b.servers, isBackup)) {
		b.MaxFails = draft.Number{Set: true} // who serves at a time is decided by checks alone
	}
	if b.Queue.Set && !b.limited() {
		p.Moot(nil, b.QueueAt, "nobody queues, because no server has maxconn")
	}
	if !p.worker && b.everywhere && p.portInUse(b) {
		b.everywhere = false
		p.Note(b.LB, b.Statement, "is served on the virtual addresses only, "+
			"because servers on the peers have the same port")
	}
	if b.everywhere {
		b.listen = nil
	}
	return ""
}

// limitBackups keeps all backups but one from serving where the files mean that: with one server before them, that is
// scheduler first; otherwise only one backup is carried over.
func (p *plan) limitBackups(b *balancer) {
	var backups, others int
	for _, srv := range b.servers {
		switch {
		case srv.Backup:
			backups++
		case !srv.Weight.Set || srv.Weight.Value > 0:
			others++
		}
	}
	switch {
	case !b.OneBackup || backups < 2:
	case others < 2:
		b.scheduler = "first"
		b.Retries = draft.Number{Set: true} // would go to the next backup
		p.Advise(b.LB, b.Statement, "has scheduler: first and retries: 0, because one server serves at a time, and of the "+
			"backups the first that lives")
	default:
		seen := false
		b.servers = slices.DeleteFunc(b.servers, func(srv draft.ServerEntry) bool {
			extra := srv.Backup && seen
			seen = seen || srv.Backup
			if extra {
				p.Note(b.LB, srv.Statement, "was left out, because only the first backup that lives serves in haproxy, "+
					"and here all would; add it if they may serve at once")
			}
			return extra
		})
	}
}

// addServer adds a server to b, unless it cannot be one.
func (p *plan) addServer(b *balancer, srv draft.ServerEntry) {
	if srv.Port == 0 {
		srv.Port = b.port
	}
	isPeerPort := slices.ContainsFunc(p.peers, func(one draft.PeerDraft) bool {
		return one.Addr == srv.Addr && (one.Port == srv.Port || one.Port == 0 && srv.Port == peerPort)
	})
	at := net.JoinHostPort(srv.Where(), strconv.Itoa(int(srv.Port)))
	isSame := func(other draft.ServerEntry) bool { return other.Where() == srv.Where() && other.Port == srv.Port }
	switch {
	case slices.Contains(p.vips, srv.Addr):
		p.Note(b.LB, srv.Statement, "%s is a virtual address, so connections would go in circles; "+
			"write the server's own address", srv.Addr)
		return
	case !p.worker && isPeerPort:
		p.Note(b.LB, srv.Statement, "%s is where that peer talks to the group; write another port here, or group.port", at)
		return
	case srv.Host == "" && !p.isElsewhere(srv) && p.isOurs(b, srv):
		p.Note(b.LB, srv.Statement, "%s is another load balancer of these files, which is served on the virtual addresses "+
			"alone now; was left out: write the servers of that one", at)
		return
	case slices.ContainsFunc(b.servers, isSame):
		p.Note(b.LB, srv.Statement, "%s is there twice; weight says how much a server gets", at)
		return
	}
	isNamesake := func(other draft.ServerEntry) bool { return other.Name == srv.Name }
	if !draft.ValidName(srv.Name, maxName) || slices.ContainsFunc(b.servers, isNamesake) {
		srv.Name = ""
	}
	if srv.MaxQueued.Value > 0 && srv.MaxConn.Value == 0 {
		p.Advise(b.LB, srv.Statement, "carried over without maxqueue, which says nothing without maxconn")
		srv.MaxQueued = draft.Number{}
	}
	b.servers = append(b.servers, srv)
}

// isOurs reports whether a server, which is on these machines, is another load balancer that is carried over.
func (p *plan) isOurs(b *balancer, srv draft.ServerEntry) bool {
	isThere := func(at draft.Bind) bool { return at.Port == srv.Port && !at.Virtual && at.Has(srv.Addr) }
	return !srv.Addr.IsLoopback() && slices.ContainsFunc(p.LoadBalancers, func(lb *draft.LB) bool {
		return lb != b.LB && lb.Refused == "" && slices.ContainsFunc(lb.Binds, isThere)
	})
}

// limited reports whether any server limits its connections.
func (b *balancer) limited() bool {
	return slices.ContainsFunc(b.servers, func(srv draft.ServerEntry) bool { return srv.MaxConn.Value > 0 })
}

// portInUse reports whether listening everywhere would be in the way of a server on a peer, or of the group's own port.
func (p *plan) portInUse(b *balancer) bool {
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

// scaleWeights brings weights into our range, and chooses the scheduler that heeds them: all schedulers of haproxy and
// nginx do, of LVS those that begin with w.
func (p *plan) scaleWeights(b *balancer) {
	heaviest := 0
	for _, srv := range b.servers {
		heaviest = max(heaviest, srv.Weight.Value)
	}
	last, uneven := 0, false
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
		uneven = uneven || last != 0 && n != last
		last = n
	}
	if heaviest > draft.MaxWeight {
		p.Advise(b.LB, b.Statement, "weights above %d were made smaller, all by the same factor", draft.MaxWeight)
	}
	if uneven && !b.LVS && slices.Contains([]string{"", "rr", "lc"}, b.scheduler) {
		b.scheduler = "w" + cmp.Or(b.scheduler, "rr")
	}
}

// choosePlane leaves the choice of the data plane to the appliance where the one that the files ask for cannot serve.
func (p *plan) choosePlane(b *balancer) {
	if b.plane == "" || b.everywhere {
		return
	}
	why := ""
	named := func(s draft.ServerEntry) bool { return s.Host != "" }
	for _, is4 := range []bool{true, false} {
		if slices.ContainsFunc(b.servers, named) {
			break // the families of its servers are known when their names are
		}
		clients := slices.ContainsFunc(b.vips, func(a netip.Addr) bool { return a.Is4() == is4 })
		servers := slices.ContainsFunc(b.servers, func(s draft.ServerEntry) bool { return s.Addr.Is4() == is4 })
		if clients != servers {
			why = "virtual addresses and servers are not of the same families"
		}
	}
	if len(b.vips) == 0 {
		why = "user space serves what is no virtual address"
	}
	if b.limited() {
		why = "only user space limits the connections of a server"
	}
	if why != "" {
		p.Advise(b.LB, b.Statement, "no data plane was forced, because %s", why)
		b.plane = ""
	}
}
