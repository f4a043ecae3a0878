package ruleset

import (
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// MostHandOns is how often a packet may be handed on: the count has four bits.
const MostHandOns = 15

// dscp is where a packet says how often it was handed on: in its DSCP, in code points
// for local use, pool 2, xxxx11 (RFC 2474 section 6). Packets of a client that sends
// these itself are handed on less often. The DSCP is in bits 8 to 13 of IPv4
// (RFC 2474 section 3), and in bits 4 to 9 of IPv6 (RFC 8200 section 7).
func (f IPFamily) dscp(n int) (mask, value []byte) {
	shift := 2
	if f.Proto == unix.NFPROTO_IPV6 {
		shift = 6
	}
	return binaryutil.BigEndian.PutUint16(0x3f << shift), binaryutil.BigEndian.PutUint16(uint16(n<<2|3) << shift)
}

// HandedOn matches packets that were handed on n times.
func (f IPFamily) HandedOn(n int) []expr.Any { return f.handedOn(n, expr.CmpOpEq) }

// NotHandedOn matches the others.
func (f IPFamily) NotHandedOn(n int) []expr.Any { return f.handedOn(n, expr.CmpOpNeq) }

func (f IPFamily) handedOn(n int, op expr.CmpOp) []expr.Any {
	mask, value := f.dscp(n)
	return []expr.Any{
		LoadNetwork(Reg1, 0, 2),
		Mask(mask, []byte{0, 0}),
		&expr.Cmp{Op: op, Register: Reg1, Data: value},
	}
}

// MarkHandedOn has a packet say that it was handed on n times.
func (f IPFamily) MarkHandedOn(n int) []expr.Any {
	mask, value := f.dscp(n)
	for i := range mask {
		mask[i] = ^mask[i]
	}
	return []expr.Any{
		LoadNetwork(Reg1, 0, 2),
		Mask(mask, value),
		f.WriteHeader(0),
	}
}

// Lives and IsSpent match packets that may be handed on by the stack, by what is left of their TTL or hop limit. The
// kernel lowers it then, from 0 to 255 too (nf_dup_ipv4, nf_dup_ipv6). So where a switch clears the DSCP, this alone
// keeps a packet from going round for ever.
func (f IPFamily) Lives() []expr.Any { return f.ttl(expr.CmpOpGt) }

// IsSpent matches the others.
func (f IPFamily) IsSpent() []expr.Any { return f.ttl(expr.CmpOpLte) }

func (f IPFamily) ttl(op expr.CmpOp) []expr.Any {
	offset := uint32(8) // RFC 791 section 3.1
	if f.Proto == unix.NFPROTO_IPV6 {
		offset = 7 // RFC 8200 section 3
	}
	return []expr.Any{LoadNetwork(Reg1, offset, 1), &expr.Cmp{Op: op, Register: Reg1, Data: []byte{1}}}
}

// WriteHeader writes two bytes of Reg1 into the IP header.
func (f IPFamily) WriteHeader(offset uint32) *expr.Payload {
	write := &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: Reg1,
		Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 2}
	if f.Proto == unix.NFPROTO_IPV4 {
		write.CsumType, write.CsumOffset = expr.CsumTypeInet, 10 // RFC 791 section 3.1
	}
	return write
}
