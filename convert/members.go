package convert

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// findPeers finds the members of the group: what flags say, else what the
// files say, else the servers, if nothing speaks against it.
func findPeers(d *draft.Draft, p *plan, o Addresses) {
	if len(o.Peers) > 0 {
		for _, a := range o.Peers {
			p.addPeer(draft.PeerEntry{Addr: a})
		}
		return
	}
	for _, one := range d.Peers {
		p.addPeer(one)
	}
	if p.worker || p.single {
		return
	}
	if len(p.peers) > 1 {
		if len(d.Own) == 0 && d.Peers[0].ID == "" {
			p.hints["peers"] = append(p.hints["peers"], "The file names the other boxes only: add this one's own address.")
		}
		return
	}
	said := p.peers
	p.peers = nil
	// kubeadm's way: keepalived by multicast, on the nodes that haproxy's
	// backends are on. A wrong guess is harmless: a box that is not in the list
	// does not start.
	for _, s := range d.Services {
		if s.Refused != "" || len(s.Servers) < 2 {
			continue
		}
		for _, srv := range s.Servers {
			if !srv.Backup && !srv.Addr.IsLoopback() {
				p.addPeer(draft.PeerEntry{Place: srv.Place, Addr: srv.Addr})
			}
		}
		others := func(one draft.PeerEntry) bool { return !p.hasPeer(one.Addr) }
		if slices.ContainsFunc(said, others) || slices.ContainsFunc(d.Own, func(a netip.Addr) bool { return !p.hasPeer(a) }) {
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
	return slices.ContainsFunc(p.peers, func(one draft.PeerEntry) bool { return one.Addr == a })
}

// addPeer adds one that is not there yet.
func (p *plan) addPeer(one draft.PeerEntry) {
	for _, other := range p.peers {
		if other.Addr == one.Addr || one.ID != "" && other.ID == one.ID {
			return
		}
	}
	if len(one.ID) > 64 || strings.TrimSpace(one.ID) != one.ID || syntax.Printable(one.ID) != one.ID || strings.Contains(one.ID, "=") {
		one.ID = ""
	}
	if one.Addr.IsLoopback() {
		return
	}
	p.peers = append(p.peers, one)
}

// findVIPs finds the virtual addresses: what flags say, else keepalived or
// kube-vip, else where a group's load balancers listen.
func findVIPs(d *draft.Draft, p *plan, o Addresses) error {
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
	for _, v := range d.VIPs {
		add(v.Addr)
	}
	for _, s := range d.Services {
		for _, b := range s.Binds {
			if b.Addr.IsValid() && s.LVS && s.Refused == "" {
				add(b.Addr) // the kernel balances at addresses that the box has
			}
		}
	}
	if p.worker || len(p.vips) > 0 {
		return nil
	}
	for _, s := range d.Services {
		for _, b := range s.Binds {
			isPeer := p.hasPeer(b.Addr)
			if b.Addr.IsValid() && !isPeer && !slices.Contains(d.Own, b.Addr) && s.Refused == "" {
				add(b.Addr)
			}
		}
	}
	if len(p.vips) == 0 {
		return fmt.Errorf("nobody says what the virtual address is; say it with --vip ADDRESS%s", d.FirstReasons())
	}
	p.hints["vips"] = append(p.hints["vips"], "The addresses that are listened on. If they are not virtual, write the one that is.")
	return nil
}
