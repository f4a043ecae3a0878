package nft

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// addLocal adds what serves clients on this node, and in containers on it:
// their packets never pass the interface's ingress. The node's own backend
// serves them if it may, else they get another by NAT.
func addLocal(t *table, f ipFamily, services []directService) {
	out := chain{name: "local_out", hook: &hook{
		kind: nftables.ChainTypeNAT, num: *nftables.ChainHookOutput, priority: dnatPriority, steps: natSteps,
	}}
	in := chain{name: "local_in", hook: &hook{
		kind: nftables.ChainTypeNAT, num: *nftables.ChainHookPrerouting, priority: dnatPriority, steps: natSteps,
	}}
	post := chain{name: "local_post", hook: &hook{
		kind: nftables.ChainTypeNAT, num: *nftables.ChainHookPostrouting, priority: snatPriority, steps: natSteps,
	}}
	var branches []chain
	for _, s := range services {
		n := name(s.frontend)
		why := "clients here of " + s.frontend.String()
		out.rules = append(out.rules, rule{why, concat(s.toFrontend(), gotoChain("local_"+n))})
		in.rules = append(in.rules, rule{why, concat(s.fromLink(expr.CmpOpNeq), s.toFrontend(), gotoChain("local_"+n))})
		post.rules = append(post.rules, rule{
			// The client's source is the VIP itself, which the backend has, too.
			"answers of " + s.frontend.String() + " come back this way",
			concat(f.originallyTo(), []expr.Any{
				&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: s.frontend.Addr().AsSlice()},
				equal(f.portReg, binaryutil.BigEndian.PutUint16(s.frontend.Port())...),
			}, dnated(), []expr.Any{&expr.Masq{}}),
		})
		local := chain{name: "local_" + n, rules: []rule{
			{"the address is not here any more", concat(notToLocal(), verdict(expr.VerdictAccept))},
		}}
		owners := s.owners()
		self, isBackend := s.self()
		s.addSlots(t, "local_"+n, func(slot slot) (expr.Verdict, bool) {
			return expr.Verdict{Kind: expr.VerdictGoto, Chain: "dnat_" + n + "_" + name(slot.owner)}, slot.owner.IsValid() && slot.owner != self.addr
		})
		switch {
		case s.refuse || len(owners) == 0:
			local.rules = append(local.rules, rule{"no backend takes new connections", []expr.Any{resetTCP()}})
		case isBackend && owners[self.addr]:
			local.rules = append(local.rules, rule{"its own backend is here", concat(s.count(t, self), verdict(expr.VerdictAccept))})
		default:
			local.rules = append(local.rules, rule{"to another node's backend", []expr.Any{
				&expr.Numgen{Register: reg1, Modulus: uint32(len(s.slots)), Type: unix.NFT_NG_RANDOM},
				inMap("local_"+n, regVerdict),
			}})
		}
		branches = append(branches, local)
		for _, h := range s.others() {
			branches = append(branches, chain{name: "dnat_" + n + "_" + name(h.addr), rules: []rule{{
				"to " + h.addr.String(),
				concat(s.count(t, h), []expr.Any{
					&expr.Immediate{Register: reg1, Data: h.addr.Addr().AsSlice()},
					&expr.Immediate{Register: reg2, Data: binaryutil.BigEndian.PutUint16(h.addr.Port())},
					&expr.NAT{
						Type: expr.NATTypeDestNAT, Family: uint32(f.proto),
						RegAddrMin: reg1, RegProtoMin: reg2, Specified: true,
					},
				}),
			}}})
		}
	}
	t.chains = append(t.chains, out, in, post)
	t.chains = append(t.chains, branches...)
}

// owners are the backends that own at least one slot.
func (s directService) owners() map[netip.AddrPort]bool {
	owners := make(map[netip.AddrPort]bool)
	for _, slot := range s.slots {
		if slot.owner.IsValid() {
			owners[slot.owner] = true
		}
	}
	return owners
}
