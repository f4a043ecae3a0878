package nft

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"appliance/nft/ruleset"
)

// Hooks of the arp family, linux/netfilter_arp.h.
const (
	arpIn  nftables.ChainHook = 0
	arpOut nftables.ChainHook = 1
)

// Offsets in an ARP packet for IPv4 over Ethernet, RFC 826.
const (
	arpOperation  = 6
	arpSenderAddr = 14
	arpTargetAddr = 24
)

// A FilteredVIP is an address for which the kernel must not speak ARP.
type FilteredVIP struct {
	VIP netip.Addr
	// Interface is where the VIP is answered. The rules hold on every interface,
	// as the kernel answers for every address of the host on every interface.
	Interface string
	// NodeAddr replaces the VIP in ARP requests of the kernel. The zero Addr makes
	// them probes (RFC 5227 section 1.1), which say nothing about the sender.
	NodeAddr netip.Addr
}

// An ARPFilter keeps the kernel from speaking ARP for virtual addresses. The zero
// ARPFilter is ready.
type ARPFilter struct{ reconciler ruleset.Reconciler }

// NewARPFilter returns an ARPFilter whose table belongs to the owner.
func NewARPFilter(owner *ruleset.Owner) *ARPFilter {
	return &ARPFilter{ruleset.Reconciler{Owner: owner}}
}

// Apply silences the kernel for exactly these addresses. No address removes the
// rules. IPv6 addresses need no rule: the kernel does not answer solicitations on
// one interface for an address of another, and a VIP is bound on lo.
//
// The rules concern the kernel only: packet sockets see the requests that are
// dropped here, and what they send passes no hook of ARP.
func (a *ARPFilter) Apply(_ context.Context, vips []FilteredVIP) (repaired int, err error) {
	want, err := arpTable(vips)
	if err != nil {
		return 0, err
	}
	return a.reconciler.Apply(want)
}

// Close removes the rules.
func (a *ARPFilter) Close() error {
	_, err := a.reconciler.Remove(ruleset.Table{Family: nftables.TableFamilyARP, Name: ruleset.ARPFilterTable})
	return err
}

func arpTable(vips []FilteredVIP) (ruleset.Table, error) {
	t := ruleset.Table{Family: nftables.TableFamilyARP, Name: ruleset.ARPFilterTable}
	var targets, senders []nftables.SetElement
	node := make(map[netip.Addr]netip.Addr)
	for _, a := range vips {
		vip := a.VIP.Unmap()
		if !vip.Is4() {
			continue
		}
		sender := a.NodeAddr.Unmap()
		if !sender.IsValid() || !sender.Is4() {
			sender = netip.IPv4Unspecified()
		}
		if sender == vip {
			return t, fmt.Errorf("the node's address %v is the virtual address itself: "+
				"set another address on %s, or take it off the list of virtual addresses", sender, a.Interface)
		}
		if other, ok := node[vip]; ok {
			if other != sender {
				return t, fmt.Errorf("virtual address %v is listed twice, with %v and %v as the node's address: "+
					"list it once", vip, other, sender)
			}
			continue
		}
		node[vip] = sender
		targets = append(targets, nftables.SetElement{Key: vip.AsSlice()})
		senders = append(senders, nftables.SetElement{Key: vip.AsSlice(), Val: sender.AsSlice()})
	}
	if len(targets) == 0 {
		return t, nil
	}
	byKey := func(a, b nftables.SetElement) int { return bytes.Compare(a.Key, b.Key) }
	slices.SortFunc(targets, byKey)
	slices.SortFunc(senders, byKey)

	t.Sets = []ruleset.Set{
		{Name: "vips", Key: nftables.TypeIPAddr, Elements: targets},
		{Name: "senders", Key: nftables.TypeIPAddr, Data: nftables.TypeIPAddr, Elements: senders},
	}
	t.Chains = []ruleset.Chain{{
		Name: "input",
		Hook: &ruleset.BaseHook{Kind: nftables.ChainTypeFilter, Num: arpIn, Priority: arpPriority},
		// Only requests: replies and announcements of others must pass, to keep
		// the neighbour table right.
		Rules: []ruleset.Rule{ruleset.NewRule("only the holder's process answers for the virtual address", []expr.Any{
			ruleset.LoadNetwork(reg1, arpOperation, 2), ruleset.Equal(reg1, 0, 1), // ares_op$REQUEST
			ruleset.LoadNetwork(reg1, arpTargetAddr, 4), ruleset.InSet("vips"),
			&expr.Verdict{Kind: expr.VerdictDrop},
		})},
	}, {
		Name: "output",
		Hook: &ruleset.BaseHook{Kind: nftables.ChainTypeFilter, Num: arpOut, Priority: arpPriority},
		// A request teaches its receivers the sender's address: a request in the
		// name of the VIP would move the VIP to this node.
		Rules: []ruleset.Rule{ruleset.NewRule("requests of the kernel are made in the node's own name", []expr.Any{
			ruleset.LoadNetwork(reg1, arpSenderAddr, 4), ruleset.InMap("senders", reg1),
			&expr.Payload{
				OperationType: expr.PayloadWrite, SourceRegister: reg1,
				Base: expr.PayloadBaseNetworkHeader, Offset: arpSenderAddr, Len: 4,
			},
		})},
	}}
	return t, nil
}

// arpPriority is that of filters. Of others, only arptables is known to have hooks
// here, at the same priority; it may drop, too.
const arpPriority = 0
