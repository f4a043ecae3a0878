package convert

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// A plan is a draft that our loader will take, with what belongs together.
type plan struct {
	*draft.Draft
	worker bool
	// peersAsBackends writes the key, so that peers who join later count too.
	peersAsBackends bool
	vips            []netip.Addr
	interfaces      map[netip.Addr]string // of vips, as far as the files say
	peers           []draft.PeerDraft
	balancers       []*balancer
	// named are the load balancers that listen on an address by name.
	named map[netip.AddrPort][]*draft.LB
	// numbers are the last ones given to names that were taken.
	numbers map[string]int
	// hints are comments for the keys of that name that belong to no line of the files.
	hints map[string][]string
}

// A balancer is a load balancer on one port.
type balancer struct {
	*draft.LB
	name, scheduler, plane string
	port                   uint16
	everywhere             bool // listens on every address
	// closed are all addresses of the family that it does not listen on, where it listens on every address.
	closed []netip.Prefix
	// vips are the virtual addresses that it is served on, listen further addresses of the node.
	vips, listen []netip.Addr
	servers      []draft.ServerEntry
}

const (
	// peerPort is group.port if nobody says another.
	peerPort = 10000
	// maxName is the most bytes of a name or id that our loader takes.
	maxName = 64
)

// errNothing is what remains if nothing can be carried over.
var errNothing = errors.New("there is nothing in it that can be carried over")

var errTooMany = fmt.Errorf("there are more than %d addresses or load balancers in it; convert fewer files at once",
	draft.MaxList)

// newPlan finds out what belongs together and applies the rules of our loader.
func newPlan(d *draft.Draft, given Addresses) (*plan, error) {
	p := &plan{Draft: d, hints: map[string][]string{}, numbers: map[string]int{}}
	for _, a := range slices.Concat(given.VIPs, given.Peers) {
		if _, ok := draft.ReadAddr(a.String()); !ok || a.IsLoopback() {
			return nil, fmt.Errorf("%s is not the address of one machine on the network; give such with --vip and --peers", a)
		}
	}
	p.worker = !d.Group && len(given.Peers) == 0
	p.findPeers(given)
	if err := p.findVIPs(given); err != nil {
		return nil, err
	}
	if err := p.checkPeers(given); err != nil {
		return nil, err
	}
	if len(p.vips) > draft.MaxList || len(p.peers) > draft.MaxList {
		return nil, errTooMany
	}
	p.followChains()
	if err := p.planLoadBalancers(); err != nil {
		return nil, err
	}
	p.planAdmin()
	if len(p.balancers) == 0 && p.worker {
		return nil, fmt.Errorf("%w%s", errNothing, d.FirstReasons())
	}
	p.addHints()
	return p, nil
}

// planLoadBalancers plans what the draft has, and notes the load balancers that cannot be carried over.
func (p *plan) planLoadBalancers() error {
	p.named = map[netip.AddrPort][]*draft.LB{}
	for _, lb := range p.LoadBalancers {
		for _, at := range lb.Binds {
			if at.Addr.IsValid() {
				key := netip.AddrPortFrom(at.Addr, at.Port)
				p.named[key] = append(p.named[key], lb)
			}
		}
	}
	kept := map[syntax.Place]bool{} // what became part of a load balancer, also of one among several
	for _, lb := range p.LoadBalancers {
		if lb.Refused == "" {
			lb.Refused = p.planLoadBalancer(lb)
		}
		if len(p.balancers) > draft.MaxList {
			return errTooMany
		}
		if lb.Refused != "" {
			continue
		}
		for _, part := range lb.Joined {
			kept[part.Place] = true
		}
	}
	for _, lb := range p.LoadBalancers {
		if lb.Refused == "" {
			continue
		}
		p.Note(nil, lb.Statement, draft.NotCarried+"%s", lb.Refused)
		p.NoteRest(lb)
		for _, part := range lb.Joined {
			if !kept[part.Place] {
				p.Note(nil, part.Statement, "was not carried over with line %d", lb.Line)
				p.NoteRest(part)
			}
		}
	}
	if len(p.balancers) == 0 && len(p.LoadBalancers) > 0 {
		alone := ""
		ends := func(lb *draft.LB) bool { return !lb.Stays }
		if p.Group && !slices.ContainsFunc(p.LoadBalancers, ends) {
			alone = "; convert keepalived.conf by itself, if their program is to go on and only the addresses are to move"
		}
		return fmt.Errorf("none of the %d load balancers in these files could be carried over%s%s",
			len(p.LoadBalancers), alone, p.FirstReasons())
	}
	switch {
	case len(p.balancers) > 0 || p.Usual:
	case p.Alone:
		p.hint("loadBalancers",
			"Nothing is balanced in these files, so nothing is here: the virtual addresses move, and lead to the holder's own",
			"servers. Other than with keepalived, each node has them all the time: its servers may listen on them, its own",
			"clients reach its own server there, and what must run on the holder alone has to be started and stopped by hooks.",
			"If haproxy or nginx of these machines is to be replaced as well, convert its file together with this one.")
		return nil
	case !p.worker:
		return fmt.Errorf("nothing in these files is served; convert haproxy.cfg, nginx.conf and keepalived.conf of the same "+
			"machine together, with what they include%s", p.FirstReasons())
	}
	if len(p.balancers) == 0 {
		p.hint("loadBalancers",
			"No load balancer is in these files. THIS FILE BALANCES ALL THE SAME: port 6443 of the virtual addresses, over",
			"the peers, which is what the appliance does if it is told nothing else. If these machines are no control plane",
			"of Kubernetes, write what is to be served, or convert haproxy.cfg or nginx.conf of the same machine together",
			"with this file.")
	}
	return nil
}

// refused is how many load balancers of the files were not carried over.
func (p *plan) refused() (n int) {
	for _, lb := range p.LoadBalancers {
		if lb.Refused != "" {
			n++
		}
	}
	return n
}

// planLoadBalancer adds a balancer for each port of lb, or says why there is none.
func (p *plan) planLoadBalancer(lb *draft.LB) (refused string) {
	p.limitChecks(lb)
	if why := limitAccess(lb); why != "" {
		return why
	}
	var byPort []*balancer
	for _, bind := range lb.Binds {
		i := slices.IndexFunc(byPort, func(b *balancer) bool { return b.port == bind.Port })
		if i < 0 {
			i = len(byPort)
			byPort = append(byPort, &balancer{LB: lb, port: bind.Port, scheduler: lb.Scheduler, plane: lb.Plane})
		}
		p.listen(byPort[i], bind)
	}
	for _, b := range byPort {
		p.closeFamily(b)
	}
	why := "none of its addresses is one that the appliance serves"
	added := false
	for _, b := range byPort {
		p.leaveOthers(b)
		if !b.everywhere && len(b.vips) == 0 && len(b.listen) == 0 {
			continue
		}
		if taken, at := p.taken(b); taken != nil {
			why = fmt.Sprintf("%s is already that of line %s", at, taken.Place)
			if len(byPort) > 1 {
				p.Note(lb, lb.Statement, "%s", why)
			}
			continue
		}
		if reason := p.planServers(b); reason != "" {
			why = reason
			continue
		}
		p.choosePlane(b)
		b.name = p.freeName(lb.Name, b.port)
		p.balancers = append(p.balancers, b)
		added = true
	}
	if added {
		return ""
	}
	return why
}

// taken is the balancer that is served where b would be, and that address and port; nil if there is none.
func (p *plan) taken(b *balancer) (*balancer, string) {
	for _, other := range p.balancers {
		if other.port != b.port {
			continue
		}
		if other.everywhere || b.everywhere {
			return other, fmt.Sprintf("port %d", b.port)
		}
		for _, a := range slices.Concat(b.vips, b.listen) {
			if slices.Contains(other.vips, a) || slices.Contains(other.listen, a) {
				return other, netip.AddrPortFrom(a, b.port).String()
			}
		}
	}
	return nil, ""
}

// leaveOthers takes from b, which listens on every address of a family, those virtual addresses on whose port another
// load balancer listens by name: the kernel gives it the connections there, also if it could not be carried over.
func (p *plan) leaveOthers(b *balancer) {
	b.vips = slices.DeleteFunc(b.vips, func(a netip.Addr) bool {
		by := p.named[netip.AddrPortFrom(a, b.port)]
		return len(by) > 0 && !slices.Contains(by, b.LB)
	})
}

// onAll reports whether b is served on all virtual addresses.
func (p *plan) onAll(b *balancer) bool { return len(b.vips) == len(p.vips) }

// listen decides what listening at the bind means here.
func (p *plan) listen(b *balancer, at draft.Bind) {
	served := false
	for _, a := range p.vips {
		if at.Has(a) {
			served = true
			if !slices.Contains(b.vips, a) {
				b.vips = append(b.vips, a)
			}
		}
	}
	switch {
	case b.Everywhere, !at.Addr.IsValid() && p.worker:
		b.everywhere = true
	case !at.Addr.IsValid() && !served:
		p.Note(b.LB, at.Statement, "has none of the virtual addresses, which are of the other family")
	case !at.Addr.IsValid():
		if !at.Virtual {
			p.Advise(b.LB, at.Statement, "is served on the virtual addresses, which keeps the fast data planes; "+
				"write bindToVip: false if clients use the nodes' own addresses as well")
		}
	case served:
	case !at.Addr.IsLoopback() && (p.hasPeer(at.Addr) || slices.Contains(p.Own, at.Addr)):
		p.Note(b.LB, at.Statement, "is one node's own address; "+
			"write bindToVip: false to listen on every address of every node")
	case at.Addr.IsLoopback() || p.worker:
		if !slices.Contains(b.listen, at.Addr) {
			b.listen = append(b.listen, at.Addr)
		}
	default:
		p.Note(b.LB, at.Statement, "is neither a virtual address nor a peer; "+
			"add it to vips if it moves between the nodes")
	}
}

// closeFamily keeps clients of the family out on whose addresses the files do not listen: ours that listens everywhere
// has both.
func (p *plan) closeFamily(b *balancer) {
	only4, only6 := true, true
	for _, at := range b.Binds {
		if at.Port == b.port && !at.Addr.IsValid() {
			only4, only6 = only4 && at.Only4, only6 && at.Only6
		}
	}
	if !b.everywhere || b.Everywhere || !only4 && !only6 {
		return
	}
	other, family := draft.Everybody()[0], "IPv4"
	if only4 {
		other, family = draft.Everybody()[1], "IPv6"
	}
	ours := func(a netip.Prefix) bool { return a.Addr().Is4() == other.Addr().Is4() }
	switch {
	case len(b.Allow) > 0 && !slices.ContainsFunc(b.Allow, ours): // nobody of that family may come anyway
	case b.AcceptProxy:
		p.Advise(b.LB, b.Statement, "listens on addresses of both families, and deny is about the clients that PROXY headers "+
			"name: write listen in place of bindToVip: false, if no connection may come by %s", family)
	default:
		b.closed = []netip.Prefix{other}
		p.Advise(b.LB, b.Statement, "does not listen for %s, and bindToVip: false does, so its clients are denied; remove "+
			"%s from deny to let them in", family, other)
	}
}

// freeName is name, or one like it, that no other balancer has.
func (p *plan) freeName(name string, port uint16) string {
	const mostWithSuffix = 50
	number := strconv.Itoa(int(port))
	usual := "lb-" + number
	if _, isPort := draft.ReadPort(name); isPort || name == "" || !draft.ValidName(name, mostWithSuffix) {
		name = usual
	}
	taken := func(b *balancer) bool { return b.name == name }
	for _, more := range []string{"-" + number, "-b"} {
		if slices.ContainsFunc(p.balancers, taken) {
			name += more
		}
	}
	for slices.ContainsFunc(p.balancers, taken) {
		p.numbers[usual] = max(p.numbers[usual], 1) + 1 // goes on where the one before ended
		name = usual + "-" + strconv.Itoa(p.numbers[usual])
	}
	return name
}

// hint adds comments for a key.
func (p *plan) hint(key string, lines ...string) { p.hints[key] = append(p.hints[key], lines...) }

// addHints says what follows from the plan as a whole.
func (p *plan) addHints() {
	switch {
	case p.worker:
		p.hint("role",
			"Nobody in these files holds an address for others, so this node balances and is in no group. For a",
			"virtual address remove role, and write vips and peers; or convert again together with keepalived.conf,",
			"or with --vip and --peers.")
	case len(p.peers) == 2:
		p.hint("peers", "Two survive the loss of none: add a third machine, as {address: ..., role: witness} "+
			"if it must never hold.")
	case len(p.peers) == 1 && !p.Single:
		p.hint("peers", "One peer is no group; add the others.")
	}
	if !p.worker && len(p.peers) > 1 {
		p.hint("group", "Make it with `appliance keygen`, and copy it to every peer.")
	}
}

// headOf is a statement that quotes words at a place.
func headOf(at syntax.Place, words string) syntax.Statement {
	return syntax.Statement{Place: at, Words: []string{words}}
}
