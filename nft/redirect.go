package nft

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
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
//
// Packets that arrive are handed to the listener's socket as they are (tproxy), so the
// host's firewall sees the port that the client asked for. They are translated where
// that cannot be, and the firewall sees the listener's port.
type Redirector struct {
	// Log is told once when a firewall has to expect another port than the client's; nil is slog.Default().
	Log *slog.Logger

	reconciler ruleset.Reconciler
	seen       map[netip.AddrPort]bool // frontends that this process has redirected
	tried      bool
	assigns    bool // the kernel hands packets to sockets
}

// A way is how packets that arrive come to a listener.
type way int

const (
	assigned       way = iota // to the socket, as they are
	bridgesDiffer             // but for those that a bridge has shown to nf_tables
	translatedOnly            // to the listener's port
)

// Assignable tries whether the kernel can hand packets to a socket that listens elsewhere. The error says what is
// missing.
func Assignable() error {
	one := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), 1) // RFC 5737
	t, err := redirect(map[netip.AddrPort]netip.AddrPort{one: netip.AddrPortFrom(one.Addr(), 2)}, assigned)
	if err != nil {
		return err
	}
	return ruleset.Try(t)
}

// way finds out how packets can come to a listener on this host.
func (r *Redirector) way() way {
	if !r.tried {
		err := Assignable()
		r.tried, r.assigns = true, err == nil
		if err != nil {
			cmp.Or(r.Log, slog.Default()).Warn("the kernel lacks nft_tproxy, so user space gets its clients on other ports: a "+
				"firewall of this host has to accept what was translated (ct status dnat) in its input chain", "reason", err)
		}
	}
	if !r.assigns {
		return translatedOnly
	}
	// With br_netfilter, a bridge shows packets to nf_tables, and takes the socket from them before IP sees them
	// (ip_rcv_core). It may do so for each bridge, whatever the setting for all of them says.
	if _, err := os.Stat("/proc/sys/net/bridge"); err == nil {
		return bridgesDiffer
	}
	return assigned
}

// NewRedirector returns a Redirector whose table belongs to the owner.
func NewRedirector(owner *ruleset.Owner) *Redirector {
	return &Redirector{reconciler: ruleset.Reconciler{Owner: owner}}
}

// Redirect makes ports the whole set of what is redirected: TCP to each key arrives at
// its value, wherever the client is. The listeners are transparent sockets
// (IP_TRANSPARENT, ip(7)). An empty set removes the rules. Connections from
// elsewhere straight to a value are reset: it is no service of its own. Open
// connections stay as they are, except those of an earlier process: nobody has them
// any more.
func (r *Redirector) Redirect(_ context.Context, ports map[netip.AddrPort]netip.AddrPort) (repaired int, err error) {
	by := assigned
	if len(ports) > 0 {
		by = r.way()
	}
	want, err := redirect(ports, by)
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

// redirect is the table for ports, a pure function.
func redirect(ports map[netip.AddrPort]netip.AddrPort, by way) (ruleset.Table, error) {
	t := ruleset.Table{Family: nftables.TableFamilyINet, Name: ruleset.RedirectTable}
	var arriving, leaving, assign, guard []ruleset.Rule
	for _, f := range ruleset.Families() {
		var to, hidden, sockets []nftables.SetElement
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
			if by != translatedOnly {
				sockets = append(sockets, ruleset.GotoElement(ruleset.AddrPortKey(from), socketName(from)))
			}
		}
		if len(to) == 0 {
			continue
		}
		byKey := func(a, b nftables.SetElement) int { return bytes.Compare(a.Key, b.Key) }
		slices.SortFunc(to, byKey)
		slices.SortFunc(hidden, byKey)
		slices.SortFunc(sockets, byKey)
		hidden = slices.CompactFunc(hidden, func(a, b nftables.SetElement) bool { return bytes.Equal(a.Key, b.Key) })
		t.Sets = append(t.Sets,
			ruleset.Set{Name: "ports" + f.Name, Key: f.AddrPortType(), Data: f.AddrPortType(), Elements: to},
			ruleset.Set{Name: "listeners" + f.Name, Key: f.AddrPortType(), Elements: hidden},
		)
		translate := func(only ...expr.Any) ruleset.Rule {
			return ruleset.NewRule("the forwarder listens on another port", only, f.TCPTo(), []expr.Any{
				ruleset.InMap("ports"+f.Name, reg1),
				f.DNAT(f.PortReg),
			})
		}
		// A program that is to be replaced keeps its local clients (the frontend is loopback then), also those that
		// conntrack has not seen begin.
		leaving = append(leaving, translate(ruleset.SYN()...))
		switch by {
		case translatedOnly:
			arriving = append(arriving, translate())
		case bridgesDiffer:
			arriving = append(arriving, translate(fromBridge()...))
		}
		guard = append(guard, ruleset.NewRule("the forwarder's own port is not for others", notLoopback(), f.TCPTo(),
			[]expr.Any{ruleset.InSet("listeners" + f.Name)}, ruleset.NotDNATed(), []expr.Any{ruleset.Reset()}))
		if by == translatedOnly {
			continue
		}
		frontends, err := f.FrontendSet(slices.Collect(maps.Keys(ports)))
		if err != nil {
			return t, err
		}
		t.Sets = append(t.Sets, frontends, ruleset.Set{Name: "sockets" + f.Name, Key: f.AddrPortType(),
			Data: nftables.TypeVerdict, Elements: sockets})
		// The kernel asks no other NAT chain then.
		arriving = append(arriving, ruleset.NewRule("to where it goes: no other program translates it", f.TCPTo(),
			[]expr.Any{ruleset.InSet(frontends.Name), f.DNAT(f.PortReg)}))
		assign = append(assign, ruleset.NewRule("to the forwarder's socket, as it is", f.TCPTo(),
			[]expr.Any{ruleset.InMap("sockets"+f.Name, ruleset.RegVerdict)}))
	}
	if len(leaving) == 0 {
		return t, nil
	}
	for _, from := range slices.SortedFunc(maps.Keys(ports), netip.AddrPort.Compare) {
		if by != translatedOnly {
			t.Chains = append(t.Chains, toSocket(from, ports[from]))
		}
	}
	t.Chains = append(t.Chains,
		ruleset.NATChain("prerouting", unix.NF_INET_PRE_ROUTING, ruleset.PriorityDNAT, arriving...),
		ruleset.NATChain("output", unix.NF_INET_LOCAL_OUT, ruleset.PriorityDNAT, leaving...),
		ruleset.FilterChain("input", unix.NF_INET_LOCAL_IN, ruleset.PriorityReject, guard...),
	)
	if len(assign) > 0 {
		t.Chains = append(t.Chains,
			ruleset.FilterChain("assign", unix.NF_INET_PRE_ROUTING, ruleset.PriorityTranslated, assign...))
	}
	return t, nil
}

func socketName(frontend netip.AddrPort) string { return "to_" + ruleset.NameOf(frontend) }

// toSocket hands packets to the socket of their connection, or to the one that listens at dest. A connection of
// another socket, such as a local server's, does not match (nf_tproxy_sk_is_transparent): it goes on as before.
func toSocket(from, dest netip.AddrPort) ruleset.Chain {
	f := ruleset.IPv4()
	if !f.Has(from.Addr()) {
		f = ruleset.IPv6()
	}
	c := ruleset.Chain{Name: socketName(from)}
	c.Add("the forwarder listens there", []expr.Any{
		&expr.Immediate{Register: reg1, Data: dest.Addr().Unmap().AsSlice()},
		&expr.Immediate{Register: reg2, Data: binary.BigEndian.AppendUint16(nil, dest.Port())},
		&expr.TProxy{Family: f.Proto, TableFamily: unix.NFPROTO_INET, RegAddr: reg1, RegPort: reg2},
	})
	return c
}

// fromBridge matches packets that arrived by a bridge: `meta iifkind bridge`.
func fromBridge() []expr.Any {
	const iifkind = 26 // NFT_META_IIFKIND in linux/netfilter/nf_tables.h
	kind := make([]byte, unix.IFNAMSIZ)
	copy(kind, "bridge")
	return []expr.Any{&expr.Meta{Key: iifkind, Register: reg1}, ruleset.Equal(reg1, kind...)}
}

// notLoopback matches packets that arrived on another interface than lo.
func notLoopback() []expr.Any {
	const arphrdLoopback = 772 // linux/if_arp.h
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFTYPE, Register: reg1},
		ruleset.NotEqual(reg1, binaryutil.NativeEndian.PutUint16(arphrdLoopback)...),
	}
}
