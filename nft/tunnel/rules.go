package tunnel

import (
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"appliance/nft/ruleset"
)

const (
	// raw is before conntrack (-200): what is tunnelled is no connection.
	raw nftables.ChainPriority = -300

	endsSet = "ends"
)

func outerTable(is4 bool) ruleset.Table {
	family := nftables.TableFamilyIPv6
	if is4 {
		family = nftables.TableFamilyIPv4
	}
	return ruleset.Table{Family: family, Name: ruleset.TunnelTable}
}

func innerTable() ruleset.Table {
	return ruleset.Table{Family: nftables.TableFamilyNetdev, Name: ruleset.TunnelTable}
}

// outer are the tables for the packets of the tunnel itself. That of the other family has no chains.
func (t *Device) outer(own netip.Addr, ends []End) [2]ruleset.Table {
	tables := [2]ruleset.Table{outerTable(true), outerTable(false)}
	f, table := ruleset.IPv4(), &tables[0]
	if own.Is6() {
		f, table = ruleset.IPv6(), &tables[1]
	}
	set := ruleset.Set{Name: endsSet, Key: f.AddrType}
	for _, e := range ends {
		set.Elements = append(set.Elements, nftables.SetElement{Key: e.At.AsSlice()})
	}
	table.Sets = append(table.Sets, set)
	port := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: ruleset.Reg1},
		ruleset.Equal(ruleset.Reg1, unix.IPPROTO_UDP),
		ruleset.LoadTransport(ruleset.Reg1, 2, 2),
		ruleset.Equal(ruleset.Reg1, binaryutil.BigEndian.PutUint16(t.cfg.Port)...),
	}
	end := func(offset uint32, not bool) []expr.Any {
		in := ruleset.InSet(endsSet)
		in.Invert = not
		return []expr.Any{ruleset.LoadNetwork(ruleset.Reg1, offset, f.AddrLen), in}
	}
	untracked := []expr.Any{&expr.Notrack{}}
	// Fragments are whole in the input hook.
	table.Chains = []ruleset.Chain{
		ruleset.FilterChain("arrive", *nftables.ChainHookPrerouting, raw,
			ruleset.NewRule("from a node, and no connection", port, end(f.SrcOffset, false), untracked)),
		ruleset.FilterChain("leave", *nftables.ChainHookOutput, raw,
			ruleset.NewRule("to a node, and no connection", port, end(f.DstOffset, false), untracked)),
		ruleset.FilterChain("in", *nftables.ChainHookInput, raw,
			ruleset.NewRule("from nobody of the group", port, end(f.SrcOffset, true), ruleset.Verdict(expr.VerdictDrop))),
	}
	return tables
}

// inner is the table for what comes out of the tunnel. Path probes have been seen by their socket.
func (t *Device) inner(ends []End) ruleset.Table {
	table := innerTable()
	nodes := ruleset.Set{Name: endsSet, Key: nftables.TypeEtherAddr}
	for _, e := range ends {
		mac := MAC(e.At)
		nodes.Elements = append(nodes.Elements, nftables.SetElement{Key: slices.Clone(mac[:])})
	}
	table.Sets = append(table.Sets, nodes)
	stranger := ruleset.InSet(endsSet)
	stranger.Invert = true
	c := ruleset.Chain{Name: "ingress", Hook: &ruleset.BaseHook{
		Kind: nftables.ChainTypeFilter, Num: *nftables.ChainHookIngress, Priority: raw, Device: Name,
	}}
	c.Add("from nobody of the group", []expr.Any{ruleset.LoadLink(ruleset.Reg1, 6, 6), stranger},
		ruleset.Verdict(expr.VerdictDrop))
	for _, f := range ruleset.Families() {
		set := ruleset.Set{Name: "vips4", Key: f.AddrType}
		ethertype := uint16(unix.ETH_P_IP)
		if f.Proto == unix.NFPROTO_IPV6 {
			set.Name, ethertype = "vips6", unix.ETH_P_IPV6
		}
		for _, vip := range t.cfg.VIPs {
			if f.Has(vip) {
				set.Elements = append(set.Elements, nftables.SetElement{Key: vip.AsSlice()})
			}
		}
		if len(set.Elements) == 0 {
			continue
		}
		table.Sets = append(table.Sets, set)
		c.Add("to a virtual address", []expr.Any{
			&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: ruleset.Reg1},
			ruleset.Equal(ruleset.Reg1, binaryutil.BigEndian.PutUint16(ethertype)...),
			ruleset.LoadNetwork(ruleset.Reg1, f.DstOffset, f.AddrLen), ruleset.InSet(set.Name),
		}, ruleset.Verdict(expr.VerdictAccept))
	}
	c.Add("nobody else is served here", ruleset.Verdict(expr.VerdictDrop))
	table.Chains = append(table.Chains, c)
	return table
}
