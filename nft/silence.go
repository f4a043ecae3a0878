package nft

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
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

// A Silenced address is one for which the kernel must not speak ARP.
type Silenced struct {
	VIP netip.Addr
	// Interface is where the VIP is answered for. The rules hold on every
	// interface: the kernel, too, answers for every address of the host on
	// every interface.
	Interface string
	// NodeAddr takes the VIP's place in ARP requests of the kernel. The zero
	// Addr makes them probes (RFC 5227 section 1.1), which tell nothing about
	// the sender.
	NodeAddr netip.Addr
}

// A Silencer keeps the kernel from speaking ARP for virtual addresses. The
// zero Silencer is ready.
type Silencer struct{ keep keeper }

// Silence makes the kernel silent for exactly these addresses. IPv6 addresses
// need no rule: the kernel does not answer solicitations on one interface for
// an address of another, and a VIP is bound on lo. No address removes the rules.
//
// Only what the kernel hears and says is concerned: packet sockets see the
// requests that are dropped here, and what they send passes no hook of ARP.
func (s *Silencer) Silence(_ context.Context, addrs []Silenced) (repaired int, err error) {
	want, err := silence(addrs)
	if err != nil {
		return 0, err
	}
	return s.keep.apply(want)
}

// Close lets the kernel speak again.
func (s *Silencer) Close() error {
	_, err := s.keep.remove(table{family: nftables.TableFamilyARP, name: silenceTable})
	return err
}

func silence(addrs []Silenced) (table, error) {
	t := table{family: nftables.TableFamilyARP, name: silenceTable}
	var vips, senders []nftables.SetElement
	node := make(map[netip.Addr]netip.Addr)
	for _, a := range addrs {
		vip := a.VIP.Unmap()
		if !vip.Is4() {
			continue
		}
		sender := a.NodeAddr.Unmap()
		if !sender.IsValid() || !sender.Is4() {
			sender = netip.IPv4Unspecified()
		}
		if sender == vip {
			return t, fmt.Errorf("the node's address %v is the virtual address itself: set another address on %s, or take it off the list of virtual addresses", sender, a.Interface)
		}
		if other, ok := node[vip]; ok {
			if other != sender {
				return t, fmt.Errorf("virtual address %v is listed twice, with %v and %v as the node's address: list it once", vip, other, sender)
			}
			continue
		}
		node[vip] = sender
		vips = append(vips, nftables.SetElement{Key: vip.AsSlice()})
		senders = append(senders, nftables.SetElement{Key: vip.AsSlice(), Val: sender.AsSlice()})
	}
	if len(vips) == 0 {
		return t, nil
	}
	byKey := func(a, b nftables.SetElement) int { return bytes.Compare(a.Key, b.Key) }
	slices.SortFunc(vips, byKey)
	slices.SortFunc(senders, byKey)

	arp := func(offset, length uint32) *expr.Payload {
		return &expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
	}
	t.sets = []set{
		{name: "vips", key: nftables.TypeIPAddr, elements: vips},
		{name: "senders", key: nftables.TypeIPAddr, data: nftables.TypeIPAddr, elements: senders},
	}
	t.chains = []chain{{
		name: "input",
		hook: &hook{kind: nftables.ChainTypeFilter, num: arpIn, priority: arpPriority},
		rules: []rule{{
			// Only requests: replies and announcements of others must go on
			// to keep the neighbour table right.
			why: "only the holder's process answers for the virtual address",
			exprs: []expr.Any{
				arp(arpOperation, 2), equal(reg1, 0, 1), // ares_op$REQUEST
				arp(arpTargetAddr, 4), inSet("vips"),
				&expr.Verdict{Kind: expr.VerdictDrop},
			},
		}},
	}, {
		name: "output",
		hook: &hook{kind: nftables.ChainTypeFilter, num: arpOut, priority: arpPriority},
		rules: []rule{{
			// A request teaches its receivers the sender's address: one that
			// asks in the name of the VIP would move it to this node.
			why: "requests of the kernel are made in the node's own name",
			exprs: []expr.Any{
				arp(arpSenderAddr, 4), inMap("senders", reg1),
				&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: arpSenderAddr, Len: 4},
			},
		}},
	}}
	return t, nil
}

// arpPriority is that of filters. Nothing else that we know of has hooks here
// but arptables, which sits at the same place and may drop, too.
const arpPriority = 0
