package nft

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"appliance/balancer"
	"appliance/nft/ruleset"
)

// pod puts a client behind a bridge of the node, as a pod is.
func (w *world) pod() *machine {
	m := newMachine(w.t, "pod")
	w.cable(w.node, "pod", m, "eth0")
	w.node.in(func() {
		w.must(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "cni0"}}))
		br, err := netlink.LinkByName("cni0")
		w.must(err)
		port, err := netlink.LinkByName("pod")
		w.must(err)
		w.must(netlink.LinkSetMaster(port, br))
		w.up("cni0")
		w.address("cni0", "10.0.2.1/24")
		w.address("cni0", "fd02::1/64")
	})
	m.addr4, m.addr6 = netip.MustParseAddr("10.0.2.9"), netip.MustParseAddr("fd02::9")
	m.in(func() {
		w.address("eth0", "10.0.2.9/24")
		w.address("eth0", "fd02::9/64")
		w.route("eth0", "0.0.0.0/0", "10.0.2.1")
		w.route("eth0", "::/0", "fd02::1")
	})
	return m
}

// A firewall of the node, opened for the port that clients ask for and no other.
const theirs = "add table inet theirs; " +
	"add chain inet theirs input { type filter hook input priority 0; policy drop; }; " +
	"add rule inet theirs input ct state established,related accept; add rule inet theirs input iif lo accept; " +
	"add rule inet theirs input icmpv6 type { 135, 136 } accept; add rule inet theirs input tcp dport 6443 accept"

func TestRedirect(t *testing.T) {
	for name, assigns := range map[string]bool{"assigned": true, "translated": false} {
		t.Run(name, func(t *testing.T) { testRedirect(t, assigns) })
	}
}

func testRedirect(t *testing.T, assigns bool) {
	w := newWorld(t)
	r := Redirector{tried: true, assigns: assigns}
	var by way
	w.node.in(func() {
		if by = r.way(); assigns && Assignable() != nil {
			t.Skip("the kernel lacks nft_tproxy")
		}
	})
	// The node's own server has the port on every address; the forwarder
	// listens on another port of the VIPs.
	w.node.serve("apiserver", ":6443")
	ports := make(map[netip.AddrPort]netip.AddrPort)
	for _, f := range ruleset.Families() {
		w.node.forward("forwarder", vip(f, 16443))
		ports[vip(f, 6443)] = vip(f, 16443)
	}
	// A connection of the node's own server to the same address, from before.
	before, err := w.client.dial(vip(ruleset.IPv4(), 6443))
	if err != nil || before.server != "apiserver" {
		t.Fatalf("%v: %v", before, err)
	}
	defer before.Close()
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
	clients := append(w.clients(), w.pod())
	check := func(clients ...*machine) {
		t.Helper()
		for _, f := range ruleset.Families() {
			for _, c := range clients {
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
			}
		}
	}
	check(clients...)
	for _, f := range ruleset.Families() {
		for _, c := range clients {
			// The other addresses of the node are unaffected.
			if got := c.ask(netip.AddrPortFrom(w.node.addr(f), 6443)); got != "apiserver" {
				t.Errorf("%s: %s answers the node's own address, want apiserver", c.name, got)
			}
			_, err := c.dial(vip(f, 16443))
			if c != w.node && !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s reaches the forwarder's own port: %v, want connection refused", c.name, err)
			}
		}
	}
	if err := before.echo(); err != nil && assigns {
		t.Errorf("a connection from before: %v", err)
	}

	// Rules of another program for the same port come after ours.
	w.node.run("nft", "add table inet docker; "+
		"add chain inet docker prerouting { type nat hook prerouting priority -100; }; "+
		"add rule inet docker prerouting tcp dport 6443 redirect to :1")
	check(clients...)
	w.node.run("nft", "delete table inet docker")

	w.node.run("nft", theirs)
	switch by {
	case translatedOnly:
		w.node.run("nft", "add rule inet theirs input ct status dnat accept")
	case bridgesDiffer:
		w.node.run("nft", "add rule inet theirs input iifname cni0 ct status dnat accept")
	}
	check(clients...)
	w.node.run("nft", "delete table inet theirs")

	// Open connections go on without the rules.
	open, err := w.client.dial(vip(ruleset.IPv4(), 6443))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	generation := w.node.generation()
	if n := redirect(ports); n != 0 || w.node.generation() != generation {
		t.Errorf("the same again: %d repaired, and generation %d became %d", n, generation, w.node.generation())
	}
	w.node.run("nft", "flush", "ruleset")
	if n := redirect(ports); n != 1 {
		t.Errorf("after a flush: %d repaired, want 1", n)
	}
	if got := w.client.ask(vip(ruleset.IPv4(), 6443)); got != "forwarder" {
		t.Errorf("after a flush: %s answers, want forwarder", got)
	}
	redirect(nil)
	if assigns {
		// Then NAT serves; see the plane nftables.
		nat := NewNAT("", nil)
		w.node.in(func() {
			_, err := nat.Apply(context.Background(), []balancer.Service{{Frontend: vip(ruleset.IPv4(), 6443)}})
			w.must(err)
		})
		if err := open.echo(); err != nil {
			t.Errorf("a connection of the forwarder: %v", err)
		}
		if _, err := w.client.dial(vip(ruleset.IPv4(), 6443)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a new one without a backend: %v", err)
		}
		w.node.in(func() { w.must(nat.Close()) })
	}
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
		if _, err := redirect(map[netip.AddrPort]netip.AddrPort{ap(c.from): ap(c.to)}, assigned); err == nil {
			t.Errorf("%s to %s: no error", c.from, c.to)
		}
	}
}

// A client whose connection to an earlier process was never closed, because the
// address had moved, gets to the new process from the same port.
func TestRedirectAfterRestart(t *testing.T) {
	for name, assigns := range map[string]bool{"assigned": true, "translated": false} {
		t.Run(name, func(t *testing.T) { testRedirectAfterRestart(t, assigns) })
	}
}

func testRedirectAfterRestart(t *testing.T, assigns bool) {
	w := newWorld(t)
	w.node.in(func() {
		if assigns && Assignable() != nil {
			t.Skip("the kernel lacks nft_tproxy")
		}
	})
	for _, f := range ruleset.Families() {
		var l net.Listener
		w.node.in(func() {
			var err error
			config := transparent(vip(f, 16443))
			if l, err = config.Listen(context.Background(), "tcp", vip(f, 16443).String()); err != nil {
				t.Fatal(err)
			}
		})
		w.node.forward("second", vip(f, 16444))
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
		first, second := Redirector{tried: true, assigns: assigns}, Redirector{tried: true, assigns: assigns}
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
