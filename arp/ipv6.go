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

	// ndpMax holds any solicitation or advertisement; what is longer is cut,
	// and then refused as malformed.
	ndpMax = 1500
)

// ndpStation speaks neighbour discovery on one interface.
//
// It listens on an unspecified address, as clients check a neighbour that
// they know by solicitations to the VIP itself. It sends whole frames with the
// VIP as source: that needs neither a link-local address that has passed its
// duplicate detection, nor a look-up of the asker's neighbour entry.
type ndpStation struct {
	conn *ndp.Conn
	raw  *rawpacket.Conn
	ifi  *net.Interface
	vips []netip.Addr
}

func openNDP(ifi *net.Interface, vips []netip.Addr) (_ *ndpStation, err error) {
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
		group, err := ndp.SolicitedNodeMulticast(vip) // RFC 4291 2.7.1
		if err != nil {
			return nil, err
		}
		if joined[group] {
			continue // the groups of two VIPs may be the same
		}
		if err := c.JoinGroup(group); err != nil {
			off := sysctl.Parameter{Key: "net/ipv6/conf/" + ifi.Name + "/disable_ipv6", Value: "0"}
			return nil, fmt.Errorf("arp: join %s on %s: %w: check that IPv6 is on there (%s)", group, ifi.Name, err, off.Line())
		}
		joined[group] = true
	}
	// Protocol 0: a socket that never receives costs other traffic nothing.
	raw, err := rawpacket.Listen(ifi, rawpacket.Raw, 0, nil)
	if err != nil {
		return nil, fmt.Errorf("arp: open packet socket on %s: %w: run as root or give CAP_NET_RAW", ifi.Name, err)
	}
	return &ndpStation{conn: c, raw: raw, ifi: ifi, vips: vips}, nil
}

func (s *ndpStation) receive(hear func(heard)) error {
	b := make([]byte, ndpMax)
	for {
		// Not ReadFrom: it takes what comes from :: for our own packets, and
		// loses the probes of duplicate address detection.
		n, cm, src, err := s.conn.ReadRaw(b)
		if err != nil {
			return err
		}
		if cm == nil || cm.IfIndex != s.ifi.Index || cm.HopLimit != ndp.HopLimit {
			continue // of another interface, or over a router: RFC 4861 7.1.1 and 7.1.2
		}
		if h, why := hearNDP(b[:n], src.WithZone(""), string(s.ifi.HardwareAddr), s.vips); why == listened {
			hear(h)
		}
	}
}

// hearNDP judges one message whose hop limit and interface have been checked.
func hearNDP(b []byte, src netip.Addr, own string, vips []netip.Addr) (heard, deaf) {
	if len(b) < 2 || b[1] != 0 {
		return heard{}, malformed // RFC 4861 7.1: the code is 0
	}
	m, err := ndp.ParseMessage(b)
	if err != nil {
		return heard{}, malformed
	}
	switch m := m.(type) {
	case *ndp.NeighborSolicitation:
		mac := linkLayer(m.Options, ndp.Source)
		switch {
		case mac == own:
			return heard{}, ownPacket
		case !slices.Contains(vips, m.TargetAddress):
			return heard{}, notAVIP
		case src.IsUnspecified() && mac != "":
			return heard{}, malformed // RFC 4861 7.1.1
		case mac != "" && !unicastMAC(mac):
			return heard{}, noMAC
		}
		return heard{kind: question, vip: m.TargetAddress, from: src, mac: mac}, listened
	case *ndp.NeighborAdvertisement:
		mac := linkLayer(m.Options, ndp.Target)
		switch {
		case mac == own:
			return heard{}, ownPacket
		case !slices.Contains(vips, m.TargetAddress):
			return heard{}, notAVIP
		case !unicastMAC(mac):
			return heard{}, noMAC
		}
		return heard{kind: claim, vip: m.TargetAddress, from: src, mac: mac}, listened
	}
	return heard{}, malformed
}

// linkLayer is the option's address, or empty.
func linkLayer(options []ndp.Option, d ndp.Direction) string {
	for _, o := range options {
		if l, ok := o.(*ndp.LinkLayerAddress); ok && l.Direction == d {
			return string(l.Addr)
		}
	}
	return ""
}

func (s *ndpStation) send(pk packet, may func() bool) error {
	if pk.kind == reply && !pk.to.IsUnspecified() && len(pk.toMAC) == 0 {
		return s.sendRouted(pk, may)
	}
	b, err := s.marshal(pk)
	if err != nil {
		return err
	}
	return sendFrame(s.raw, b, may)
}

// sendRouted answers an asker that did not tell its link-layer address, which
// it may leave out of a unicast solicitation (RFC 4861 4.3): the kernel knows
// or finds it.
func (s *ndpStation) sendRouted(pk packet, may func() bool) error {
	if err := s.conn.SetWriteDeadline(time.Now().Add(sendWithin)); err != nil {
		return err
	}
	cm := &ipv6.ControlMessage{HopLimit: ndp.HopLimit, Src: pk.vip.AsSlice(), IfIndex: s.ifi.Index}
	m := s.advertisement(pk.vip, true)
	if !may() {
		return errNotAllowed
	}
	return s.conn.WriteTo(m, cm, pk.to)
}

func (s *ndpStation) advertisement(vip netip.Addr, solicited bool) *ndp.NeighborAdvertisement {
	return &ndp.NeighborAdvertisement{
		Solicited:     solicited,
		Override:      true, // the VIP may have moved here a moment ago
		TargetAddress: vip,
		Options:       []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: s.ifi.HardwareAddr}},
	}
}

func (s *ndpStation) marshal(pk packet) ([]byte, error) {
	var to net.HardwareAddr
	var m ndp.Message
	var err error
	src, dst := pk.vip, netip.IPv6LinkLocalAllNodes()
	switch {
	case pk.kind == reply && pk.to.IsUnspecified():
		// RFC 4861 7.2.4: to a probe of duplicate address detection, the
		// answer goes to all nodes and is not solicited.
		m = s.advertisement(pk.vip, false)
	case pk.kind == reply:
		dst, to = pk.to, pk.toMAC
		m = s.advertisement(pk.vip, true)
	case pk.kind == advertise:
		m = s.advertisement(pk.vip, false) // RFC 4861 7.2.6
	case pk.kind == probe:
		// RFC 4862 5.4.2: from ::, so that nobody's cache is touched.
		src = netip.IPv6Unspecified()
		if dst, err = ndp.SolicitedNodeMulticast(pk.vip); err != nil {
			return nil, err
		}
		m = &ndp.NeighborSolicitation{TargetAddress: pk.vip}
	default:
		return nil, fmt.Errorf("arp: NDP has no packet of kind %d", pk.kind)
	}
	body, err := ndp.MarshalMessageChecksum(m, src, dst)
	if err != nil {
		return nil, fmt.Errorf("arp: build packet for %s: %w", pk.vip, err)
	}
	if dst.IsMulticast() {
		// RFC 2464 7: 33:33 and the last four bytes of the group.
		g := dst.As16()
		to = net.HardwareAddr{0x33, 0x33, g[12], g[13], g[14], g[15]}
	}
	b := make([]byte, 0, ipv6HeaderLen+len(body))
	b = append(b, 6<<4, 0, 0, 0) // RFC 8200 3: version, no class, no flow label
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	b = append(b, icmpv6, ndp.HopLimit)
	b = append(b, src.AsSlice()...)
	b = append(b, dst.AsSlice()...)
	b = append(b, body...)
	f := ethernet.Frame{Destination: to, Source: s.ifi.HardwareAddr, EtherType: unix.ETH_P_IPV6, Payload: b}
	return f.MarshalBinary()
}

func (s *ndpStation) close() error { return errors.Join(s.conn.Close(), s.raw.Close()) }
