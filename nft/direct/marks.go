package direct

import (
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"appliance/nft/ruleset"
)

// A family adds to an IPFamily what only this data plane looks at.
type family struct{ ruleset.IPFamily }

func (s service) family() family {
	if s.frontends[0].Addr().Is4() {
		return family{ruleset.IPv4()}
	}
	return family{ruleset.IPv6()}
}

// A sealValue marks packets that were handed on: their sender is a node, even if nobody knows its new MAC address
// yet. Taken for a client's, such a packet would begin its round again, with a count that is used up, and end at a
// node that does not know the connection. The seal is in a field that receivers ignore: the ID of an IPv4 packet that
// must not be fragmented (RFC 6864 section 4.1), and the second half of IPv6's flow label (RFC 8200 section 3). One
// client's packet in 65,536 has it by chance, and begins its round at the holder.
const sealValue = 0x6170

func (f family) sealOffset() uint32 {
	if f.Proto == unix.NFPROTO_IPV6 {
		return 2
	}
	return 4
}

// sealed compares the field of the seal with it.
func (f family) sealed(op expr.CmpOp) []expr.Any {
	return []expr.Any{
		ruleset.LoadNetwork(reg1, f.sealOffset(), 2),
		&expr.Cmp{Op: op, Register: reg1, Data: binaryutil.BigEndian.PutUint16(sealValue)},
	}
}

// sealable matches packets in which the seal means nothing else: those of IPv6, and those
// of IPv4 that must not be fragmented. What the kernel has put together of fragments is
// in fragments again on its next way, and the ID is what keeps those of two packets apart.
func (f family) sealable() []expr.Any {
	if f.Proto == unix.NFPROTO_IPV6 {
		return nil
	}
	return []expr.Any{
		ruleset.LoadNetwork(reg1, 6, 1),
		ruleset.Mask([]byte{0x40}, []byte{0}), // Don't Fragment: RFC 791 section 3.1
		ruleset.NotEqual(reg1, 0),
	}
}

// unsealable matches the others.
func (f family) unsealable() []expr.Any {
	es := f.sealable()
	es[len(es)-1].(*expr.Cmp).Op = expr.CmpOpEq
	return es
}

func (f family) seal() []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: reg1, Data: binaryutil.BigEndian.PutUint16(sealValue)},
		f.WriteHeader(f.sealOffset()),
	}
}
