package lab

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Guard makes the switch drop packets from this machine whose source is neither
// one of its own addresses nor allowed, as hypervisors and port security do.
func (n *Machine) Guard(allowed ...netip.Addr) error {
	for _, p := range n.ports[0].addrs {
		allowed = append(allowed, p.Addr())
	}
	n.lab.log.Info("guarded", "machine", n.Name)
	return n.lab.sw.guard(n.ports[0].index, allowed)
}

// Unguard takes every Guard back.
func (l *Lab) Unguard() error {
	l.log.Info("guards are gone")
	return l.sw.do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(guards())
		c.DelTable(table)
		return c.Flush()
	})
}

func guards() *nftables.Table {
	return &nftables.Table{Name: "guards", Family: nftables.TableFamilyBridge}
}

func (w *wiring) guard(index int, allowed []netip.Addr) error {
	return w.do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(guards())
		chain := c.AddChain(&nftables.Chain{
			Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
		})
		for _, f := range []struct {
			protocol    uint16
			offset, len uint32
			more        []netip.Addr // allowed to everybody
		}{
			{unix.ETH_P_IP, 12, 4, nil},
			// A host that looks for duplicates has no address yet (RFC 4862
			// section 5.4).
			{unix.ETH_P_IPV6, 8, 16, []netip.Addr{netip.IPv6Unspecified()}},
		} {
			exprs := []expr.Any{
				&expr.Meta{Key: expr.MetaKeyIIF, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(uint32(index))},
				&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(f.protocol)},
			}
			if f.protocol == unix.ETH_P_IPV6 {
				exprs = append(exprs, notLinkLocal(f.offset)...)
			}
			exprs = append(exprs, &expr.Payload{
				DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.offset, Len: f.len,
			})
			for _, a := range append(f.more, allowed...) {
				if a.BitLen() == int(f.len)*8 {
					exprs = append(exprs, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: a.AsSlice()})
				}
			}
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(exprs, &expr.Verdict{Kind: expr.VerdictDrop})})
		}
		if err := c.Flush(); err != nil {
			return fmt.Errorf("lab: filter by source address (the kernel needs nf_tables' bridge family): %w", err)
		}
		return nil
	})
}

// notLinkLocal matches what is not from fe80::/10 (RFC 4291 section 2.5.6).
func notLinkLocal(offset uint32) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 2},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0xff, 0xc0}, Xor: []byte{0, 0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0xfe, 0x80}},
	}
}
