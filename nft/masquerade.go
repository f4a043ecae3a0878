package nft

import (
	"context"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// masqueradeMark is the bit of the packet mark that says "masquerade on the
// way out". It is none of kube-proxy's 0x4000 and 0x8000, of the portmap
// plugin's 0x2000, of Cilium's 0x0f00, and not in the upper half, which
// Tailscale and Calico take. The other bits of a packet's mark are left as
// they are.
const masqueradeMark = 0x1000

// A Masquerader makes the packets that IPVS sends on to backends leave in the
// name of the node, so that the answers come back through it. The zero
// Masquerader is ready.
type Masquerader struct{ keep keeper }

// Masquerade makes frontends the whole set of IPVS services whose connections
// are masqueraded. An empty set removes the rules. net.ipv4.vs.conntrack must
// be 1, or the kernel does not look at NAT rules for packets of IPVS.
//
// The mark is set where the packet still has the frontend's address, before
// IPVS gets it in the input hook, and is read after IPVS has changed it.
func (m *Masquerader) Masquerade(_ context.Context, frontends []netip.AddrPort) (repaired int, err error) {
	want, err := masquerade(frontends)
	if err != nil {
		return 0, err
	}
	return m.keep.apply(want)
}

// Close removes the rules.
func (m *Masquerader) Close() error {
	_, err := m.keep.remove(table{family: nftables.TableFamilyINet, name: masqueradeTable})
	return err
}

func masquerade(frontends []netip.AddrPort) (table, error) {
	t := table{family: nftables.TableFamilyINet, name: masqueradeTable}
	mark, err := t.addFrontends(frontends, "connections that IPVS is to balance", setMark(masqueradeMark))
	if err != nil || len(mark) == 0 {
		return t, err
	}
	t.chains = []chain{
		{name: "prerouting", hook: &hook{kind: nftables.ChainTypeFilter, num: unix.NF_INET_PRE_ROUTING, priority: manglePriority}, rules: mark},
		{name: "output", hook: &hook{kind: nftables.ChainTypeFilter, num: unix.NF_INET_LOCAL_OUT, priority: manglePriority}, rules: mark},
		{name: "postrouting", hook: &hook{kind: nftables.ChainTypeNAT, num: unix.NF_INET_POST_ROUTING, priority: snatPriority, steps: natSteps}, rules: []rule{{
			why:   "backends answer to the node that asked",
			exprs: concat(hasMark(masqueradeMark), []expr.Any{&expr.Masq{}}),
		}}},
	}
	return t, nil
}

// addFrontends adds the sets of frontends, one per family that has some, and
// returns the rules that do then with TCP packets addressed to one of them.
func (t *table) addFrontends(frontends []netip.AddrPort, why string, then ...[]expr.Any) ([]rule, error) {
	var rules []rule
	for _, f := range families() {
		s, err := f.frontends(frontends)
		if err != nil {
			return nil, err
		}
		if len(s.elements) == 0 {
			continue
		}
		t.sets = append(t.sets, s)
		rules = append(rules, rule{
			why:   why,
			exprs: concat(f.tcpTo(), []expr.Any{inSet(s.name)}, concat(then...)),
		})
	}
	return rules, nil
}

// setMark sets one bit of the packet's mark: `meta mark set meta mark | bit`.
func setMark(bit uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: native(^bit), Xor: native(bit)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg1},
	}
}

// hasMark matches packets with the bit in their mark.
func hasMark(bit uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: native(bit), Xor: native(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: native(0)},
	}
}
