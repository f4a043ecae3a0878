package nft

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"appliance/nft/ruleset"
)

func TestRedirect(t *testing.T) {
	w := newWorld(t)
	// The node's own server has the port on every address; the forwarder
	// listens on another port of the VIPs.
	w.node.serve("apiserver", ":6443")
	ports := make(map[netip.AddrPort]netip.AddrPort)
	for _, f := range ruleset.Families() {
		w.node.serve("forwarder", vip(f, 16443).String())
		ports[vip(f, 6443)] = vip(f, 16443)
	}
	var r Redirector
	redirect := func(ports map[netip.AddrPort]netip.AddrPort) int {
		t.Helper()
		var repaired int
		w.node.in(func() {
			var err error
			if repaired, err = r.Redirect(context.Background(), ports); err != nil {
				t.Fatal(err)
			}
		})
		return repaired
	}
	redirect(ports)
	rules := w.node.ruleset()
	for _, f := range ruleset.Families() {
		for _, c := range w.clients() {
			s, err := c.dial(vip(f, 6443))
			if err != nil {
				t.Fatalf("%s: %v\n%s", c.name, err, rules)
			}
			if s.server != "forwarder" {
				t.Errorf("%s: %s answers %v, want forwarder", c.name, s.server, vip(f, 6443))
			}
			// The forwarder sees who the client is.
			if s.seenAs != s.LocalAddr().String() {
				t.Errorf("%s: the forwarder sees %s, want %s", c.name, s.seenAs, s.LocalAddr())
			}
			if err := s.echo(); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			s.Close()

			// The other addresses of the node are unaffected.
			if got := c.ask(netip.AddrPortFrom(w.node.addr(f), 6443)); got != "apiserver" {
				t.Errorf("%s: %s answers the node's own address, want apiserver", c.name, got)
			}
			_, err = c.dial(vip(f, 16443))
			if c != w.node && !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s reaches the forwarder's own port: %v, want connection refused", c.name, err)
			}
		}
	}

	before := w.node.generation()
	if n := redirect(ports); n != 0 || w.node.generation() != before {
		t.Errorf("the same again: %d repaired, and generation %d became %d", n, before, w.node.generation())
	}
	w.node.run("nft", "flush", "ruleset")
	if n := redirect(ports); n != 1 {
		t.Errorf("after a flush: %d repaired, want 1", n)
	}
	if got := w.client.ask(vip(ruleset.IPv4(), 6443)); got != "forwarder" {
		t.Errorf("after a flush: %s answers, want forwarder", got)
	}
	redirect(nil)
	if got := w.client.ask(vip(ruleset.IPv4(), 6443)); got != "apiserver" {
		t.Errorf("without redirects: %s answers, want apiserver", got)
	}
	if rules := w.node.ruleset(); rules != "" {
		t.Errorf("without redirects there is\n%s", rules)
	}
}

func TestRedirectErrors(t *testing.T) {
	ap := netip.MustParseAddrPort
	for _, c := range []struct{ from, to string }{
		{"192.0.2.1:6443", "[2001:db8::1]:16443"},
		{"[2001:db8::1]:6443", "192.0.2.1:16443"},
		{"0.0.0.0:6443", "192.0.2.1:16443"},
		{"192.0.2.1:6443", "0.0.0.0:16443"},
	} {
		if _, err := redirect(map[netip.AddrPort]netip.AddrPort{ap(c.from): ap(c.to)}); err == nil {
			t.Errorf("%s to %s: no error", c.from, c.to)
		}
	}
}

// A client whose connection to an earlier process was never closed, because the
// address had moved, gets to the new process from the same port.
func TestRedirectAfterRestart(t *testing.T) {
	w := newWorld(t)
	for _, f := range ruleset.Families() {
		var l net.Listener
		w.node.in(func() {
			var err error
			if l, err = net.Listen("tcp", vip(f, 16443).String()); err != nil {
				t.Fatal(err)
			}
		})
		w.node.serve("second", vip(f, 16444).String())
		w.node.serve("other", vip(f, 6444).String())
		redirect := func(r *Redirector, port uint16) {
			t.Helper()
			w.node.in(func() {
				to := map[netip.AddrPort]netip.AddrPort{vip(f, 6443): vip(f, port)}
				if _, err := r.Redirect(context.Background(), to); err != nil {
					t.Fatal(err)
				}
			})
		}
		var first, second Redirector
		redirect(&first, 16443)
		accepted := make(chan net.Conn, 1)
		go func() {
			defer close(accepted)
			if c, err := l.Accept(); err == nil {
				io.WriteString(c, "first here\n")
				accepted <- c
			}
		}()
		old, err := w.client.dial(vip(f, 6443))
		if err != nil {
			t.Fatal(err)
		}
		// This entry must stay.
		straight, err := w.client.dial(vip(f, 6444))
		if err != nil {
			t.Fatal(err)
		}
		defer straight.Close()
		from := old.LocalAddr().(*net.TCPAddr)
		l.Close()
		mute := "add table inet mute; add chain inet mute out { type filter hook output priority -400; }; add rule inet " +
			"mute out meta l4proto tcp drop"
		w.client.run("nft", mute)
		w.node.run("nft", mute)
		for _, c := range []net.Conn{old.Conn, <-accepted} {
			if err := c.(*net.TCPConn).SetLinger(0); err != nil {
				t.Fatal(err)
			}
			c.Close()
		}
		w.client.run("nft", "delete table inet mute")
		w.node.run("nft", "delete table inet mute")
		redirect(&second, 16444)
		w.client.in(func() {
			c, err := (&net.Dialer{LocalAddr: from, Timeout: patience}).Dial("tcp", vip(f, 6443).String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			line := make([]byte, len("second"))
			if _, err := io.ReadFull(c, line); err != nil || string(line) != "second" {
				t.Errorf("%q answers (%v), want second", line, err)
			}
		})
		// Open connections of this process go on.
		s, err := w.client.dial(vip(f, 6443))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		redirect(&second, 16443)
		for _, open := range []*session{s, straight} {
			if err := open.echo(); err != nil {
				t.Error(err)
			}
		}
	}
}
