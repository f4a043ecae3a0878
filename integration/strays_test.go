package integration

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"appliance/integration/scene"
	"appliance/segment"
)

// strays sends n segments that belong to no connection, from ports of the client's address in turn: a port that was used
// before would make it a second try.
func (w *world) strays(n int) error {
	target, first := w.target(scene.Port), w.stray
	w.stray += n
	return w.client.Do(func() error {
		// IPPROTO_RAW: the packet has its own IP header.
		domain, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: target.Addr().As16()})
		if target.Addr().Is4() {
			domain, to = unix.AF_INET, &unix.SockaddrInet4{Addr: target.Addr().As4()}
		}
		s, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		for i := range n {
			if i%20 == 19 {
				time.Sleep(time.Millisecond) // no queue on the way is full
			}
			from := netip.AddrPortFrom(w.client.Addr(target.Addr().Is4()), uint16(1024+(first+i)%30000))
			if err := unix.Sendto(s, segment.Packet(from, target, 5, segment.ACK, nil), 0, to); err != nil {
				return err
			}
		}
		return nil
	})
}

// metered has a flood of packets that belong to no connection: at most twice as many are on the link. The appliance's
// own packets, of as long a time, do not count.
func (w *world) metered(t *testing.T) {
	const strays, period = 3000, 300 * time.Millisecond
	// What comes before the first are back from their round goes round, too: on a busy machine, that is some hundreds.
	w.sends(t, period, func() error { return w.strays(strays / 10) })
	var took time.Duration
	made := w.sends(t, period, func() error {
		began := time.Now()
		defer func() { took = time.Since(began) }()
		return w.strays(strays)
	})
	own := w.sends(t, period+took, func() error { return nil })
	t.Logf("%d strays made %d packets more, beside %d of the nodes' own", strays, made-own, own)
	if made-own > strays {
		t.Errorf("%d strays made %d packets more, want at most as many", strays, made-own)
	}
	if made < strays/3 {
		t.Errorf("%d strays made %d packets: they did not arrive", strays, made)
	}
}

// sends counts what the nodes send while f runs and for the period after it.
func (w *world) sends(t *testing.T, period time.Duration, f func() error) int {
	t.Helper()
	count := func() (n int) {
		for _, m := range w.nodes {
			if err := m.Do(func() error {
				links, err := netlink.LinkList()
				for _, l := range links {
					if l.Attrs().Name != "lo" {
						n += int(l.Attrs().Statistics.TxPackets)
					}
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		return n
	}
	before := count()
	if err := f(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(period)
	return count() - before
}

// flooded hands over while strays come without end, from the address of a client with connections.
func (w *world) flooded(t *testing.T, holder int) string {
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if err := w.strays(100); err != nil {
				ended <- err
				return
			}
		}
		ended <- nil
	}()
	lost := w.transfer(t, holder)
	time.Sleep(time.Second) // the new holder has them, too
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	return lost
}
