package detector

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Kernels asks other hosts whether they are there. Their kernels answer, however busy the processes are.
type Kernels interface {
	// Ask asks the host at to; the answer brings n back.
	Ask(to netip.Addr, n uint16)
	// Answered is an answer that has arrived; it does not wait for one.
	Answered() (from netip.Addr, n uint16, ok bool)
	Close()
}

// echo is Kernels by ICMP echo: RFC 792, and RFC 4443 section 4. A firewall may drop it, and a process without the
// right to send it gets no answer either: then nobody is taken for busy.
type echo struct {
	process [8]byte // in each request, so that an answer to another program's is none
	by      [2]echoSocket
	buf     [512]byte
}

type echoSocket struct {
	fd     int
	opened bool
	raw    bool // else the kernel keeps to our own answers, and takes the header off
}

// AskKernels returns Kernels for a process.
func AskKernels(process [8]byte) Kernels {
	e := &echo{process: process}
	for i := range e.by {
		e.by[i].fd = -1
	}
	return e
}

// of is the socket for the family of a.
func (e *echo) of(a netip.Addr) *echoSocket {
	s, family, proto := &e.by[0], unix.AF_INET, unix.IPPROTO_ICMP
	if a.Is6() {
		s, family, proto = &e.by[1], unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	if s.opened {
		return s
	}
	s.opened = true
	const flags = unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
	if fd, err := unix.Socket(family, unix.SOCK_RAW|flags, proto); err == nil {
		s.fd, s.raw = fd, true
	} else if fd, err = unix.Socket(family, unix.SOCK_DGRAM|flags, proto); err == nil {
		s.fd = fd
	}
	return s
}

func (e *echo) Ask(to netip.Addr, n uint16) {
	to = to.Unmap()
	s := e.of(to)
	if s.fd < 0 {
		return
	}
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: int(n), Data: e.process[:]}}
	if to.Is6() {
		m.Type = ipv6.ICMPTypeEchoRequest // the kernel makes its checksum
	}
	b, err := m.Marshal(nil)
	if err != nil {
		return
	}
	var at unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte(to.AsSlice()[:4])}
	if to.Is6() {
		there := &unix.SockaddrInet6{Addr: to.As16()}
		if ifi, err := net.InterfaceByName(to.Zone()); err == nil {
			there.ZoneId = uint32(ifi.Index)
		}
		at = there
	}
	_ = unix.Sendto(s.fd, b, unix.MSG_DONTWAIT, at) // not sent is not answered
}

func (e *echo) Answered() (from netip.Addr, n uint16, ok bool) {
	for i := range e.by {
		for s := &e.by[i]; s.fd >= 0; {
			size, at, err := unix.Recvfrom(s.fd, e.buf[:], unix.MSG_DONTWAIT)
			if err != nil {
				break
			}
			b := e.buf[:size]
			switch at := at.(type) {
			case *unix.SockaddrInet4:
				from = netip.AddrFrom4(at.Addr)
				if s.raw && len(b) > 0 {
					b = b[min(int(b[0]&0xf)*4, len(b)):] // the kernel leaves the IP header on
				}
			case *unix.SockaddrInet6:
				from = netip.AddrFrom16(at.Addr)
			}
			if n, ok := e.parse(b, from.Is6()); ok {
				return from, n, true
			}
		}
	}
	return netip.Addr{}, 0, false
}

// parse reads the number from an answer to a request of ours.
func (e *echo) parse(b []byte, is6 bool) (n uint16, ok bool) {
	kind := byte(0)
	if is6 {
		kind = byte(ipv6.ICMPTypeEchoReply)
	}
	if len(b) != 16 || b[0] != kind || [8]byte(b[8:]) != e.process {
		return 0, false
	}
	return binary.BigEndian.Uint16(b[6:]), true
}

func (e *echo) Close() {
	for i := range e.by {
		if fd := e.by[i].fd; fd >= 0 {
			unix.Close(fd)
		}
		e.by[i] = echoSocket{fd: -1}
	}
}
