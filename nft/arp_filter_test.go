package nft

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ndp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hears says whether anybody answers m's ARP request for addr within wait.
func (m *machine) hears(addr netip.Addr, wait time.Duration) bool {
	m.t.Helper()
	var answered bool
	m.in(func() {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			m.t.Fatal(err)
		}
		c, err := arp.Dial(ifi)
		if err != nil {
			m.t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
			m.t.Fatal(err)
		}
		if err := c.Request(addr); err != nil {
			m.t.Fatal(err)
		}
		for {
			p, _, err := c.Read()
			if err != nil {
				return
			}
			if p.Operation == arp.OperationReply && p.SenderIP == addr {
				answered = true
				return
			}
		}
	})
	return answered
}

func (w *world) filterARP(s *ARPFilter, addrs ...FilteredVIP) int {
	w.t.Helper()
	var repaired int
	w.node.in(func() {
		var err error
		if repaired, err = s.Apply(context.Background(), addrs); err != nil {
			w.t.Fatal(err)
		}
	})
	return repaired
}

func TestARPFilter(t *testing.T) {
	w := newWorld(t)
	if !w.client.hears(vip4, patience) {
		t.Fatal("the kernel does not answer for the VIP without rules: nothing to see here")
	}
	var s ARPFilter
	filtered := FilteredVIP{VIP: vip4, Interface: "eth0", NodeAddr: w.node.addr4}
	w.filterARP(&s, filtered, FilteredVIP{VIP: vip6, Interface: "eth0"})
	w.node.ruleset() // nft can list it

	if w.client.hears(vip4, 300*time.Millisecond) {
		t.Error("the kernel answers for the VIP")
	}
	if !w.client.hears(w.node.addr4, patience) {
		t.Error("the kernel does not answer for the node's own address any more")
	}

	// Rules that somebody else flushes are found, repaired and counted; and nothing is
	// sent twice.
	w.node.run("nft", "flush", "ruleset")
	if n := w.filterARP(&s, filtered); n != 1 {
		t.Errorf("after a flush: %d repaired, want 1", n)
	}
	if w.client.hears(vip4, 300*time.Millisecond) {
		t.Error("the kernel answers for the VIP after repair")
	}
	before := w.node.generation()
	if n := w.filterARP(&s, filtered); n != 0 || w.node.generation() != before {
		t.Errorf("the same again: %d repaired, and generation %d became %d", n, before, w.node.generation())
	}
	w.filterARP(&s)
	if rules := w.node.ruleset(); rules != "" {
		t.Errorf("without addresses there is\n%s", rules)
	}
	if !w.client.hears(vip4, patience) {
		t.Error("the kernel does not answer without rules")
	}
}

// The kernel's requests have the node's address as their sender, whatever address a
// packet has.
func TestARPFilterRewritesTheSender(t *testing.T) {
	for name, c := range map[string]struct{ node, want netip.Addr }{
		"node address":    {netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.1")},
		"no node address": {netip.Addr{}, netip.IPv4Unspecified()},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			var s ARPFilter
			w.filterARP(&s, FilteredVIP{VIP: vip4, Interface: "eth0", NodeAddr: c.node})

			// The client listens; the node sends it a packet from the VIP.
			var l *arp.Client
			w.client.in(func() {
				ifi, err := net.InterfaceByName("eth0")
				if err != nil {
					t.Fatal(err)
				}
				if l, err = arp.Dial(ifi); err != nil {
					t.Fatal(err)
				}
			})
			defer l.Close()
			w.node.in(func() {
				u, err := net.DialUDP("udp", &net.UDPAddr{IP: vip4.AsSlice()}, &net.UDPAddr{IP: w.client.addr4.AsSlice(), Port: 9})
				if err != nil {
					t.Fatal(err)
				}
				defer u.Close()
				if _, err := u.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
			})
			if err := l.SetReadDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			for {
				p, _, err := l.Read()
				if err != nil {
					t.Fatal(err)
				}
				if p.Operation != arp.OperationRequest || p.TargetIP != w.client.addr4 {
					continue
				}
				if p.SenderIP != c.want {
					t.Errorf("the node asks as %v, want %v", p.SenderIP, c.want)
				}
				break
			}
		})
	}
}

// Announcements of others still change the neighbour table, and the process's own
// answers, from a packet socket, still leave.
func TestARPFilterPassesOthersAndTheProcess(t *testing.T) {
	w := newWorld(t)
	var s ARPFilter
	w.filterARP(&s, FilteredVIP{VIP: vip4, Interface: "eth0", NodeAddr: w.node.addr4})

	moved := net.HardwareAddr{2, 0, 0, 0, 0, 0x77}
	w.node.in(func() {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		// The node knows the client by a wrong address.
		w.must(netlink.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_STALE, Family: unix.AF_INET,
			IP: w.client.addr4.AsSlice(), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 0x66},
		}))
	})
	w.client.in(func() {
		ifi, err := net.InterfaceByName("eth0")
		w.must(err)
		c, err := arp.Dial(ifi)
		w.must(err)
		defer c.Close()
		broadcast := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
		p, err := arp.NewPacket(arp.OperationReply, moved, w.client.addr4, moved, w.client.addr4)
		w.must(err)
		w.must(c.WriteTo(p, broadcast))
	})
	heard := func() (known string) {
		w.node.in(func() {
			link, err := netlink.LinkByName("eth0")
			w.must(err)
			list, err := netlink.NeighList(link.Attrs().Index, unix.AF_INET)
			w.must(err)
			for _, n := range list {
				if n.IP.Equal(w.client.addr4.AsSlice()) {
					known = n.HardwareAddr.String()
				}
			}
		})
		return known
	}
	for end := time.Now().Add(patience); heard() != moved.String(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the node has %s for the client, want %v as announced", heard(), moved)
		}
	}

	// A process on the node answers for the VIP, unchanged.
	node, client := w.node, w.client
	answered := make(chan error, 1)
	var c *arp.Client
	node.in(func() {
		ifi, err := net.InterfaceByName("eth0")
		w.must(err)
		c, err = arp.Dial(ifi)
		w.must(err)
		w.must(c.SetReadDeadline(time.Now().Add(patience)))
	})
	defer c.Close()
	go func() {
		for {
			p, _, err := c.Read()
			if err != nil {
				answered <- err
				return
			}
			if p.Operation == arp.OperationRequest && p.TargetIP == vip4 {
				answered <- c.Reply(p, c.HardwareAddr(), vip4)
				return
			}
		}
	}()
	if !client.hears(vip4, patience) {
		t.Error("the answer of the process for the VIP does not arrive")
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

// IPv6 needs no rule, which is why there is none.
func TestKernelIsSilentForIPv6OnLoopback(t *testing.T) {
	w := newWorld(t)
	asks := func(addr netip.Addr, wait time.Duration) (answered bool) {
		w.client.in(func() {
			ifi, err := net.InterfaceByName("eth0")
			w.must(err)
			c, _, err := ndp.Listen(ifi, ndp.LinkLocal)
			// The kernel makes the address a moment after the link is up.
			for end := time.Now().Add(patience); errors.Is(err, unix.EADDRNOTAVAIL) && time.Now().Before(end); {
				time.Sleep(10 * time.Millisecond)
				c, _, err = ndp.Listen(ifi, ndp.LinkLocal)
			}
			w.must(err)
			defer c.Close()
			group, err := ndp.SolicitedNodeMulticast(addr)
			w.must(err)
			w.must(c.SetReadDeadline(time.Now().Add(wait)))
			w.must(c.WriteTo(&ndp.NeighborSolicitation{
				TargetAddress: addr,
				Options:       []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: ifi.HardwareAddr}},
			}, nil, group))
			for {
				m, _, _, err := c.ReadFrom()
				if err != nil {
					return
				}
				if na, ok := m.(*ndp.NeighborAdvertisement); ok && na.TargetAddress == addr {
					answered = true
					return
				}
			}
		})
		return answered
	}
	if !asks(w.node.addr6, patience) {
		t.Error("the kernel does not answer for the node's own address: nothing to see here")
	}
	if asks(vip6, 300*time.Millisecond) {
		t.Error("the kernel answers for the VIP on lo")
	}
}

func TestARPFilterErrors(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for what, addrs := range map[string][]FilteredVIP{
		"VIP is the node's address": {{VIP: a, NodeAddr: a}},
		"two node addresses":        {{VIP: a, NodeAddr: b}, {VIP: a, NodeAddr: netip.MustParseAddr("192.0.2.3")}},
	} {
		if _, err := arpTable(addrs); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	one, err := arpTable([]FilteredVIP{{VIP: a, NodeAddr: b}, {VIP: a, NodeAddr: b}})
	if err != nil || len(one.Sets[0].Elements) != 1 {
		t.Errorf("the same twice: %v, %v", one.Sets, err)
	}
}
