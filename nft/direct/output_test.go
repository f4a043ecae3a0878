package direct

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"appliance/nft/ruleset"
	"appliance/segment"
)

// BenchmarkOutputHook is what the meter's chain in the output hook costs a packet that this host sends: processor time of
// a sender with and without it, in turns.
//
//	go test -run - -bench OutputHook -benchtime 2000000x ./nft/direct
func BenchmarkOutputHook(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("network namespaces and nf_tables need root")
	}
	for _, kind := range []struct {
		name     string
		protocol byte
	}{{"TCP", unix.IPPROTO_TCP}, {"UDP", unix.IPPROTO_UDP}} {
		b.Run(kind.name, func(b *testing.B) {
			done := make(chan error, 1)
			go func() {
				runtime.LockOSThread() // and never unlocked: the thread ends, and the namespaces with it
				done <- outputHook(b, kind.protocol)
			}()
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		})
	}
}

func outputHook(b *testing.B, protocol byte) error {
	far, err := netns.New()
	if err != nil {
		return err
	}
	defer far.Close()
	near, err := netns.New()
	if err != nil {
		return err
	}
	defer near.Close()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "out0"}, PeerName: "in0", PeerNamespace: netlink.NsFd(far)}
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	link, err := netlink.LinkByName("out0")
	if err != nil {
		return err
	}
	from, to := netip.MustParseAddrPort("10.99.0.1:6443"), netip.MustParseAddrPort("10.99.0.2:40000")
	// The other end takes the frames for somebody else's, and drops them at once.
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	other, err := netlink.NewHandleAt(far)
	if err != nil {
		return err
	}
	defer other.Close()
	in, err := other.LinkByName("in0")
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return other.LinkSetUp(in) },
		func() error { return netlink.LinkSetUp(link) },
		func() error {
			address := &net.IPNet{IP: from.Addr().AsSlice(), Mask: net.CIDRMask(24, 32)}
			return netlink.AddrAdd(link, &netlink.Addr{IPNet: address})
		},
		func() error {
			return netlink.NeighAdd(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
				IP: to.Addr().AsSlice(), HardwareAddr: mac})
		},
	} {
		if err := step(); err != nil {
			return err
		}
	}
	table := ruleset.Table{Family: nftables.TableFamilyIPv4, Name: ruleset.DirectTable}
	family{ruleset.IPv4()}.addMeter(&table, nil)
	table.Chains = slices.DeleteFunc(table.Chains, func(c ruleset.Chain) bool { return c.Hook == nil })
	if len(table.Chains) != 1 {
		b.Fatalf("%d chains have a hook", len(table.Chains))
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	packet := segment.Packet(from, to, 1, segment.ACK, make([]byte, 1000))
	packet[9] = protocol
	at := &unix.SockaddrInet4{Addr: to.Addr().As4()}
	took := func(n int) (float64, error) {
		before, err := processorTime()
		for range n {
			if err := unix.Sendto(s, packet, 0, at); err != nil {
				return 0, err
			}
		}
		after, err2 := processorTime()
		return float64(after-before) / float64(n), errors.Join(err, err2)
	}
	const turns = 20
	var with, without []float64
	for range turns {
		plain, err := took(max(b.N/turns/2, 1))
		if err != nil {
			return err
		}
		var rules ruleset.Reconciler
		if _, err := rules.Apply(table); err != nil {
			return err
		}
		hooked, err := took(max(b.N/turns/2, 1))
		if err != nil {
			return err
		}
		if _, err := ruleset.Remove(table); err != nil {
			return err
		}
		with, without = append(with, hooked), append(without, plain)
	}
	slices.Sort(with)
	slices.Sort(without)
	b.ReportMetric(without[turns/2], "ns/plain")
	b.ReportMetric(with[turns/2], "ns/hooked")
	b.ReportMetric(with[turns/2]/without[turns/2], "ratio")
	return nil
}

// processorTime is what this thread has used.
func processorTime() (time.Duration, error) {
	var ts unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
	return time.Duration(ts.Nano()), err
}
