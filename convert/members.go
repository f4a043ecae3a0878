package convert

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"appliance/convert/draft"
)

// findPeers finds the members of the group: those that were given, or else those that the files name, or else the
// servers, if nothing speaks against it.
func (p *plan) findPeers(given Addresses) {
	if len(given.Peers) > 0 {
		for _, a := range given.Peers {
			p.addPeer(draft.PeerDraft{Addr: a})
		}
		return
	}
	for _, one := range p.Peers {
		p.addPeer(one)
	}
	p.hint("peers", p.PeerHint...)
	if p.worker || p.Single {
		return
	}
	if len(p.peers) > 1 {
		if len(p.Own) == 0 && !p.AllNamed && p.Peers[0].ID == "" {
			p.hint("peers", "The file names the other boxes only: add this one's own address.")
		}
		return
	}
	named := p.peers
	p.peers = nil
	// As kubeadm lays it out: keepalived by multicast, on the nodes behind haproxy. A wrong guess is harmless: a box that
	// is not in the list does not start.
	for _, lb := range p.LoadBalancers {
		byName := func(srv draft.ServerEntry) bool { return srv.Host != "" }
		if lb.Refused != "" || len(lb.Servers) < 2 || slices.ContainsFunc(lb.Servers, byName) {
			continue
		}
		for _, srv := range lb.Servers {
			if !srv.Backup {
				p.addPeer(draft.PeerDraft{Place: srv.Place, Addr: srv.Addr})
			}
		}
		isOther := func(a netip.Addr) bool { return !p.hasPeer(a) }
		if slices.ContainsFunc(named, func(one draft.PeerDraft) bool { return isOther(one.Addr) }) ||
			slices.ContainsFunc(p.Own, isOther) {
			break // this box is not among them
		}
		p.hint("peers",
			"Nobody says who the peers are (keepalived's multicast needs no list), so these are the servers behind",
			"the load balancer, as kubeadm lays it out. If other boxes hold the virtual address, write theirs instead.")
		return
	}
	p.peers = named
}

func (p *plan) hasPeer(a netip.Addr) bool {
	return slices.ContainsFunc(p.peers, func(one draft.PeerDraft) bool { return slices.Contains(one.Addrs(), a) })
}

// addPeer adds a peer, unless it is there or on loopback.
func (p *plan) addPeer(one draft.PeerDraft) {
	for _, other := range p.peers {
		if slices.Contains(other.Addrs(), one.Addr) || one.ID != "" && other.ID == one.ID {
			return
		}
	}
	if !draft.ValidName(one.ID, maxName) || strings.Contains(one.ID, "=") {
		one.ID = ""
	}
	if !one.Addr.IsLoopback() {
		p.peers = append(p.peers, one)
	}
}

// checkPeers removes peers that are virtual addresses, and wants enough of them for a group.
func (p *plan) checkPeers(given Addresses) error {
	named, wrong := len(p.peers), ""
	p.peers = slices.DeleteFunc(p.peers, func(one draft.PeerDraft) bool {
		isVIP := slices.ContainsFunc(one.Addrs(), func(a netip.Addr) bool { return slices.Contains(p.vips, a) })
		if isVIP && one.Line == 0 { // it was given
			wrong = cmp.Or(wrong, one.Addr.String())
		} else if isVIP {
			p.Note(nil, headOf(one.Place, one.Addr.String()),
				"is a virtual address; write this peer's own address in peers")
		}
		return isVIP
	})
	if wrong != "" {
		return fmt.Errorf("%s is given as a peer and is a virtual address; give each peer's own address with --peers", wrong)
	}
	// A group of one would hold on every box that has the file.
	alone := len(p.peers) == 0 || len(p.peers) == 1 && (named > 1 || len(given.Peers) == 0)
	if alone && !p.worker && !p.Single {
		return errors.New("nobody says who the peers are: keepalived needs unicast_src_ip and unicast_peer for that; " +
			"say it with --peers ADDRESS,ADDRESS,ADDRESS")
	}
	return nil
}

// findVIPs finds the virtual addresses: those that were given, or else those of keepalived and kube-vip, or else those
// on which the load balancers of a group listen.
func (p *plan) findVIPs(given Addresses) error {
	p.interfaces = map[netip.Addr]string{}
	for _, v := range p.VIPs {
		p.interfaces[v.Addr] = cmp.Or(v.Interface, p.Interface)
	}
	add := func(a netip.Addr) {
		if a.IsValid() && !slices.Contains(p.vips, a) && !a.IsLoopback() && !slices.Contains(p.OnLo, a) {
			p.vips = append(p.vips, a)
		}
	}
	if len(given.VIPs) > 0 {
		for _, a := range given.VIPs {
			add(a)
		}
		return nil
	}
	addBinds := func(which func(lb *draft.LB, a netip.Addr) bool) {
		for _, lb := range p.LoadBalancers {
			for _, b := range lb.Binds {
				if lb.Refused == "" && which(lb, b.Addr) {
					add(b.Addr)
				}
			}
		}
	}
	for _, v := range p.VIPs {
		add(v.Addr)
	}
	if len(p.vips) == 0 { // the kernel balances at addresses that the machine has
		addBinds(func(lb *draft.LB, _ netip.Addr) bool { return lb.LVS })
	}
	if p.worker || len(p.vips) > 0 {
		return nil
	}
	addBinds(func(_ *draft.LB, a netip.Addr) bool { return !p.hasPeer(a) && !slices.Contains(p.Own, a) })
	if len(p.vips) == 0 {
		for _, lb := range p.LoadBalancers {
			if lb.Refused != "" {
				p.Note(nil, lb.Statement, draft.NotCarried+"%s", lb.Refused)
			}
		}
		return fmt.Errorf("nobody says what the virtual address is; say it with --vip ADDRESS%s", p.FirstReasons())
	}
	p.hint("vips", "The addresses that are listened on. If they are not virtual, write the one that is.")
	return nil
}
