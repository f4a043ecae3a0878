package nft

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"appliance/balancer"
)

const (
	// directIngressPriority is before the filters that others hang on an
	// interface (0): what they drop or change, they do at the chosen server.
	directIngressPriority nftables.ChainPriority = -300
	// directArrivalPriority is raw: before conntrack (-200), which must not
	// come to know connections that are another node's.
	directArrivalPriority nftables.ChainPriority = -300

	// directSteps is how many priorities the chains of direct go through when
	// they are replaced. The last one still is before conntrack.
	directSteps nftables.ChainPriority = 64

	// slotSeed is part of what all nodes agree on.
	slotSeed = 0x61706c31

	fellowsSet = "fellows"
)

// A link is an interface of this node that a VIP is answered on.
type link struct {
	name  string
	index uint32
	mac   [6]byte
}

// A hop is a backend as this node reaches it.
type hop struct {
	addr netip.AddrPort
	mac  [6]byte
	self bool
}

// A directService is one service with everything that its rules need.
type directService struct {
	frontend netip.AddrPort
	link     link
	slots    []slot
	// preference is what slots were made from.
	preference preference
	// refuse says that nobody gets new connections.
	refuse bool
	hops   map[netip.AddrPort]hop
	// place is where this node stands in the order of addresses, also while it
	// has no backend.
	place netip.AddrPort
}

// A directPlan is all that direct puts into the kernel.
type directPlan struct {
	links    []link
	fellows  [][6]byte
	services []directService
	// passed says why backends in rotation get no new connections all the same.
	passed map[balancer.Target]string
	// handed are the nodes that packets for a frontend are handed on to.
	handed map[netip.AddrPort]map[string]bool
	// nat says that clients on this node may be led to other nodes.
	nat bool
}

func (s directService) family() ipFamily {
	if s.frontend.Addr().Is4() {
		return ipv4()
	}
	return ipv6()
}

// self is the service's backend on this node, if there is one.
func (s directService) self() (hop, bool) {
	for _, h := range s.hops {
		if h.self {
			return h, true
		}
	}
	return hop{}, false
}

// others are the backends on other nodes in a fixed order.
func (s directService) others() []hop {
	var hs []hop
	for _, h := range s.hops {
		if !h.self {
			hs = append(hs, h)
		}
	}
	slices.SortFunc(hs, func(a, b hop) int { return a.addr.Compare(b.addr) })
	return hs
}

// ingress is the table of the netdev family. It moves a client's packet to the
// node that owns its slot, without a look at any state.
func (p directPlan) ingress() table {
	t := table{family: nftables.TableFamilyNetdev, name: directTable}
	t.sets = append(t.sets, p.fellowSet())
	for _, l := range p.links {
		c := chain{name: "ingress_" + chainName(l.name), hook: &hook{
			kind:     nftables.ChainTypeFilter,
			num:      *nftables.ChainHookIngress,
			priority: directIngressPriority, steps: directSteps,
			device: l.name,
		}}
		c.rules = append(c.rules,
			rule{"flooded or tapped, for another host", concat(notToThisHost(), verdict(expr.VerdictAccept))},
			rule{"a path probe has been seen by its socket", concat(pathProbe(), verdict(expr.VerdictDrop))},
			rule{"forwarded by a fellow node already", concat(fromFellow(false), verdict(expr.VerdictAccept))},
		)
		for _, s := range p.services {
			if s.link.name != l.name {
				continue
			}
			c.rules = append(c.rules,
				rule{"clients of " + s.frontend.String(), concat(s.whole(), s.toFrontend(), gotoChain("slot_"+name(s.frontend)))},
				rule{"path MTU of clients of " + s.frontend.String(), concat(s.errorAbout(), gotoChain("error_"+name(s.frontend)))},
			)
		}
		t.chains = append(t.chains, c)
	}
	for _, s := range p.services {
		s.addIngress(&t)
	}
	return t
}

func (s directService) addIngress(t *table) {
	f, n := s.family(), name(s.frontend)
	slots := chain{name: "slot_" + n}
	if s.refuse {
		slots.rules = append(slots.rules, rule{"no backend takes new connections", concat(tcpSYN(), []expr.Any{resetTCP()})})
	}
	if len(s.hops) == 0 {
		slots.rules = append(slots.rules, rule{"no backend has open connections", []expr.Any{resetTCP()}})
	}
	errs := chain{name: "error_" + n}
	if len(s.hops) > 0 {
		slots.rules = append(slots.rules,
			rule{"handed on by a fellow that has a new card", concat(f.sealed(expr.CmpOpEq), verdict(expr.VerdictAccept))},
			rule{"to the owner of the slot", concat(f.client(), s.lookup("slots_"+n))},
		)
		errs.rules = append(errs.rules, rule{"to the owner of the slot", concat(f.embeddedClient(), s.lookup("slots_"+n))})
		s.addSlots(t, "slots_"+n, func(slot slot) (expr.Verdict, bool) {
			h := s.hops[slot.target()]
			if h.self {
				return expr.Verdict{Kind: expr.VerdictAccept}, true
			}
			return expr.Verdict{Kind: expr.VerdictGoto, Chain: "to_" + n + "_" + name(h.addr)}, true
		})
	}
	// Whatever ends here has met a table that was replaced under its feet. A
	// lost packet is sent again; one that reaches the wrong server is reset.
	slots.rules = append(slots.rules, rule{"never to the wrong server", verdict(expr.VerdictDrop)})
	t.chains = append(t.chains, slots, errs)
	for _, h := range s.others() {
		t.chains = append(t.chains, chain{name: "to_" + n + "_" + name(h.addr), rules: []rule{{
			// The source becomes ours: switches keep seeing the client where it
			// is, and the receiver sees that the packet has been forwarded.
			"out again, to " + net.HardwareAddr(h.mac[:]).String(),
			[]expr.Any{
				&expr.Immediate{Register: reg1, Data: append(slices.Clone(h.mac[:]), s.link.mac[:]...)},
				&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: reg1, Base: expr.PayloadBaseLLHeader, Offset: 0, Len: 12},
				&expr.Immediate{Register: reg1, Data: native(s.link.index)},
				&expr.Dup{RegDev: reg1, IsRegDevSet: true},
				&expr.Verdict{Kind: expr.VerdictDrop},
			},
		}}})
	}
}

// arrival is the table of one IP family. What arrives here and belongs to
// somebody else goes on from here; see next. The table also serves clients on
// this node itself: by what the kernel does anyway, while the node's own
// backends are in rotation.
func (p directPlan) arrival(f ipFamily) table {
	t := table{family: nftables.TableFamilyIPv4, name: directTable}
	if f.proto == unix.NFPROTO_IPV6 {
		t.family = nftables.TableFamilyIPv6
	}
	t.sets = append(t.sets, p.fellowSet())
	arrive := chain{name: "arrive", hook: &hook{
		kind: nftables.ChainTypeFilter, num: *nftables.ChainHookPrerouting, priority: directArrivalPriority, steps: directSteps,
	}}
	var services []directService
	for _, s := range p.services {
		if f.has(s.frontend.Addr()) {
			services = append(services, s)
		}
	}
	for _, s := range services {
		arrive.rules = append(arrive.rules, rule{"arrived for " + s.frontend.String(),
			concat(s.fromLink(expr.CmpOpEq), s.toFrontend(), gotoChain("have_"+name(s.frontend)))})
	}
	for _, s := range services {
		if self, ok := s.servesHere(); ok && !p.nat {
			arrive.rules = append(arrive.rules, rule{"clients here of " + s.frontend.String(),
				concat(s.fromLink(expr.CmpOpNeq), s.toFrontend(), tcpSYN(), s.count(&t, self))})
		}
	}
	t.chains = append(t.chains, arrive)
	for _, s := range services {
		s.addArrival(&t)
	}
	if p.nat {
		addLocal(&t, f, services)
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

// The number of times that a packet was handed on stands in its DSCP, in code
// points for local use: pool 2, xxxx11 (RFC 2474 section 6). A client that
// sends such ones itself is asked for less often. The DSCP is in bits 8 to 13
// of IPv4 (RFC 2474 section 3), and in bits 4 to 9 of IPv6 (RFC 8200 section 7).

func (f ipFamily) dscp(n int) (mask, value []byte) {
	shift := 2
	if f.proto == unix.NFPROTO_IPV6 {
		shift = 6
	}
	return binaryutil.BigEndian.PutUint16(0x3f << shift), binaryutil.BigEndian.PutUint16(uint16(n<<2|3) << shift)
}

// handedOn matches packets that were handed on n times.
func (f ipFamily) handedOn(n int) []expr.Any {
	mask, value := f.dscp(n)
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: 0, Len: 2},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 2, Mask: mask, Xor: []byte{0, 0}},
		equal(reg1, value...),
	}
}

func (f ipFamily) markHandedOn(n int) []expr.Any {
	mask, value := f.dscp(n)
	for i := range mask {
		mask[i] = ^mask[i]
	}
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: 0, Len: 2},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 2, Mask: mask, Xor: value},
		f.writeHeader(0),
	}
}

// A packet that was handed on is sealed besides: its sender is a fellow, even
// if nobody knows that fellow's new MAC address yet. Were it taken for a
// client's, it would begin its round once more, and end it, on a count that is
// used up, at a node that does not know the connection. The seal is where a
// receiver looks for nothing: in the ID of an IPv4 packet that is not to be
// fragmented, as those handed on are (RFC 6864 section 4.1), and in the second
// half of IPv6's flow label (RFC 8200 section 3). Of clients' packets one in
// 65,536 has it by chance; that one begins its round at the holder.
const sealValue = 0x6170

func (f ipFamily) sealOffset() uint32 {
	if f.proto == unix.NFPROTO_IPV6 {
		return 2
	}
	return 4
}

// sealed compares what stands in the place of the seal with it.
func (f ipFamily) sealed(op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: f.sealOffset(), Len: 2},
		&expr.Cmp{Op: op, Register: reg1, Data: binaryutil.BigEndian.PutUint16(sealValue)},
	}
}

func (f ipFamily) seal() []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: reg1, Data: binaryutil.BigEndian.PutUint16(sealValue)},
		f.writeHeader(f.sealOffset()),
	}
}

// writeHeader writes two bytes of reg1 into the IP header.
func (f ipFamily) writeHeader(offset uint32) *expr.Payload {
	write := &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 2}
	if f.proto == unix.NFPROTO_IPV4 {
		write.CsumType, write.CsumOffset = expr.CsumTypeInet, 10 // RFC 791 section 3.1
	}
	return write
}

// mostKinds is up to how many kinds of slots have chains of their own: five
// backends have at most 120.
const mostKinds = 128

// addSlots adds a map of that name from slot to verdict. Slots for which choose
// has none lead nowhere; it reports whether any leads somewhere.
//
// The map itself says only of which kind a slot is, which depends on who is
// configured and not on who is alive, and a chain for each kind says what choose
// does. So a backend that dies changes a few rules instead of thousands of
// elements: see keeper.rewrite. Where there are too many kinds, the map has the
// verdicts.
func (s directService) addSlots(t *table, name string, choose func(slot) (expr.Verdict, bool)) (leads bool) {
	if len(s.hops) == 0 {
		return false
	}
	if s.preference.kinds > mostKinds {
		m := slotMap(name)
		for i, slot := range s.slots {
			if v, ok := choose(slot); ok {
				m.elements = append(m.elements, nftables.SetElement{Key: native(uint32(i)), VerdictData: &v})
			}
		}
		if len(m.elements) > 0 {
			t.sets = append(t.sets, m)
		}
		return len(m.elements) > 0
	}
	t.sets = append(t.sets, s.preference.jump(name))
	seen := make([]bool, s.preference.kinds)
	for _, slot := range s.slots {
		if seen[slot.kind] {
			continue
		}
		seen[slot.kind] = true
		c := chain{name: kindChain(name, slot.kind)}
		if v, ok := choose(slot); ok {
			leads = true
			c.rules = []rule{{fmt.Sprint("slots of kind ", slot.kind), []expr.Any{&v}}}
		}
		t.chains = append(t.chains, c)
	}
	return leads
}

// jump is the map of that name from slot to the chain of its kind.
func (p preference) jump(name string) set {
	if m, ok := p.jumps[name]; ok {
		return m
	}
	verdicts := make([]*expr.Verdict, p.kinds)
	for kind := range verdicts {
		verdicts[kind] = &expr.Verdict{Kind: expr.VerdictJump, Chain: kindChain(name, kind)}
	}
	m := slotMap(name)
	for i, kind := range p.kind {
		m.elements = append(m.elements, nftables.SetElement{Key: native(uint32(i)), VerdictData: verdicts[kind]})
	}
	p.jumps[name] = m.summed()
	return p.jumps[name]
}

func slotMap(name string) set {
	return set{name: name, key: nftables.TypeMark, data: nftables.TypeVerdict}
}

func kindChain(slotMap string, kind int) string { return slotMap + "_" + strconv.Itoa(kind) }

// lookup goes where the map says for the slot of the client in reg1 and
// portReg.
func (s directService) lookup(slotMap string) []expr.Any {
	return []expr.Any{
		&expr.Hash{
			SourceRegister: reg1, DestRegister: reg1,
			// The address and the word that the port is padded to.
			Length:  s.family().addrLen + 4,
			Modulus: uint32(len(s.slots)),
			Seed:    slotSeed,
			Type:    expr.HashTypeJenkins,
		},
		inMap(slotMap, regVerdict),
	}
}

func (p directPlan) fellowSet() set {
	s := set{name: fellowsSet, key: nftables.TypeEtherAddr}
	for _, mac := range p.fellows {
		s.elements = append(s.elements, nftables.SetElement{Key: slices.Clone(mac[:])})
	}
	return s
}

// chainName is an interface's name as part of a chain's. Only VLANs (eth0.5)
// and aliases bring characters that nft would not take back.
func chainName(ifname string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, ifname)
}
