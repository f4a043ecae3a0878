package nft

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"appliance/nft/conntrack"
	"appliance/nft/ruleset"
)

// A Redirector redirects connections from one port of a local address to another, so
// that a virtual address can be served beside a process that listens on the same port
// of every address. The zero Redirector is ready. It is not safe for concurrent use.
type Redirector struct {
	reconciler ruleset.Reconciler
	seen       map[netip.AddrPort]bool // frontends that this process has redirected
}

// NewRedirector returns a Redirector whose table belongs to the owner.
func NewRedirector(owner *ruleset.Owner) *Redirector {
	return &Redirector{reconciler: ruleset.Reconciler{Owner: owner}}
}

// Redirect makes ports the whole set of what is redirected: TCP to each key arrives at
// its value, wherever the client is. An empty set removes the rules. Connections from
// elsewhere straight to a value are reset: it is no service of its own. Open
// connections stay as they are, except those of an earlier process: nobody has them
// any more.
func (r *Redirector) Redirect(_ context.Context, ports map[netip.AddrPort]netip.AddrPort) (repaired int, err error) {
	want, err := redirect(ports)
	if err != nil {
		return 0, err
	}
	if repaired, err = r.reconciler.Apply(want); err != nil {
		return repaired, err
	}
	fresh := maps.Clone(ports)
	maps.DeleteFunc(fresh, func(from, _ netip.AddrPort) bool { return r.seen[from] })
	if err := conntrack.ForgetRedirects(fresh); err != nil {
		return repaired, err
	}
	if r.seen == nil {
		r.seen = make(map[netip.AddrPort]bool)
	}
	for from := range fresh {
		r.seen[from] = true
	}
	return repaired, nil
}

// Close removes the rules.
func (r *Redirector) Close() error {
	_, err := r.reconciler.Remove(ruleset.Table{Family: nftables.TableFamilyINet, Name: ruleset.RedirectTable})
	return err
}

func redirect(ports map[netip.AddrPort]netip.AddrPort) (ruleset.Table, error) {
	t := ruleset.Table{Family: nftables.TableFamilyINet, Name: ruleset.RedirectTable}
	var nat, guard []ruleset.Rule
	for _, f := range ruleset.Families() {
		var to, hidden []nftables.SetElement
		for from, dest := range ports {
			if !f.Has(from.Addr()) {
				continue
			}
			if !f.Has(dest.Addr()) {
				return t, fmt.Errorf("%v cannot be redirected to %v: use a listener of the same address family", from, dest)
			}
			if from.Addr().IsUnspecified() || dest.Addr().IsUnspecified() {
				return t, fmt.Errorf("%v cannot be redirected to %v: name one address, not all of them", from, dest)
			}
			to = append(to, nftables.SetElement{Key: ruleset.AddrPortKey(from), Val: ruleset.AddrPortKey(dest)})
			hidden = append(hidden, nftables.SetElement{Key: ruleset.AddrPortKey(dest)})
		}
		if len(to) == 0 {
			continue
		}
		byKey := func(a, b nftables.SetElement) int { return bytes.Compare(a.Key, b.Key) }
		slices.SortFunc(to, byKey)
		slices.SortFunc(hidden, byKey)
		hidden = slices.CompactFunc(hidden, func(a, b nftables.SetElement) bool { return bytes.Equal(a.Key, b.Key) })
		t.Sets = append(t.Sets,
			ruleset.Set{Name: "ports" + f.Name, Key: f.AddrPortType(), Data: f.AddrPortType(), Elements: to},
			ruleset.Set{Name: "listeners" + f.Name, Key: f.AddrPortType(), Elements: hidden},
		)
		nat = append(nat, ruleset.NewRule("the forwarder listens on another port", f.TCPTo(), []expr.Any{
			ruleset.InMap("ports"+f.Name, reg1),
			f.DNAT(f.PortReg),
		}))
		guard = append(guard, ruleset.NewRule("the forwarder's own port is not for others", notLoopback(), f.TCPTo(),
			[]expr.Any{ruleset.InSet("listeners" + f.Name)}, ruleset.NotDNATed(), []expr.Any{ruleset.Reset()}))
	}
	if len(nat) == 0 {
		return t, nil
	}
	t.Chains = []ruleset.Chain{
		ruleset.NATChain("prerouting", unix.NF_INET_PRE_ROUTING, ruleset.PriorityDNAT, nat...),
		ruleset.NATChain("output", unix.NF_INET_LOCAL_OUT, ruleset.PriorityDNAT, nat...),
		ruleset.FilterChain("input", unix.NF_INET_LOCAL_IN, ruleset.PriorityReject, guard...),
	}
	return t, nil
}

// notLoopback matches packets that arrived on another interface than lo.
func notLoopback() []expr.Any {
	const arphrdLoopback = 772 // linux/if_arp.h
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFTYPE, Register: reg1},
		ruleset.NotEqual(reg1, binaryutil.NativeEndian.PutUint16(arphrdLoopback)...),
	}
}
