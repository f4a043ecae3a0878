package arp

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	rawpacket "github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"appliance/flood"
)

const (
	ethernetAddrLen = 6

	// receiveBuffer bounds the frames that wait for this process, in bytes as SO_RCVBUF counts them: a few hundred. What
	// a flood leaves in it is read in a millisecond.
	receiveBuffer = 128 << 10
)

var (
	errNotOpen    = errors.New("arp: socket is not open")
	errNoCarrier  = errors.New("arp: link is down")
	errNotAllowed = errors.New("arp: the time to answer is over")
	errBusy       = errors.New("arp: the link takes no frame at once, and none may wait there")
)

// A packet is what the tenure sends, in either protocol.
type packet struct {
	kind packetKind
	vip  netip.Addr
	// Whom a reply is for.
	to    netip.Addr
	toMAC net.HardwareAddr
}

type packetKind int

const (
	reply           packetKind = iota
	announceRequest            // gratuitous ARP request
	announceReply              // gratuitous ARP reply
	advertise                  // unsolicited neighbour advertisement
	probe                      // asks for another owner
)

// A message is what the tenure is to know of a received packet.
type message struct {
	kind messageKind
	vip  netip.Addr
	from netip.Addr // the sender's protocol address, unspecified in a probe
	mac  string     // the sender's link-layer address, 6 bytes
	via  *responder
}

// claim is what the message says of a VIP's owner.
func (m message) claim(at time.Time) Claim {
	return Claim{VIP: m.vip, Interface: m.via.iface, MAC: net.HardwareAddr(m.mac).String(), At: at}
}

type messageKind int

const (
	nothing messageKind = iota
	request             // somebody asks for the VIP
	claim               // somebody else claims it
)

// A dropReason says why no message came of a received packet.
type dropReason string

const (
	accepted  dropReason = ""
	malformed dropReason = "malformed"
	ownPacket dropReason = "sent by this host"
	notAVIP   dropReason = "not about a VIP of this interface"
	noMAC     dropReason = "tells no usable link-layer address"
)

// A socket sends and receives one protocol on one interface as it is now.
type socket interface {
	// send sends p if may returns true. It calls may as late as possible, because this process may be delayed anywhere.
	send(p packet, may func() bool) error
	// receive delivers messages until close, and says which machines send so many that the kernel drops them.
	receive(deliver func(message), flooded func(mac string)) error
	close() error
}

// A frameSocket sends and receives whole frames of one EtherType on one interface.
//
// What it sends never waits where the lease could run out meanwhile: this process has addressed the frame, so no
// neighbour entry is missing; the frame goes past the queueing discipline to the device (PACKET_QDISC_BYPASS); and a
// device that is busy drops it. So it is not seen by packet captures on this host either.
type frameSocket struct {
	conn *rawpacket.Conn
	gate *flood.Gate
}

func openFrames(ifi *net.Interface, etherType uint16, vips int, about []bpf.Instruction) (*frameSocket, error) {
	s := &frameSocket{gate: flood.NewGate(linkFilter(ifi.Index, uint32(etherType)), about, vips)}
	filter, err := s.gate.Filter()
	if err != nil {
		return nil, err
	}
	s.conn, err = rawpacket.Listen(ifi, rawpacket.Raw, int(etherType), &rawpacket.Config{Filter: filter})
	if err != nil {
		return nil, fmt.Errorf("arp: open packet socket on %s: %w: run as root or give CAP_NET_RAW", ifi.Name, err)
	}
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, s.conn.Close())
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = errors.Join(
			unix.SetsockoptInt(int(fd), unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer),
		)
	})
	if err := errors.Join(err, failed); err != nil {
		return nil, errors.Join(fmt.Errorf("arp: set up packet socket on %s: %w", ifi.Name, err), s.conn.Close())
	}
	return s, nil
}

// write sends a frame if may returns true. Between that call and the system call are only a few instructions: a process
// that is stopped or has to wait for a core there would answer in a lost term when it goes on. The call itself never
// waits.
func (s *frameSocket) write(frame []byte, may func() bool) error {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Write(func(fd uintptr) (done bool) {
		if !may() {
			failed = errNotAllowed
			return true
		}
		// The socket is bound to its interface, and the frame has the addresses.
		_, failed = unix.SendmsgN(int(fd), frame, nil, nil, unix.MSG_DONTWAIT)
		return true
	})
	if errors.Is(failed, unix.EAGAIN) || errors.Is(failed, unix.ENOBUFS) {
		failed = errBusy
	}
	return cmp.Or(err, failed)
}

// frames calls handle with every frame until close. The kernel drops those of machines that flood, of whom flooded is
// told.
func (s *frameSocket) frames(size int, flooded func(mac string), handle func(frame []byte)) error {
	return s.gate.Frames(s.conn, size, flooded, func(frame []byte) (trusted bool) {
		handle(frame)
		return false // anybody can send it
	})
}

func (s *frameSocket) close() error { return s.conn.Close() }
