package ruleset

import (
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A Defragmenter has the kernel put fragments together before our chains see them, as it
// does for conntrack, which not every host uses. Without it, rules see ports in the first
// fragment at most. The zero Defragmenter is ready.
type Defragmenter struct {
	once sync.Once
	can  bool
}

// AddTo adds a chain to the table, unless the kernel lacks the expression in it. The
// kernel reassembles at NF_IP_PRI_CONNTRACK_DEFRAG (-400), for chains after that, as long
// as the table exists.
func (d *Defragmenter) AddTo(t *Table) {
	d.once.Do(func() {
		d.can = Try(Table{Family: nftables.TableFamilyINet, Name: t.Name,
			Chains: []Chain{defragment(nftables.TableFamilyINet)}}) == nil
	})
	if d.can && len(t.Chains) > 0 {
		t.Chains = append(t.Chains, defragment(t.Family))
	}
}

// defragment is a chain to which nothing leads. The mere existence of a tproxy
// expression has the kernel reassemble what arrives (nft_tproxy_init).
func defragment(family nftables.TableFamily) Chain {
	proto := byte(family)
	if family == nftables.TableFamilyINet {
		proto = unix.NFPROTO_UNSPEC // both
	}
	c := Chain{Name: "defragment"}
	c.Add("never reached: tproxy has the kernel put fragments together first", []expr.Any{
		&expr.Immediate{Register: Reg1, Data: []byte{0, 9}},
		&expr.TProxy{Family: proto, TableFamily: byte(family), RegPort: Reg1},
	})
	return c
}

// Fragment matches the fragments of packets that are not whole here.
func (f IPFamily) Fragment() []expr.Any {
	family := []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: Reg1}, Equal(Reg1, f.Proto)}
	if f.Proto == unix.NFPROTO_IPV6 {
		return append(family,
			&expr.Exthdr{DestRegister: Reg1, Type: unix.IPPROTO_FRAGMENT, Len: 1, Op: expr.ExthdrOpIpv6,
				Flags: unix.NFT_EXTHDR_F_PRESENT},
			Equal(Reg1, 1))
	}
	return append(family,
		// More Fragments and Fragment Offset: RFC 791 section 3.1.
		LoadNetwork(Reg1, 6, 2),
		Mask([]byte{0x3f, 0xff}, []byte{0, 0}),
		NotEqual(Reg1, 0, 0))
}
