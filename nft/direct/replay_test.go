package direct

import (
	"bytes"
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"appliance/pathprobe"
)

// Recorded probes, leave notices among them, change nothing when they are repeated, be it
// as they were, with another machine's MAC address, or cut to the form of the first
// version.
func TestProbesCannotBeRepeated(t *testing.T) {
	l := newLab(t)
	probers, stop := l.probing()
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	becomes(t, probers[0], "node2", pathprobe.PathProved)

	var frames [][]byte
	end := make(chan struct{})
	recorded := make(chan struct{})
	listening := make(chan struct{})
	go func() {
		defer close(recorded)
		if err := l.sw.try(func() error {
			s, _, err := l.tap(0)
			if err != nil {
				return err
			}
			defer unix.Close(s)
			close(listening)
			for buf := make([]byte, 2048); ; {
				select {
				case <-end:
					return nil
				default:
				}
				n, err := unix.Read(s, buf)
				if err == nil && bytes.Contains(buf[:n], []byte(pathprobe.Magic)) && bytes.Equal(buf[6:12], l.nodes[1].mac) {
					frames = append(frames, bytes.Clone(buf[:n]))
				}
			}
		}); err != nil {
			t.Error(err)
		}
	}()
	<-listening
	time.Sleep(5 * probers[0].cfg.Every)
	stop[1]() // its leave notice is in the recording
	becomes(t, probers[0], "node2", pathprobe.PathNoAnswer)
	close(end)
	<-recorded
	const leave = 4
	leaves := 0
	for _, f := range frames {
		if i := bytes.Index(f, []byte(pathprobe.Magic)); f[i+len(pathprobe.Magic)] == leave {
			leaves++
		}
	}
	if len(frames) < 10 || leaves == 0 {
		t.Fatalf("%d probes recorded, %d of them leave notices: the test tests nothing", len(frames), leaves)
	}
	again, _ := l.probingAt(1, probers[0].cfg.Every)
	again.Open()
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	becomes(t, probers[0], "node2", pathprobe.PathProved)
	becomes(t, again, "node1", pathprobe.PathProved)

	stranger := net.HardwareAddr{2, 0, 0, 0, 0x66, 0x66}
	const added = 16 + 8 + 32
	l.sw.do(func() error {
		s, to, err := l.tap(0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		for range 5 {
			for _, f := range frames {
				forged := bytes.Clone(f)
				copy(forged[6:], stranger)
				for _, f := range [][]byte{f, forged, f[:len(f)-added], forged[:len(f)-added]} {
					if err := unix.Sendto(s, f, 0, to); err != nil {
						return err
					}
				}
			}
		}
		return nil
	})
	never(t, probers[0], "node2", pathprobe.PathNoAnswer)
	l.nodes[0].do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		entries, err := netlink.NeighList(eth0.Attrs().Index, netlink.FAMILY_ALL)
		for _, e := range entries {
			if e.HardwareAddr.String() == stranger.String() {
				t.Errorf("%v is at the stranger's card", e.IP)
			}
		}
		return err
	})
}

// tap opens a packet socket on the switch's port of a node, which hears and speaks.
func (l *lab) tap(node int) (s int, to *unix.SockaddrLinklayer, err error) {
	port, err := netlink.LinkByName(l.nodes[node].ports[0])
	if err != nil {
		return -1, nil, err
	}

	s, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.ETH_P_ALL<<8) // in network byte order
	if err != nil {
		return -1, nil, err
	}
	to = &unix.SockaddrLinklayer{Protocol: unix.ETH_P_ALL << 8, Ifindex: port.Attrs().Index}
	if err := unix.Bind(s, to); err != nil {
		unix.Close(s)
		return -1, nil, err
	}
	tv := unix.NsecToTimeval(int64(20 * time.Millisecond))
	return s, to, unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
}
