package nft

import (
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"appliance/balancer"
)

// natFor is how long the rules that translate stay after they were needed last:
// open connections do not outlive them.
const natFor = balancer.ConnLifetime

// translates says whether the plan, which is about to be in force, needs NAT:
// rules of that kind have the kernel keep a table of all connections of the host. Where
// every load balancer has a backend on this node, nothing else would want one.
func (d *Direct) translates(p directPlan) (bool, error) {
	now := time.Now()
	if d.needed.IsZero() {
		// What an earlier life of this node translates goes on.
		had, err := hasLocal()
		if err != nil {
			return false, err
		}
		if had {
			d.needed = now
		} else {
			d.needed = now.Add(-natFor)
		}
	}
	if slices.ContainsFunc(p.services, func(s directService) bool {
		_, here := s.servesHere()
		return !here
	}) {
		d.needed = now
	}
	return now.Sub(d.needed) < natFor, nil
}

// hasLocal says that the kernel has what addLocal adds.
func hasLocal() (bool, error) {
	conn, err := dial()
	if err != nil {
		return false, explain(err, directPlan{}.arrival(ipv4()))
	}
	for _, f := range families() {
		t := directPlan{}.arrival(f)
		have, err := read(conn, t, false)
		if err != nil {
			return false, explain(err, t)
		}
		if _, ok := have.chains[localOut]; ok {
			return true, nil
		}
	}
	return false, nil
}

// servesHere is the backend on this node that gets the connections of clients
// on it, if there is one in rotation.
func (s directService) servesHere() (hop, bool) {
	self, ok := s.self()
	return self, ok && slices.ContainsFunc(s.slots, func(slot slot) bool { return slot.owner == self.addr })
}

// localOut is the chain that tells that a table translates.
const localOut = "local_out"

// addLocal adds what serves clients on this node, and in containers on it:
// their packets never pass the interface's ingress. The node's own backend
// serves them if it may, else they get another by NAT. Only what begins a
// connection is led anywhere: when these rules come, the kernel takes each packet
// of those that are open for the first one.
func addLocal(t *table, f ipFamily, services []directService) {
	out := chain{name: localOut, hook: &hook{
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
		out.rules = append(out.rules, rule{why, concat(s.toFrontend(), tcpSYN(), gotoChain("local_"+n))})
		in.rules = append(in.rules, rule{why, concat(s.fromLink(expr.CmpOpNeq), s.toFrontend(), tcpSYN(), gotoChain("local_"+n))})
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
		self, here := s.servesHere()
		s.addSlots(t, "local_"+n, func(slot slot) (expr.Verdict, bool) {
			return expr.Verdict{Kind: expr.VerdictGoto, Chain: "dnat_" + n + "_" + name(slot.owner)}, slot.owner.IsValid() && slot.owner != self.addr
		})
		switch {
		case s.refuse:
			local.rules = append(local.rules, rule{"no backend takes new connections", []expr.Any{resetTCP()}})
		case here:
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
