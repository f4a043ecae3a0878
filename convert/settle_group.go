package convert

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// settlePeers finds the members of the group: what flags say, else what the
// files say, else the servers, if nothing speaks against it.
func (d *draft) settlePeers(p *plan, o Options) {
	if len(o.Peers) > 0 {
		for _, a := range o.Peers {
			p.addPeer(peer{addr: a})
		}
		return
	}
	for _, one := range d.peers {
		p.addPeer(one)
	}
	if p.worker || p.single {
		return
	}
	if len(p.peers) > 1 {
		if len(d.own) == 0 && d.peers[0].id == "" {
			p.hints["peers"] = append(p.hints["peers"], "The file names the other boxes only: add this one's own address.")
		}
		return
	}
	said := p.peers
	p.peers = nil
	// kubeadm's way: keepalived by multicast, on the nodes that haproxy's
	// backends are on. A wrong guess is harmless: a box that is not in the list
	// does not start.
	for _, s := range d.services {
		if s.refused != "" || len(s.servers) < 2 {
			continue
		}
		for _, srv := range s.servers {
			if !srv.backup && !srv.addr.IsLoopback() {
				p.addPeer(peer{place: srv.place, addr: srv.addr})
			}
		}
		others := func(one peer) bool { return !p.hasPeer(one.addr) }
		if slices.ContainsFunc(said, others) || slices.ContainsFunc(d.own, func(a netip.Addr) bool { return !p.hasPeer(a) }) {
			break // this box is not among them
		}
		p.hints["peers"] = append(p.hints["peers"],
			"Nobody says who the peers are (keepalived's multicast needs no list), so these are the servers behind",
			"the load balancer, as kubeadm lays it out. If other boxes hold the virtual address, write theirs instead.")
		return
	}
	p.peers = said
}

func (p *plan) hasPeer(a netip.Addr) bool {
	return slices.ContainsFunc(p.peers, func(one peer) bool { return one.addr == a })
}

// addPeer adds one that is not there yet.
func (p *plan) addPeer(one peer) {
	for _, other := range p.peers {
		if other.addr == one.addr || one.id != "" && other.id == one.id {
			return
		}
	}
	if len(one.id) > 64 || strings.TrimSpace(one.id) != one.id || printable(one.id) != one.id || strings.Contains(one.id, "=") {
		one.id = ""
	}
	if one.addr.IsLoopback() {
		return
	}
	p.peers = append(p.peers, one)
}

// settleVIPs finds the virtual addresses: what flags say, else keepalived or
// kube-vip, else where a group's load balancers listen.
func (d *draft) settleVIPs(p *plan, o Options) error {
	add := func(a netip.Addr) {
		if !slices.Contains(p.vips, a) && !a.IsLoopback() {
			p.vips = append(p.vips, a)
		}
	}
	if len(o.VIPs) > 0 {
		for _, a := range o.VIPs {
			add(a)
		}
		return nil
	}
	for _, v := range d.vips {
		add(v.addr)
	}
	for _, s := range d.services {
		for _, b := range s.binds {
			if b.addr.IsValid() && s.lvs && s.refused == "" {
				add(b.addr) // the kernel balances at addresses that the box has
			}
		}
	}
	if p.worker || len(p.vips) > 0 {
		return nil
	}
	for _, s := range d.services {
		for _, b := range s.binds {
			isPeer := p.hasPeer(b.addr)
			if b.addr.IsValid() && !isPeer && !slices.Contains(d.own, b.addr) && s.refused == "" {
				add(b.addr)
			}
		}
	}
	if len(p.vips) == 0 {
		return fmt.Errorf("nobody says what the virtual address is; say it with --vip ADDRESS%s", d.firstReasons())
	}
	p.hints["vips"] = append(p.hints["vips"], "The addresses that are listened on. If they are not virtual, write the one that is.")
	return nil
}
