package proof

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"appliance/segment"
)

// FromHere tries the frontends, all of one family, as a client on this host does: from the frontend's own address,
// which the kernel chooses for it, through the output hook. The kernel resets what is served, since no socket of this
// host began it.
func FromHere(ctx context.Context, trials []Trial) ([]TrialResult, error) {
	if len(trials) == 0 {
		return nil, nil
	}
	family, header := unix.AF_INET, uint32(20)
	is4 := trials[0].Frontend.Addr().Is4()
	if !is4 {
		family, header = unix.AF_INET6, 0 // the kernel hands out IPv6 packets without their header
	}
	in, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return nil, fmt.Errorf("raw socket: %w; give the container the capability NET_RAW", err)
	}
	socket := os.NewFile(uintptr(in), "raw socket")
	defer socket.Close()
	out, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("raw socket: %w", err)
	}
	defer unix.Close(out)
	h := newHandshakes(trials)
	err = attach(in, []bpf.Instruction{
		bpf.LoadAbsolute{Off: header + 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: uint32(h.first), SkipFalse: 2},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: uint32(h.first) + uint32(len(h.knocks)), SkipTrue: 1},
		bpf.RetConstant{Val: 2048},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return nil, err
	}
	h.send = func(k *knock, to netip.AddrPort, seq uint32, flags byte) {
		if flags == segment.RST && k.result == Served {
			return // the kernel has done it
		}
		packet := segment.Packet(netip.AddrPortFrom(to.Addr(), k.port), to, seq, flags, nil)
		var at unix.Sockaddr = &unix.SockaddrInet6{Addr: to.Addr().As16()}
		if is4 {
			at = &unix.SockaddrInet4{Addr: to.Addr().As4()}
		}
		_ = unix.Sendto(out, packet, 0, at)
	}
	h.parse = func(packet []byte) (answer, bool) {
		if is4 {
			return parseAnswer(packet)
		}
		// Without the header, the ports have to say whose it is: the filter has let nothing else pass.
		if len(packet) < segment.HeaderLen {
			return answer{}, false
		}
		i := int(binary.BigEndian.Uint16(packet[2:])) - int(h.first)
		if i < 0 || i >= len(h.knocks) {
			return answer{}, false
		}
		return parseTCP(trials[h.knocks[i].trial].Frontend.Addr(), packet)
	}
	return h.run(ctx, socket)
}
