package nft

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	// probeMagic begins the payload of every probe.
	probeMagic = "aplprob1"
	// probePort stands where a node speaks for itself: the port of discard
	// (RFC 863), where no answer is expected.
	probePort = 9

	tcpFlagRST = 0x04 // RFC 9293 section 3.1

	etherLen = 14
	tcpLen   = 20
)

type nonce [16]byte

type probeKind byte

// The first two ask for an answer, which is of the same kind plus one of the
// words. A node of before says only kindAnswer, and takes the others for silence.
const (
	kindControl  probeKind = 0  // from the node's own address to the other's
	kindPath     probeKind = 1  // as a client's packet
	kindAnswer   probeKind = 2  // "I take clients' packets from you"
	kindFarewell probeKind = 4  // "I no longer have the VIP"
	kindWelcome  probeKind = 5  // "ask me again, I may say another thing now"
	kindKnows    probeKind = 8  // "I know you for a fellow, but take no clients' packets yet"
	kindStranger probeKind = 16 // "my rules do not have you for a fellow yet"
)

// asks is the kind of probe that k answers, and with which word.
func (k probeKind) asks() (kind, word probeKind) { return k & kindPath, k &^ kindPath }

func (k probeKind) known() bool {
	_, word := k.asks()
	return word == 0 || word == kindAnswer || word == kindFarewell || word == kindKnows || word == kindStranger
}

// A probe is one packet of a prober.
type probe struct {
	kind     probeKind
	nonce    nonce
	from, to netip.Addr // the nodes
	frontend netip.AddrPort
	// src and dst are those of the packet's header. They are signed, so what
	// arrives was altered by nobody.
	src, dst netip.AddrPort
}

// madeUpClient is an address that no client has, from the blocks for
// benchmarks between networks (RFC 2544, RFC 5180): 198.18.0.0/15 and
// 2001:2::/48. A filter that knows its nodes' addresses does not know it.
func madeUpClient(like netip.Addr, n nonce) netip.AddrPort {
	a := netip.AddrFrom4([4]byte{198, 18, n[0], n[1]})
	if like.Is6() {
		a = netip.AddrFrom16([16]byte{0x20, 0x01, 0x00, 0x02, 14: n[0], 15: n[1]})
	}
	return netip.AddrPortFrom(a, 1024|binary.BigEndian.Uint16(n[2:]))
}

// payload is magic, kind, nonce, the two nodes, the frontend, and a signature
// that also covers the header's addresses.
const (
	probeBody = len(probeMagic) + 1 + 16 + 2*16 + 18
	probeLen  = probeBody + sha256.Size
)

func appendAddrPort(b []byte, ap netip.AddrPort) []byte {
	a := ap.Addr().As16()
	return binary.BigEndian.AppendUint16(append(b, a[:]...), ap.Port())
}

func (m probe) payload(key []byte) []byte {
	from, to := m.from.As16(), m.to.As16()
	b := append(make([]byte, 0, probeLen), probeMagic...)
	b = append(b, byte(m.kind))
	b = append(b, m.nonce[:]...)
	b = append(b, from[:]...)
	b = append(b, to[:]...)
	b = appendAddrPort(b, m.frontend)
	return append(b, m.signature(b, key)...)
}

func (m probe) signature(body, key []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(body)
	h.Write(appendAddrPort(appendAddrPort(nil, m.src), m.dst))
	return h.Sum(nil)
}

// frame is the probe as an Ethernet frame: an IPv4 or IPv6 header without
// options, a TCP header without options, the payload.
func (m probe) frame(src, dst [6]byte, key []byte) []byte {
	payload := m.payload(key)
	from, to := m.src.Addr().AsSlice(), m.dst.Addr().AsSlice()

	tcp := make([]byte, tcpLen, tcpLen+len(payload))
	binary.BigEndian.PutUint16(tcp[0:], m.src.Port())
	binary.BigEndian.PutUint16(tcp[2:], m.dst.Port())
	copy(tcp[4:8], m.nonce[:4]) // a sequence number
	tcp[12] = tcpLen / 4 << 4
	tcp[13] = tcpFlagRST
	tcp = append(tcp, payload...)
	// RFC 9293 section 3.1: the checksum covers addresses, protocol and length.
	binary.BigEndian.PutUint16(tcp[16:], checksum(from, to, []byte{0, unix.IPPROTO_TCP}, binary.BigEndian.AppendUint16(nil, uint16(len(tcp))), tcp))

	b := append(append([]byte{}, dst[:]...), src[:]...)
	if m.src.Addr().Is4() {
		ip := make([]byte, 20) // RFC 791 section 3.1
		ip[0] = 4<<4 | 5
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(tcp)))
		ip[6] = 0x40 // don't fragment
		ip[8], ip[9] = 64, unix.IPPROTO_TCP
		copy(ip[12:], from)
		copy(ip[16:], to)
		binary.BigEndian.PutUint16(ip[10:], checksum(ip))
		b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
		b = append(b, ip...)
	} else {
		ip := make([]byte, 40) // RFC 8200 section 3
		ip[0] = 6 << 4
		binary.BigEndian.PutUint16(ip[4:], uint16(len(tcp)))
		ip[6], ip[7] = unix.IPPROTO_TCP, 64
		copy(ip[8:], from)
		copy(ip[24:], to)
		b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IPV6)
		b = append(b, ip...)
	}
	return append(b, tcp...)
}

// checksum is that of RFC 1071. All parts but the last are of even length.
func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, p := range parts {
		if len(p)%2 == 1 {
			p = append(p[:len(p):len(p)], 0)
		}
		sum += onesSum(p)
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// parseProbe returns the probe in a frame, and the MAC address of its sender,
// if it is whole and was signed with the key.
func parseProbe(frame, key []byte) (m probe, mac [6]byte, ok bool) {
	if len(frame) < etherLen+20 {
		return m, mac, false
	}
	mac = [6]byte(frame[6:12])
	ip := frame[etherLen:]
	var src, dst netip.Addr
	var tcp []byte
	switch {
	case ip[0] == 4<<4|5:
		src, dst = netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
		tcp = ip[20:]
	case ip[0]>>4 == 6 && len(ip) >= 40:
		src, dst = netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
		tcp = ip[40:]
	default:
		return m, mac, false
	}
	if len(tcp) < tcpLen+probeLen {
		return m, mac, false
	}
	m.src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(tcp))
	m.dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(tcp[2:]))
	p := tcp[tcpLen : tcpLen+probeLen]
	if string(p[:len(probeMagic)]) != probeMagic || !hmac.Equal(m.signature(p[:probeBody], key), p[probeBody:]) {
		return m, mac, false
	}
	body := p[len(probeMagic):]
	m.kind = probeKind(body[0])
	m.nonce = nonce(body[1:17])
	m.from = netip.AddrFrom16([16]byte(body[17:33])).Unmap()
	m.to = netip.AddrFrom16([16]byte(body[33:49])).Unmap()
	m.frontend = netip.AddrPortFrom(netip.AddrFrom16([16]byte(body[49:65])).Unmap(), binary.BigEndian.Uint16(body[65:67]))
	return m, mac, m.kind.known()
}

// probeFilter lets a socket see probes only, of all the traffic there is.
func probeFilter() ([]bpf.RawInstruction, error) {
	magic := binary.BigEndian.Uint32([]byte(probeMagic))
	const v4, v6 = etherLen + 20 + tcpLen, etherLen + 40 + tcpLen
	return bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IP, SkipFalse: 2},
		bpf.LoadAbsolute{Off: v4, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: magic, SkipTrue: 3, SkipFalse: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IPV6, SkipFalse: 3},
		bpf.LoadAbsolute{Off: v6, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: magic, SkipFalse: 1},
		bpf.RetConstant{Val: 2048},
		bpf.RetConstant{Val: 0},
	})
}
