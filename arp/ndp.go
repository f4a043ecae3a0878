package arp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/mdlayher/ethernet"
	"github.com/mdlayher/ndp"
	"golang.org/x/sys/unix"

	"appliance/sysctl"
)

const (
	icmpv6   = 58 // next header, RFC 4443
	hopLimit = ndp.HopLimit

	icmpSolicitation  = 135 // RFC 4861, section 4.3
	icmpAdvertisement = 136 // section 4.4

	// ndpFrameMax is enough for any solicitation or advertisement. What is longer is cut, and so malformed.
	ndpFrameMax = ethernetHeaderLen + 1500
)

// ndpSocket is neighbour discovery on one interface.
//
// It receives frames, and so solicitations to the VIP itself too, by which clients check a neighbour that they know
// (RFC 4861, section 7.3.3). It sends whole frames with the VIP as source: that needs neither a link-local address that
// has passed duplicate address detection, nor a neighbour entry of the client.
type ndpSocket struct {
	*frameSocket
	groups int // a socket that is a member of the VIPs' groups and never receives
	ifi    *net.Interface
	vips   []netip.Addr
}

func openNDP(ifi *net.Interface, vips []netip.Addr) (*ndpSocket, error) {
	groups, err := joinGroups(ifi, vips)
	if err != nil {
		return nil, err
	}
	s, err := openFrames(ifi, unix.ETH_P_IPV6, len(vips), ndpFilter(vips))
	if err != nil {
		return nil, errors.Join(err, unix.Close(groups))
	}
	return &ndpSocket{frameSocket: s, groups: groups, ifi: ifi, vips: vips}, nil
}

// joinGroups makes the kernel a listener of the VIPs' solicited-node groups (RFC 4291, section 2.7.1): it tells the
// device, and by MLD the switches, which forward solicitations to listeners only.
func joinGroups(ifi *net.Interface, vips []netip.Addr) (fd int, err error) {
	// No port is bound, so nothing comes in.
	fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("arp: open IPv6 socket: %w: check that the kernel has IPv6", err)
	}
	joined := make(map[netip.Addr]bool)
	for _, vip := range vips {
		group, err := ndp.SolicitedNodeMulticast(vip)
		if err != nil {
			return -1, errors.Join(err, unix.Close(fd))
		}
		if joined[group] {
			continue // the groups of two VIPs may be the same
		}
		member := &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(ifi.Index)}
		if err := unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, member); err != nil {
			off := sysctl.Parameter{Key: "net/ipv6/conf/" + ifi.Name + "/disable_ipv6", Value: "0"}
			return -1, errors.Join(fmt.Errorf("arp: join %s on %s: %w: check that IPv6 is on there (%s)",
				group, ifi.Name, err, off.Line()), unix.Close(fd))
		}
		joined[group] = true
	}
	return fd, nil
}

func (s *ndpSocket) close() error { return errors.Join(s.frameSocket.close(), unix.Close(s.groups)) }

func (s *ndpSocket) receive(deliver func(message), flooded func(mac string)) error {
	own := string(s.ifi.HardwareAddr)
	return s.frames(ndpFrameMax, flooded, func(frame []byte) {
		if m, why := parseNDPFrame(frame, own, s.vips); why == accepted {
			deliver(m)
		}
	})
}

// parseNDPFrame reads one frame. own is our MAC.
func parseNDPFrame(b []byte, own string, vips []netip.Addr) (message, dropReason) {
	var f ethernet.Frame
	if err := f.UnmarshalBinary(b); err != nil || f.EtherType != ethernet.EtherTypeIPv6 || f.VLAN != nil {
		return message{}, malformed
	}
	p := f.Payload
	if len(p) < ipv6HeaderLen || p[0]>>4 != 6 || p[6] != icmpv6 || p[7] != hopLimit {
		return message{}, malformed // another hop limit is from beyond a router (RFC 4861, sections 7.1.1 and 7.1.2)
	}
	end := ipv6HeaderLen + int(binary.BigEndian.Uint16(p[4:]))
	if end > len(p) || !checksumOK(p[:end]) {
		return message{}, malformed
	}
	from := string(f.Source)
	if from == own {
		return message{}, ownPacket
	}
	src, dst := netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40]))
	return parseNDP(p[ipv6HeaderLen:end], ndpSender{addr: src, to: dst, mac: from}, own, vips)
}

// checksumOK sums up the pseudo-header and the message of an IPv6 packet (RFC 8200, section 8.1). Kernels compute it
// themselves for neighbour discovery, never their cards, so it is there in a frame of a virtual machine too.
func checksumOK(p []byte) bool {
	body := p[ipv6HeaderLen:]
	sum := uint32(len(body)) + icmpv6
	for _, b := range [][]byte{p[8:40], body} {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(b[i])<<8 | uint32(b[i+1])
		}
	}
	if n := len(body); n%2 == 1 {
		sum += uint32(body[n-1]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return sum == 0xffff
}

// An ndpSender is what the headers say of a message.
type ndpSender struct {
	addr netip.Addr
	to   netip.Addr
	mac  string
}

// parseNDP reads one message whose headers are right. own is our MAC.
func parseNDP(b []byte, from ndpSender, own string, vips []netip.Addr) (message, dropReason) {
	if len(b) < 2 || b[1] != 0 {
		return message{}, malformed // the code has to be 0 (RFC 4861, section 7.1)
	}
	m, err := ndp.ParseMessage(b)
	if err != nil {
		return message{}, malformed
	}
	switch m := m.(type) {
	case *ndp.NeighborSolicitation:
		mac := linkLayer(m.Options, ndp.Source)
		probes := from.addr.IsUnspecified()
		group, err := ndp.SolicitedNodeMulticast(m.TargetAddress)
		switch {
		case mac == own:
			return message{}, ownPacket
		case !slices.Contains(vips, m.TargetAddress):
			return message{}, notAVIP
		case err != nil || from.addr.IsMulticast() || from.to != group && (probes || from.to != m.TargetAddress),
			probes && mac != "":
			return message{}, malformed // RFC 4861, sections 4.3 and 7.1.1
		}
		if mac == "" {
			// A unicast solicitation need not name it. RFC 4861, section 7.2.4, has the address looked up then, and the
			// answer waits for that in the kernel, for longer than a lease. The frame has it.
			mac = from.mac
		}
		if !unicastMAC(mac) {
			return message{}, noMAC
		}
		return message{kind: request, vip: m.TargetAddress, from: from.addr, mac: mac}, accepted
	case *ndp.NeighborAdvertisement:
		mac := linkLayer(m.Options, ndp.Target)
		if mac == "" {
			mac = from.mac // an answer to a unicast solicitation need not name it (RFC 4861, section 4.4)
		}
		switch {
		case mac == own:
			return message{}, ownPacket
		case !slices.Contains(vips, m.TargetAddress):
			return message{}, notAVIP
		case !unicastMAC(mac):
			return message{}, noMAC
		}
		return message{kind: claim, vip: m.TargetAddress, from: from.addr, mac: mac}, accepted
	}
	return message{}, malformed
}

// linkLayer is the link-layer address in the options, or empty.
func linkLayer(options []ndp.Option, d ndp.Direction) string {
	for _, o := range options {
		if l, ok := o.(*ndp.LinkLayerAddress); ok && l.Direction == d {
			return string(l.Addr)
		}
	}
	return ""
}

func (s *ndpSocket) send(p packet, may func() bool) error {
	b, err := s.marshal(p)
	if err != nil {
		return err
	}
	return s.write(b, may)
}

func (s *ndpSocket) advertisement(vip netip.Addr, solicited bool) *ndp.NeighborAdvertisement {
	return &ndp.NeighborAdvertisement{
		Solicited:     solicited,
		Override:      true, // the VIP may have moved here just now
		TargetAddress: vip,
		Options:       []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: s.ifi.HardwareAddr}},
	}
}

func (s *ndpSocket) marshal(p packet) ([]byte, error) {
	var to net.HardwareAddr
	var m ndp.Message
	var err error
	src, dst := p.vip, netip.IPv6LinkLocalAllNodes()
	switch {
	case p.kind == reply && p.to.IsUnspecified():
		// RFC 4861, section 7.2.4: the answer to a probe of duplicate address detection goes to all nodes and is not
		// solicited.
		m = s.advertisement(p.vip, false)
	case p.kind == reply:
		dst, to = p.to, p.toMAC
		m = s.advertisement(p.vip, true)
	case p.kind == advertise:
		m = s.advertisement(p.vip, false) // RFC 4861, section 7.2.6
	case p.kind == probe:
		// RFC 4862, section 5.4.2: from ::, so that no cache changes.
		src = netip.IPv6Unspecified()
		if dst, err = ndp.SolicitedNodeMulticast(p.vip); err != nil {
			return nil, err
		}
		m = &ndp.NeighborSolicitation{TargetAddress: p.vip}
	default:
		return nil, fmt.Errorf("arp: NDP has no packet of kind %d", p.kind)
	}
	body, err := ndp.MarshalMessageChecksum(m, src, dst)
	if err != nil {
		return nil, fmt.Errorf("arp: build packet for %s: %w", p.vip, err)
	}
	if dst.IsMulticast() {
		// RFC 2464, section 7: 33:33 and the last four bytes of the group.
		g := dst.As16()
		to = net.HardwareAddr{0x33, 0x33, g[12], g[13], g[14], g[15]}
	}
	b := make([]byte, 0, ipv6HeaderLen+len(body))
	b = append(b, 6<<4, 0, 0, 0) // RFC 8200, section 3: version 6, no class, no flow label
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	b = append(b, icmpv6, ndp.HopLimit)
	b = append(b, src.AsSlice()...)
	b = append(b, dst.AsSlice()...)
	b = append(b, body...)
	f := ethernet.Frame{Destination: to, Source: s.ifi.HardwareAddr, EtherType: unix.ETH_P_IPV6, Payload: b}
	return f.MarshalBinary()
}
