package detector

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPackets: datagrams go between sockets of either family, reading does not wait, and waiting does.
func TestPackets(t *testing.T) {
	for _, bind := range []string{"127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"} {
		t.Run(bind, func(t *testing.T) {
			p, err := Listen(netip.MustParseAddrPort(bind))
			if err != nil {
				t.Skipf("no such address here: %v", err)
			}
			defer p.Close()
			local := portOf(t, p)
			b := make([]byte, maxDatagram)
			if n, err := p.ReadNow(b); !errors.Is(err, unix.EAGAIN) {
				t.Fatalf("nothing has come, and it is read as %d bytes, %v", n, err)
			}
			for _, to := range []string{"127.0.0.1", "::ffff:127.0.0.1", "::1"} {
				addr := netip.MustParseAddr(to)
				bound := netip.MustParseAddrPort(bind).Addr()
				if addr.Unmap().Is4() != bound.Is4() && !bound.IsUnspecified() {
					continue
				}
				at := netip.AddrPortFrom(addr, local)
				if err := p.Write([]byte(to), at); err != nil {
					if addr.Is6() && !addr.Is4In6() {
						continue // IPv6 is off
					}
					t.Fatalf("to %s: %v", at, err)
				}
				var got string
				for until := time.Now().Add(30 * time.Second); got == "" && time.Now().Before(until); {
					p.Wait(t.Context(), time.Now().Add(time.Second), true)
					if n, err := p.ReadNow(b); err == nil {
						got = string(b[:n])
					}
				}
				if got != to {
					t.Errorf("sent %q to %s, and %q has come", to, at, got)
				}
			}
		})
	}
}

func portOf(t *testing.T, p Packets) uint16 {
	t.Helper()
	at, err := unix.Getsockname(p.(*udp).socket)
	if err != nil {
		t.Fatal(err)
	}
	if at, ok := at.(*unix.SockaddrInet6); ok {
		return uint16(at.Port)
	}
	return uint16(at.(*unix.SockaddrInet4).Port)
}

func TestPacketsWait(t *testing.T) {
	p, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if due := p.Wait(t.Context(), began.Add(20*ms), true); !due || time.Since(began) < 20*ms {
		t.Errorf("returned after %v, want 20 ms; due: %v", time.Since(began), due)
	}
	p.Wait(t.Context(), began, true) // that is over: at once

	// A datagram is worth a look, or can wait.
	self := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), portOf(t, p))
	if err := p.Write([]byte("now"), self); err != nil {
		t.Fatal(err)
	}
	if due := p.Wait(t.Context(), time.Now().Add(time.Hour), true); due {
		t.Error("a datagram was taken for the time")
	}
	began = time.Now()
	if due := p.Wait(t.Context(), began.Add(20*ms), false); !due || time.Since(began) < 20*ms {
		t.Errorf("a datagram that can wait ended it after %v", time.Since(began))
	}
	if due := p.Wait(t.Context(), time.Now().Add(time.Hour), true); due {
		t.Error("the datagram that waited was taken for the time")
	}
	if n, err := p.ReadNow(make([]byte, 10)); n != 3 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Wait(ctx, time.Now().Add(time.Hour), true)
	}()
	cancel()
	p.Close()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("still waits though the port is closed")
	}
	p.Wait(t.Context(), time.Now().Add(time.Millisecond), true) // closed: it does not spin
}
