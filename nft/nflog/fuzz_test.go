package nflog

import (
	"hash/maphash"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/mdlayher/netlink"

	"appliance/segment"
)

// FuzzHear: no packet that the kernel passes on makes the watcher panic, and what is read of it is in it.
func FuzzHear(f *testing.F) {
	for _, addrs := range [][2]string{
		{"192.0.2.77:40000", "192.0.2.10:6443"},
		{"[2001:db8::77]:40000", "[2001:db8::10]:6443"},
	} {
		p := segment.Packet(netip.MustParseAddrPort(addrs[0]), netip.MustParseAddrPort(addrs[1]), 7, segment.SYN, nil)
		f.Add(p, []byte{})
		e := netlink.NewAttributeEncoder()
		e.Bytes(attrPayload, p)
		e.Uint32(attrSequence, 1)
		message, err := e.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add([]byte{}, append([]byte{0, 0, 0, 0}, message...))
	}
	f.Add([]byte("A00000000\x060000000000"), []byte{}) // a header that ends before it begins
	f.Fuzz(func(t *testing.T, p, raw []byte) {
		if b, ok := packet(p); ok && (!b.client.IsValid() || !b.frontend.IsValid() || len(p) < 28) {
			t.Errorf("%x is read as %+v", p, b)
		}
		w := New(nil, &book{}, slog.New(slog.DiscardHandler))
		w.hear(&heard{seed: maphash.MakeSeed()}, raw, time.Now())
	})
}
