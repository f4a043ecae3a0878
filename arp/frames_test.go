package arp

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
	"github.com/mdlayher/ndp"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"appliance/flood"
)

var (
	ownMAC    = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	clientMAC = net.HardwareAddr{2, 0, 0, 0, 0, 0x99}
	cardMAC   = net.HardwareAddr{2, 0, 0, 0, 0, 0x98}
	client4   = netip.MustParseAddr("192.0.2.99")
	client6   = netip.MustParseAddr("2001:db8::99")
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.NewReplacer(" ", "", "\n", "", "\t", "").Replace(s))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestARPFrames(t *testing.T) {
	st := &arpSocket{mac: ownMAC}
	pad := strings.Repeat("00", 46-arpLen) // to the shortest Ethernet payload
	for _, tt := range []struct {
		name string
		pk   packet
		want string
	}{
		{"gratuitous request, RFC 5227 3", packet{kind: announceRequest, vip: vip4}, `
			ffffffffffff 020000000001 0806
			0001 0800 06 04 0001
			020000000001 c000020a
			000000000000 c000020a`},
		{"gratuitous reply, RFC 5944 4.6", packet{kind: announceReply, vip: vip4}, `
			ffffffffffff 020000000001 0806
			0001 0800 06 04 0002
			020000000001 c000020a
			020000000001 c000020a`},
		{"probe, RFC 5227 1.1", packet{kind: probe, vip: vip4}, `
			ffffffffffff 020000000001 0806
			0001 0800 06 04 0001
			020000000001 00000000
			000000000000 c000020a`},
		{"reply", packet{kind: reply, vip: vip4, to: client4, toMAC: clientMAC}, `
			020000000099 020000000001 0806
			0001 0800 06 04 0002
			020000000001 c000020a
			020000000099 c0000263`},
		{"reply to a probe", packet{kind: reply, vip: vip4, to: netip.IPv4Unspecified(), toMAC: clientMAC}, `
			020000000099 020000000001 0806
			0001 0800 06 04 0002
			020000000001 c000020a
			020000000099 00000000`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := st.marshal(tt.pk)
			if err != nil {
				t.Fatal(err)
			}
			if want := unhex(t, tt.want+pad); !bytes.Equal(got, want) {
				t.Errorf("got  %x\nwant %x", got, want)
			}
		})
	}
	if _, err := st.marshal(packet{kind: advertise, vip: vip4}); err == nil {
		t.Error("ARP sent an NDP packet")
	}
}

func TestNDPFrames(t *testing.T) {
	st := &ndpSocket{ifi: &net.Interface{HardwareAddr: ownMAC}}
	const v, target = "20010db8000000000000000000000010", "20010db8000000000000000000000010"
	for _, tt := range []struct {
		name, want string
		pk         packet
	}{
		{"unsolicited, RFC 4861 7.2.6", `
			333300000001 020000000001 86dd
			60000000 0020 3a ff ` + v + ` ff020000000000000000000000000001
			88 00 cccc 20000000 ` + target + ` 02 01 020000000001`,
			packet{kind: advertise, vip: vip6}},
		{"solicited", `
			020000000099 020000000001 86dd
			60000000 0020 3a ff ` + v + ` 20010db8000000000000000000000099
			88 00 cccc 60000000 ` + target + ` 02 01 020000000001`,
			packet{kind: reply, vip: vip6, to: client6, toMAC: clientMAC}},
		{"to a probe, RFC 4861 7.2.4", `
			333300000001 020000000001 86dd
			60000000 0020 3a ff ` + v + ` ff020000000000000000000000000001
			88 00 cccc 20000000 ` + target + ` 02 01 020000000001`,
			packet{kind: reply, vip: vip6, to: netip.IPv6Unspecified()}},
		{"probe, RFC 4862 5.4.2", `
			3333ff000010 020000000001 86dd
			60000000 0018 3a ff 00000000000000000000000000000000 ff0200000000000000000001ff000010
			87 00 cccc 00000000 ` + target,
			packet{kind: probe, vip: vip6}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := st.marshal(tt.pk)
			if err != nil {
				t.Fatal(err)
			}
			const sum = ethernetHeaderLen + ipv6HeaderLen + 2
			if !checksumOK(got[ethernetHeaderLen:]) {
				t.Errorf("wrong checksum in %x", got)
			}
			want := unhex(t, strings.Replace(tt.want, "cccc", hex.EncodeToString(got[sum:sum+2]), 1))
			if !bytes.Equal(got, want) {
				t.Errorf("got  %x\nwant %x", got, want)
			}
		})
	}
	if _, err := st.marshal(packet{kind: announceReply, vip: vip6}); err == nil {
		t.Error("NDP sent an ARP packet")
	}
}

// arpFields is what may differ in ARP frames of other machines.
type arpFields struct {
	op       arp.Operation
	smac     net.HardwareAddr
	sip      netip.Addr
	tmac     net.HardwareAddr // nil: unknown
	tip      netip.Addr
	src, dst net.HardwareAddr // of the frame; nil: the client and everybody
	vlan     *ethernet.VLAN
}

func arpFrame(t testing.TB, a arpFields) []byte {
	t.Helper()
	for mac, otherwise := range map[*net.HardwareAddr]net.HardwareAddr{
		&a.tmac: make(net.HardwareAddr, 6), &a.src: clientMAC, &a.dst: ethernet.Broadcast,
	} {
		if *mac == nil {
			*mac = otherwise
		}
	}
	p, err := arp.NewPacket(a.op, a.smac, a.sip, a.tmac, a.tip)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := p.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	f := ethernet.Frame{
		Destination: a.dst, Source: a.src, VLAN: a.vlan,
		EtherType: ethernet.EtherTypeARP, Payload: payload,
	}
	b, err := f.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseARP(t *testing.T) {
	zero := make(net.HardwareAddr, 6)
	other := netip.MustParseAddr("192.0.2.77")
	frame := func(op arp.Operation, smac net.HardwareAddr, sip, tip netip.Addr) []byte {
		return arpFrame(t, arpFields{op: op, smac: smac, sip: sip, tip: tip})
	}
	tagged := arpFrame(t, arpFields{
		op: arp.OperationRequest, smac: clientMAC, sip: client4, tip: vip4, vlan: &ethernet.VLAN{ID: 7},
	})
	good := frame(arp.OperationRequest, clientMAC, client4, vip4)
	change := func(off int, v byte) []byte { b := bytes.Clone(good); b[off] = v; return b }
	for _, tt := range []struct {
		name  string
		frame []byte
		kind  messageKind
		why   dropReason
	}{
		{"request", good, request, accepted},
		{"probe", frame(arp.OperationRequest, clientMAC, netip.IPv4Unspecified(), vip4), request, accepted},
		{"request for another", frame(arp.OperationRequest, clientMAC, client4, other), nothing, notAVIP},
		{"reply to us", frame(arp.OperationReply, clientMAC, client4, vip4), nothing, notAVIP},
		{"gratuitous request of another", frame(arp.OperationRequest, clientMAC, vip4, vip4), claim, accepted},
		{"gratuitous reply of another", frame(arp.OperationReply, clientMAC, vip4, vip4), claim, accepted},
		{"request with the VIP as sender", frame(arp.OperationRequest, clientMAC, vip4, other), claim, accepted},
		{"our own", frame(arp.OperationRequest, ownMAC, vip4, vip4), nothing, ownPacket},
		{"group as sender", frame(arp.OperationRequest, ethernet.Broadcast, client4, vip4), nothing, noMAC},
		{"nobody as sender", frame(arp.OperationRequest, zero, client4, vip4), nothing, noMAC},
		{"tagged", tagged, nothing, malformed},
		{"short", good[:ethernetHeaderLen+arpLen-1], nothing, malformed},
		{"empty", nil, nothing, malformed},
		{"token ring", change(15, 6), nothing, malformed},
		{"long hardware address", change(18, 20), nothing, malformed},
		{"IPv6 in ARP", change(19, 16), nothing, malformed},
		{"not IPv4", change(17, 1), nothing, malformed},
		{"RARP", change(21, 3), nothing, notAVIP},
	} {
		h, why := parseARP(tt.frame, string(ownMAC), []netip.Addr{vip4})
		if h.kind != tt.kind || why != tt.why {
			t.Errorf("%s: got %v, %q; want %v, %q", tt.name, h.kind, why, tt.kind, tt.why)
		}
		if why == accepted && (h.vip != vip4 || h.mac != string(clientMAC)) {
			t.Errorf("%s: got %+v", tt.name, h)
		}
	}
}

// The filter in the kernel passes what is about a VIP and little else.
func TestARPFilter(t *testing.T) {
	other := netip.MustParseAddr("192.0.2.77")
	many := make([]netip.Addr, filteredVIPs)
	for i := range many {
		many[i] = netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)})
	}
	many[filteredVIPs-1] = vip4
	for _, vips := range [][]netip.Addr{{vip4}, many} {
		f := append(linkFilter(0, unix.ETH_P_ARP), arpFilter(vips)...)
		if n := len(f) + flood.FilterMax; n > 4096 {
			t.Errorf("%d instructions with those of a flood, more than the kernel takes", n)
		}
		vm := filterVM(t, f, unix.PACKET_HOST)
		for _, tt := range []struct {
			name   string
			op     arp.Operation
			sip    netip.Addr
			tip    netip.Addr
			accept bool
		}{
			{"request", arp.OperationRequest, client4, vip4, true},
			{"claim", arp.OperationRequest, vip4, other, true},
			{"claim by a reply", arp.OperationReply, vip4, other, true},
			{"others", arp.OperationRequest, client4, other, false},
			{"reply of no claim", arp.OperationReply, client4, vip4, false},
		} {
			frame := arpFrame(t, arpFields{op: tt.op, smac: clientMAC, sip: tt.sip, tip: tt.tip})
			n, err := vm.Run(frame)
			if err != nil || (n > 0) != tt.accept {
				t.Errorf("%d VIPs, %s: %d, %v", len(vips), tt.name, n, err)
			}
		}
	}
}

func ndpMessage(t testing.TB, m ndp.Message) []byte {
	t.Helper()
	b, err := ndp.MarshalMessage(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ndpFrame is a message in the frame of another machine.
func ndpFrame(t testing.TB, m ndp.Message, src, dst netip.Addr, from, to net.HardwareAddr) []byte {
	t.Helper()
	body, err := ndp.MarshalMessageChecksum(m, src, dst)
	if err != nil {
		t.Fatal(err)
	}
	p := []byte{6 << 4, 0, 0, 0, byte(len(body) >> 8), byte(len(body)), icmpv6, hopLimit}
	p = append(append(append(p, src.AsSlice()...), dst.AsSlice()...), body...)
	f := ethernet.Frame{Destination: to, Source: from, EtherType: unix.ETH_P_IPV6, Payload: p}
	b, err := f.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// mendChecksum corrects the checksum of an ICMPv6 message in a frame, if that is what b is.
func mendChecksum(b []byte) {
	const at = offICMP + 2
	if len(b) < at+2 {
		return
	}
	p := b[ethernetHeaderLen:]
	end := ipv6HeaderLen + int(p[4])<<8 + int(p[5])
	if end > len(p) || end < ipv6HeaderLen+4 {
		return
	}
	b[at], b[at+1] = 0, 0
	for sum := range 1 << 16 {
		b[at], b[at+1] = byte(sum>>8), byte(sum)
		if checksumOK(p[:end]) {
			return
		}
	}
}

// A frame is read only if its headers and checksum are those of neighbour discovery on this link.
func TestParseNDPFrame(t *testing.T) {
	group, err := ndp.SolicitedNodeMulticast(vip6)
	if err != nil {
		t.Fatal(err)
	}
	ns := &ndp.NeighborSolicitation{TargetAddress: vip6}
	good := ndpFrame(t, ns, client6, vip6, clientMAC, ownMAC)
	change := func(off int, v byte) []byte { b := bytes.Clone(good); b[off] = v; return b }
	var all, none netip.Addr = vip6, netip.IPv6Unspecified()
	for _, tt := range []struct {
		name  string
		frame []byte
		kind  messageKind
		why   dropReason
	}{
		{"to the VIP", good, request, accepted},
		{"to the group", ndpFrame(t, ns, client6, group, clientMAC, ownMAC), request, accepted},
		{"duplicate address detection", ndpFrame(t, ns, none, group, clientMAC, ownMAC), request, accepted},
		{"from :: to the VIP", ndpFrame(t, ns, none, all, clientMAC, ownMAC), nothing, malformed},
		{"to all nodes", ndpFrame(t, ns, client6, netip.IPv6LinkLocalAllNodes(), clientMAC, ownMAC), nothing, malformed},
		{"our own", ndpFrame(t, ns, client6, vip6, ownMAC, ownMAC), nothing, ownPacket},
		{"group as source", ndpFrame(t, ns, client6, vip6, ethernet.Broadcast, ownMAC), nothing, noMAC},
		{"through a router", change(ethernetHeaderLen+7, 64), nothing, malformed},
		{"with an extension header", change(ethernetHeaderLen+6, 60), nothing, malformed},
		{"wrong checksum", change(offICMP+2, good[offICMP+2]^1), nothing, malformed},
		{"IPv4", change(ethernetHeaderLen, 4<<4), nothing, malformed},
		{"longer than the frame", change(ethernetHeaderLen+5, 200), nothing, malformed},
		{"ends in the header", good[:ethernetHeaderLen+20], nothing, malformed},
		{"empty", nil, nothing, malformed},
	} {
		m, why := parseNDPFrame(tt.frame, string(ownMAC), []netip.Addr{vip6})
		if m.kind != tt.kind || why != tt.why {
			t.Errorf("%s: got %v, %q; want %v, %q", tt.name, m.kind, why, tt.kind, tt.why)
		}
		if why == accepted && m.mac != string(clientMAC) {
			t.Errorf("%s: the answer goes to %x", tt.name, m.mac)
		}
	}
}

// The filter of neighbour discovery passes what is about a VIP, and nothing else of the IPv6 traffic on the link.
func TestNDPFilter(t *testing.T) {
	many := make([]netip.Addr, filteredVIPs)
	for i := range many {
		many[i] = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(i)})
	}
	many[filteredVIPs-1] = vip6
	other := netip.MustParseAddr("2001:db8::1:10") // differs in one word
	sent := func(m ndp.Message, dst netip.Addr, from net.HardwareAddr) []byte {
		return ndpFrame(t, m, client6, dst, from, ownMAC)
	}
	for _, vips := range [][]netip.Addr{{vip6}, many} {
		f := append(linkFilter(0, unix.ETH_P_IPV6), ndpFilter(vips)...)
		if n := len(f) + flood.FilterMax; n > 4096 {
			t.Errorf("%d instructions with those of a flood, more than the kernel takes", n)
		}
		vm := filterVM(t, f, 0)
		for _, tt := range []struct {
			name   string
			frame  []byte
			accept bool
		}{
			{"solicitation", sent(&ndp.NeighborSolicitation{TargetAddress: vip6}, vip6, clientMAC), true},
			{"claim", sent(&ndp.NeighborAdvertisement{TargetAddress: vip6}, vip6, clientMAC), true},
			{"of another", sent(&ndp.NeighborSolicitation{TargetAddress: other}, other, clientMAC), false},
			{"router solicitation", sent(&ndp.RouterSolicitation{}, vip6, clientMAC), false},
		} {
			n, err := vm.Run(tt.frame)
			if err != nil || (n > 0) != tt.accept {
				t.Errorf("%d VIPs, %s: %d, %v", len(vips), tt.name, n, err)
			}
		}
	}
}

// filterVM executes a filter. The virtual machine has no packet type, interface, VLAN tag and random number: it loads
// value instead, which for 0 is what an untagged packet to us has.
func filterVM(t *testing.T, f []bpf.Instruction, value uint32) *bpf.VM {
	t.Helper()
	if _, err := bpf.Assemble(f); err != nil {
		t.Fatal(err)
	}
	for i, ins := range f {
		if _, ok := ins.(bpf.LoadExtension); ok {
			f[i] = bpf.LoadConstant{Dst: bpf.RegA, Val: value}
		}
	}
	vm, err := bpf.NewVM(f)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

func TestParseNDP(t *testing.T) {
	lla := func(d ndp.Direction, mac net.HardwareAddr) ndp.Option {
		return &ndp.LinkLayerAddress{Direction: d, Addr: mac}
	}
	other := netip.MustParseAddr("2001:db8::77")
	asks := func(target netip.Addr, options ...ndp.Option) []byte {
		return ndpMessage(t, &ndp.NeighborSolicitation{TargetAddress: target, Options: options})
	}
	claims := func(target netip.Addr, options ...ndp.Option) []byte {
		return ndpMessage(t, &ndp.NeighborAdvertisement{TargetAddress: target, Options: options})
	}
	ns := asks(vip6, lla(ndp.Source, clientMAC))
	group, err := ndp.SolicitedNodeMulticast(vip6)
	if err != nil {
		t.Fatal(err)
	}
	coded := bytes.Clone(ns)
	coded[1] = 1
	for _, tt := range []struct {
		name string
		b    []byte
		src  netip.Addr
		kind messageKind
		mac  string
		why  dropReason
	}{
		{"solicitation", ns, client6, request, string(clientMAC), accepted},
		{"without link-layer address", asks(vip6), client6, request, string(clientMAC), accepted},
		{"of a link-layer address other than the frame's", asks(vip6, lla(ndp.Source, cardMAC)), client6, request,
			string(cardMAC), accepted},
		{"duplicate address detection", asks(vip6), netip.IPv6Unspecified(), request, string(clientMAC), accepted},
		{"from a group", ns, netip.MustParseAddr("ff02::1"), nothing, "", malformed},
		{"from :: with link-layer address", ns, netip.IPv6Unspecified(), nothing, "", malformed},
		{"for another", asks(other), client6, nothing, "", notAVIP},
		{"our own", asks(vip6, lla(ndp.Source, ownMAC)), client6, nothing, "", ownPacket},
		{"group as sender", asks(vip6, lla(ndp.Source, ethernet.Broadcast)), client6, nothing, "", noMAC},
		{"claim", claims(vip6, lla(ndp.Target, clientMAC)), client6, claim, string(clientMAC), accepted},
		{"our own claim", claims(vip6, lla(ndp.Target, ownMAC)), client6, nothing, "", ownPacket},
		{"claim that names no MAC", claims(vip6), client6, claim, string(clientMAC), accepted},
		{"claim of another address", claims(other, lla(ndp.Target, clientMAC)), client6, nothing, "", notAVIP},
		{"router solicitation", ndpMessage(t, &ndp.RouterSolicitation{}), client6, nothing, "", malformed},
		{"code 1", coded, client6, nothing, "", malformed},
		{"short", ns[:20], client6, nothing, "", malformed},
		{"empty", nil, client6, nothing, "", malformed},
	} {
		from := ndpSender{addr: tt.src, to: group, mac: string(clientMAC)}
		h, why := parseNDP(tt.b, from, string(ownMAC), []netip.Addr{vip6})
		if h.kind != tt.kind || why != tt.why || h.mac != tt.mac {
			t.Errorf("%s: got %+v, %q; want %v, %q", tt.name, h, why, tt.kind, tt.why)
		}
		if why == accepted && (h.vip != vip6 || h.from != tt.src) {
			t.Errorf("%s: got %+v", tt.name, h)
		}
	}
}

// FuzzParseARP wants no panic, an answer to every request, and no message without a MAC.
func FuzzParseARP(f *testing.F) {
	asks := arpFields{op: arp.OperationRequest, smac: clientMAC, sip: client4, tip: vip4}
	f.Add(arpFrame(f, asks))
	f.Add(arpFrame(f, arpFields{op: arp.OperationReply, smac: clientMAC, sip: vip4, tmac: clientMAC, tip: vip4}))
	asks.vlan = &ethernet.VLAN{ID: 1}
	f.Add(arpFrame(f, asks))
	st := &arpSocket{mac: ownMAC}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, why := parseARP(b, string(ownMAC), []netip.Addr{vip4})
		if (why == accepted) != (h.kind != nothing) {
			t.Fatalf("got %+v because %q", h, why)
		}
		if h.kind == nothing {
			return
		}
		if h.vip != vip4 || !unicastMAC(h.mac) || h.mac == string(ownMAC) {
			t.Fatalf("got %+v", h)
		}
		answer := packet{kind: reply, vip: h.vip, to: h.from, toMAC: net.HardwareAddr(h.mac)}
		if _, err := st.marshal(answer); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzParseNDP(f *testing.F) {
	src := []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: clientMAC}}
	tgt := []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: clientMAC}}
	group, err := ndp.SolicitedNodeMulticast(vip6)
	if err != nil {
		f.Fatal(err)
	}
	for _, m := range []struct {
		message ndp.Message
		src     netip.Addr
	}{
		{&ndp.NeighborSolicitation{TargetAddress: vip6, Options: src}, client6},
		{&ndp.NeighborSolicitation{TargetAddress: vip6}, netip.IPv6Unspecified()},
		{&ndp.NeighborAdvertisement{TargetAddress: vip6, Options: tgt}, client6},
	} {
		f.Add(ndpFrame(f, m.message, m.src, group, clientMAC, ethernet.Broadcast))
	}
	st := &ndpSocket{ifi: &net.Interface{HardwareAddr: ownMAC}}
	f.Fuzz(func(t *testing.T, b []byte) {
		mendChecksum(b)
		h, why := parseNDPFrame(b, string(ownMAC), []netip.Addr{vip6})
		if (why == accepted) != (h.kind != nothing) {
			t.Fatalf("got %+v because %q", h, why)
		}
		if h.kind == nothing {
			return
		}
		if h.vip != vip6 || h.mac == string(ownMAC) || !unicastMAC(h.mac) {
			t.Fatalf("got %+v", h)
		}
		if h.kind == request {
			answer := packet{kind: reply, vip: h.vip, to: h.from, toMAC: net.HardwareAddr(h.mac)}
			if _, err := st.marshal(answer); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// may is called once for each frame, and its answer counts.
func TestSendFrameAsksLast(t *testing.T) {
	h := newLAN(t).host("192.0.2.11/24")
	within(t, h.ns, func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		s, err := openARP(ifi, []netip.Addr{vip4})
		if err != nil {
			return err
		}
		defer s.close()
		for _, c := range []struct {
			allowed bool
			want    error
		}{{false, errNotAllowed}, {true, nil}, {false, errNotAllowed}} {
			asked := 0
			may := func() bool { asked++; return c.allowed }
			if err := s.send(packet{kind: announceReply, vip: vip4}, may); !errors.Is(err, c.want) || asked != 1 {
				t.Errorf("allowed %v: asked %d times, %v, want %v", c.allowed, asked, err, c.want)
			}
		}
		return nil
	})
}
