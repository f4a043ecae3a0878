package arp

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
	rawpacket "github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	// An ARP packet for IPv4 over Ethernet (RFC 826): hardware type 1, protocol type 0x0800, lengths 6 and 4.
	arpHardwareEthernet = 1
	arpLen              = 28

	ethernetHeaderLen = 14

	// Offsets in the frame, for the socket filter.
	offEtherType = 12
	offHardware  = ethernetHeaderLen      // hardware and protocol type
	offLengths   = ethernetHeaderLen + 4  // both lengths
	offSenderIP  = ethernetHeaderLen + 14 // RFC 826 ar$spa
	offTargetIP  = ethernetHeaderLen + 24 // RFC 826 ar$tpa

	// filteredVIPs is the largest number of VIPs that the filter names, within the kernel's limit of 4096 instructions.
	filteredVIPs = 256
)

// arpSocket is ARP on one interface. It does without the Client of mdlayher/arp, which needs an IPv4 address on the
// interface and answers with it.
type arpSocket struct {
	conn *rawpacket.Conn
	mac  net.HardwareAddr
	vips []netip.Addr
}

func openARP(ifi *net.Interface, vips []netip.Addr) (*arpSocket, error) {
	filter, err := bpf.Assemble(arpFilter(ifi.Index, vips))
	if err != nil {
		return nil, fmt.Errorf("arp: assemble filter: %w", err)
	}
	c, err := rawpacket.Listen(ifi, rawpacket.Raw, unix.ETH_P_ARP, &rawpacket.Config{Filter: filter})
	if err != nil {
		return nil, packetSocketError(ifi, err)
	}
	return &arpSocket{conn: c, mac: ifi.HardwareAddr, vips: vips}, nil
}

func packetSocketError(ifi *net.Interface, err error) error {
	return fmt.Errorf("arp: open packet socket on %s: %w: run as root or give CAP_NET_RAW", ifi.Name, err)
}

// arpFilter accepts untagged ARP packets to this host on the interface with that index that name a VIP. Without it, the
// socket would also get packets of VLANs, their tags removed: of a VLAN interface on top of its own, and of VLANs for
// which this host has no interface.
func arpFilter(index int, vips []netip.Addr) []bpf.Instruction {
	drop := bpf.RetConstant{Val: 0}
	accept := bpf.RetConstant{Val: ethernetHeaderLen + arpLen}
	f := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: unix.PACKET_OTHERHOST, SkipTrue: 1},
		drop, // for another host, or our own
		bpf.LoadExtension{Num: bpf.ExtInterfaceIndex},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(index), SkipTrue: 1},
		drop,
		bpf.LoadExtension{Num: bpf.ExtVLANTagPresent},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1},
		drop,
		bpf.LoadAbsolute{Off: offEtherType, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_ARP, SkipTrue: 1},
		drop,
		bpf.LoadAbsolute{Off: offHardware, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: arpHardwareEthernet<<16 | unix.ETH_P_IP, SkipTrue: 1},
		drop,
		bpf.LoadAbsolute{Off: offLengths, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: ethernetAddrLen<<8 | net.IPv4len, SkipTrue: 1},
		drop,
	}
	if len(vips) > filteredVIPs {
		return append(f, accept)
	}
	for _, off := range []uint32{offSenderIP, offTargetIP} {
		f = append(f, bpf.LoadAbsolute{Off: off, Size: 4})
		for _, vip := range vips {
			a := vip.As4()
			f = append(f, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(a[:]), SkipTrue: 1}, accept)
		}
	}
	return append(f, drop)
}

func (s *arpSocket) receive(deliver func(message)) error {
	b := make([]byte, ethernetHeaderLen+arpLen)
	for {
		n, _, err := s.conn.ReadFrom(b)
		if err != nil {
			return err
		}
		if h, why := parseARP(b[:n], string(s.mac), s.vips); why == accepted {
			deliver(h)
		}
	}
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
	return sendFrame(s.conn, b, may)
}

// sendFrame sends a frame if may returns true. Between that call and the system call are only a few instructions: a
// process that is stopped or has to wait for a core there would answer in a lost term when it goes on.
func sendFrame(c *rawpacket.Conn, frame []byte, may func() bool) error {
	if err := c.SetWriteDeadline(time.Now().Add(sendWithin)); err != nil {
		return err
	}
	raw, err := c.SyscallConn()
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
		_, failed = unix.Write(int(fd), frame)
		return failed != unix.EAGAIN
	})
	return cmp.Or(err, failed)
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

func (s *arpSocket) close() error { return s.conn.Close() }
