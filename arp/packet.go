package arp

import (
	"errors"
	"net"
	"net/netip"
	"time"
)

const (
	// sendWithin bounds one send, so that a stuck device delays nothing else.
	sendWithin = 100 * time.Millisecond

	ethernetAddrLen = 6
)

var (
	errNotOpen    = errors.New("arp: socket is not open")
	errNoCarrier  = errors.New("arp: link is down")
	errNotAllowed = errors.New("arp: the time to answer is over")
)

// A packet is what the tenure sends, in either protocol.
type packet struct {
	kind packetKind
	vip  netip.Addr
	// Whom a reply is for. toMAC is empty where the request did not tell.
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
	mac  string     // the sender's link-layer address: 6 bytes, or empty if unknown
	via  *responder
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
	// receive delivers messages until close.
	receive(deliver func(message)) error
	close() error
}
