package proof

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"appliance/segment"
)

// FuzzAnswer: no packet that is on the link makes a trial panic, and what is taken for an answer can be one.
func FuzzAnswer(f *testing.F) {
	for _, addrs := range [][2]string{
		{"192.0.2.10:6443", "192.0.2.11:40000"},
		{"[2001:db8::10]:6443", "[2001:db8::11]:40000"},
	} {
		from, to := netip.MustParseAddrPort(addrs[0]), netip.MustParseAddrPort(addrs[1])
		f.Add(segment.Packet(from, to, 7, segment.SYN|segment.ACK, nil))
		f.Add(segment.Packet(from, to, 7, segment.RST, nil))
		icmp := segment.Packet(to, from, 7, segment.SYN, nil)
		if from.Addr().Is4() {
			icmp = append(append(icmp[:20:20], 3, 1, 0, 0, 0, 0, 0, 0), icmp...)
			icmp[9] = unix.IPPROTO_ICMP
		} else {
			icmp = append(append(icmp[:40:40], 1, 4, 0, 0, 0, 0, 0, 0), icmp...)
			icmp[6] = unix.IPPROTO_ICMPV6
		}
		f.Add(icmp)
	}
	short := segment.Packet(netip.MustParseAddrPort("192.0.2.10:6443"), netip.MustParseAddrPort("192.0.2.11:1"), 7,
		segment.SYN|segment.ACK, make([]byte, 16))
	short[0], short[13] = 4<<4, segment.RST
	f.Add(short)
	f.Fuzz(func(t *testing.T, packet []byte) {
		a, ok := parseAnswer(packet)
		if !ok {
			return
		}
		if !a.frontend.Addr().IsValid() || a.result != Served && a.result != Refused && a.result != Unreachable {
			t.Errorf("%x is read as %+v", packet, a)
		}
		if packet[0]>>4 == 4 && packet[0]&0xf < 5 {
			t.Errorf("%x, whose header ends before it begins, is read as %+v", packet, a)
		}
		own := netip.MustParseAddr("192.0.2.11")
		newNetwork(own, Trial{Frontend: a.frontend, Count: 1}).h.hear(a)
	})
}
