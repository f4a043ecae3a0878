package peerport

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"appliance/raft/auth"
)

// TestBesideIsQuiet: the connection for questions that take long costs little more packets than they do, at both ends.
func TestBesideIsQuiet(t *testing.T) {
	l, err := listenTCP(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	p := &Port{l: l, dial: dialTCP, conns: make(map[net.Conn]seat), log: slog.New(slog.DiscardHandler)}
	p.Expect(nil)
	ends := make(chan net.Conn, 2)
	served := make(chan error)
	go func() {
		served <- p.Serve(map[byte]func(net.Conn, auth.Identity){PreambleControl: func(c net.Conn, who auth.Identity) {
			AnswerLines(t.Context(), c, who, func(_ context.Context, quiet bool) bool {
				if quiet {
					Quiet(c)
				}
				ends <- c
				return quiet
			})
		}})
	}()
	idle := func(c net.Conn) (seconds int) {
		raw, err := c.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if e := raw.Control(func(fd uintptr) {
			seconds, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)
		}); e != nil || err != nil {
			t.Fatal(e, err)
		}
		return seconds
	}
	first := p.Link("", netip.MustParseAddrPort(l.Addr().String()))
	for link, want := range map[*ControlLink]int{
		first: int(keepAlive().Idle.Seconds()), first.Beside(): int(controlIdle.Seconds()),
	} {
		var answer bool
		if err := link.Ask(t.Context(), link.quiet, &answer); err != nil {
			t.Fatal(err)
		}
		if asks, answers := idle(link.conn), idle(<-ends); asks != want || answers != want {
			t.Errorf("quiet %v: keep-alive after %d s and %d s, want %d s", link.quiet, asks, answers, want)
		}
	}
	first.Close()
	p.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
