package nft

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables/expr"
)

// The round. A packet of a connection that a node does not have goes on to
// another, so that a change of the set of backends breaks no connection of
// those who stay. So does a new connection while no server listens here: nobody
// notices a server that restarts.
//
// The first to be asked is who comes next in the slot's order of preference: a
// backend that comes back finds there what was opened while it was away. From
// there it goes on in the order of addresses. A table of four backends is not a
// table of three and one more, so nodes that have read different files disagree
// about preferences; about addresses they do not. If the files differ by one
// backend, all the others are asked, whatever way the packet takes: from the
// second node that is asked, every step goes to the next address that the node
// knows, so none that all know is passed by, and there are as many steps as that
// takes with a backend that only some know.
//
// The last to be asked is the owner of the slot. After a handshake by SYN
// cookie, which leaves no socket (RFC 4987 section 3.6), nobody has the
// connection, and its listener has to answer. To a packet that belongs to
// nobody it sends a reset.

// roundMost is how often one packet is handed on at most: the count has four
// bits.
const roundMost = 15

// steps is how often a packet is handed on before it goes to the owner: one
// preferred, all others, and one that another node may know besides.
func (s directService) steps() int { return min(len(s.hops)+1, roundMost-1) }

// byAddress says that a round in the order of addresses meets everybody. With
// more backends than that, the preferences are all that is followed.
func (s directService) byAddress() bool { return len(s.hops) < roundMost-1 }

// next is who gets a packet of a slot that has been handed on n times and
// belongs to nobody here. It returns false if this node answers it.
func (s directService) next(slot slot, n int) (h hop, ok bool) {
	var to netip.AddrPort
	switch steps := s.steps(); {
	case n > steps:
		return hop{}, false
	case n == steps:
		to = slot.target()
	case n > 0 && s.byAddress():
		to = s.following()
	default:
		to, _ = slot.after(s.place)
	}
	h, ok = s.hops[to]
	return h, ok && !h.self
}

// following is the backend on another node with the next address after this
// node's own, or the first of all; the zero value if there is none.
func (s directService) following() netip.AddrPort {
	others := s.others()
	for _, h := range others {
		if h.addr.Compare(s.place) > 0 {
			return h.addr
		}
	}
	if len(others) == 0 {
		return netip.AddrPort{}
	}
	return others[0].addr
}

func (s directService) addArrival(t *table) {
	f, n := s.family(), name(s.frontend)
	have := chain{name: "have_" + n, rules: []rule{
		// A listener of this address and no other hides whether the
		// connection exists; then this node keeps what it gets.
		{"the connection is open here", concat(socket(expr.SocketKeyWildcard), equals(0), verdict(expr.VerdictAccept))},
		{"only the listener is here", concat(socket(expr.SocketKeyWildcard), equals(1), gotoChain("lack_"+n))},
		// Neither question has an answer for a handshake or a closed
		// connection that still has its place (RFC 9293, TIME-WAIT).
		{"the connection begins or ends here", concat(socket(expr.SocketKeyTransparent), verdict(expr.VerdictAccept))},
		// Not even a listener: the server has ended, or is about to begin, and
		// the checks do not know it yet.
		{"nobody is here", gotoChain("absent_" + n)},
	}}
	self, isBackend := s.self()
	lack, absent, onward := chain{name: "lack_" + n}, chain{name: "absent_" + n}, chain{name: "onward_" + n}
	step := func(count int) func(slot) (expr.Verdict, bool) {
		return func(slot slot) (expr.Verdict, bool) {
			h, ok := s.next(slot, count)
			return expr.Verdict{Kind: expr.VerdictGoto, Chain: "hand_" + n + "_" + name(h.addr)}, ok
		}
	}
	owners := s.addSlots(t, "owner_"+n, step(s.steps()))
	first := s.addSlots(t, "next_"+n, step(0))
	// On a bridge, br_netfilter may have packets come by here before they meet
	// the ingress hook and the prober's socket.
	astray := []rule{{"a path probe is for this node", concat(pathProbe(), verdict(expr.VerdictAccept))}}
	if owners {
		// A packet that comes straight from a client should have met the ingress
		// hook. For a moment it does not, while that table is replaced.
		astray = append(astray, rule{"straight from a client, past a missing ingress hook",
			concat(fromFellow(true), f.sealed(expr.CmpOpNeq), f.client(), s.lookup("owner_"+n))})
	}
	lack.rules = append(lack.rules, astray...)
	absent.rules = append(absent.rules, astray...)
	count := []expr.Any(nil)
	if isBackend {
		count = s.count(t, self)
	}
	lack.rules = append(lack.rules,
		rule{"a new connection is for this node", concat(tcpSYN(), count, verdict(expr.VerdictAccept))},
		rule{"an open one is not", gotoChain(onward.name)},
	)
	absent.rules = append(absent.rules, rule{"new or open, for somebody else", gotoChain(onward.name)})
	// A node that knows more backends may have counted further.
	for n := s.steps() + 1; n <= roundMost; n++ {
		onward.rules = append(onward.rules, rule{"everybody has been asked", concat(f.handedOn(n), verdict(expr.VerdictAccept))})
	}
	if owners {
		onward.rules = append(onward.rules, rule{"at last to the owner of the slot", concat(f.handedOn(s.steps()), f.client(), s.lookup("owner_"+n))})
	}
	onward.rules = append(onward.rules, rule{"who owns the slot is here", concat(f.handedOn(s.steps()), verdict(expr.VerdictAccept))})
	if h, ok := s.hops[s.following()]; ok && s.byAddress() {
		onward.rules = append(onward.rules, rule{"on its round, by address", concat(f.sealed(expr.CmpOpEq), gotoChain("hand_"+n+"_"+name(h.addr)))})
	}
	if first {
		onward.rules = append(onward.rules, rule{"perhaps on the next", concat(f.client(), s.lookup("next_"+n))})
	}
	t.chains = append(t.chains, have, lack, absent, onward)
	for _, h := range s.others() {
		t.chains = append(t.chains, s.hand(h))
	}
}

// hand is the chain that hands a packet on to a backend and counts how often
// that has happened to it. Some other end is needed than the kernel's lowering
// of the TTL: the ring has none.
func (s directService) hand(to hop) chain {
	f := s.family()
	c := chain{name: "hand_" + name(s.frontend) + "_" + name(to.addr)}
	for n := s.steps() + 1; n > 0; n-- {
		before := []expr.Any(nil)
		if n > 1 {
			before = f.handedOn(n - 1)
		}
		c.rules = append(c.rules, rule{
			fmt.Sprintf("hand on to %v, number %d", to.addr.Addr(), n),
			concat(before, f.markHandedOn(n), f.seal(), []expr.Any{
				&expr.Immediate{Register: reg1, Data: to.addr.Addr().AsSlice()},
				&expr.Immediate{Register: reg2, Data: native(s.link.index)},
				&expr.Dup{RegAddr: reg1, RegDev: reg2, IsRegDevSet: true},
				&expr.Verdict{Kind: expr.VerdictDrop},
			}),
		})
	}
	return c
}
