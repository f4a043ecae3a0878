package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// poke sends each flow's client one bare acknowledgement in the name of the
// frontend, with a sequence number that is out of its window. The client
// answers it with its own numbers (RFC 9293 section 3.10.7.4, first step:
// "If an incoming segment is not acceptable, an acknowledgment should be sent
// in reply"). That answer belongs to no connection any more, so the rules
// reset it, and with it a client that had nothing to say. A client that still
// waits for an answer to its SYN is told that there is none (RFC 9293 section
// 3.10.7.3) and, if it is Linux, sends another at once, which gets to another
// backend. A firewall between may drop the poke; such a client is reset when
// it speaks.
func poke(flows []flow) error {
	var errs []error
	sockets := make(map[int]int) // by family
	defer func() {
		for _, s := range sockets {
			unix.Close(s)
		}
	}()
	for _, f := range flows {
		family := unix.AF_INET6
		if f.client.Addr().Is4() {
			family = unix.AF_INET
		}
		s, ok := sockets[family]
		if !ok {
			var err error
			// IPPROTO_RAW: we write the IP header, and nothing is received.
			s, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
			if err != nil {
				return fmt.Errorf("raw socket: %w; give the container the capability NET_RAW", err)
			}
			sockets[family] = s
		}
		// The port of a raw destination is none.
		var to unix.Sockaddr = &unix.SockaddrInet6{Addr: f.client.Addr().As16()}
		if family == unix.AF_INET {
			to = &unix.SockaddrInet4{Addr: f.client.Addr().As4()}
		}
		errs = append(errs, unix.Sendto(s, ackSegment(f.frontend, f.client), 0, to))
	}
	return errors.Join(errs...)
}

// ackSegment is an IP packet with a TCP segment that has only the ACK flag
// and the numbers zero (RFC 791 section 3.1, RFC 8200 section 3, RFC 9293
// section 3.1).
func ackSegment(from, to netip.AddrPort) []byte {
	src, dst := from.Addr().AsSlice(), to.Addr().AsSlice()
	const tcpLen, ttl, ack = 20, 64, 0x10
	tcp := make([]byte, tcpLen)
	binary.BigEndian.PutUint16(tcp[0:], from.Port())
	binary.BigEndian.PutUint16(tcp[2:], to.Port())
	tcp[12] = tcpLen / 4 << 4
	tcp[13] = ack

	// The checksum covers a pseudo header: addresses, length, protocol.
	sum := onesSum(src) + onesSum(dst) + tcpLen + unix.IPPROTO_TCP + onesSum(tcp)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(tcp[16:], ^uint16(sum))

	if from.Addr().Is4() {
		ip := make([]byte, 20, 20+tcpLen) // the kernel fills in length, id and checksum, see raw(7)
		ip[0] = 4<<4 | 5
		ip[8], ip[9] = ttl, unix.IPPROTO_TCP
		copy(ip[12:], src)
		copy(ip[16:], dst)
		return append(ip, tcp...)
	}
	ip := make([]byte, 40, 40+tcpLen)
	ip[0] = 6 << 4
	binary.BigEndian.PutUint16(ip[4:], tcpLen)
	ip[6], ip[7] = unix.IPPROTO_TCP, ttl
	copy(ip[8:], src)
	copy(ip[24:], dst)
	return append(ip, tcp...)
}

// onesSum adds up 16-bit words (RFC 1071); the caller folds the carries. The
// length is even.
func onesSum(b []byte) uint32 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	return sum
}
