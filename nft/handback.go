package nft

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Handback gives packets of connections that this node does not have to another
// node, which held the virtual addresses before: a client whose connection was
// open as they moved is served to its end, as long as that node has its state.
// It is for the data planes that keep state; direct knows a way without.
//
// A packet that conntrack knows costs one comparison. The zero Handback is ready.
type Handback struct {
	keep [2]keeper // by the order of families

	mu     sync.Mutex
	former []netip.Addr
	known  bool // wanted is in the kernel, as far as is known
	wanted [2]table
}

// To hands packets for frontends to the node with the addresses former, of which
// one in the family of a frontend has to be a neighbour on the link that it is
// reached by. Links are the interfaces of the virtual addresses. Frontends of
// which that is not so are left out; without any, there are no rules. repaired
// counts the tables that somebody else had damaged.
func (h *Handback) To(former []netip.Addr, links map[netip.Addr]string, frontends []netip.AddrPort) (repaired int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	fresh := !slices.Equal(former, h.former)
	h.former = former
	var ways []way
	for _, on := range slices.Compact(slices.Sorted(maps.Values(links))) {
		if len(frontends) == 0 {
			break
		}
		l, err := readLink(on)
		if err != nil {
			return 0, err
		}
		heard := find(l, former, fresh)
		for _, addr := range former {
			// The rule must know what comes from there, or the two might give
			// each other the same packet.
			if mac, ok := heard[addr]; ok && offLink(l, addr) == "" {
				ways = append(ways, way{l, addr, mac})
			}
		}
	}
	for i, f := range families() {
		t := handback(f, ways, links, frontends)
		if h.known && reflect.DeepEqual(t, h.wanted[i]) {
			continue
		}
		n, err := h.keep[i].apply(t)
		repaired += n
		if err != nil {
			return repaired, err
		}
		h.wanted[i] = t
	}
	h.known = true
	return repaired, nil
}

// Recheck has the next To look whether the rules are still there.
func (h *Handback) Recheck() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.known = false
}

// Close removes the rules.
func (h *Handback) Close() error {
	_, err := h.To(nil, nil, nil)
	return err
}

// findTime is what an answer to a neighbour solicitation may take.
const findTime = 100 * time.Millisecond

// find has the kernel find out where those of addrs are that it does not know,
// and waits for the answers a moment, or looks without waiting. It returns all
// neighbours on l.
func find(l link, addrs []netip.Addr, wait bool) map[netip.Addr][6]byte {
	for until := time.Now().Add(findTime); ; time.Sleep(5 * time.Millisecond) {
		heard := neighboursOn(l)
		sought := 0
		for _, addr := range addrs {
			if _, ok := heard[addr]; !ok && offLink(l, addr) == "" {
				ask := question(l, addr)
				_ = netlink.NeighSet(&ask) // fails where the family or the link is off
				sought++
			}
		}
		if sought == 0 || !wait || time.Now().After(until) {
			return heard
		}
	}
}

// A way leads to a neighbour.
type way struct {
	link link
	addr netip.Addr
	mac  [6]byte
}

// handback is the table of one family, a pure function.
func handback(f ipFamily, ways []way, links map[netip.Addr]string, frontends []netip.AddrPort) table {
	t := table{family: nftables.TableFamily(f.proto), name: handbackTable}
	var rules []rule
	seen := make(map[string]bool) // one way for each link
	for _, w := range ways {
		var on []netip.AddrPort
		for _, ap := range frontends {
			if f.has(ap.Addr()) && links[ap.Addr()] == w.link.name {
				on = append(on, ap)
			}
		}
		if !f.has(w.addr) || seen[w.link.name] || len(on) == 0 {
			continue
		}
		seen[w.link.name] = true
		s, err := f.frontends(on)
		if err != nil {
			continue // links has no unspecified address
		}
		s.name = "frontends_" + chainName(w.link.name)
		t.sets = append(t.sets, s)
		rules = append(rules, rule{
			why: fmt.Sprintf("not known here, perhaps at %v", w.addr),
			exprs: concat(ctUnknown(), []expr.Any{
				&expr.Meta{Key: expr.MetaKeyIIF, Register: reg1},
				equal(reg1, native(w.link.index)...),
			}, tcp(), notSYN(), []expr.Any{
				&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
				&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: w.mac[:]},
			}, f.addrPort(), []expr.Any{
				inSet(s.name),
				&expr.Immediate{Register: reg1, Data: w.addr.AsSlice()},
				&expr.Immediate{Register: reg2, Data: native(w.link.index)},
				&expr.Dup{RegAddr: reg1, RegDev: reg2, IsRegDevSet: true},
				&expr.Verdict{Kind: expr.VerdictDrop},
			}),
		})
	}
	if len(rules) == 0 {
		return t
	}
	// After conntrack has said what it knows, and before NAT takes the packet for
	// the first of a connection.
	t.chains = []chain{{
		name: "prerouting", hook: &hook{kind: nftables.ChainTypeFilter, num: unix.NF_INET_PRE_ROUTING, priority: manglePriority}, rules: rules,
	}}
	return t
}

// States of conntrack: NF_CT_STATE_BIT in linux/netfilter/nf_conntrack_common.h.
const (
	ctEstablished = 1 << 1
	ctRelated     = 1 << 2
	ctUntracked   = 1 << 6
)

// ctUnknown matches packets that belong to no connection that conntrack knows.
func ctUnknown() []expr.Any { return ctStateIsNot(ctEstablished | ctRelated) }

func ctStateIsNot(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: native(bits), Xor: native(0)},
		equal(reg1, native(0)...),
	}
}

// notSYN matches what tcpSYN does not.
func notSYN() []expr.Any {
	m := tcpSYN()
	m[len(m)-1].(*expr.Cmp).Op = expr.CmpOpNeq
	return m
}
