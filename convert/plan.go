package convert

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// A plan is a draft of which it is known that our loader takes it.
type plan struct {
	worker, single bool
	// peersAsBackends says it by its key, so that peers who join later count too.
	peersAsBackends bool
	vips            []netip.Addr
	peers           []draft.PeerEntry
	balancers       []*portBalancer
	// hints are for the keys of that name, from nobody's line.
	hints map[string][]string
}

// A portBalancer is a service on one port.
type portBalancer struct {
	*draft.LB
	name, scheduler, plane string
	port                   uint16
	everywhere, virtual    bool // every address, the virtual ones
	listen                 []netip.Addr
	servers                []draft.ServerEntry
}

// peerPort is group.port where nothing is said.
const peerPort = 10000

// plan finds out what belongs together, and holds it against the rules of
// our own loader.
func newPlan(d *draft.Draft, o Addresses) (*plan, error) {
	p := &plan{single: d.Single, hints: map[string][]string{}}
	for _, a := range slices.Concat(o.VIPs, o.Peers) {
		if _, ok := draft.ReadAddr(a.String()); !ok || a.IsLoopback() {
			return nil, fmt.Errorf("%s is not the address of one machine on the network; give such with --vip and --peers", a)
		}
	}
	p.worker = !d.Group && len(o.Peers) == 0
	findPeers(d, p, o)
	if err := findVIPs(d, p, o); err != nil {
		return nil, err
	}
	named := len(p.peers)
	p.peers = slices.DeleteFunc(p.peers, func(one draft.PeerEntry) bool {
		if slices.Contains(p.vips, one.Addr) {
			d.Note(nil, syntax.Statement{Place: one.Place, Words: []string{one.Addr.String()}}, "is a virtual address; write this peer's own address in peers")
			return true
		}
		return false
	})
	// A group of one would hold on every box that has the file.
	if !p.worker && !p.single && (len(p.peers) == 0 || len(p.peers) == 1 && (named > 1 || len(o.Peers) == 0)) {
		return nil, fmt.Errorf("nobody says who the peers are: keepalived needs unicast_src_ip and unicast_peer for that; say it with --peers ADDRESS,ADDRESS,ADDRESS")
	}
	planServices(d, p)
	planAdmin(d, p)
	if len(p.balancers) == 0 && p.worker {
		return nil, fmt.Errorf("%w%s", errNothing, d.FirstReasons())
	}
	if len(p.vips) > draft.MaxList || len(p.peers) > draft.MaxList || len(p.balancers) > draft.MaxList {
		return nil, fmt.Errorf("there are more than %d addresses or load balancers in it; convert fewer files at once", draft.MaxList)
	}
	p.hint()
	return p, nil
}

// planServices makes load balancers of services, and notes those that
// cannot be.
func planServices(d *draft.Draft, p *plan) {
	kept := map[*draft.LB]bool{} // what became part of a load balancer
	for _, s := range d.Services {
		if s.Refused == "" {
			s.Refused = planService(d, p, s)
		}
		if s.Refused != "" {
			continue
		}
		for _, j := range s.Joined {
			kept[j] = true
		}
	}
	for _, s := range d.Services {
		if s.Refused == "" {
			continue
		}
		d.Note(nil, s.Statement, "was not carried over: %s", s.Refused)
		d.NoteRest(s)
		for _, j := range s.Joined {
			if !kept[j] {
				d.Note(nil, j.Statement, "was not carried over with line %d", s.Line)
				d.NoteRest(j)
			}
		}
	}
	if len(p.balancers) == 0 {
		p.hints["loadBalancers"] = append(p.hints["loadBalancers"],
			"No load balancer is in these files, so there is the usual one: port 6443 of the virtual address, over",
			"the peers. For others, convert haproxy.cfg or nginx.conf of the same box together with this file.")
	}
}

// planService adds a load balancer for each port of s, or says why not.
func planService(d *draft.Draft, p *plan, s *draft.LB) string {
	tidyCheck(d, s)
	if why := tidyAccess(s); why != "" {
		return why
	}
	var made []*portBalancer
	for _, b := range s.Binds {
		i := slices.IndexFunc(made, func(one *portBalancer) bool { return one.port == b.Port })
		if i < 0 {
			i = len(made)
			made = append(made, &portBalancer{LB: s, port: b.Port, scheduler: s.Scheduler, plane: s.Plane})
		}
		place(d, p, made[i], b)
	}
	why := "none of its addresses is one that the appliance serves"
	added := 0
	for _, b := range made {
		if !b.everywhere && !b.virtual && len(b.listen) == 0 {
			continue
		}
		if !b.everywhere && !b.virtual && len(p.vips) > 0 {
			d.Advise(s, s.Statement, "is served on the virtual addresses as well, as every load balancer of a node that has some")
		}
		if other := p.onPort(b.port); other != nil {
			why = fmt.Sprintf("port %d is already that of line %s, and load balancers are told apart by port", b.port, other.Place)
			if len(made) > 1 {
				d.Note(s, s.Statement, "%s", why)
			}
			continue
		}
		if reason := planServers(d, p, b); reason != "" {
			why = reason
			continue
		}
		choosePlane(d, p, b)
		b.name = p.freeName(s.Name, b.port)
		p.balancers = append(p.balancers, b)
		added++
	}
	if added == 0 {
		return why
	}
	return ""
}

// place decides what listening at the bind means here.
func place(d *draft.Draft, p *plan, b *portBalancer, at draft.Bind) {
	isPeer := p.hasPeer(at.Addr)
	switch {
	case b.LB.Everywhere:
		b.everywhere = true
	case !at.Addr.IsValid() && p.worker:
		b.everywhere = true
	case !at.Addr.IsValid():
		b.virtual = true
		if !at.Virtual {
			d.Advise(b.LB, at.Statement, "is served on the virtual addresses, which keeps the fast data planes; write bindToVip: false if clients use the nodes' own addresses as well")
		}
	case slices.Contains(p.vips, at.Addr):
		b.virtual = true
	case at.Addr.IsLoopback():
		if !slices.Contains(b.listen, at.Addr) {
			b.listen = append(b.listen, at.Addr)
		}
	case isPeer || slices.Contains(d.Own, at.Addr):
		d.Note(b.LB, at.Statement, "is one node's own address; write bindToVip: false to listen on every address of every node")
	case p.worker:
		if !slices.Contains(b.listen, at.Addr) {
			b.listen = append(b.listen, at.Addr)
		}
	default:
		d.Note(b.LB, at.Statement, "is neither a virtual address nor a peer; add it to vips if it moves between the nodes")
	}
}

func (p *plan) onPort(port uint16) *portBalancer {
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
	if _, number := draft.ReadPort(name); number || len(name) > 50 || name == "" || strings.TrimSpace(name) != name || syntax.Printable(name) != name {
		name = usual
	}
	taken := func(b *portBalancer) bool { return b.name == name }
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
