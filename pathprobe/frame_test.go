package pathprobe

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"testing"

	"golang.org/x/net/bpf"
)

func testProbe(f netip.AddrPort) probe {
	m := probe{
		kind: kindPath, nonce: nonce{1, 2, 3, 4, 5}, frontend: f,
		from: netip.MustParseAddr("10.77.0.11"), to: netip.MustParseAddr("10.77.0.12"),
		dst: f,
	}
	m.src = madeUpClient(f.Addr(), m.nonce)
	return m
}

func TestProbeFrame(t *testing.T) {
	key := []byte("key")
	src, dst := [6]byte{2, 0, 0, 0, 0, 1}, [6]byte{2, 0, 0, 0, 0, 2}
	filter := probeVM(t)
	eachFrontend(t, func(t *testing.T, f netip.AddrPort) {
		want := testProbe(f)
		frame := want.frame(src, dst, key)
		got, mac, ok := parseProbe(frame, key)
		if !ok || got != want || mac != src {
			t.Fatalf("got %+v from %x (%v), want %+v", got, mac, ok, want)
		}
		if n, err := filter.Run(frame); err != nil || n < len(frame) {
			t.Errorf("the socket's filter takes %d of %d bytes: %v", n, len(frame), err)
		}
		if _, _, ok := parseProbe(frame, []byte("another")); ok {
			t.Error("a probe of another group was taken")
		}
		// A probe that is altered on the way is not valid.
		for i := etherLen; i < len(frame); i++ {
			bad := bytes.Clone(frame)
			bad[i] ^= 1
			if m, _, ok := parseProbe(bad, key); ok && m != want {
				t.Errorf("byte %d altered: taken as %+v", i, m)
			}
		}
		for n := range frame {
			if _, _, ok := parseProbe(frame[:n], key); ok {
				t.Errorf("taken though cut after %d bytes", n)
			}
		}
	})
}

// Nodes are not upgraded at the same time, so the form of a probe never changes. The
// key is that of the secret "key".
func TestProbeOfTheFirstVersion(t *testing.T) {
	key := deriveKeys([][]byte{[]byte("key")})[0]
	for f, want := range map[netip.AddrPort]string{
		frontends[0]: "0200000000020200000000010800" + // Ethernet
			"4500009300004000400668fac61201020a4d000a" + // IP
			"0704192b0102030400000000500400002c2b0000" + // TCP
			"61706c70726f62310101020304050000000000000000000000" + // magic, kind, nonce
			"00000000000000000000ffff0a4d000b" + // from
			"00000000000000000000ffff0a4d000c" + // to
			"00000000000000000000ffff0a4d000a192b" + // frontend
			"1472de1aeab51201ae36d096bf4ec80e19d8f031ef8c018547cd7f1015d31a75", // signature
		frontends[1]: "02000000000202000000000186dd" + // Ethernet
			"60000000007f064020010002000000000000000000000102fd770000000000000000000000000010" + // IP
			"0704192b0102030400000000500400006ee40000" + // TCP
			"61706c70726f62310101020304050000000000000000000000" + // magic, kind, nonce
			"00000000000000000000ffff0a4d000b" + // from
			"00000000000000000000ffff0a4d000c" + // to
			"fd770000000000000000000000000010192b" + // frontend
			"9f3001693d4383a2d4e3bc9431972edb3e9db03d4cbbccb462b97bf972c96cbe", // signature
	} {
		frame := testProbe(f).frame([6]byte{2, 0, 0, 0, 0, 1}, [6]byte{2, 0, 0, 0, 0, 2}, key[:])
		if got := hex.EncodeToString(frame); got != want {
			t.Errorf("%v: %s, want %s", f, got, want)
		}
	}
}

func probeVM(t *testing.T) *bpf.VM {
	t.Helper()
	vm, err := bpf.NewVM(probeFilter())
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

func TestProbeFilterDropsOthers(t *testing.T) {
	vm := probeVM(t)
	frame := testProbe(frontends[0]).frame([6]byte{}, [6]byte{}, nil)
	for what, b := range map[string][]byte{
		"ARP":           append([]byte{12: 0x08, 13: 0x06}, frame[14:]...),
		"short":         frame[:40],
		"another magic": bytes.Replace(frame, []byte(Magic), []byte("GET / HT"), 1),
	} {
		if n, err := vm.Run(b); err != nil || n != 0 {
			t.Errorf("%s: the filter takes %d bytes (%v)", what, n, err)
		}
	}
}

func FuzzParseProbe(f *testing.F) {
	for _, front := range frontends {
		f.Add(testProbe(front).frame([6]byte{}, [6]byte{}, []byte("key")))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, _, ok := parseProbe(b, []byte("key"))
		if ok && (!m.src.IsValid() || !m.dst.IsValid()) {
			t.Errorf("a probe without addresses: %+v", m)
		}
	})
}
