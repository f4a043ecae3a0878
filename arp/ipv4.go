package arp

import (
	"cmp"
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
	// An ARP packet for IPv4 over Ethernet, as RFC 826 lays it out: hardware
	// type 1, protocol type 0x0800, lengths 6 and 4.
	arpHardwareEthernet = 1
	arpLen              = 28

	ethernetHeaderLen = 14

	// Offsets in the frame, for the socket filter.
	offEtherType = 12
	offHardware  = ethernetHeaderLen      // hardware and protocol type
	offLengths   = ethernetHeaderLen + 4  // both lengths
	offSenderIP  = ethernetHeaderLen + 14 // RFC 826 ar$spa
	offTargetIP  = ethernetHeaderLen + 24 // RFC 826 ar$tpa

	// filteredVIPs is up to how many VIPs the filter names; the kernel's
	// limit is 4096 instructions.
	filteredVIPs = 256
)

// arpStation speaks ARP on one interface. The Client of mdlayher/arp is not
// used: it wants an IPv4 address on the interface, and takes it for its own.
type arpStation struct {
	conn *rawpacket.Conn
	mac  net.HardwareAddr
	vips []netip.Addr
}

func openARP(ifi *net.Interface, vips []netip.Addr) (*arpStation, error) {
	filter, err := bpf.Assemble(arpFilter(ifi.Index, vips))
	if err != nil {
		return nil, fmt.Errorf("arp: assemble filter: %w", err)
	}
	c, err := rawpacket.Listen(ifi, rawpacket.Raw, unix.ETH_P_ARP, &rawpacket.Config{Filter: filter})
	if err != nil {
		return nil, fmt.Errorf("arp: open packet socket on %s: %w: run as root or give CAP_NET_RAW", ifi.Name, err)
	}
	return &arpStation{conn: c, mac: ifi.HardwareAddr, vips: vips}, nil
}

// arpFilter accepts untagged ARP packets to this host on that interface that
// name a VIP. What was tagged for a VLAN would otherwise arrive here without its
// tag: a packet socket gets what comes for an interface that stands on its own
// one, and what comes for a VLAN that this host has no interface for.
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
			f = append(f, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3]), SkipTrue: 1}, accept)
		}
	}
	return append(f, drop)
}

func (s *arpStation) receive(hear func(heard)) error {
	b := make([]byte, ethernetHeaderLen+arpLen)
	for {
		n, _, err := s.conn.ReadFrom(b)
		if err != nil {
			return err
		}
		if h, why := hearARP(b[:n], string(s.mac), s.vips); why == listened {
			hear(h)
		}
	}
}

// hearARP judges one frame.
func hearARP(b []byte, own string, vips []netip.Addr) (heard, deaf) {
	var f ethernet.Frame
	if err := f.UnmarshalBinary(b); err != nil || f.EtherType != ethernet.EtherTypeARP || f.VLAN != nil {
		return heard{}, malformed
	}
	// The lengths are looked at first, as the packet's reader trusts them.
	if p := f.Payload; len(p) < arpLen || p[4] != ethernetAddrLen || p[5] != net.IPv4len {
		return heard{}, malformed
	}
	var p arp.Packet
	if err := p.UnmarshalBinary(f.Payload); err != nil || p.HardwareType != arpHardwareEthernet || p.ProtocolType != uint16(ethernet.EtherTypeIPv4) {
		return heard{}, malformed
	}
	mac := string(p.SenderHardwareAddr)
	switch {
	case mac == own || string(f.Source) == own:
		return heard{}, ownPacket
	case !unicastMAC(mac):
		// RFC 1812 3.3.2: not to be believed, nor answered.
		return heard{}, noMAC
	case slices.Contains(vips, p.SenderIP):
		// RFC 5227 2.4: request or reply, a sender that is not us has it too.
		return heard{kind: claim, vip: p.SenderIP, from: p.SenderIP, mac: mac}, listened
	case p.Operation == arp.OperationRequest && slices.Contains(vips, p.TargetIP):
		// A sender of 0.0.0.0 is an RFC 5227 probe and gets an answer too.
		return heard{kind: question, vip: p.TargetIP, from: p.SenderIP, mac: mac}, listened
	}
	return heard{}, notAVIP
}

// unicastMAC is true for an address that one station can have.
func unicastMAC(mac string) bool {
	return len(mac) == ethernetAddrLen && mac[0]&1 == 0 && mac != "\x00\x00\x00\x00\x00\x00"
}

func (s *arpStation) send(pk packet, may func() bool) error {
	b, err := s.marshal(pk)
	if err != nil {
		return err
	}
	return sendFrame(s.conn, b, may)
}

// sendFrame sends a frame if may says so. Between the question and the system call
// are a few instructions: a process that is stopped there, or kept waiting for a core,
// would speak for a lost term when it goes on.
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
		// The socket is bound to its interface, and the frame says the rest.
		_, failed = unix.Write(int(fd), frame)
		return failed != unix.EAGAIN
	})
	return cmp.Or(err, failed)
}

func (s *arpStation) marshal(pk packet) ([]byte, error) {
	nobody := make(net.HardwareAddr, ethernetAddrLen)
	var to net.HardwareAddr
	var p *arp.Packet
	var err error
	switch pk.kind {
	case reply:
		to = pk.toMAC
		p, err = arp.NewPacket(arp.OperationReply, s.mac, pk.vip, to, pk.to)
	case announceRequest:
		// RFC 5227 3: sender and target are both the address.
		to = ethernet.Broadcast
		p, err = arp.NewPacket(arp.OperationRequest, s.mac, pk.vip, nobody, pk.vip)
	case announceReply:
		// RFC 5944 4.6: the target hardware address is ours as well.
		to = ethernet.Broadcast
		p, err = arp.NewPacket(arp.OperationReply, s.mac, pk.vip, s.mac, pk.vip)
	case probe:
		// RFC 5227 1.1: sender 0.0.0.0, so that nobody's cache is touched.
		to = ethernet.Broadcast
		p, err = arp.NewPacket(arp.OperationRequest, s.mac, netip.IPv4Unspecified(), nobody, pk.vip)
	default:
		return nil, fmt.Errorf("arp: ARP has no packet of kind %d", pk.kind)
	}
	if err != nil {
		return nil, fmt.Errorf("arp: build packet for %s: %w", pk.vip, err)
	}
	payload, err := p.MarshalBinary()
	if err != nil {
		return nil, err
	}
	f := ethernet.Frame{Destination: to, Source: s.mac, EtherType: ethernet.EtherTypeARP, Payload: payload}
	return f.MarshalBinary()
}

func (s *arpStation) close() error { return s.conn.Close() }
