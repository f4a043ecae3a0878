package nft

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers hold 16 bytes each, or are named in words of 4 bytes from 8 on:
// reg1 is words 8 to 11. A key of several parts lies in consecutive words.
const (
	regVerdict = 0
	reg1       = 1
	reg2       = 2
	word1      = 9 // the second word of reg1
)

// An ipFamily says where nf_tables finds things in packets of IPv4 or IPv6.
type ipFamily struct {
	name     string
	proto    byte // NFPROTO_*
	addrType nftables.SetDatatype
	addrLen  uint32
	// Offsets in the header: RFC 791 section 3.1, RFC 8200 section 3.
	saddr, daddr uint32
	// portReg is the register that follows an address in reg1.
	portReg uint32
}

func ipv4() ipFamily {
	return ipFamily{name: "4", proto: unix.NFPROTO_IPV4, addrType: nftables.TypeIPAddr, addrLen: 4, saddr: 12, daddr: 16, portReg: word1}
}

func ipv6() ipFamily {
	return ipFamily{name: "6", proto: unix.NFPROTO_IPV6, addrType: nftables.TypeIP6Addr, addrLen: 16, saddr: 8, daddr: 24, portReg: reg2}
}

func families() []ipFamily { return []ipFamily{ipv4(), ipv6()} }

func (f ipFamily) has(a netip.Addr) bool { return a.Unmap().Is4() == (f.proto == unix.NFPROTO_IPV4) }

func (f ipFamily) addrPortType() nftables.SetDatatype {
	// Two types always fit, so there is no error to look at.
	t, _ := nftables.ConcatSetType(f.addrType, nftables.TypeInetService)
	return t
}

// tcpTo matches TCP packets of the family and leaves destination address and
// port in reg1 and portReg: `ip daddr . tcp dport`.
func (f ipFamily) tcpTo() []expr.Any { return append(f.tcp(), f.addrPort()...) }

func (f ipFamily) addrPort() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: f.daddr, Len: f.addrLen},
		// The destination port: RFC 9293 section 3.1.
		&expr.Payload{DestRegister: f.portReg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

// tcp matches TCP packets of the family.
func (f ipFamily) tcp() []expr.Any {
	return append([]expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg1},
		equal(reg1, f.proto),
	}, tcp()...)
}

// tcp matches TCP packets; in a table of one family that is enough.
func tcp() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1},
		equal(reg1, unix.IPPROTO_TCP),
	}
}

// frontends is the set of those addresses that are of the family, each once.
func (f ipFamily) frontends(addrs []netip.AddrPort) (set, error) {
	s := set{name: "frontends" + f.name, key: f.addrPortType()}
	for _, ap := range addrs {
		if ap.Addr().IsUnspecified() {
			return s, fmt.Errorf("rules cannot be made for %v: name one address, not all of them", ap)
		}
		if f.has(ap.Addr()) {
			s.elements = append(s.elements, nftables.SetElement{Key: addrPortKey(ap)})
		}
	}
	slices.SortFunc(s.elements, func(a, b nftables.SetElement) int { return bytes.Compare(a.Key, b.Key) })
	s.elements = slices.CompactFunc(s.elements, func(a, b nftables.SetElement) bool { return bytes.Equal(a.Key, b.Key) })
	return s, nil
}

// Directions of conntrack: IP_CT_DIR_ORIGINAL and IP_CT_DIR_REPLY. The kernel takes
// one byte, and the library sends four, the most significant first.
const (
	ctOriginal = 0
	ctReply    = 1 << 24
)

// originallyTo matches packets of TCP connections that the family's clients
// opened, and leaves the address and port that they had dialled in reg1 and
// portReg: `ct original daddr . ct original proto-dst`.
func (f ipFamily) originallyTo() []expr.Any {
	return append(f.tcp(),
		&expr.Ct{Key: expr.CtKeyDST, Direction: ctOriginal, Register: reg1},
		&expr.Ct{Key: expr.CtKeyPROTODST, Direction: ctOriginal, Register: f.portReg},
	)
}

// dnated matches packets of connections whose destination has been changed:
// `ct status dnat`.
func dnated() []expr.Any { return ctStatusDNAT(expr.CmpOpNeq) }

// notDNATed matches the others.
func notDNATed() []expr.Any { return ctStatusDNAT(expr.CmpOpEq) }

func ctStatusDNAT(compareToZero expr.CmpOp) []expr.Any {
	const ipsDstNAT = 1 << 5 // IPS_DST_NAT in linux/netfilter/nf_conntrack_common.h
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: native(ipsDstNAT), Xor: native(0)},
		&expr.Cmp{Op: compareToZero, Register: reg1, Data: native(0)},
	}
}

// tcpSYN matches the first packet of a connection: `tcp flags & (fin|syn|rst|ack) == syn`.
func tcpSYN() []expr.Any {
	const fin, syn, rst, ack = 0x01, 0x02, 0x04, 0x10 // RFC 9293 section 3.1
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 1, Mask: []byte{fin | syn | rst | ack}, Xor: []byte{0}},
		equal(reg1, syn),
	}
}

func equal(register uint32, data ...byte) *expr.Cmp {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: data}
}

// inSet matches if what is in reg1 (and what follows it) is in the named set.
func inSet(name string) *expr.Lookup {
	return &expr.Lookup{SourceRegister: reg1, SetName: name}
}

// inMap matches if what is in reg1 is a key of the named map, and puts the
// value into the register.
func inMap(name string, into uint32) *expr.Lookup {
	return &expr.Lookup{SourceRegister: reg1, SetName: name, IsDestRegSet: true, DestRegister: into}
}

// resetTCP answers with a reset: the client's connect fails at once.
func resetTCP() *expr.Reject { return &expr.Reject{Type: unix.NFT_REJECT_TCP_RST} }

// native encodes a number as the kernel computes with it: in the byte order of the host.
func native(n uint32) []byte { return binaryutil.NativeEndian.PutUint32(n) }

// addrPortKey is an address and port as they lie in registers: the port
// padded to a word.
func addrPortKey(ap netip.AddrPort) []byte {
	b := ap.Addr().Unmap().AsSlice()
	b = binary.BigEndian.AppendUint16(b, ap.Port())
	return append(b, 0, 0)
}

// name turns an address into what nft takes as a name, one to one.
func name(ap netip.AddrPort) string {
	return strings.ReplaceAll(ap.Addr().Unmap().String(), ":", "_") + "_" + strconv.Itoa(int(ap.Port()))
}

func concat(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

// toLocal matches packets for an address that this host has. A VIP that has
// run out on lo takes its rules out of force: a node whose appliance is gone
// for good reaches the VIP through its holder, as other clients do.
func toLocal() []expr.Any { return addressedTo(expr.CmpOpEq) }

// notToLocal matches what toLocal does not.
func notToLocal() []expr.Any { return addressedTo(expr.CmpOpNeq) }

func addressedTo(op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: op, Register: reg1, Data: native(unix.RTN_LOCAL)},
	}
}
