// Package segment builds TCP segments as whole IP packets.
package segment

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Flags of a segment: RFC 9293 section 3.1.
const (
	FIN = 0x01
	SYN = 0x02
	RST = 0x04
	ACK = 0x10
)

// HeaderLen is the length of a TCP header without options, in bytes (RFC 9293
// section 3.1).
const HeaderLen = 20

// Packet is an IP packet with a TCP segment from src to dst, which have the same
// family: an IPv4 header (RFC 791 section 3.1) or an IPv6 header (RFC 8200
// section 3), a TCP header (RFC 9293 section 3.1), all without options, and the
// payload. The packet must not be fragmented. The window is 0: with a SYN, no client begins so, and the counters of
// new connections leave it out.
func Packet(src, dst netip.AddrPort, seq uint32, flags byte, payload []byte) []byte {
	from, to := src.Addr().AsSlice(), dst.Addr().AsSlice()
	length := HeaderLen + len(payload)
	var ip []byte
	const ttl, dontFragment = 64, 0x40
	if src.Addr().Is4() {
		ip = make([]byte, 20, 20+length)
		ip[0] = 4<<4 | 5
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+length))
		ip[6] = dontFragment
		ip[8], ip[9] = ttl, unix.IPPROTO_TCP
		copy(ip[12:], from)
		copy(ip[16:], to)
		binary.BigEndian.PutUint16(ip[10:], Checksum(ip))
	} else {
		ip = make([]byte, 40, 40+length)
		ip[0] = 6 << 4
		binary.BigEndian.PutUint16(ip[4:], uint16(length))
		ip[6], ip[7] = unix.IPPROTO_TCP, ttl
		copy(ip[8:], from)
		copy(ip[24:], to)
	}
	tcp := make([]byte, HeaderLen, length)
	binary.BigEndian.PutUint16(tcp[0:], src.Port())
	binary.BigEndian.PutUint16(tcp[2:], dst.Port())
	binary.BigEndian.PutUint32(tcp[4:], seq)
	tcp[12] = HeaderLen / 4 << 4
	tcp[13] = flags
	tcp = append(tcp, payload...)
	// The checksum also covers the addresses, the protocol and the length.
	pseudo := binary.BigEndian.AppendUint16([]byte{0, unix.IPPROTO_TCP}, uint16(length))
	binary.BigEndian.PutUint16(tcp[16:], Checksum(from, to, pseudo, tcp))
	return append(ip, tcp...)
}

// Checksum is the Internet checksum (RFC 1071) of all parts. The length of all but
// the last is even.
func Checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, p := range parts {
		for ; len(p) > 1; p = p[2:] {
			sum += uint32(binary.BigEndian.Uint16(p))
		}
		if len(p) == 1 {
			sum += uint32(p[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
