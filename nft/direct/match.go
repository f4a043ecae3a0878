package direct

import (
	"slices"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"appliance/neighbours"
	"appliance/nft/ruleset"
	"appliance/pathprobe"
	"appliance/segment"
)

const (
	reg1 = ruleset.Reg1
	reg2 = ruleset.Reg2
)

func accept() []expr.Any { return ruleset.Verdict(expr.VerdictAccept) }

func socket(key expr.SocketKey) []expr.Any {
	return []expr.Any{&expr.Socket{Key: key, Register: reg1}}
}

func equals(b byte) []expr.Any { return []expr.Any{ruleset.Equal(reg1, b)} }

// notToThisHost matches frames that are not addressed to the interface's own MAC
// address: `meta pkttype != unicast`.
func notToThisHost() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPKTTYPE, Register: reg1},
		ruleset.NotEqual(reg1, unix.PACKET_HOST),
	}
}

// fromNode matches frames whose source is another node, or is not.
func fromNode(not bool) []expr.Any {
	l := ruleset.InSet(nodesSet)
	l.Invert = not
	return []expr.Any{
		ruleset.LoadLink(reg1, 6, 6),
		l,
	}
}

// pathProbe matches the packets of package pathprobe: resets that carry its magic
// right after a header without options.
func pathProbe() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1},
		ruleset.Equal(reg1, unix.IPPROTO_TCP),
		ruleset.LoadTransport(reg1, 12, 2),
		ruleset.Equal(reg1, 5<<4, segment.RST),
		ruleset.LoadTransport(reg1, 20, 8),
		ruleset.Equal(reg1, []byte(pathprobe.Magic)...),
	}
}

// from compares the interface that a packet came in by.
func from(l neighbours.Link, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIF, Register: reg1},
		&expr.Cmp{Op: op, Register: reg1, Data: ruleset.Native(l.Index)},
	}
}

// links are those by which clients' packets come.
func (s service) links() []neighbours.Link {
	if s.tunnel.Index == 0 {
		return []neighbours.Link{s.link}
	}
	return []neighbours.Link{s.link, s.tunnel}
}

// linksOf are those of all services, each once.
func linksOf(services []service) (all []neighbours.Link) {
	for _, s := range services {
		for _, l := range s.links() {
			if !slices.Contains(all, l) {
				all = append(all, l)
			}
		}
	}
	return all
}

// fromElsewhere matches what came in by none of them: clients on this node, and in its containers.
func (s service) fromElsewhere() (es []expr.Any) {
	for _, l := range s.links() {
		es = append(es, from(l, expr.CmpOpNeq)...)
	}
	return es
}

// ethertype matches the family in hooks that see every protocol.
func (f family) ethertype() []expr.Any {
	proto := uint16(unix.ETH_P_IP)
	if f.Proto == unix.NFPROTO_IPV6 {
		proto = unix.ETH_P_IPV6
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: reg1},
		ruleset.Equal(reg1, binaryutil.BigEndian.PutUint16(proto)...),
	}
}

// unfragmented matches packets of the family that are no fragments: only the first
// fragment has ports, and all must take one way.
func (f family) unfragmented() []expr.Any {
	if f.Proto == unix.NFPROTO_IPV6 {
		// A fragment header would come before TCP (RFC 8200 section 4.5), as would
		// any other extension header. TCP usually has none.
		return append(f.ethertype(),
			ruleset.LoadNetwork(reg1, 6, 1),
			ruleset.Equal(reg1, unix.IPPROTO_TCP),
		)
	}
	return append(f.ethertype(),
		// More Fragments and Fragment Offset: RFC 791 section 3.1.
		ruleset.LoadNetwork(reg1, 6, 2),
		ruleset.Mask([]byte{0x3f, 0xff}, []byte{0, 0}),
		ruleset.Equal(reg1, 0, 0),
	)
}

// toFrontend matches TCP to the service's address and port.
func (s service) toFrontend() []expr.Any {
	f := s.family()
	return []expr.Any{
		ruleset.LoadNetwork(reg1, f.DstOffset, f.AddrLen),
		s.isVIP(),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1},
		ruleset.Equal(reg1, unix.IPPROTO_TCP),
		ruleset.LoadTransport(reg1, 2, 2),
		ruleset.Equal(reg1, binaryutil.BigEndian.PutUint16(s.port())...),
	}
}

// icmpQuote is where an ICMP error has what it quotes: after its own eight bytes
// (RFC 792, RFC 4443 section 3).
const icmpQuote = 8

// quotedHeaderLen is the length of the IP header that an ICMP error quotes. An IPv4
// header with options is longer, and never matches.
func (f family) quotedHeaderLen() uint32 {
	if f.Proto == unix.NFPROTO_IPV6 {
		return 40
	}
	return 20
}

// quotesTCP matches ICMP errors that quote a packet of TCP. The important one is "packet too big", without which path
// MTU discovery fails at the server that sent the packet (RFC 1191, RFC 8201).
func (f family) quotesTCP() []expr.Any {
	at := func(reg, offset, length uint32) *expr.Payload {
		return ruleset.LoadTransport(reg, icmpQuote+offset, length)
	}
	es := append(f.ethertype(), &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1})
	if f.Proto == unix.NFPROTO_IPV6 {
		return append(es,
			ruleset.Equal(reg1, unix.IPPROTO_ICMPV6),
			// Types below 128 are errors (RFC 4443 section 2.1).
			ruleset.LoadTransport(reg1, 0, 1),
			&expr.Cmp{Op: expr.CmpOpLt, Register: reg1, Data: []byte{128}},
			at(reg1, 6, 1), ruleset.Equal(reg1, unix.IPPROTO_TCP),
		)
	}
	return append(es,
		ruleset.Equal(reg1, unix.IPPROTO_ICMP),
		// Destination unreachable; code 4 is "fragmentation needed" (RFC 1191).
		ruleset.LoadTransport(reg1, 0, 1),
		ruleset.Equal(reg1, 3),
		at(reg1, 0, 1), ruleset.Equal(reg1, 0x45),
		at(reg1, 9, 1), ruleset.Equal(reg1, unix.IPPROTO_TCP),
	)
}

// quotedFrontend leaves the frontend of a quoted packet, which is its source, in reg1 and PortReg.
func (f family) quotedFrontend() []expr.Any {
	return []expr.Any{
		ruleset.LoadTransport(reg1, icmpQuote+f.SrcOffset, f.AddrLen),
		ruleset.LoadTransport(f.PortReg, icmpQuote+f.quotedHeaderLen(), 2),
	}
}

// quotedClient leaves the client of a quoted packet, which is its destination, in
// reg1 and PortReg.
func (f family) quotedClient() []expr.Any {
	return []expr.Any{
		ruleset.LoadTransport(reg1, icmpQuote+f.DstOffset, f.AddrLen),
		ruleset.LoadTransport(f.PortReg, icmpQuote+f.quotedHeaderLen()+2, 2),
	}
}
