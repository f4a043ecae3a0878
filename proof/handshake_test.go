package proof

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"appliance/segment"
)

// A network answers each SYN as told, and counts the resets.
type network struct {
	h      *handshakes
	sent   [][]byte
	resets int
}

func newNetwork(own netip.Addr, trials ...Trial) *network {
	n := &network{h: newHandshakes(trials)}
	n.h.send = func(k *knock, to netip.AddrPort, seq uint32, flags byte) {
		if flags == segment.RST {
			n.resets++
		}
		n.sent = append(n.sent, segment.Packet(netip.AddrPortFrom(own, k.port), to, seq, flags, nil))
	}
	n.h.begin()
	return n
}

// answer is the packet that answers the i-th SYN.
func (n *network) answer(i int, flags byte) []byte {
	src, dst, _, tcp, _ := parseIP(n.sent[i])
	from := netip.AddrPortFrom(dst, binary.BigEndian.Uint16(tcp[2:]))
	to := netip.AddrPortFrom(src, binary.BigEndian.Uint16(tcp))
	p := segment.Packet(from, to, 7, flags, nil)
	header := 40
	if src.Is4() {
		header = 20
	}
	binary.BigEndian.PutUint32(p[header+8:], binary.BigEndian.Uint32(tcp[4:])+1)
	return p
}

func (n *network) hears(t *testing.T, packet []byte) bool {
	t.Helper()
	a, ok := parseAnswer(packet)
	return ok && n.h.hear(a)
}

func TestHandshakes(t *testing.T) {
	for _, family := range []struct{ own, frontend string }{
		{"192.0.2.11", "192.0.2.10:6443"}, {"2001:db8::11", "[2001:db8::10]:6443"},
	} {
		own, frontend := netip.MustParseAddr(family.own), netip.MustParseAddrPort(family.frontend)
		n := newNetwork(own, Trial{Frontend: frontend, Count: 2},
			Trial{Frontend: netip.AddrPortFrom(frontend.Addr(), 443)}, Trial{Frontend: netip.AddrPortFrom(frontend.Addr(), 80)})
		if len(n.sent) != 4 {
			t.Fatalf("%d SYNs, want 4", len(n.sent))
		}
		if !n.hears(t, n.answer(0, segment.SYN|segment.ACK)) || n.hears(t, n.answer(0, segment.SYN|segment.ACK)) {
			t.Error("a SYN-ACK counts once")
		}
		n.hears(t, n.answer(1, segment.SYN|segment.ACK))
		if n.resets != 2 {
			t.Errorf("%d resets, want one for each SYN-ACK", n.resets)
		}
		if !n.hears(t, n.answer(2, segment.RST|segment.ACK)) {
			t.Error("a reset is no answer")
		}
		stale := n.answer(3, segment.SYN|segment.ACK)
		tcp := stale[len(stale)-segment.HeaderLen:]
		tcp[8]++ // acknowledges what was not sent
		if n.hears(t, stale) || n.hears(t, n.answer(3, segment.ACK)) {
			t.Error("what is no answer counts")
		}
		want := []TrialResult{
			{Frontend: frontend, Result: Served, Of: 2},
			{Frontend: netip.AddrPortFrom(frontend.Addr(), 443), Result: Refused, Of: 1, Failed: 1},
			{Frontend: netip.AddrPortFrom(frontend.Addr(), 80), Result: Silent, Of: 1, Failed: 1},
		}
		if got := n.h.findings(); !slices.Equal(got, want) {
			t.Errorf("found %+v, want %+v", got, want)
		}
	}
}

// Each attempt has a port of its own, so that another backend that takes the second shows.
func TestLate(t *testing.T) {
	own, frontend := netip.MustParseAddr("192.0.2.11"), netip.MustParseAddrPort("192.0.2.10:6443")
	n := newNetwork(own, Trial{Frontend: frontend, Count: 4})
	n.hears(t, n.answer(0, segment.SYN|segment.ACK))
	n.hears(t, n.answer(1, segment.SYN|segment.ACK))
	n.h.begin()
	if len(n.sent) != 4+2+2 { // with the resets of those that were answered
		t.Fatalf("%d packets", len(n.sent))
	}
	if second := n.sent[6:]; bytes.Equal(second[0][20:22], n.sent[2][20:22]) {
		t.Error("the second attempt has the port of the first")
	}
	n.hears(t, n.answer(6, segment.SYN|segment.ACK))
	n.hears(t, n.answer(7, segment.SYN|segment.ACK))
	want := TrialResult{Frontend: frontend, Result: Served, Of: 4, Late: 2}
	if got := n.h.findings()[0]; got != want || !got.lost() || n.h.open() != 2 {
		t.Errorf("found %+v, want %+v; %d open", got, want, n.h.open())
	}
	// The first may still be answered.
	n.hears(t, n.answer(2, segment.SYN|segment.ACK))
	if got := n.h.findings()[0]; got.Late != 1 || got.lost() {
		t.Errorf("one of four was lost: %+v", got)
	}
}

// An ICMP error quotes the SYN.
func TestUnreachable(t *testing.T) {
	own, frontend := netip.MustParseAddr("192.0.2.11"), netip.MustParseAddrPort("192.0.2.10:6443")
	n := newNetwork(own, Trial{Frontend: frontend})
	icmp := segment.Packet(netip.MustParseAddrPort("192.0.2.1:1"), netip.AddrPortFrom(own, 1), 0, 0, nil)[:20]
	icmp[9] = unix.IPPROTO_ICMP
	icmp = append(icmp, 3, 13, 0, 0, 0, 0, 0, 0)
	if !n.hears(t, append(icmp, n.sent[0][:28]...)) || n.h.findings()[0].Result != Unreachable {
		t.Errorf("found %+v", n.h.findings())
	}
}

func TestFilter(t *testing.T) {
	for own, vip := range map[string]string{"192.0.2.11": "192.0.2.10:6443", "2001:db8::11": "[2001:db8::10]:6443"} {
		own, frontend := netip.MustParseAddr(own), netip.MustParseAddrPort(vip)
		n := newNetwork(own, Trial{Frontend: frontend, Count: 3})
		vm, err := bpf.NewVM(answersTo(own, n.h.first, 3))
		if err != nil {
			t.Fatal(err)
		}
		passes := func(packet []byte) bool {
			ethertype := []byte{0x86, 0xdd}
			if own.Is4() {
				ethertype = []byte{8, 0}
			}
			got, err := vm.Run(append(append(make([]byte, 12), ethertype...), packet...))
			if err != nil {
				t.Fatal(err)
			}
			return got > 0
		}
		for i := range 3 {
			if !passes(n.answer(i, segment.RST)) {
				t.Errorf("%v: the answer to SYN %d does not pass", own, i)
			}
		}
		for _, port := range []uint16{n.h.first - 1, n.h.first + 3} {
			if passes(segment.Packet(frontend, netip.AddrPortFrom(own, port), 0, segment.RST, nil)) {
				t.Errorf("%v: port %d passes, and the first is %d", own, port, n.h.first)
			}
		}
		if passes(n.sent[0]) {
			t.Errorf("%v: what is for another address passes", own)
		}
	}
}

func TestElsewhere(t *testing.T) {
	addrs := func(all ...string) (out []netip.Addr) {
		for _, a := range all {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	vip, own := netip.MustParseAddr("10.0.0.10"), netip.MustParseAddr("10.0.0.11")
	for _, tt := range []struct {
		name string
		at   []netip.Addr

		takes, not bool
	}{
		{"no server", nil, false, false},
		{"all addresses", addrs("0.0.0.0"), true, false},
		{"all of both families", addrs("::"), true, false},
		{"the node's own", addrs("10.0.0.11"), false, true},
		{"loopback too", addrs("10.0.0.11", "127.0.0.1"), false, true},
		{"the virtual one too", addrs("10.0.0.11", "10.0.0.10"), true, false},
		{"loopback only, so the check fails too", addrs("127.0.0.1"), false, false},
	} {
		if takes, why := listening(vip, own, tt.at); takes != tt.takes || (why != "") != tt.not {
			t.Errorf("%s: takes %v, %q", tt.name, takes, why)
		}
	}
}
