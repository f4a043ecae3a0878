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
)

var (
	ownMAC    = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	clientMAC = net.HardwareAddr{2, 0, 0, 0, 0, 0x99}
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

// checksumOK sums up the pseudo-header and the message (RFC 8200, section 8.1).
func checksumOK(p []byte) bool {
	body := p[ipv6HeaderLen:]
	sum := uint32(len(body)) + icmpv6
	for _, b := range [][]byte{p[8:40], body} {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(b[i])<<8 | uint32(b[i+1])
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return sum == 0xffff
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
		f := arpFilter(0, vips)
		if _, err := bpf.Assemble(f); err != nil {
			t.Fatal(err)
		}
		if len(f) > 4096 {
			t.Errorf("%d instructions, more than the kernel takes", len(f))
		}
		// The virtual machine has no packet type, interface and VLAN tag. Replace what is loaded from there by what an
		// untagged packet to us has.
		for i, ins := range f {
			if _, ok := ins.(bpf.LoadExtension); ok {
				f[i] = bpf.LoadConstant{Dst: bpf.RegA, Val: unix.PACKET_HOST}
			}
		}
		vm, err := bpf.NewVM(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			name   string
			sip    netip.Addr
			tip    netip.Addr
			accept bool
		}{
			{"request", client4, vip4, true},
			{"claim", vip4, other, true},
			{"others", client4, other, false},
		} {
			frame := arpFrame(t, arpFields{op: arp.OperationRequest, smac: clientMAC, sip: tt.sip, tip: tt.tip})
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
		{"without link-layer address", asks(vip6), client6, request, "", accepted},
		{"duplicate address detection", asks(vip6), netip.IPv6Unspecified(), request, "", accepted},
		{"from :: with link-layer address", ns, netip.IPv6Unspecified(), nothing, "", malformed},
		{"for another", asks(other), client6, nothing, "", notAVIP},
		{"our own", asks(vip6, lla(ndp.Source, ownMAC)), client6, nothing, "", ownPacket},
		{"group as sender", asks(vip6, lla(ndp.Source, ethernet.Broadcast)), client6, nothing, "", noMAC},
		{"claim", claims(vip6, lla(ndp.Target, clientMAC)), client6, claim, string(clientMAC), accepted},
		{"our own claim", claims(vip6, lla(ndp.Target, ownMAC)), client6, nothing, "", ownPacket},
		{"claim that names no MAC", claims(vip6), client6, nothing, "", noMAC},
		{"claim of another address", claims(other, lla(ndp.Target, clientMAC)), client6, nothing, "", notAVIP},
		{"router solicitation", ndpMessage(t, &ndp.RouterSolicitation{}), client6, nothing, "", malformed},
		{"code 1", coded, client6, nothing, "", malformed},
		{"short", ns[:20], client6, nothing, "", malformed},
		{"empty", nil, client6, nothing, "", malformed},
	} {
		h, why := parseNDP(tt.b, tt.src, string(ownMAC), []netip.Addr{vip6})
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
	f.Add(ndpMessage(f, &ndp.NeighborSolicitation{TargetAddress: vip6, Options: src}), client6.AsSlice())
	f.Add(ndpMessage(f, &ndp.NeighborSolicitation{TargetAddress: vip6}), netip.IPv6Unspecified().AsSlice())
	f.Add(ndpMessage(f, &ndp.NeighborAdvertisement{TargetAddress: vip6, Options: tgt}), client6.AsSlice())
	st := &ndpSocket{ifi: &net.Interface{HardwareAddr: ownMAC}}
	f.Fuzz(func(t *testing.T, b, from []byte) {
		src, ok := netip.AddrFromSlice(from)
		if !ok || !src.Is6() {
			return
		}
		h, why := parseNDP(b, src, string(ownMAC), []netip.Addr{vip6})
		if (why == accepted) != (h.kind != nothing) {
			t.Fatalf("got %+v because %q", h, why)
		}
		if h.kind == nothing {
			return
		}
		if h.vip != vip6 || h.mac == string(ownMAC) || h.mac != "" && !unicastMAC(h.mac) {
			t.Fatalf("got %+v", h)
		}
		if h.kind == request && (h.mac != "" || src.IsUnspecified()) {
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
