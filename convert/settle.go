package convert

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A plan is a draft of which it is known that our loader takes it.
type plan struct {
	worker, single bool
	// peersAsBackends says it by its key, so that peers who join later count too.
	peersAsBackends bool
	vips            []netip.Addr
	peers           []peer
	balancers       []*balancer
	// hints are for the keys of that name, from nobody's line.
	hints map[string][]string
}

// A balancer is a service on one port.
type balancer struct {
	*service
	name, scheduler, plane string
	port                   uint16
	everywhere, virtual    bool // every address, the virtual ones
	listen                 []netip.Addr
	servers                []server
}

// peerPort is group.port where nothing is said.
const peerPort = 10000

// maxList is how many of anything our loader reads.
const maxList = 1000

// settle finds out what belongs together, and holds it against the rules of
// our own loader.
func (d *draft) settle(o Options) (*plan, error) {
	p := &plan{single: d.single, hints: map[string][]string{}}
	for _, a := range slices.Concat(o.VIPs, o.Peers) {
		if _, ok := readAddr(a.String()); !ok || a.IsLoopback() {
			return nil, fmt.Errorf("%s is not the address of one machine on the network; give such with --vip and --peers", a)
		}
	}
	p.worker = !d.group && len(o.Peers) == 0
	d.settlePeers(p, o)
	if err := d.settleVIPs(p, o); err != nil {
		return nil, err
	}
	named := len(p.peers)
	p.peers = slices.DeleteFunc(p.peers, func(one peer) bool {
		if slices.Contains(p.vips, one.addr) {
			d.note(nil, statement{place: one.place, words: []string{one.addr.String()}}, "is a virtual address; write this peer's own address in peers")
			return true
		}
		return false
	})
	// A group of one would hold on every box that has the file.
	if !p.worker && !p.single && (len(p.peers) == 0 || len(p.peers) == 1 && (named > 1 || len(o.Peers) == 0)) {
		return nil, fmt.Errorf("nobody says who the peers are: keepalived needs unicast_src_ip and unicast_peer for that; say it with --peers ADDRESS,ADDRESS,ADDRESS")
	}
	d.settleServices(p)
	d.settleAdmin(p)
	if len(p.balancers) == 0 && p.worker {
		return nil, fmt.Errorf("%w%s", errNothing, d.firstReasons())
	}
	if len(p.vips) > maxList || len(p.peers) > maxList || len(p.balancers) > maxList {
		return nil, fmt.Errorf("there are more than %d addresses or load balancers in it; convert fewer files at once", maxList)
	}
	p.hint()
	return p, nil
}

// settleServices makes load balancers of services, and notes those that
// cannot be.
func (d *draft) settleServices(p *plan) {
	kept := map[*service]bool{} // what became part of a load balancer
	for _, s := range d.services {
		if s.refused == "" {
			s.refused = d.settleService(p, s)
		}
		if s.refused != "" {
			continue
		}
		for _, j := range s.joined {
			kept[j] = true
		}
	}
	for _, s := range d.services {
		if s.refused == "" {
			continue
		}
		d.note(nil, s.statement, "was not carried over: %s", s.refused)
		d.rest(s)
		for _, j := range s.joined {
			if !kept[j] {
				d.note(nil, j.statement, "was not carried over with line %d", s.line)
				d.rest(j)
			}
		}
	}
	if len(p.balancers) == 0 {
		p.hints["loadBalancers"] = append(p.hints["loadBalancers"],
			"No load balancer is in these files, so there is the usual one: port 6443 of the virtual address, over",
			"the peers. For others, convert haproxy.cfg or nginx.conf of the same box together with this file.")
	}
}

// rest notes what was said in a service that was not carried over.
func (d *draft) rest(s *service) {
	for _, n := range d.notes {
		if n.owner == s {
			n.owner = nil
		}
	}
	for _, st := range s.lines {
		if !d.left[st.place] {
			d.within(nil, []statement{st}, s.place, false)
		}
	}
}

// settleService adds a load balancer for each port of s, or says why not.
func (d *draft) settleService(p *plan, s *service) string {
	d.settleCheck(s)
	if why := settleAccess(s); why != "" {
		return why
	}
	var made []*balancer
	for _, b := range s.binds {
		i := slices.IndexFunc(made, func(one *balancer) bool { return one.port == b.port })
		if i < 0 {
			i = len(made)
			made = append(made, &balancer{service: s, port: b.port, scheduler: s.scheduler, plane: s.plane})
		}
		d.place(p, made[i], b)
	}
	why := "none of its addresses is one that the appliance serves"
	added := 0
	for _, b := range made {
		if !b.everywhere && !b.virtual && len(b.listen) == 0 {
			continue
		}
		if !b.everywhere && !b.virtual && len(p.vips) > 0 {
			d.advise(s, s.statement, "is served on the virtual addresses as well, as every load balancer of a node that has some")
		}
		if other := p.onPort(b.port); other != nil {
			why = fmt.Sprintf("port %d is already that of line %s, and load balancers are told apart by port", b.port, other.place)
			if len(made) > 1 {
				d.note(s, s.statement, "%s", why)
			}
			continue
		}
		if reason := d.settleServers(p, b); reason != "" {
			why = reason
			continue
		}
		d.settlePlane(p, b)
		b.name = p.freeName(s.name, b.port)
		p.balancers = append(p.balancers, b)
		added++
	}
	if added == 0 {
		return why
	}
	return ""
}

// place decides what listening at the bind means here.
func (d *draft) place(p *plan, b *balancer, at bind) {
	isPeer := p.hasPeer(at.addr)
	switch {
	case b.service.everywhere:
		b.everywhere = true
	case !at.addr.IsValid() && p.worker:
		b.everywhere = true
	case !at.addr.IsValid():
		b.virtual = true
		if !at.virtual {
			d.advise(b.service, at.statement, "is served on the virtual addresses, which keeps the fast data planes; write bindToVip: false if clients use the nodes' own addresses as well")
		}
	case slices.Contains(p.vips, at.addr):
		b.virtual = true
	case at.addr.IsLoopback():
		if !slices.Contains(b.listen, at.addr) {
			b.listen = append(b.listen, at.addr)
		}
	case isPeer || slices.Contains(d.own, at.addr):
		d.note(b.service, at.statement, "is one node's own address; write bindToVip: false to listen on every address of every node")
	case p.worker:
		if !slices.Contains(b.listen, at.addr) {
			b.listen = append(b.listen, at.addr)
		}
	default:
		d.note(b.service, at.statement, "is neither a virtual address nor a peer; add it to vips if it moves between the nodes")
	}
}

func (p *plan) onPort(port uint16) *balancer {
	for _, b := range p.balancers {
		if b.port == port {
			return b
		}
	}
	return nil
}

// freeName is name, or one like it, that no other load balancer has.
func (p *plan) freeName(name string, port uint16) string {
	usual := "lb-" + strconv.Itoa(int(port))
	if _, number := readPort(name); number || len(name) > 50 || name == "" || strings.TrimSpace(name) != name || printable(name) != name {
		name = usual
	}
	taken := func(b *balancer) bool { return b.name == name }
	for _, more := range []string{"-" + strconv.Itoa(int(port)), "-b"} {
		if slices.ContainsFunc(p.balancers, taken) {
			name += more
		}
	}
	for i := 2; slices.ContainsFunc(p.balancers, taken); i++ {
		name = usual + "-" + strconv.Itoa(i)
	}
	return name
}

// hint says what follows from the plan as a whole.
func (p *plan) hint() {
	say := func(key string, lines ...string) { p.hints[key] = append(p.hints[key], lines...) }
	switch {
	case p.worker:
		say("role",
			"Nobody in these files holds an address for others, so this node balances and is in no group. For a",
			"virtual address remove role, and write vips and peers; or convert again together with keepalived.conf,",
			"or with --vip and --peers.")
	case len(p.peers) == 2:
		say("peers", "Two survive the loss of none: add a third machine, as {address: ..., role: witness} if it must never hold.")
	case len(p.peers) == 1 && !p.single:
		say("peers", "One peer is no group; add the others.")
	}
	if !p.worker && len(p.peers) > 1 {
		say("group", "Make it with `appliance keygen`, and copy it to every peer.")
	}
}

// firstReasons ends an error with what was in the way.
func (d *draft) firstReasons() string {
	var text strings.Builder
	n := 0
	for _, one := range d.notes {
		if one.moot || strings.HasPrefix(one.text, "part of line") {
			continue
		}
		if n++; n > 5 {
			text.WriteString("\n  ...")
			break
		}
		fmt.Fprintf(&text, "\n  %s", one)
	}
	if text.Len() == 0 {
		return ""
	}
	return ":" + text.String()
}
