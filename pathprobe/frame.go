package pathprobe

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"appliance/segment"
)

const (
	// probeMagic begins the payload of every probe.
	Magic = "aplprob1"
	// probePort is the port of a node itself: the one of discard (RFC 863), where
	// nobody expects an answer.
	probePort = 9

	etherLen = 14
)

type nonce [16]byte

type probeKind byte

// The first two kinds ask for an answer, whose kind is the same plus one of the words.
// The first version answers with kindReady only, and takes other words for no answer.
const (
	kindControl  probeKind = 0  // from the node's own address to the other's
	kindPath     probeKind = 1  // as a client's packet
	kindReady    probeKind = 2  // I take clients' packets from you
	kindLeave    probeKind = 4  // I no longer have the VIPs
	kindAskAgain probeKind = 5  // ask me again, my answer may have changed
	kindNotReady probeKind = 8  // my rules know you, but I take no clients' packets yet
	kindUnknown  probeKind = 16 // my rules do not know you yet
)

// asks is the kind of the probe that k answers, and the word of the answer.
func (k probeKind) asks() (kind, word probeKind) { return k & kindPath, k &^ kindPath }

func (k probeKind) known() bool {
	_, word := k.asks()
	return word == 0 || word == kindReady || word == kindLeave || word == kindNotReady || word == kindUnknown
}

// A probe is one packet of a prober.
type probe struct {
	kind     probeKind
	nonce    nonce
	from, to netip.Addr // the nodes
	frontend netip.AddrPort
	// src and dst are those of the packet's header. They are signed, so nobody has
	// altered what arrives.
	src, dst netip.AddrPort
	// process and number are the sender's run and how many probes it has sent. A probe
	// of the first form has none.
	process process
	number  uint64
}

func (m probe) isSecondForm() bool { return m.process != (process{}) }

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
// that also covers the header's addresses. That is the first form.
//
// In the second form the process, the number, and another signature follow, which covers
// all of these and the MAC addresses. Nodes that know the first form only do not look at
// them, so all understand what any of them sends.
const (
	probeBody = len(Magic) + 1 + 16 + 2*16 + 18
	probeLen  = probeBody + sha256.Size
	addedBody = 16 + 8
	addedLen  = addedBody + sha256.Size
)

func appendAddrPort(b []byte, ap netip.AddrPort) []byte {
	a := ap.Addr().As16()
	return binary.BigEndian.AppendUint16(append(b, a[:]...), ap.Port())
}

func (m probe) payload(key []byte) []byte {
	from, to := m.from.As16(), m.to.As16()
	b := append(make([]byte, 0, probeLen), Magic...)
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

// secondSignature signs everything of a probe: the Ethernet header's addresses, and the
// payload up to the signature.
func (m probe) secondSignature(macs, payload, key []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte("second form\x00"))
	h.Write(macs)
	h.Write(appendAddrPort(appendAddrPort(nil, m.src), m.dst))
	h.Write(payload)
	return h.Sum(nil)
}

// frame is the probe as an Ethernet frame, signed with the key.
func (m probe) frame(src, dst [6]byte, key []byte) []byte {
	ethertype := uint16(unix.ETH_P_IPV6)
	if m.src.Addr().Is4() {
		ethertype = unix.ETH_P_IP
	}
	b := binary.BigEndian.AppendUint16(slices.Concat(dst[:], src[:]), ethertype)
	payload := m.payload(key)
	if m.isSecondForm() {
		payload = binary.BigEndian.AppendUint64(append(payload, m.process[:]...), m.number)
		payload = append(payload, m.secondSignature(b[:12], payload, key)...)
	}
	return append(b, segment.Packet(m.src, m.dst, binary.BigEndian.Uint32(m.nonce[:]), segment.RST, payload)...)
}

// parseProbe returns the probe in a frame, and the MAC address of its sender,
// if it is whole and was signed with the key. In the first form, the MAC addresses
// are not signed.
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
	if len(tcp) < segment.HeaderLen+probeLen {
		return m, mac, false
	}
	m.src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(tcp))
	m.dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(tcp[2:]))
	p := tcp[segment.HeaderLen : segment.HeaderLen+probeLen]
	if string(p[:len(Magic)]) != Magic || !hmac.Equal(m.signature(p[:probeBody], key), p[probeBody:]) {
		return m, mac, false
	}
	body := p[len(Magic):]
	m.kind = probeKind(body[0])
	m.nonce = nonce(body[1:17])
	m.from = netip.AddrFrom16([16]byte(body[17:33])).Unmap()
	m.to = netip.AddrFrom16([16]byte(body[33:49])).Unmap()
	m.frontend = netip.AddrPortFrom(netip.AddrFrom16([16]byte(body[49:65])).Unmap(), binary.BigEndian.Uint16(body[65:67]))
	if added := tcp[segment.HeaderLen+probeLen:]; len(added) >= addedLen {
		payload := tcp[segment.HeaderLen : segment.HeaderLen+probeLen+addedBody]
		if !hmac.Equal(m.secondSignature(frame[:12], payload, key), added[addedBody:addedLen]) {
			return m, mac, false
		}
		m.process, m.number = process(added[:16]), binary.BigEndian.Uint64(added[16:])
		if !m.isSecondForm() {
			return m, mac, false
		}
	}
	return m, mac, m.kind.known()
}

// probeFilter lets a socket see only probes of all traffic.
func probeFilter() []bpf.Instruction {
	magic := binary.BigEndian.Uint32([]byte(Magic))
	const v4, v6 = etherLen + 20 + segment.HeaderLen, etherLen + 40 + segment.HeaderLen
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IP, SkipFalse: 2},
		bpf.LoadAbsolute{Off: v4, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: magic, SkipTrue: 3, SkipFalse: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IPV6, SkipFalse: 3},
		bpf.LoadAbsolute{Off: v6, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: magic, SkipFalse: 1},
		bpf.RetConstant{Val: 2048},
		bpf.RetConstant{Val: 0},
	}
}
