package direct

import (
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"appliance/balancer"
	"appliance/nft/ruleset"
)

// natFor is how long the rules that translate stay after they were last needed: open
// connections need them, and none lasts longer.
const natFor = balancer.ConnLifetime

// needsNAT says whether the plan, which is about to come into force, needs NAT. Such
// rules make the kernel track all connections of the host. Where every load balancer
// has a backend on this node, nothing else of ours needs that.
func (d *DataPlane) needsNAT(p rulePlan) (bool, error) {
	now := time.Now()
	if d.natNeeded.IsZero() {
		// What an earlier process on this node translates goes on.
		had, err := hasLocalRules()
		if err != nil {
			return false, err
		}
		if had {
			d.natNeeded = now
		} else {
			d.natNeeded = now.Add(-natFor)
		}
	}
	if slices.ContainsFunc(p.services, func(s service) bool {
		_, here := s.localBackend()
		return !here
	}) {
		d.natNeeded = now
	}
	return now.Sub(d.natNeeded) < natFor, nil
}

// hasLocalRules says that the kernel has the rules of addLocalClients.
func hasLocalRules() (bool, error) {
	for _, f := range ruleset.Families() {
		if has, err := ruleset.HasChain(rulePlan{}.arrival(f), localOut); has || err != nil {
			return has, err
		}
	}
	return false, nil
}

// localBackend is the backend on this node that gets the connections of clients on
// it, if there is one in rotation.
func (s service) localBackend() (hop, bool) {
	self, ok := s.self()
	return self, ok && slices.ContainsFunc(s.slots.kinds, func(slot slot) bool { return slot.owner == self.addr })
}

// localOut is a chain that only a table that translates has.
const localOut = "local_out"

// addLocalClients adds the rules for clients on this node and in its containers,
// whose packets never pass the interface's ingress. The node's own backend serves
// them if it is in rotation; else NAT leads them to another one. Only a packet that
// opens a connection is translated: when these rules are new, the kernel takes each
// packet of an open connection for its first one.
func addLocalClients(t *ruleset.Table, f ruleset.IPFamily, services []service) {
	out := ruleset.NATChain(localOut, *nftables.ChainHookOutput, ruleset.PriorityDNAT)
	in := ruleset.NATChain("local_in", *nftables.ChainHookPrerouting, ruleset.PriorityDNAT)
	post := ruleset.NATChain("local_post", *nftables.ChainHookPostrouting, ruleset.PrioritySNAT)
	var branches []ruleset.Chain
	for _, s := range services {
		n := s.name()
		why := "clients here of " + s.String()
		out.Add(why, s.toFrontend(), ruleset.SYN(), ruleset.Goto("local_"+n))
		in.Add(why, s.fromElsewhere(), s.toFrontend(), ruleset.SYN(), ruleset.Goto("local_"+n))
		// The client's source is the VIP itself, which the backend has, too.
		for _, vip := range s.frontends { // nft cannot list a lookup of this address in a set
			post.Add("answers of "+vip.String()+" come back this way",
				f.OriginallyTo(), []expr.Any{
					ruleset.Equal(reg1, vip.Addr().AsSlice()...),
					ruleset.Equal(f.PortReg, binaryutil.BigEndian.PutUint16(vip.Port())...),
				}, ruleset.DNATed(), []expr.Any{&expr.Masq{}})
		}
		local := ruleset.Chain{Name: "local_" + n, Rules: []ruleset.Rule{
			ruleset.NewRule("the address is not here any more", ruleset.NotToLocal(), accept()),
		}}
		self, here := s.localBackend()
		s.addSlots(t, "local_"+n, func(slot slot) (expr.Verdict, bool) {
			v := expr.Verdict{Kind: expr.VerdictGoto, Chain: "dnat_" + n + "_" + ruleset.NameOf(slot.owner)}
			return v, slot.owner.IsValid() && slot.owner != self.addr
		})
		switch {
		case s.reject:
			local.Add("no backend takes new connections", []expr.Any{ruleset.Reset()})
		case here:
			local.Add("its own backend is here", s.count(t, self))
			local.Add("and gets it", accept())
		default:
			local.Add("to another node's backend", []expr.Any{
				&expr.Numgen{Register: reg1, Modulus: uint32(s.slots.len()), Type: unix.NFT_NG_RANDOM},
				ruleset.InMap("local_"+n, ruleset.RegVerdict),
			})
		}
		branches = append(branches, local)
		for _, h := range s.others() {
			branches = append(branches, ruleset.Chain{Name: "dnat_" + n + "_" + ruleset.NameOf(h.addr),
				Rules: []ruleset.Rule{
					ruleset.NewRule("it is counted", s.count(t, h)),
					ruleset.NewRule("to "+h.addr.String(), []expr.Any{
						&expr.Immediate{Register: reg1, Data: h.addr.Addr().AsSlice()},
						&expr.Immediate{Register: reg2, Data: binaryutil.BigEndian.PutUint16(h.addr.Port())},
						f.DNAT(reg2),
					}),
				}})
		}
	}
	t.Chains = append(t.Chains, out, in, post)
	t.Chains = append(t.Chains, branches...)
}
