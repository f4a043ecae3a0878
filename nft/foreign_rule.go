package nft

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A foreignRule is a rule that somebody else has made.
type foreignRule struct {
	table, chain string
	expressions  []expression
}

// An expression is one step of a rule, as the kernel describes it.
type expression struct {
	name  string
	attrs map[uint16][]byte
}

func (e expression) number(attr uint16) uint32 {
	if b := e.attrs[attr]; len(b) == 4 {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (e expression) text(attr uint16) string {
	return string(bytes.TrimRight(e.attrs[attr], "\x00"))
}

// data returns a value, which is an attribute of its own.
func (e expression) data(attr uint16) []byte {
	if b := e.attrs[attr]; len(b) > 4 {
		return b[4:]
	}
	return nil
}

func (r *foreignRule) parse(data []byte) error {
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return err
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_RULE_TABLE:
			r.table = ad.String()
		case unix.NFTA_RULE_CHAIN:
			r.chain = ad.String()
		case unix.NFTA_RULE_EXPRESSIONS:
			ad.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					list.Nested(r.parseExpression)
				}
				return list.Err()
			})
		}
	}
	return ad.Err()
}

// parseExpression takes one NFTA_LIST_ELEM.
func (r *foreignRule) parseExpression(ad *netlink.AttributeDecoder) error {
	e := expression{attrs: make(map[uint16][]byte)}
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_EXPR_NAME:
			e.name = ad.String()
		case unix.NFTA_EXPR_DATA:
			ad.Nested(func(in *netlink.AttributeDecoder) error {
				for in.Next() {
					e.attrs[in.Type()] = in.Bytes()
				}
				return in.Err()
			})
		}
	}
	r.expressions = append(r.expressions, e)
	return ad.Err()
}

// translates tells whether the rule changes where connections to the frontend
// go. It runs the rule on the first packet of such a connection. Whatever the
// rule asks about the rest of the packet is true for some client.
//
// The rule has to name the address, alone or in a set. One for a subnet, a range, every address, or all but some does
// not count: our rules come before it.
func (r foreignRule) translates(frontend netip.AddrPort, set func(name string) []nftables.SetElement) bool {
	p := firstPacket{frontend: frontend}
	for _, e := range r.expressions {
		switch e.name {
		case "payload":
			p.load(e.number(unix.NFTA_PAYLOAD_DREG),
				p.part(e.number(unix.NFTA_PAYLOAD_BASE), e.number(unix.NFTA_PAYLOAD_OFFSET), e.number(unix.NFTA_PAYLOAD_LEN)))
		case "meta":
			p.load(e.number(unix.NFTA_META_DREG), p.meta(e.number(unix.NFTA_META_KEY)))
		case "ct", "exthdr", "fib", "immediate", "numgen", "osf", "rt":
			p.load(e.number(unix.NFTA_CT_DREG), make([]octet, 16))
		case "byteorder", "hash", "socket", "tunnel", "xfrm":
			p.load(e.number(unix.NFTA_HASH_DREG), make([]octet, 16))
		case "bitwise":
			p.mask(e)
		case "cmp":
			d := e.data(unix.NFTA_CMP_DATA)
			lowest, highest := bytes.Repeat([]byte{0}, len(d)), bytes.Repeat([]byte{0xff}, len(d))
			op := e.number(unix.NFTA_CMP_OP)
			wanted := span{d, d}
			switch op {
			case unix.NFT_CMP_LTE, unix.NFT_CMP_GT:
				wanted.low = lowest
			case unix.NFT_CMP_GTE, unix.NFT_CMP_LT:
				wanted.high = highest
			}
			not := op == unix.NFT_CMP_NEQ || op == unix.NFT_CMP_GT || op == unix.NFT_CMP_LT
			p.require(e.number(unix.NFTA_CMP_SREG), not, wanted)
		case "range":
			p.require(e.number(unix.NFTA_RANGE_SREG), e.number(unix.NFTA_RANGE_OP) == unix.NFT_RANGE_NEQ,
				span{e.data(unix.NFTA_RANGE_FROM_DATA), e.data(unix.NFTA_RANGE_TO_DATA)})
		case "lookup":
			p.require(e.number(unix.NFTA_LOOKUP_SREG), e.number(unix.NFTA_LOOKUP_FLAGS)&unix.NFT_LOOKUP_F_INV != 0,
				spans(set(e.text(unix.NFTA_LOOKUP_SET)))...)
			p.load(e.number(unix.NFTA_LOOKUP_DREG), make([]octet, 16))
		case "match":
			p.match(e.text(unix.NFTA_MATCH_NAME), e.attrs[unix.NFTA_MATCH_INFO])
		case "redir":
			return p.named
		case "nat":
			return p.named && e.number(unix.NFTA_NAT_TYPE) == unix.NFT_NAT_DNAT
		case "target":
			target := e.text(unix.NFTA_TARGET_NAME)
			return p.named && slices.Contains([]string{"DNAT", "REDIRECT", "NETMAP"}, target)
		}
		if p.passed {
			return false
		}
	}
	return false
}

// A firstPacket is that of a connection to the frontend, on its way through
// a rule. Of its source nothing is known.
type firstPacket struct {
	frontend  netip.AddrPort
	registers [64]octet
	loads     int
	named     bool // the rule has asked for its address
	passed    bool // the rule does not apply to it
}

// An octet is what is known of a byte in a register.
type octet struct {
	value   byte
	known   bool
	address bool // it is of the destination address
	field   int  // the load that it came with
}

// Where a packet has what, RFC 791 section 3.1, RFC 8200 section 3, RFC 9293
// section 3.1.
const (
	protocol4, protocol6 = 9, 6
	dst4, dst6           = 16, 24
	dport                = 2
)

// part is a part of the headers.
func (p *firstPacket) part(base, offset, length uint32) []octet {
	addr := p.frontend.Addr().AsSlice()
	out := make([]octet, min(length, 16))
	put := func(at uint32, address bool, values ...byte) {
		for i, v := range values {
			if at := at + uint32(i); offset <= at && at-offset < uint32(len(out)) {
				out[at-offset] = octet{value: v, known: true, address: address}
			}
		}
	}
	switch {
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && len(addr) == 4:
		put(protocol4, false, unix.IPPROTO_TCP)
		put(dst4, true, addr...)
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER:
		put(protocol6, false, unix.IPPROTO_TCP)
		put(dst6, true, addr...)
	case base == unix.NFT_PAYLOAD_TRANSPORT_HEADER:
		put(dport, false, binary.BigEndian.AppendUint16(nil, p.frontend.Port())...)
	}
	return out
}

// meta is what the kernel notes about the packet beside it.
func (p *firstPacket) meta(key uint32) []octet {
	family, ethertype := byte(unix.NFPROTO_IPV4), uint16(unix.ETH_P_IP)
	if p.frontend.Addr().Is6() {
		family, ethertype = unix.NFPROTO_IPV6, unix.ETH_P_IPV6
	}
	switch key {
	case unix.NFT_META_L4PROTO:
		return []octet{{value: unix.IPPROTO_TCP, known: true}}
	case unix.NFT_META_NFPROTO:
		return []octet{{value: family, known: true}}
	case unix.NFT_META_PROTOCOL:
		return []octet{{value: byte(ethertype >> 8), known: true}, {value: byte(ethertype), known: true}}
	}
	return make([]octet, 16)
}

// register is a register and those after it. There are four of 16 bytes, and
// the same again as sixteen of 4 bytes.
func (p *firstPacket) register(n uint32) []octet {
	switch {
	case unix.NFT_REG_1 <= n && n <= unix.NFT_REG_4:
		return p.registers[16*(n-unix.NFT_REG_1):]
	case unix.NFT_REG32_00 <= n && n <= unix.NFT_REG32_15:
		return p.registers[4*(n-unix.NFT_REG32_00):]
	}
	return nil
}

// load fills a register, as the kernel does with zeros up to 4 bytes.
func (p *firstPacket) load(register uint32, value []octet) {
	for len(value)%4 != 0 {
		value = append(value, octet{known: true})
	}
	p.loads++
	for i := range value {
		value[i].field = p.loads
	}
	copy(p.register(register), value)
}

// mask is a bitwise operation: a mask, then an exclusive or.
func (p *firstPacket) mask(e expression) {
	from := p.register(e.number(unix.NFTA_BITWISE_SREG))
	value := slices.Clone(from[:min(int(e.number(unix.NFTA_BITWISE_LEN)), len(from))])
	mask, xor := e.data(unix.NFTA_BITWISE_MASK), e.data(unix.NFTA_BITWISE_XOR)
	if len(mask) != len(value) || len(xor) != len(value) {
		clear(value) // a shift, or an operation on two registers
		mask, xor = make([]byte, len(value)), make([]byte, len(value))
	}
	for i := range value {
		value[i].value = value[i].value&mask[i] ^ xor[i]
		value[i].address = value[i].address && mask[i] == 0xff
	}
	p.load(e.number(unix.NFTA_BITWISE_DREG), value)
}

// A span is what lies between two values, which are included.
type span struct{ low, high []byte }

// spans are what a set holds. The kernel lists a set of intervals as the
// beginning of each and the first value behind it.
func spans(elements []nftables.SetElement) []span {
	slices.SortFunc(elements, func(a, b nftables.SetElement) int {
		if c := bytes.Compare(a.Key, b.Key); c != 0 || a.IntervalEnd == b.IntervalEnd {
			return c
		}
		if a.IntervalEnd { // another interval begins behind it
			return -1
		}
		return 1
	})
	intervals := slices.ContainsFunc(elements, func(e nftables.SetElement) bool { return e.IntervalEnd })
	var out []span
	for i, e := range elements {
		s := span{e.Key, e.Key}
		switch {
		case e.IntervalEnd:
			continue
		case e.KeyEnd != nil:
			s.high = e.KeyEnd
		case intervals && i+1 < len(elements):
			s.high = before(elements[i+1].Key)
		case intervals:
			s.high = bytes.Repeat([]byte{0xff}, len(e.Key))
		}
		out = append(out, s)
	}
	return out
}

// before is the value before this one.
func before(value []byte) []byte {
	out := slices.Clone(value)
	for i := len(out) - 1; i >= 0; i-- {
		out[i]--
		if out[i] != 0xff {
			break
		}
	}
	return out
}

// require is a rule's question whether a register is in one of the spans, or
// not in any of them.
func (p *firstPacket) require(register uint32, not bool, wanted ...span) {
	key := p.register(register)
	could, must := false, false
	for _, s := range wanted {
		if len(s.low) == 0 || len(s.low) != len(s.high) || len(s.low) > len(key) {
			could = true // not understood, or every value
			continue
		}
		c, m := s.has(key[:len(s.low)])
		could, must = could || c, must || m
		p.named = p.named || c && !not && s.names(key[:len(s.low)]) == p.frontend.Addr().BitLen()/8
	}
	p.passed = p.passed || !not && !could || not && must
}

// names returns how many bytes of the destination address the span leaves no choice for.
func (s span) names(key []octet) (count int) {
	for i, o := range key {
		if o.address && s.low[i] == s.high[i] {
			count++
		}
	}
	return count
}

// has tells whether the key may be in the span, and whether it is.
func (s span) has(key []octet) (could, must bool) {
	must = true
	for begin, end := 0, 0; begin < len(key); begin = end {
		value, known := []byte{}, true
		for end = begin; end < len(key) && key[end].field == key[begin].field; end++ {
			value = append(value, key[end].value)
			known = known && key[end].known
		}
		low, high := s.low[begin:end], s.high[begin:end]
		if known && (bytes.Compare(value, low) < 0 || bytes.Compare(value, high) > 0) {
			return false, false
		}
		if !known {
			must = false
			// nft loads fields that follow each other as one.
			for i, o := range key[begin:end] {
				if o.known && bytes.Equal(low, high) && o.value != low[i] {
					return false, false
				}
			}
		}
	}
	return true, must
}

// match is an extension of iptables. Its numbers are in the host's byte order.
func (p *firstPacket) match(name string, info []byte) {
	number := func(at int) uint16 { return binary.NativeEndian.Uint16(info[at:]) }
	port := p.frontend.Port()
	switch {
	case name == "tcp" && len(info) >= 12: // struct xt_tcp
		const not = 0x02 // XT_TCP_INV_DSTPT
		in := number(4) <= port && port <= number(6)
		p.passed = p.passed || in == (info[11]&not != 0)
	case name == "multiport" && len(info) >= 48: // struct xt_multiport_v1
		const source, either = 0, 2
		in, not := false, info[47] != 0
		for i := 0; i < min(int(info[1]), 15); i++ {
			low, high := number(2+2*i), number(2+2*i)
			if info[32+i] != 0 && i+1 < 15 { // the next port ends a range
				i++
				high = number(2 + 2*i)
			}
			in = in || low <= port && port <= high
		}
		p.passed = p.passed || in == not && info[0] != source && (in || info[0] != either)
	case name == "iprange" && len(info) >= 65: // struct xt_iprange_mtinfo
		const destination, not = 0x02, 0x20 // IPRANGE_DST, IPRANGE_DST_INV
		if info[64]&destination == 0 {
			return
		}
		addr := p.frontend.Addr().AsSlice()
		low, high := info[32:][:len(addr)], info[48:][:len(addr)]
		in := bytes.Compare(low, addr) <= 0 && bytes.Compare(addr, high) <= 0
		p.named = p.named || in && info[64]&not == 0 && bytes.Equal(low, high)
		p.passed = p.passed || in == (info[64]&not != 0)
	case name == "set" && len(info) >= 4: // struct xt_set_info
		// Bit i says that the set's dimension i is of the source.
		for i := 1; i <= int(info[2]); i++ {
			p.passed = p.passed || info[3]&(1<<i) == 0
		}
	}
}
