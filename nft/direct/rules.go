package direct

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"appliance/balancer"
	"appliance/neighbours"
	"appliance/nft/ruleset"
)

const (
	// ingressPriority is before the filters that others have on an interface (0):
	// these drop or change packets at the chosen server.
	ingressPriority nftables.ChainPriority = -300
	// arrivalPriority is raw: before conntrack (-200), which must not see
	// connections of other nodes.
	arrivalPriority nftables.ChainPriority = -300

	// prioritySteps is how many priorities the chains go through when they are
	// replaced. The last one is still before conntrack.
	prioritySteps nftables.ChainPriority = 64

	// slotSeed is part of the hash that all nodes agree on.
	slotSeed = 0x61706c31

	// nodesSet is the set of the MAC addresses of the nodes.
	nodesSet = "fellows"
)

// A hop is a backend as this node reaches it.
type hop struct {
	addr netip.AddrPort
	mac  [6]byte
	self bool
	on   neighbours.Link // where mac is
}

// A service has everything that the rules of one service need. Services of one load balancer that differ in nothing but
// the VIP are one: their rules would be the same.
type service struct {
	frontends []netip.AddrPort // sorted, of one family and port
	link      neighbours.Link
	tunnel    neighbours.Link // by which packets come, too; none if its index is 0
	slots     table
	// preference is what the slots were made from.
	preference preference
	// reject says that nobody gets new connections.
	reject bool
	hops   map[netip.AddrPort]hop
	// position is where this node is in the order of addresses, even without a
	// backend.
	position netip.AddrPort
}

// A rulePlan is all that the plane puts into the kernel.
type rulePlan struct {
	links    []neighbours.Link
	nodeMACs [][6]byte
	services []service
	// passedOver says why backends in rotation get no new connections.
	passedOver map[balancer.Target]string
	// handsTo are the nodes to which packets for a frontend are handed on.
	handsTo map[netip.AddrPort]map[string]bool
	// carries is how long a packet may be for the tunnel.
	carries int
	// nat says that clients on this node may be translated to other nodes.
	nat bool
	// defrag has fragments of clients' packets put together before they go anywhere.
	defrag *ruleset.Defragmenter
}

// name is part of the names of chains and sets.
func (s service) name() string { return ruleset.NameOf(s.frontends[0]) }

func (s service) port() uint16 { return s.frontends[0].Port() }

func (s service) String() string {
	if n := len(s.frontends); n > 1 {
		return fmt.Sprintf("%v and %d more", s.frontends[0], n-1)
	}
	return s.frontends[0].String()
}

// isVIP matches the address in reg1 if it is a VIP of the service.
func (s service) isVIP() expr.Any {
	if len(s.frontends) == 1 {
		return ruleset.Equal(reg1, s.frontends[0].Addr().AsSlice()...)
	}
	return ruleset.InSet(s.vips())
}

func (s service) vips() string { return "vips_" + s.name() }

// addVIPs adds the set that isVIP looks at.
func (s service) addVIPs(t *ruleset.Table) {
	if len(s.frontends) == 1 {
		return
	}
	set := ruleset.Set{Name: s.vips(), Key: s.family().AddrType}
	for _, f := range s.frontends {
		set.Elements = append(set.Elements, nftables.SetElement{Key: f.Addr().AsSlice()})
	}
	t.Sets = append(t.Sets, set)
}

// self is the service's backend on this node, if there is one.
func (s service) self() (hop, bool) {
	for _, h := range s.hops {
		if h.self {
			return h, true
		}
	}
	return hop{}, false
}

// others are the backends on other nodes, sorted by address.
func (s service) others() []hop {
	var hs []hop
	for _, h := range s.hops {
		if !h.self {
			hs = append(hs, h)
		}
	}
	slices.SortFunc(hs, func(a, b hop) int { return a.addr.Compare(b.addr) })
	return hs
}

// ingress is the table of the netdev family. It moves a client's packet to the node
// that owns its slot, without a look at any state.
func (p rulePlan) ingress() ruleset.Table {
	t := ruleset.Table{Family: nftables.TableFamilyNetdev, Name: ruleset.DirectTable}
	t.Sets = append(t.Sets, p.nodeSet())
	for _, l := range p.links {
		c := ruleset.Chain{Name: "ingress_" + ruleset.LinkName(l.Name), Hook: &ruleset.BaseHook{
			Kind:     nftables.ChainTypeFilter,
			Num:      *nftables.ChainHookIngress,
			Priority: ingressPriority, Steps: prioritySteps,
			Device: l.Name,
		}}
		c.Add("flooded or tapped, for another host", notToThisHost(), accept())
		c.Add("a path probe has been seen by its socket", pathProbe(), ruleset.Verdict(expr.VerdictDrop))
		c.Add("forwarded by another node already", fromNode(false), accept())
		on := slices.DeleteFunc(slices.Clone(p.services), func(s service) bool { return s.link.Name != l.Name })
		for _, f := range ruleset.Families() {
			name := f.Name + "_" + ruleset.LinkName(l.Name)
			if clients := dispatch("clients"+name, f, on, "slot_"); len(clients.Elements) > 0 {
				quoted := dispatch("quoted"+name, f, on, "error_")
				t.Sets = append(t.Sets, clients, quoted)
				c.Add("clients of a VIP", family{f}.unfragmented(), ruleset.TCP(), f.DstAddrPort(), leadsTo(clients))
				c.Add("path MTU of clients of a VIP", family{f}.quotesTCP(), family{f}.quotedFrontend(), leadsTo(quoted))
			}
		}
		t.Chains = append(t.Chains, c)
	}
	for _, s := range p.services {
		s.addIngress(&t)
	}
	return t
}

// dispatch is the map from the frontends of services to their chains, so that a packet is looked up once, however many
// services there are.
func dispatch(name string, f ruleset.IPFamily, services []service, chains string) ruleset.Set {
	m := ruleset.Set{Name: name, Key: f.AddrPortType(), Data: nftables.TypeVerdict}
	for _, s := range services {
		for _, at := range s.frontends {
			if f.Has(at.Addr()) {
				m.Elements = append(m.Elements, ruleset.GotoElement(ruleset.AddrPortKey(at), chains+s.name()))
			}
		}
	}
	return m
}

// leadsTo goes where the map says for the key in reg1, and does not match if it says nothing.
func leadsTo(m ruleset.Set) []expr.Any { return []expr.Any{ruleset.InMap(m.Name, ruleset.RegVerdict)} }

func (s service) addIngress(t *ruleset.Table) {
	f, n := s.family(), s.name()
	slots := ruleset.Chain{Name: "slot_" + n}
	if s.reject {
		slots.Add("no backend takes new connections", ruleset.SYN(), []expr.Any{ruleset.Reset()})
	}
	if len(s.hops) == 0 {
		slots.Add("no backend has open connections", []expr.Any{ruleset.Reset()})
	}
	errs := ruleset.Chain{Name: "error_" + n}
	if len(s.hops) > 0 {
		slots.Add("handed on by a node that has a new card", f.sealed(expr.CmpOpEq), accept())
		slots.Add("to the owner of the slot", f.SrcAddrPort(), s.lookup("slots_"+n))
		errs.Add("to the owner of the slot", f.quotedClient(), s.lookup("slots_"+n))
		s.addSlots(t, "slots_"+n, func(slot slot) (expr.Verdict, bool) {
			h := s.hops[slot.target()]
			if h.self {
				return expr.Verdict{Kind: expr.VerdictAccept}, true
			}
			return expr.Verdict{Kind: expr.VerdictGoto, Chain: "to_" + n + "_" + ruleset.NameOf(h.addr)}, true
		})
	}
	// A packet that gets here was in a table while that was replaced. A lost packet
	// is sent again; a packet that reaches the wrong server is answered by a reset.
	slots.Add("never to the wrong server", ruleset.Verdict(expr.VerdictDrop))
	t.Chains = append(t.Chains, slots, errs)
	for _, h := range s.others() {
		// The source becomes this node's: switches keep seeing the client where it
		// is, and the receiver sees that the packet has been forwarded.
		t.Chains = append(t.Chains, ruleset.Chain{Name: "to_" + n + "_" + ruleset.NameOf(h.addr),
			Rules: []ruleset.Rule{ruleset.NewRule("out again, to "+net.HardwareAddr(h.mac[:]).String(), []expr.Any{
				&expr.Immediate{Register: reg1, Data: append(slices.Clone(h.mac[:]), h.on.MAC[:]...)},
				&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: reg1, Base: expr.PayloadBaseLLHeader,
					Offset: 0, Len: 12},
				&expr.Immediate{Register: reg1, Data: ruleset.Native(h.on.Index)},
				&expr.Dup{RegDev: reg1, IsRegDevSet: true},
				&expr.Verdict{Kind: expr.VerdictDrop},
			})}})
	}
}

// arrival is the table of one IP family. A packet that arrives here and belongs to
// another node goes on from here; see next. The table also serves clients on this
// node itself; while the node's own backends are in rotation, the kernel does this
// without a rule.
func (p rulePlan) arrival(f ruleset.IPFamily) ruleset.Table {
	t := ruleset.Table{Family: nftables.TableFamily(f.Proto), Name: ruleset.DirectTable}
	t.Sets = append(t.Sets, p.nodeSet())
	arrive := ruleset.Chain{Name: "arrive", Hook: &ruleset.BaseHook{
		Kind: nftables.ChainTypeFilter, Num: *nftables.ChainHookPrerouting, Priority: arrivalPriority, Steps: prioritySteps,
	}}
	var services []service
	for _, s := range p.services {
		if f.Has(s.frontends[0].Addr()) {
			services = append(services, s)
		}
	}
	for _, l := range linksOf(services) {
		arrived := dispatch("arrived_"+ruleset.LinkName(l.Name), f, slices.DeleteFunc(slices.Clone(services),
			func(s service) bool { return !slices.Contains(s.links(), l) }), "have_")
		t.Sets = append(t.Sets, arrived)
		arrive.Add("arrived for a VIP", from(l, expr.CmpOpEq), ruleset.TCP(), f.DstAddrPort(), leadsTo(arrived))
	}
	if here := dispatch("here", f, services, "here_"); len(here.Elements) > 0 && !p.nat {
		t.Sets = append(t.Sets, here)
		arrive.Add("clients here of a VIP", ruleset.TCP(), ruleset.SYN(), f.DstAddrPort(), leadsTo(here))
		for _, s := range services {
			c := ruleset.Chain{Name: "here_" + s.name()}
			if self, ok := s.localBackend(); ok {
				c.Add("counted", s.fromElsewhere(), s.count(&t, self))
			}
			t.Chains = append(t.Chains, c)
		}
	}
	t.Chains = append(t.Chains, arrive)
	if len(services) > 0 {
		family{f}.addMeter(&t, services)
	}
	for _, s := range services {
		if p.nat || s.tunnel.Index != 0 {
			s.addVIPs(&t)
		}
		s.addArrival(&t)
	}
	p.clampMSS(&t, f, services)
	if p.nat {
		addLocalClients(&t, f, services)
	}
	if p.defrag != nil && len(services) > 0 {
		p.defrag.AddTo(&t)
	}
	return t
}

// target is where a packet of the slot goes first.
func (s slot) target() netip.AddrPort {
	if !s.owner.IsValid() && len(s.ring) > 0 {
		return s.ring[0]
	}
	return s.owner
}

func (p rulePlan) nodeSet() ruleset.Set {
	s := ruleset.Set{Name: nodesSet, Key: nftables.TypeEtherAddr}
	for _, mac := range p.nodeMACs {
		s.Elements = append(s.Elements, nftables.SetElement{Key: slices.Clone(mac[:])})
	}
	return s
}
