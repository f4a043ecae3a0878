package rawtcp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"appliance/lab"
)

// listen is a server that takes no connections, with room for queue of them.
func listen(t *testing.T, at netip.AddrPort, queue int) netip.AddrPort {
	t.Helper()
	family, _ := Sockaddr(at)
	fd, errno := Socket(family)
	if errno != 0 {
		t.Fatal(errno)
	}
	t.Cleanup(func() { Close(fd) })
	sa := unix.Sockaddr(&unix.SockaddrInet6{Addr: at.Addr().As16()})
	if at.Addr().Is4() {
		sa = &unix.SockaddrInet4{Addr: at.Addr().As4()}
	}
	if err := errors.Join(unix.Bind(fd, sa), unix.Listen(fd, queue)); err != nil {
		t.Fatal(err)
	}
	return LocalAddr(fd)
}

func TestHandshake(t *testing.T) {
	for _, ip := range []string{"127.0.0.1", "::1"} {
		at := listen(t, netip.AddrPortFrom(netip.MustParseAddr(ip), 0), 0)
		// Far more than the queue takes: none of them is handed to the server.
		for range 100 {
			if err := Handshake(t.Context(), at); err != nil {
				t.Fatal(err)
			}
		}
		// The last ACK fills the queue, and what comes after it gets no answer.
		var held []net.Conn
		for range 3 {
			d := net.Dialer{Timeout: 50 * time.Millisecond}
			if c, err := d.Dial("tcp", at.String()); err == nil {
				held = append(held, c)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		began := time.Now()
		err := Handshake(ctx, at)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) < 50*time.Millisecond {
			t.Errorf("%s: a full queue was found out after %v: %v", at, time.Since(began), err)
		}
		ended, end := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, end)
		if err := Handshake(ended, at); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: an end in the middle: %v", at, err)
		}
		if err := Handshake(ended, at); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: an end before: %v", at, err)
		}
		for _, c := range held {
			c.Close()
		}
	}
}

// TestHandshakeWithItself: the kernel connects a socket to itself where the port that it chooses is the one that is asked
// for, and nobody listens. That is no server.
func TestHandshakeWithItself(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: network namespaces")
	}
	l, err := lab.New(lab.Layout{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	m, err := l.Machine("alone", netip.MustParsePrefix("192.0.2.11/24"))
	if err != nil {
		t.Fatal(err)
	}
	err = m.Do(func() error {
		const ports = "/proc/sys/net/ipv4/ip_local_port_range"
		if err := os.WriteFile(ports, []byte("40000 40001"), 0); err != nil {
			return err
		}
		itself := 0
		for range 50 {
			for _, at := range []string{"127.0.0.1:40000", "127.0.0.1:40001"} {
				if err := Handshake(t.Context(), netip.MustParseAddrPort(at)); !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("%s, where nobody listens: %v", at, err)
				}
				fd, _ := Socket(unix.AF_INET)
				_, to := Sockaddr(netip.MustParseAddrPort(at))
				if Connect(fd, to); Err(fd) == nil && LocalAddr(fd).String() == at {
					itself++
				}
				Reset(fd)
			}
		}
		if itself == 0 {
			t.Error("no socket was connected to itself: this test shows nothing")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestHandshakeRefused(t *testing.T) {
	at := netip.MustParseAddrPort("127.0.0.1:1")
	if err := Handshake(t.Context(), at); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a port that nobody has: %v", err)
	}
}
