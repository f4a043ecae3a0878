package segment

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"testing"
)

func ExamplePacket() {
	src, dst := netip.MustParseAddrPort("192.0.2.10:6443"), netip.MustParseAddrPort("192.0.2.77:40000")
	p := Packet(src, dst, 0, ACK, nil)
	fmt.Println(hex.EncodeToString(p[:20]))
	fmt.Println(hex.EncodeToString(p[20:]))
	// Output:
	// 45000028000040004006b678c000020ac000024d
	// 192b9c4000000000000000005010000076110000
}

// Whoever adds up a packet with its checksum gets all ones (RFC 1071 section 1).
func TestChecksum(t *testing.T) {
	for _, src := range []string{"192.0.2.10:6443", "[2001:db8::10]:6443"} {
		for _, payload := range []string{"", "odd", "even"} {
			src := netip.MustParseAddrPort(src)
			p := Packet(src, src, 0x12345678, RST, []byte(payload))
			header, addrs := 40, p[8:40]
			if src.Addr().Is4() {
				header, addrs = 20, p[12:20]
				if sum := Checksum(p[:header]); sum != 0 {
					t.Errorf("%v: the IP header adds up to %#x", src, sum)
				}
			}
			tcp := p[header:]
			if sum := Checksum(addrs, []byte{0, 6, 0, byte(len(tcp))}, tcp); sum != 0 {
				t.Errorf("%v with %q: the segment adds up to %#x", src, payload, sum)
			}
		}
	}
}
