package arp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/ethernet"
	"github.com/mdlayher/ndp"
	rawpacket "github.com/mdlayher/packet"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"appliance/sysctl"
)

const (
	ipv6HeaderLen = 40
	icmpv6        = 58 // next header, RFC 4443

	// ndpMax is enough for any solicitation or advertisement. What is longer is cut, and so malformed.
	ndpMax = 1500
)

// ndpSocket is neighbour discovery on one interface.
//
// It listens on the unspecified address, because clients check a neighbour that they know by solicitations to the VIP
// itself (RFC 4861, section 7.3.3). It sends whole frames with the VIP as source: that needs neither a link-local
// address that has passed duplicate address detection, nor a neighbour entry of the client.
type ndpSocket struct {
	conn *ndp.Conn
	raw  *rawpacket.Conn // to send on
	ifi  *net.Interface
	vips []netip.Addr
}

func openNDP(ifi *net.Interface, vips []netip.Addr) (_ *ndpSocket, err error) {
	c, _, err := ndp.Listen(ifi, ndp.Unspecified)
	if err != nil {
		return nil, fmt.Errorf("arp: open ICMPv6 socket on %s: %w: run as root or give CAP_NET_RAW", ifi.Name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	var f ipv6.ICMPFilter
	f.SetAll(true)
	f.Accept(ipv6.ICMPTypeNeighborSolicitation)
	f.Accept(ipv6.ICMPTypeNeighborAdvertisement)
	if err := c.SetICMPFilter(&f); err != nil {
		return nil, fmt.Errorf("arp: set ICMPv6 filter: %w", err)
	}
	if err := c.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagInterface|ipv6.FlagDst, true); err != nil {
		return nil, fmt.Errorf("arp: ask for ICMPv6 control messages: %w", err)
	}
	joined := make(map[netip.Addr]bool)
	for _, vip := range vips {
		group, err := ndp.SolicitedNodeMulticast(vip) // RFC 4291, section 2.7.1
		if err != nil {
			return nil, err
		}
		if joined[group] {
			continue // the groups of two VIPs may be the same
		}
		if err := c.JoinGroup(group); err != nil {
			off := sysctl.Parameter{Key: "net/ipv6/conf/" + ifi.Name + "/disable_ipv6", Value: "0"}
			return nil, fmt.Errorf("arp: join %s on %s: %w: check that IPv6 is on there (%s)",
				group, ifi.Name, err, off.Line())
		}
		joined[group] = true
	}
	// Protocol 0: the socket never receives, and so slows no other traffic down.
	raw, err := rawpacket.Listen(ifi, rawpacket.Raw, 0, nil)
	if err != nil {
		return nil, packetSocketError(ifi, err)
	}
	return &ndpSocket{conn: c, raw: raw, ifi: ifi, vips: vips}, nil
}

func (s *ndpSocket) receive(deliver func(message)) error {
	b := make([]byte, ndpMax)
	for {
		// ReadFrom would take packets from :: for our own, and so lose probes of duplicate address detection.
		n, cm, src, err := s.conn.ReadRaw(b)
		if err != nil {
			return err
		}
		if cm == nil || cm.IfIndex != s.ifi.Index || cm.HopLimit != ndp.HopLimit {
			continue // from another interface, or from beyond a router (RFC 4861, sections 7.1.1 and 7.1.2)
		}
		if h, why := parseNDP(b[:n], src.WithZone(""), string(s.ifi.HardwareAddr), s.vips); why == accepted {
			deliver(h)
		}
	}
}

// parseNDP reads one message from src whose hop limit and interface are right. own is our MAC.
func parseNDP(b []byte, src netip.Addr, own string, vips []netip.Addr) (message, dropReason) {
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
		switch {
		case mac == own:
			return message{}, ownPacket
		case !slices.Contains(vips, m.TargetAddress):
			return message{}, notAVIP
		case src.IsUnspecified() && mac != "":
			return message{}, malformed // RFC 4861, section 7.1.1
		case mac != "" && !unicastMAC(mac):
			return message{}, noMAC
		}
		return message{kind: request, vip: m.TargetAddress, from: src, mac: mac}, accepted
	case *ndp.NeighborAdvertisement:
		mac := linkLayer(m.Options, ndp.Target)
		switch {
		case mac == own:
			return message{}, ownPacket
		case !slices.Contains(vips, m.TargetAddress):
			return message{}, notAVIP
		case !unicastMAC(mac):
			return message{}, noMAC
		}
		return message{kind: claim, vip: m.TargetAddress, from: src, mac: mac}, accepted
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
	if p.kind == reply && !p.to.IsUnspecified() && len(p.toMAC) == 0 {
		return s.sendRouted(p, may)
	}
	b, err := s.marshal(p)
	if err != nil {
		return err
	}
	return sendFrame(s.raw, b, may)
}

// sendRouted answers a client that left its link-layer address out of a unicast solicitation, as it may (RFC 4861,
// section 4.3): the kernel knows or finds the address.
func (s *ndpSocket) sendRouted(p packet, may func() bool) error {
	if err := s.conn.SetWriteDeadline(time.Now().Add(sendWithin)); err != nil {
		return err
	}
	cm := &ipv6.ControlMessage{HopLimit: ndp.HopLimit, Src: p.vip.AsSlice(), IfIndex: s.ifi.Index}
	m := s.advertisement(p.vip, true)
	if !may() {
		return errNotAllowed
	}
	return s.conn.WriteTo(m, cm, p.to)
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

func (s *ndpSocket) close() error { return errors.Join(s.conn.Close(), s.raw.Close()) }
