package nft

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Redirector brings connections to one port of a local address to another
// port, so that a virtual address can be served beside a process that listens
// on the same port of every address. The zero Redirector is ready. Calls of its
// methods come one at a time.
type Redirector struct {
	keep keeper
	seen map[netip.AddrPort]bool // frontends that were redirected in this life
}

// Redirect makes ports the whole set of what is redirected: TCP to each key
// arrives at its value, wherever the client is. An empty set removes the rules.
// Connections from elsewhere straight to a value are reset: it is no service
// of its own. Open connections stay as they are, but for those of an earlier life:
// nobody has them any more.
func (r *Redirector) Redirect(_ context.Context, ports map[netip.AddrPort]netip.AddrPort) (repaired int, err error) {
	want, err := redirect(ports)
	if err != nil {
		return 0, err
	}
	if repaired, err = r.keep.apply(want); err != nil {
		return repaired, err
	}
	left := make(leftBehind)
	for from, to := range ports {
		if !r.seen[from] {
			left[from] = to
		}
	}
	if err := left.forget(); err != nil {
		return repaired, err
	}
	if r.seen == nil {
		r.seen = make(map[netip.AddrPort]bool)
	}
	for from := range left {
		r.seen[from] = true
	}
	return repaired, nil
}

// leftBehind picks what conntrack remembers of connections to its keys that
// were redirected elsewhere than to its values. It outlives the process that
// had the connection by days where no reset came through, since the address had
// moved; a client that takes the same port again would be led to where nobody
// listens.
type leftBehind map[netip.AddrPort]netip.AddrPort

func (l leftBehind) forget() error {
	g := make(gone)
	for from := range l {
		g[from] = nil
	}
	for _, family := range g.families() {
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, l); err != nil {
			return conntrackError(err)
		}
	}
	return nil
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (l leftBehind) MatchConntrackFlow(entry *netlink.ConntrackFlow) bool {
	from := addrPort(entry.Forward.DstIP, entry.Forward.DstPort)
	to, ours := l[from]
	if entry.Forward.Protocol != unix.IPPROTO_TCP || !ours {
		return false
	}
	was := addrPort(entry.Reverse.SrcIP, entry.Reverse.SrcPort)
	return was.Addr() == from.Addr() && was != from && was != to
}

// Close removes the rules.
func (r *Redirector) Close() error {
	_, err := r.keep.remove(table{family: nftables.TableFamilyINet, name: redirectTable})
	return err
}

func redirect(ports map[netip.AddrPort]netip.AddrPort) (table, error) {
	t := table{family: nftables.TableFamilyINet, name: redirectTable}
	var nat, guard []rule
	for _, f := range families() {
		var to, hidden []nftables.SetElement
		for from, dest := range ports {
			if !f.has(from.Addr()) {
				continue
			}
			if !f.has(dest.Addr()) {
				return t, fmt.Errorf("%v cannot be redirected to %v: use a listener of the same address family", from, dest)
			}
			if from.Addr().IsUnspecified() || dest.Addr().IsUnspecified() {
				return t, fmt.Errorf("%v cannot be redirected to %v: name one address, not all of them", from, dest)
			}
			to = append(to, nftables.SetElement{Key: addrPortKey(from), Val: addrPortKey(dest)})
			hidden = append(hidden, nftables.SetElement{Key: addrPortKey(dest)})
		}
		if len(to) == 0 {
			continue
		}
		byKey := func(a, b nftables.SetElement) int { return bytes.Compare(a.Key, b.Key) }
		slices.SortFunc(to, byKey)
		slices.SortFunc(hidden, byKey)
		hidden = slices.CompactFunc(hidden, func(a, b nftables.SetElement) bool { return bytes.Equal(a.Key, b.Key) })
		t.sets = append(t.sets,
			set{name: "ports" + f.name, key: f.addrPortType(), data: f.addrPortType(), elements: to},
			set{name: "listeners" + f.name, key: f.addrPortType(), elements: hidden},
		)
		nat = append(nat, rule{
			why: "the forwarder listens on another port",
			exprs: concat(f.tcpTo(), []expr.Any{
				inMap("ports"+f.name, reg1),
				&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: reg1, RegProtoMin: f.portReg, Specified: true},
			}),
		})
		guard = append(guard, rule{
			why:   "the forwarder's own port is not for others",
			exprs: concat(notLoopback(), f.tcpTo(), []expr.Any{inSet("listeners" + f.name)}, notDNATed(), []expr.Any{resetTCP()}),
		})
	}
	if len(nat) == 0 {
		return t, nil
	}
	t.chains = []chain{
		{name: "prerouting", hook: &hook{kind: nftables.ChainTypeNAT, num: unix.NF_INET_PRE_ROUTING, priority: dnatPriority, steps: natSteps}, rules: nat},
		{name: "output", hook: &hook{kind: nftables.ChainTypeNAT, num: unix.NF_INET_LOCAL_OUT, priority: dnatPriority, steps: natSteps}, rules: nat},
		{name: "input", hook: &hook{kind: nftables.ChainTypeFilter, num: unix.NF_INET_LOCAL_IN, priority: rejectPriority}, rules: guard},
	}
	return t, nil
}

// notLoopback matches packets that came in by another interface than lo.
func notLoopback() []expr.Any {
	const arphrdLoopback = 772 // linux/if_arp.h
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFTYPE, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: binaryutil.NativeEndian.PutUint16(arphrdLoopback)},
	}
}
