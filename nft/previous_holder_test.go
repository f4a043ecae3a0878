package nft

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"appliance/balancer"
	"appliance/nft/ruleset"
	"appliance/segment"
)

// leadTo makes the machine's packets for the VIPs go to another machine, as an
// announcement does.
func (w *world) leadTo(from, to *machine) {
	w.t.Helper()
	from.run("ip", "route", "replace", vip4.String()+"/32", "via", to.addr4.String())
	from.run("ip", "-6", "route", "replace", vip6.String()+"/128", "via", to.addr6.String())
}

// Connections that began at another node are served there to their end, and new
// connections here.
func TestPreviousHolder(t *testing.T) {
	w := newWorld(t)
	former, remote, other := w.backends[0], w.backends[1], w.backends[2]
	former.in(func() {
		w.address("lo", vip4.String()+"/32")
		w.address("lo", vip6.String()+"/128")
	})
	remote.serve("remote", ":6443")
	other.serve("other", ":6443")
	former.serve("former", ":7443") // as user space does it
	w.node.serve("node", ":7443")
	was, is := NewNAT("", nil), w.newNAT()
	services := func(b *machine) []balancer.Service {
		return []balancer.Service{w.service(ruleset.IPv4(), b), w.service(ruleset.IPv6(), b)}
	}
	former.in(func() {
		if _, err := was.Apply(context.Background(), services(remote)); err != nil {
			t.Fatal(err)
		}
	})
	w.apply(is, services(other)...)

	var h PreviousHolder
	links := map[netip.Addr]string{vip4: "eth0", vip6: "eth0"}
	var frontends []netip.AddrPort
	for _, f := range ruleset.Families() {
		frontends = append(frontends, vip(f, 6443), vip(f, 7443))
	}
	for _, handed := range []bool{true, false} {
		w.leadTo(w.client, former)
		w.leadTo(w.router, former)
		var open []*session
		for _, f := range ruleset.Families() {
			for _, c := range []*machine{w.client, w.far} {
				for _, at := range []netip.AddrPort{vip(f, 6443), vip(f, 7443)} {
					s, err := c.dial(at)
					if err != nil {
						t.Fatalf("%s to %v: %v", c.name, at, err)
					}
					defer s.Close()
					if s.server != "remote" && s.server != "former" {
						t.Fatalf("%s to %v: %s answers", c.name, at, s.server)
					}
					open = append(open, s)
				}
			}
		}
		w.node.in(func() {
			end := func() error {
				_, err := h.To([]netip.Addr{former.addr4, former.addr6}, links, frontends)
				return err
			}
			if !handed {
				end = h.Close
			}
			if err := end(); err != nil {
				t.Fatal(err)
			}
		})
		w.leadTo(w.client, w.node)
		w.leadTo(w.router, w.node)
		for _, s := range open {
			err := s.echo()
			if handed && err != nil {
				t.Errorf("%v to %v, served by %s: %v", s.LocalAddr(), s.RemoteAddr(), s.server, err)
			}
			if !handed && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%v to %v, with nobody to hand it to: got %v, want a reset", s.LocalAddr(), s.RemoteAddr(), err)
			}
		}
		for _, f := range ruleset.Families() {
			for _, c := range w.clients() {
				if got := c.ask(vip(f, 6443)); got != "other" {
					t.Errorf("handed: %v: a new connection of %s went to %s", handed, c.name, got)
				}
				if got := c.ask(vip(f, 7443)); got != "node" {
					t.Errorf("handed: %v: a new connection of %s went to %s", handed, c.name, got)
				}
			}
		}
	}
	if rules := w.node.ruleset(); strings.Contains(rules, ruleset.PreviousHolderTable) {
		t.Errorf("after Close there is\n%s", rules)
	}
}

// A packet that the other node does not know does not go back and forth.
func TestPreviousHolderEndsLoops(t *testing.T) {
	w := newWorld(t)
	former := w.backends[0]
	former.in(func() { w.sysctl("net/ipv4/ip_forward", "1") }) // and has the VIP no more
	w.leadTo(former, w.node)
	var h PreviousHolder
	n := w.newNAT()
	w.backends[1].serve("b2", ":6443")
	w.apply(n, w.service(ruleset.IPv4(), w.backends[1]))
	s, err := w.client.dial(vip(ruleset.IPv4(), 6443))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w.node.in(func() {
		if _, err := h.To([]netip.Addr{former.addr4}, map[netip.Addr]string{vip4: "eth0"},
			[]netip.AddrPort{vip(ruleset.IPv4(), 6443)}); err != nil {
			t.Fatal(err)
		}
	})
	// Nobody knows the connection any more.
	w.node.in(func() { w.must(netlink.ConntrackTableFlush(netlink.ConntrackTable)) })
	if err := s.echo(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

// A packet that nobody knows does not go in a circle, while each of three nodes takes another for the previous holder:
// one has been killed, and its rules stay as they were.
func TestPreviousHolderEndsCircles(t *testing.T) {
	w := newWorld(t)
	circle := []*machine{w.node, w.backends[0], w.backends[1]}
	links := map[netip.Addr]string{vip4: "eth0", vip6: "eth0"}
	frontends := []netip.AddrPort{vip(ruleset.IPv4(), 6443), vip(ruleset.IPv6(), 6443)}
	for i, m := range circle {
		next := circle[(i+1)%len(circle)]
		m.in(func() {
			if m != w.node {
				w.address("lo", vip4.String()+"/32")
				w.address("lo", vip6.String()+"/128")
			}
			var h PreviousHolder
			if _, err := h.To([]netip.Addr{next.addr4, next.addr6}, links, frontends); err != nil {
				t.Fatal(err)
			}
		})
	}
	sent := func() (n uint64) {
		for _, m := range circle {
			m.in(func() {
				l, err := netlink.LinkByName("eth0")
				w.must(err)
				n += l.Attrs().Statistics.TxPackets
			})
		}
		return n
	}
	try := func(network string, most uint64) {
		for _, f := range ruleset.Families() {
			stray := segment.Packet(netip.AddrPortFrom(w.client.addr(f), 7), vip(f, 6443), 5, segment.ACK, nil)
			before := sent()
			w.client.send(stray, vip(f, 6443).Addr())
			var n uint64
			for last := before; ; last = n { // until nothing more is sent
				time.Sleep(50 * time.Millisecond)
				if n = sent(); n == last && n > before || n-before > 10000 {
					break
				}
			}
			// Beside the packet: its reset, and the questions for addresses.
			if n -= before; n > most+20 {
				t.Errorf("IPv%s, %s: one packet was sent %d times, want at most %d", f.Name, network, n, most)
			}
		}
	}
	try("a switch", 1)
	w.link.run("nft", "table bridge clear { chain forward { type filter hook forward priority 0; ip dscp set 0; ip6 dscp set 0; }; }")
	try("a switch that clears the DSCP", 64)
}

// send sends a whole IP packet.
func (m *machine) send(packet []byte, to netip.Addr) {
	m.t.Helper()
	// IPPROTO_RAW: the packet has its own IP header.
	domain, at := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: to.As16()})
	if to.Is4() {
		domain, at = unix.AF_INET, &unix.SockaddrInet4{Addr: to.As4()}
	}
	m.in(func() {
		s, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			m.t.Fatal(err)
		}
		defer unix.Close(s)
		if err := unix.Sendto(s, packet, 0, at); err != nil {
			m.t.Fatal(err)
		}
	})
}
