package nft

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"appliance/neighbours"
	"appliance/nft/ruleset"
)

// A PreviousHolder sends packets of connections that this node does not have to the
// node that held the virtual addresses before. So a connection that was open when they
// moved is served to its end, as long as that node keeps its state. It is for data
// planes that keep state; direct needs none.
//
// A packet that conntrack knows costs one comparison. The zero PreviousHolder is
// ready.
type PreviousHolder struct {
	reconcilers [2]ruleset.Reconciler // in the order of ruleset.Families

	mu       sync.Mutex
	addrs    []netip.Addr
	inKernel bool // wanted is in the kernel, as far as is known
	wanted   [2]ruleset.Table
}

// NewPreviousHolder returns a PreviousHolder whose tables belong to the owner.
func NewPreviousHolder(owner *ruleset.Owner) *PreviousHolder {
	return &PreviousHolder{reconcilers: [2]ruleset.Reconciler{{Owner: owner}, {Owner: owner}}}
}

// To sends packets for frontends to the node with these addresses, which may be none.
// Links are the interfaces of the virtual addresses. A frontend is left out unless one
// of the addresses, in its family, is a neighbour on its link. Without any frontend
// there are no rules. repaired counts the tables that somebody else had damaged.
func (h *PreviousHolder) To(addrs []netip.Addr, links map[netip.Addr]string,
	frontends []netip.AddrPort) (repaired int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	isNew := !slices.Equal(addrs, h.addrs)
	h.addrs = addrs
	var hops []nextHop
	for _, on := range slices.Compact(slices.Sorted(maps.Values(links))) {
		if len(frontends) == 0 {
			break
		}
		l, err := neighbours.ReadLink(on)
		if err != nil {
			return 0, err
		}
		macs := l.Find(addrs, isNew)
		for _, addr := range addrs {
			// The rule must recognise packets from there: the two nodes might send each
			// other the same packet, and an earlier version does not mark it.
			if mac, ok := macs[addr]; ok && l.OffLink(addr) == "" {
				hops = append(hops, nextHop{l, addr, mac})
			}
		}
	}
	for i, f := range ruleset.Families() {
		t := previousHolderTable(f, hops, links, frontends)
		if h.inKernel && reflect.DeepEqual(t, h.wanted[i]) {
			continue
		}
		n, err := h.reconcilers[i].Apply(t)
		repaired += n
		if err != nil {
			return repaired, err
		}
		h.wanted[i] = t
	}
	h.inKernel = true
	return repaired, nil
}

// Recheck has the next call of To check that the rules are still there.
func (h *PreviousHolder) Recheck() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.inKernel = false
}

// Close removes the rules.
func (h *PreviousHolder) Close() error {
	_, err := h.To(nil, nil, nil)
	return err
}

// A nextHop is a neighbour.
type nextHop struct {
	link neighbours.Link
	addr netip.Addr
	mac  [6]byte
}

// handedBack marks what was given to a previous holder, which gives it to nobody else: one that was killed keeps its
// rules, and three nodes may each take another for the previous holder.
const handedBack = ruleset.MostHandOns

// previousHolderTable is the table of one family, a pure function.
func previousHolderTable(
	f ruleset.IPFamily, hops []nextHop, links map[netip.Addr]string, frontends []netip.AddrPort,
) ruleset.Table {
	t := ruleset.Table{Family: nftables.TableFamily(f.Proto), Name: ruleset.PreviousHolderTable}
	var rules []ruleset.Rule
	seen := make(map[string]bool) // one hop for each link
	for _, w := range hops {
		var on []netip.AddrPort
		for _, ap := range frontends {
			if f.Has(ap.Addr()) && links[ap.Addr()] == w.link.Name {
				on = append(on, ap)
			}
		}
		if !f.Has(w.addr) || seen[w.link.Name] || len(on) == 0 {
			continue
		}
		seen[w.link.Name] = true
		s, err := f.FrontendSet(on)
		if err != nil {
			continue // links has no unspecified address
		}
		s.Name = "frontends_" + ruleset.LinkName(w.link.Name)
		t.Sets = append(t.Sets, s)
		rules = append(rules, ruleset.NewRule(fmt.Sprintf("not known here, perhaps at %v", w.addr), ruleset.CtUnknown(),
			[]expr.Any{
				&expr.Meta{Key: expr.MetaKeyIIF, Register: reg1},
				ruleset.Equal(reg1, ruleset.Native(w.link.Index)...),
			}, ruleset.TCP(), ruleset.NotSYN(), []expr.Any{
				ruleset.LoadLink(reg1, 6, 6),
				ruleset.NotEqual(reg1, w.mac[:]...),
			}, f.NotHandedOn(handedBack), f.Lives(), f.DstAddrPort(), []expr.Any{
				ruleset.InSet(s.Name),
			}, f.MarkHandedOn(handedBack), []expr.Any{
				&expr.Immediate{Register: reg1, Data: w.addr.AsSlice()},
				&expr.Immediate{Register: reg2, Data: ruleset.Native(w.link.Index)},
				&expr.Dup{RegAddr: reg1, RegDev: reg2, IsRegDevSet: true},
				&expr.Verdict{Kind: expr.VerdictDrop},
			}))
	}
	if len(rules) == 0 {
		return t
	}
	// After conntrack, which is asked, and before NAT takes the packet for the first of
	// a connection.
	t.Chains = []ruleset.Chain{
		ruleset.FilterChain("prerouting", unix.NF_INET_PRE_ROUTING, ruleset.PriorityMangle, rules...),
	}
	return t
}
