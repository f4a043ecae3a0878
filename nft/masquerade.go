package nft

import (
	"context"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"appliance/nft/ruleset"
)

// masqueradeMark is the bit of the packet mark that says "masquerade on the way
// out". It is not used by kube-proxy (0x4000 and 0x8000), the portmap plugin
// (0x2000), Cilium (0x0f00), Tailscale and Calico (the upper half). The other bits
// of a packet's mark stay as they are.
const masqueradeMark = 0x1000

// An IPVSMasquerade makes the packets that IPVS sends to backends leave with the
// node's own address, so that the answers come back through it. The zero
// IPVSMasquerade is ready.
type IPVSMasquerade struct{ reconciler ruleset.Reconciler }

// NewIPVSMasquerade returns an IPVSMasquerade whose table belongs to the owner.
func NewIPVSMasquerade(owner *ruleset.Owner) *IPVSMasquerade {
	return &IPVSMasquerade{ruleset.Reconciler{Owner: owner}}
}

// Masquerade makes frontends the whole set of IPVS services whose connections
// are masqueraded. An empty set removes the rules. net.ipv4.vs.conntrack must
// be 1, or the kernel does not look at NAT rules for packets of IPVS.
//
// The mark is set where the packet still has the frontend's address, before
// IPVS gets it in the input hook, and is read after IPVS has changed it.
func (m *IPVSMasquerade) Masquerade(_ context.Context, frontends []netip.AddrPort) (repaired int, err error) {
	want, err := masquerade(frontends)
	if err != nil {
		return 0, err
	}
	return m.reconciler.Apply(want)
}

// Close removes the rules.
func (m *IPVSMasquerade) Close() error {
	_, err := m.reconciler.Remove(ruleset.Table{Family: nftables.TableFamilyINet, Name: ruleset.MasqueradeTable})
	return err
}

func masquerade(frontends []netip.AddrPort) (ruleset.Table, error) {
	t := ruleset.Table{Family: nftables.TableFamilyINet, Name: ruleset.MasqueradeTable}
	mark, err := addFrontends(&t, frontends, "connections that IPVS is to balance", setMark(masqueradeMark))
	if err != nil || len(mark) == 0 {
		return t, err
	}
	t.Chains = []ruleset.Chain{
		ruleset.FilterChain("prerouting", unix.NF_INET_PRE_ROUTING, ruleset.PriorityMangle, mark...),
		ruleset.FilterChain("output", unix.NF_INET_LOCAL_OUT, ruleset.PriorityMangle, mark...),
		ruleset.NATChain("postrouting", unix.NF_INET_POST_ROUTING, ruleset.PrioritySNAT,
			ruleset.NewRule("backends answer to the node that asked", hasMark(masqueradeMark), []expr.Any{&expr.Masq{}})),
	}
	return t, nil
}

// addFrontends adds the sets of frontends, one for each family that has some, and
// returns the rules that do what then says with TCP packets to one of them.
func addFrontends(t *ruleset.Table, frontends []netip.AddrPort, why string, then ...[]expr.Any) ([]ruleset.Rule,
	error) {
	var rules []ruleset.Rule
	for _, f := range ruleset.Families() {
		s, err := f.FrontendSet(frontends)
		if err != nil {
			return nil, err
		}
		if len(s.Elements) == 0 {
			continue
		}
		t.Sets = append(t.Sets, s)
		rules = append(rules, ruleset.NewRule(why, f.TCPTo(), []expr.Any{ruleset.InSet(s.Name)}, ruleset.Concat(then...)))
	}
	return rules, nil
}

// setMark sets one bit of the packet's mark: `meta mark set meta mark | bit`.
func setMark(bit uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg1},
		ruleset.Mask(ruleset.Native(^bit), ruleset.Native(bit)),
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg1},
	}
}

// hasMark matches packets with the bit in their mark.
func hasMark(bit uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg1},
		ruleset.Mask(ruleset.Native(bit), ruleset.Native(0)),
		ruleset.NotEqual(reg1, ruleset.Native(0)...),
	}
}
