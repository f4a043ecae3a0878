package direct

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables/expr"

	"appliance/nft/ruleset"
)

// maxHandOns is how often a packet may be handed on.
//
// # The ring
//
// A packet of a connection that a node does not have goes on to another node, so
// that a change of the set of backends breaks no connection of those that stay. So
// does a new connection while no server listens here: a server may restart
// unnoticed.
//
// The first to be asked is the next in the slot's order of preference: a backend
// that comes back finds there what was opened while it was away. From there the
// packet goes on in the order of addresses. A table of four backends is not a table
// of three and one more, so nodes that have read different files disagree about
// preferences; they do not disagree about addresses. If the files differ by one
// backend, all the others are asked, whatever way the packet takes: from the second
// node on, every step goes to the next address that the node knows, so the packet
// skips no address that all know, and there are enough steps for one backend that
// only some know.
//
// The last to be asked is the owner of the slot. After a handshake by SYN cookie,
// which leaves no socket (RFC 4987 section 3.6), nobody has the connection, and the
// owner's listener must answer. It answers a packet that belongs to nobody with a
// reset.
const maxHandOns = ruleset.MostHandOns

// handOns is how often a packet is handed on before it goes to the owner: to the
// preferred node, to all others, and to one more that another node may know.
func (s service) handOns() int { return min(len(s.hops)+1, maxHandOns-1) }

// byAddress says that a round in the order of addresses reaches all. With more
// backends, packets follow the preferences only.
func (s service) byAddress() bool { return len(s.hops) < maxHandOns-1 }

// next is the hop for a packet of a slot that has been handed on n times and belongs
// to no socket here. It returns false if this node answers the packet.
func (s service) next(slot slot, n int) (h hop, ok bool) {
	var to netip.AddrPort
	switch steps := s.handOns(); {
	case n > steps:
		return hop{}, false
	case n == steps:
		to = slot.target()
	case n > 0 && s.byAddress():
		to = s.following()
	default:
		to, _ = slot.after(s.position)
	}
	h, ok = s.hops[to]
	return h, ok && !h.self
}

// following is the backend on another node with the next address after this
// node's own, or the first of all; the zero value if there is none.
func (s service) following() netip.AddrPort {
	others := s.others()
	for _, h := range others {
		if h.addr.Compare(s.position) > 0 {
			return h.addr
		}
	}
	if len(others) == 0 {
		return netip.AddrPort{}
	}
	return others[0].addr
}

// addArrival adds the chains for packets that arrive for the service.
func (s service) addArrival(t *ruleset.Table) {
	f, n := s.family(), s.name()
	have := ruleset.Chain{Name: "have_" + n, Rules: []ruleset.Rule{
		// A listener on this address only hides whether the connection exists. Then
		// this node keeps what it gets.
		ruleset.NewRule("the connection is open here", socket(expr.SocketKeyWildcard), equals(0), accept()),
		ruleset.NewRule("only the listener is here", ruleset.ListenerHere(), ruleset.Goto("lack_"+n)),
		// Neither rule matches a handshake, or a closed connection in TIME-WAIT
		// (RFC 9293).
		ruleset.NewRule("the connection begins or ends here", ruleset.SocketHere(), accept()),
		// There is no listener either: the server has ended, or is about to start, and
		// the checks do not know it yet.
		ruleset.NewRule("nobody is here", ruleset.Goto("absent_"+n)),
	}}
	self, isBackend := s.self()
	lack := ruleset.Chain{Name: "lack_" + n}
	absent := ruleset.Chain{Name: "absent_" + n}
	onward := ruleset.Chain{Name: "onward_" + n, Rules: f.metering()}
	step := func(chain string, count int) func(slot) (expr.Verdict, bool) {
		return func(slot slot) (expr.Verdict, bool) {
			h, ok := s.next(slot, count)
			return expr.Verdict{Kind: expr.VerdictGoto, Chain: chain + n + "_" + ruleset.NameOf(h.addr)}, ok
		}
	}
	owners := s.addSlots(t, "owner_"+n, step("give_", s.handOns()))
	first := s.addSlots(t, "next_"+n, step("hand_", 0))
	// On a bridge, br_netfilter may bring packets here before they reach the ingress
	// hook and the prober's socket.
	astray := []ruleset.Rule{ruleset.NewRule("a path probe is for this node", pathProbe(),
		accept())}
	if owners {
		// A packet straight from a client should have passed the ingress hook. It has
		// not for a moment, while that table is replaced.
		astray = append(astray, ruleset.NewRule("straight from a client, past a missing ingress hook", fromNode(true),
			f.sealed(expr.CmpOpNeq), f.SrcAddrPort(), s.lookup("owner_"+n)))
	}
	lack.Rules = append(lack.Rules, astray...)
	absent.Rules = append(absent.Rules, astray...)
	if isBackend {
		lack.Add("a new connection is counted", ruleset.SYN(), s.count(t, self))
	}
	lack.Add("a new connection is for this node", ruleset.SYN(), accept())
	lack.Add("an open one is not", ruleset.Goto(onward.Name))
	absent.Add("new or open, for somebody else", ruleset.Goto(onward.Name))
	// A node that knows more backends may have counted further.
	for n := s.handOns() + 1; n <= maxHandOns; n++ {
		onward.Add("everybody has been asked", f.HandedOn(n), ruleset.Goto("ended"))
	}
	if owners {
		onward.Add("at last to the owner of the slot", f.HandedOn(s.handOns()), f.SrcAddrPort(), s.lookup("owner_"+n))
	}
	onward.Add("who owns the slot is here", f.HandedOn(s.handOns()), ruleset.Goto("ended"))
	if h, ok := s.hops[s.following()]; ok && s.byAddress() {
		onward.Add("on its round, by address", f.sealed(expr.CmpOpEq), ruleset.Goto("hand_"+n+"_"+ruleset.NameOf(h.addr)))
	}
	if first {
		onward.Add("perhaps on the next", f.SrcAddrPort(), s.lookup("next_"+n))
	}
	t.Chains = append(t.Chains, have, lack, absent, onward, s.counting())
	for _, h := range s.others() {
		t.Chains = append(t.Chains, s.handOn(h)...)
	}
}

// counting is the chain that counts in a packet how often it has been handed on. The TTL, which the kernel lowers,
// ends the ring too late.
func (s service) counting() ruleset.Chain {
	f, count := s.family(), ruleset.Chain{Name: "count_" + s.name()}
	for n := s.handOns() + 1; n > 0; n-- {
		before := []expr.Any(nil)
		if n > 1 {
			before = f.HandedOn(n - 1)
		}
		count.Add(fmt.Sprintf("number %d", n), before, f.MarkHandedOn(n), ruleset.Verdict(expr.VerdictReturn))
	}
	return count
}

// handOn are the chains that hand a packet on to a backend.
func (s service) handOn(to hop) []ruleset.Chain {
	f, n := s.family(), s.name()+"_"+ruleset.NameOf(to.addr)
	hand, give := ruleset.Chain{Name: "hand_" + n}, ruleset.Chain{Name: "give_" + n}
	onto := ruleset.Chain{Name: "onto_" + n}
	hand.Add("hand on to "+to.addr.Addr().String(), jump("count_"+s.name()))
	hand.Add("its sender is a node", f.sealable(), f.seal())
	hand.Add("it goes", ruleset.Goto(onto.Name))
	give.Add("on its round", f.sealed(expr.CmpOpEq), ruleset.Goto(hand.Name))
	give.Add("on its round, without a seal", fromNode(false), ruleset.Goto(hand.Name))
	// Its round, if it needs one, begins at the owner, where it also ends.
	give.Add("straight from a client to the owner", jump("count_"+s.name()))
	give.Add("it goes", ruleset.Goto(onto.Name))
	onto.Add("it has gone far enough", f.IsSpent(), ruleset.Goto("ended"))
	onto.Add("by way of the stack", []expr.Any{
		&expr.Immediate{Register: reg1, Data: to.via().AsSlice()},
		&expr.Immediate{Register: reg2, Data: ruleset.Native(to.on.Index)},
		&expr.Dup{RegAddr: reg1, RegDev: reg2, IsRegDevSet: true},
		&expr.Verdict{Kind: expr.VerdictDrop},
	})
	return []ruleset.Chain{hand, give, onto}
}
