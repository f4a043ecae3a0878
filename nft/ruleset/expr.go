package ruleset

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

func Verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }

func Goto(name string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: name}}
}

// SrcAddrPort leaves the source address and port in Reg1 and PortReg.
func (f IPFamily) SrcAddrPort() []expr.Any {
	return []expr.Any{
		LoadNetwork(Reg1, f.SrcOffset, f.AddrLen),
		LoadTransport(f.PortReg, 0, 2),
	}
}

// LinkName is an interface's name as a part of a chain's, one to one: v.1 and v-1 may be on one host. The names of VLANs
// (eth0.5) and aliases have characters that nft does not take.
func LinkName(ifname string) string {
	var b strings.Builder
	for _, c := range []byte(ifname) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "_%02x", c)
		}
	}
	return b.String()
}

// Registers hold 16 bytes each. Numbers from 8 on name words of 4 bytes: Reg1 is words
// 8 to 11. A key of several parts is in consecutive words.
const (
	RegVerdict = 0
	Reg1       = 1
	Reg2       = 2
	word1      = 9 // the second word of Reg1
)

// An IPFamily says where nf_tables finds what in packets of IPv4 or IPv6.
type IPFamily struct {
	Name     string
	Proto    byte // NFPROTO_*
	AddrType nftables.SetDatatype
	AddrLen  uint32
	// Offsets in the header: RFC 791 section 3.1, RFC 8200 section 3.
	SrcOffset, DstOffset uint32
	// PortReg is the register that follows an address in Reg1.
	PortReg uint32
}

func IPv4() IPFamily {
	return IPFamily{Name: "4", Proto: unix.NFPROTO_IPV4, AddrType: nftables.TypeIPAddr, AddrLen: 4, SrcOffset: 12,
		DstOffset: 16, PortReg: word1}
}

func IPv6() IPFamily {
	return IPFamily{Name: "6", Proto: unix.NFPROTO_IPV6, AddrType: nftables.TypeIP6Addr, AddrLen: 16, SrcOffset: 8,
		DstOffset: 24, PortReg: Reg2}
}

func Families() []IPFamily { return []IPFamily{IPv4(), IPv6()} }

func (f IPFamily) Has(a netip.Addr) bool { return a.Unmap().Is4() == (f.Proto == unix.NFPROTO_IPV4) }

func (f IPFamily) AddrPortType() nftables.SetDatatype {
	// Two types always fit, so there is never an error.
	t, _ := nftables.ConcatSetType(f.AddrType, nftables.TypeInetService)
	return t
}

// TCPTo matches TCP packets of the family and leaves the destination address and port
// in Reg1 and PortReg: `ip daddr . tcp dport`.
func (f IPFamily) TCPTo() []expr.Any { return append(f.TCP(), f.DstAddrPort()...) }

func (f IPFamily) DstAddrPort() []expr.Any {
	return []expr.Any{
		LoadNetwork(Reg1, f.DstOffset, f.AddrLen),
		// The destination port: RFC 9293 section 3.1.
		LoadTransport(f.PortReg, 2, 2),
	}
}

// TCP matches TCP packets of the family.
func (f IPFamily) TCP() []expr.Any {
	return append([]expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: Reg1},
		Equal(Reg1, f.Proto),
	}, TCP()...)
}

// TCP matches TCP packets, which is enough in a table of one family.
func TCP() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: Reg1},
		Equal(Reg1, unix.IPPROTO_TCP),
	}
}

// FrontendSet is the set of those of addrs that are of the family, each once.
func (f IPFamily) FrontendSet(addrs []netip.AddrPort) (Set, error) {
	s := Set{Name: "frontends" + f.Name, Key: f.AddrPortType()}
	for _, ap := range addrs {
		if ap.Addr().IsUnspecified() {
			return s, fmt.Errorf("rules cannot be made for %v: name one address, not all of them", ap)
		}
		if f.Has(ap.Addr()) {
			s.Elements = append(s.Elements, nftables.SetElement{Key: AddrPortKey(ap)})
		}
	}
	slices.SortFunc(s.Elements, func(a, b nftables.SetElement) int { return bytes.Compare(a.Key, b.Key) })
	s.Elements = slices.CompactFunc(s.Elements, func(a, b nftables.SetElement) bool { return bytes.Equal(a.Key, b.Key) })
	return s, nil
}

// Directions of conntrack, IP_CT_DIR_ORIGINAL and IP_CT_DIR_REPLY. The kernel takes one
// byte, and the library sends four, the most significant first.
const (
	CtOriginal = 0
	CtReply    = 1 << 24
)

// OriginallyTo matches TCP packets of the family, and leaves the address and port to
// which the client opened the connection in Reg1 and PortReg: `ct original daddr . ct
// original proto-dst`.
func (f IPFamily) OriginallyTo() []expr.Any {
	return append(f.TCP(),
		&expr.Ct{Key: expr.CtKeyDST, Direction: CtOriginal, Register: Reg1},
		&expr.Ct{Key: expr.CtKeyPROTODST, Direction: CtOriginal, Register: f.PortReg},
	)
}

// DNATed matches packets of connections whose destination was translated: `ct status
// dnat`.
func DNATed() []expr.Any { return ctStatusDNAT(expr.CmpOpNeq) }

// NotDNATed matches the others.
func NotDNATed() []expr.Any { return ctStatusDNAT(expr.CmpOpEq) }

func ctStatusDNAT(compareToZero expr.CmpOp) []expr.Any {
	const ipsDstNAT = 1 << 5 // IPS_DST_NAT in linux/netfilter/nf_conntrack_common.h
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: Reg1},
		Mask(Native(ipsDstNAT), Native(0)),
		&expr.Cmp{Op: compareToZero, Register: Reg1, Data: Native(0)},
	}
}

// SYN matches the first packet of a connection: `tcp flags & (fin|syn|rst|ack) == syn`.
func SYN() []expr.Any {
	const fin, syn, rst, ack = 0x01, 0x02, 0x04, 0x10 // RFC 9293 section 3.1
	return []expr.Any{
		LoadTransport(Reg1, 13, 1),
		Mask([]byte{fin | syn | rst | ack}, []byte{0}),
		Equal(Reg1, syn),
	}
}

// CountClient adds the first packet of a client's connection to the counter. A proof's has the window 0, which no
// client begins with, and is not counted: it is no connection.
func CountClient(counter string) []expr.Any {
	return []expr.Any{
		LoadTransport(Reg1, 14, 2), // RFC 9293 section 3.1: the window
		NotEqual(Reg1, 0, 0),
		&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: counter},
	}
}

func Equal(register uint32, data ...byte) *expr.Cmp {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: data}
}

// NotEqual matches if the register does not hold data.
func NotEqual(register uint32, data ...byte) *expr.Cmp {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: data}
}

// LoadLink loads bytes of the Ethernet header into the register.
func LoadLink(register, offset, length uint32) *expr.Payload {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseLLHeader, Offset: offset, Len: length}
}

// LoadNetwork loads bytes of the IP or ARP header into the register.
func LoadNetwork(register, offset, length uint32) *expr.Payload {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
}

// LoadTransport loads bytes from the TCP or ICMP header on into the register.
func LoadTransport(register, offset, length uint32) *expr.Payload {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length}
}

// Mask computes Reg1 & mask ^ xor; the two have the same length.
func Mask(mask, xor []byte) *expr.Bitwise {
	return &expr.Bitwise{SourceRegister: Reg1, DestRegister: Reg1, Len: uint32(len(mask)), Mask: mask, Xor: xor}
}

// DNAT translates the destination to the address in Reg1 and the port in the register.
func (f IPFamily) DNAT(portReg uint32) *expr.NAT {
	return &expr.NAT{
		Type: expr.NATTypeDestNAT, Family: uint32(f.Proto), RegAddrMin: Reg1, RegProtoMin: portReg, Specified: true,
	}
}

// GotoElement is an element of a map that leads to a chain.
func GotoElement(key []byte, chain string) nftables.SetElement {
	return nftables.SetElement{Key: key, VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}

// InSet matches if the key in Reg1 (and what follows it) is in the named set.
func InSet(name string) *expr.Lookup {
	return &expr.Lookup{SourceRegister: Reg1, SetName: name}
}

// InMap matches if the key in Reg1 is in the named map, and puts the value into the
// register.
func InMap(name string, into uint32) *expr.Lookup {
	return &expr.Lookup{SourceRegister: Reg1, SetName: name, IsDestRegSet: true, DestRegister: into}
}

// Reset answers with a reset: the client's connect fails at once.
func Reset() *expr.Reject { return &expr.Reject{Type: unix.NFT_REJECT_TCP_RST} }

// Native encodes a number in the byte order of the host, in which the kernel computes.
func Native(n uint32) []byte { return binaryutil.NativeEndian.PutUint32(n) }

// AddrPortKey is an address and port as they are in registers: the port is padded to a
// word.
func AddrPortKey(ap netip.AddrPort) []byte {
	b := ap.Addr().Unmap().AsSlice()
	b = binary.BigEndian.AppendUint16(b, ap.Port())
	return append(b, 0, 0)
}

// NameOf turns an address into a name that nft takes, one to one.
func NameOf(ap netip.AddrPort) string {
	return strings.ReplaceAll(ap.Addr().Unmap().String(), ":", "_") + "_" + strconv.Itoa(int(ap.Port()))
}

func Concat(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

// ToLocal matches packets to an address that this host has. When a VIP on lo has run
// out, its rules match no more: a node whose appliance is gone for good reaches the
// VIP through its holder, as other clients do.
func ToLocal() []expr.Any { return addressedTo(expr.CmpOpEq) }

// NotToLocal matches what ToLocal does not.
func NotToLocal() []expr.Any { return addressedTo(expr.CmpOpNeq) }

func addressedTo(op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: Reg1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: op, Register: Reg1, Data: Native(unix.RTN_LOCAL)},
	}
}

// States of conntrack: NF_CT_STATE_BIT in linux/netfilter/nf_conntrack_common.h.
const (
	ctEstablished = 1 << 1
	ctRelated     = 1 << 2
	CtUntracked   = 1 << 6
)

// CtUnknown matches packets of connections that conntrack does not know.
func CtUnknown() []expr.Any { return CtStateIsNot(ctEstablished | ctRelated) }

func CtStateIsNot(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: Reg1},
		Mask(Native(bits), Native(0)),
		Equal(Reg1, Native(0)...),
	}
}

// ListenerHere matches packets for which this host has a listener on every address, and no connection.
func ListenerHere() []expr.Any {
	return []expr.Any{&expr.Socket{Key: expr.SocketKeyWildcard, Register: Reg1}, Equal(Reg1, 1)}
}

// SocketHere matches packets for which this host has any socket: a connection, one that begins or is in TIME-WAIT, of
// which the kernel does not tell whose it is (nft_socket_eval), or a listener.
func SocketHere() []expr.Any {
	return []expr.Any{&expr.Socket{Key: expr.SocketKeyTransparent, Register: Reg1}}
}

// NotSYN matches what SYN does not.
func NotSYN() []expr.Any {
	m := SYN()
	m[len(m)-1].(*expr.Cmp).Op = expr.CmpOpNeq
	return m
}
