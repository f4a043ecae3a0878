package nft

import (
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }

func gotoChain(name string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: name}}
}

func socket(key expr.SocketKey) []expr.Any {
	return []expr.Any{&expr.Socket{Key: key, Register: reg1}}
}

func equals(b byte) []expr.Any { return []expr.Any{equal(reg1, b)} }

// notToThisHost matches frames that are not addressed to the interface's own
// MAC: `meta pkttype != unicast`.
func notToThisHost() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPKTTYPE, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: []byte{unix.PACKET_HOST}},
	}
}

// fromFellow matches frames whose source is a fellow node, or is not.
func fromFellow(not bool) []expr.Any {
	l := inSet(fellowsSet)
	l.Invert = not
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
		l,
	}
}

// pathProbe matches the packets of a prober, see probe.go: resets that carry
// its magic right after a header without options.
func pathProbe() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1},
		equal(reg1, unix.IPPROTO_TCP),
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 12, Len: 2},
		equal(reg1, 5<<4, tcpFlagRST),
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 20, Len: 8},
		equal(reg1, []byte(probeMagic)...),
	}
}

// fromLink compares the interface that a packet came in by.
func (s directService) fromLink(op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIF, Register: reg1},
		&expr.Cmp{Op: op, Register: reg1, Data: native(s.link.index)},
	}
}

// ethertype matches the family in hooks that see every protocol.
func (f ipFamily) ethertype() []expr.Any {
	proto := uint16(unix.ETH_P_IP)
	if f.proto == unix.NFPROTO_IPV6 {
		proto = unix.ETH_P_IPV6
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: reg1},
		equal(reg1, binaryutil.BigEndian.PutUint16(proto)...),
	}
}

// whole matches packets of the family that are no fragments: only the first
// fragment has ports, and all should take one way.
func (s directService) whole() []expr.Any {
	f := s.family()
	if f.proto == unix.NFPROTO_IPV6 {
		// A fragment header would stand between (RFC 8200 section 4.5), and so
		// would any other; TCP comes without.
		return append(f.ethertype(),
			&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: 6, Len: 1},
			equal(reg1, unix.IPPROTO_TCP),
		)
	}
	return append(f.ethertype(),
		// More Fragments and Fragment Offset: RFC 791 section 3.1.
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: 6, Len: 2},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 2, Mask: []byte{0x3f, 0xff}, Xor: []byte{0, 0}},
		equal(reg1, 0, 0),
	)
}

// toFrontend matches TCP to the service's address and port.
func (s directService) toFrontend() []expr.Any {
	f := s.family()
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: f.daddr, Len: f.addrLen},
		equal(reg1, s.frontend.Addr().AsSlice()...),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1},
		equal(reg1, unix.IPPROTO_TCP),
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		equal(reg1, binaryutil.BigEndian.PutUint16(s.frontend.Port())...),
	}
}

// client leaves the client's address and port in reg1 and portReg.
func (f ipFamily) client() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: f.saddr, Len: f.addrLen},
		&expr.Payload{DestRegister: f.portReg, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2},
	}
}

// Where an ICMP error has what it quotes: after its own eight bytes (RFC 792,
// RFC 4443 section 3).
const icmpQuote = 8

// quoted is the length of the IP header that an ICMP error quotes. An IPv4
// header with options is longer, and not looked for.
func (f ipFamily) quoted() uint32 {
	if f.proto == unix.NFPROTO_IPV6 {
		return 40
	}
	return 20
}

// errorAbout matches ICMP errors that quote a packet of the service to a
// client. The one that matters is "packet too big", without which path MTU
// discovery fails at the server that sent it (RFC 1191, RFC 8201).
func (s directService) errorAbout() []expr.Any {
	f := s.family()
	at := func(reg, offset, length uint32) *expr.Payload {
		return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: icmpQuote + offset, Len: length}
	}
	es := append(f.ethertype(), &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1})
	if f.proto == unix.NFPROTO_IPV6 {
		es = append(es,
			equal(reg1, unix.IPPROTO_ICMPV6),
			// Types below 128 are errors (RFC 4443 section 2.1).
			&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
			&expr.Cmp{Op: expr.CmpOpLt, Register: reg1, Data: []byte{128}},
			at(reg1, 6, 1), equal(reg1, unix.IPPROTO_TCP),
		)
	} else {
		es = append(es,
			equal(reg1, unix.IPPROTO_ICMP),
			// Destination unreachable; code 4 is "fragmentation needed" (RFC 1191).
			&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
			equal(reg1, 3),
			at(reg1, 0, 1), equal(reg1, 0x45),
			at(reg1, 9, 1), equal(reg1, unix.IPPROTO_TCP),
		)
	}
	return append(es,
		at(reg1, f.saddr, f.addrLen), equal(reg1, s.frontend.Addr().AsSlice()...),
		at(reg1, f.quoted(), 2), equal(reg1, binaryutil.BigEndian.PutUint16(s.frontend.Port())...),
	)
}

// embeddedClient leaves the client of a quoted packet in reg1 and portReg:
// there it is the destination.
func (f ipFamily) embeddedClient() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: icmpQuote + f.daddr, Len: f.addrLen},
		&expr.Payload{DestRegister: f.portReg, Base: expr.PayloadBaseTransportHeader, Offset: icmpQuote + f.quoted() + 2, Len: 2},
	}
}
