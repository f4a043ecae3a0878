package arp

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
	"golang.org/x/sys/unix"
)

const (
	// An ARP packet for IPv4 over Ethernet (RFC 826): hardware type 1, protocol type 0x0800, lengths 6 and 4.
	arpHardwareEthernet = 1
	arpRequest          = 1
	arpLen              = 28
)

// arpSocket is ARP on one interface. It does without the Client of mdlayher/arp, which needs an IPv4 address on the
// interface and answers with it.
type arpSocket struct {
	*frameSocket
	mac  net.HardwareAddr
	vips []netip.Addr
}

func openARP(ifi *net.Interface, vips []netip.Addr) (*arpSocket, error) {
	s, err := openFrames(ifi, unix.ETH_P_ARP, len(vips), arpFilter(vips))
	if err != nil {
		return nil, err
	}
	return &arpSocket{frameSocket: s, mac: ifi.HardwareAddr, vips: vips}, nil
}

func (s *arpSocket) receive(deliver func(message), flooded func(mac string)) error {
	own := string(s.mac)
	return s.frames(ethernetHeaderLen+arpLen, flooded, func(frame []byte) {
		if m, why := parseARP(frame, own, s.vips); why == accepted {
			deliver(m)
		}
	})
}

// parseARP reads one frame. own is our MAC.
func parseARP(b []byte, own string, vips []netip.Addr) (message, dropReason) {
	var f ethernet.Frame
	if err := f.UnmarshalBinary(b); err != nil || f.EtherType != ethernet.EtherTypeARP || f.VLAN != nil {
		return message{}, malformed
	}
	// Check the lengths first: arp.Packet trusts them.
	if p := f.Payload; len(p) < arpLen || p[4] != ethernetAddrLen || p[5] != net.IPv4len {
		return message{}, malformed
	}
	var p arp.Packet
	if err := p.UnmarshalBinary(f.Payload); err != nil || p.HardwareType != arpHardwareEthernet ||
		p.ProtocolType != uint16(ethernet.EtherTypeIPv4) {
		return message{}, malformed
	}
	mac := string(p.SenderHardwareAddr)
	switch {
	case mac == own || string(f.Source) == own:
		return message{}, ownPacket
	case !unicastMAC(mac):
		// RFC 1812, section 3.3.2: neither believe nor answer it.
		return message{}, noMAC
	case slices.Contains(vips, p.SenderIP):
		// RFC 5227, section 2.4: in a request or a reply, another sender with the VIP is a conflict.
		return message{kind: claim, vip: p.SenderIP, from: p.SenderIP, mac: mac}, accepted
	case p.Operation == arp.OperationRequest && slices.Contains(vips, p.TargetIP):
		// Probes, whose sender is 0.0.0.0 (RFC 5227, section 1.1), get an answer too.
		return message{kind: request, vip: p.TargetIP, from: p.SenderIP, mac: mac}, accepted
	}
	return message{}, notAVIP
}

// unicastMAC reports whether a single interface can have that address.
func unicastMAC(mac string) bool {
	return len(mac) == ethernetAddrLen && mac[0]&1 == 0 && mac != "\x00\x00\x00\x00\x00\x00"
}

func (s *arpSocket) send(p packet, may func() bool) error {
	b, err := s.marshal(p)
	if err != nil {
		return err
	}
	return s.write(b, may)
}

func (s *arpSocket) marshal(p packet) ([]byte, error) {
	nobody := make(net.HardwareAddr, ethernetAddrLen)
	var to net.HardwareAddr
	var body *arp.Packet
	var err error
	switch p.kind {
	case reply:
		to = p.toMAC
		body, err = arp.NewPacket(arp.OperationReply, s.mac, p.vip, to, p.to)
	case announceRequest:
		// RFC 5227, section 3: sender and target are both the VIP.
		to = ethernet.Broadcast
		body, err = arp.NewPacket(arp.OperationRequest, s.mac, p.vip, nobody, p.vip)
	case announceReply:
		// RFC 5944, section 4.6: the target hardware address is ours as well.
		to = ethernet.Broadcast
		body, err = arp.NewPacket(arp.OperationReply, s.mac, p.vip, s.mac, p.vip)
	case probe:
		// RFC 5227, section 1.1: the sender is 0.0.0.0, so that no cache changes.
		to = ethernet.Broadcast
		body, err = arp.NewPacket(arp.OperationRequest, s.mac, netip.IPv4Unspecified(), nobody, p.vip)
	default:
		return nil, fmt.Errorf("arp: ARP has no packet of kind %d", p.kind)
	}
	if err != nil {
		return nil, fmt.Errorf("arp: build packet for %s: %w", p.vip, err)
	}
	payload, err := body.MarshalBinary()
	if err != nil {
		return nil, err
	}
	f := ethernet.Frame{Destination: to, Source: s.mac, EtherType: ethernet.EtherTypeARP, Payload: payload}
	return f.MarshalBinary()
}
