package direct

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"appliance/nft/ruleset"
	"appliance/nft/tunnel"
	"appliance/pathprobe"
)

const tunnelPort = 10002

// newRacks makes three nodes behind a router: two on a link, and one on another. The client is on a third, and the
// router leads its packets to any node.
func newRacks(t *testing.T) (l *lab, router *host) {
	t.Helper()
	needsRoot(t)
	l = &lab{t: t, sw: newHost(t, "switch"), routed: true}
	l.switchOn()
	var gateways []netip.Addr
	for _, net := range []byte{77, 78, 79} {
		gateways = append(gateways, subnet(net, 1)...)
	}
	router = l.hostAt("router", gateways...)
	for i, net := range []byte{77, 77, 79} {
		l.serve(l.hostAt(fmt.Sprintf("node%d", i+1), subnet(net, byte(11+i))...))
	}
	l.client = l.hostAt("client", subnet(78, 100)...)
	router.do(func() error {
		return errors.Join(
			sysctl("ipv4/ip_forward", "1"), sysctl("ipv6/conf/all/forwarding", "1"),
			// All links are one bridge here.
			sysctl("ipv4/conf/all/send_redirects", "0"), sysctl("ipv4/conf/eth0/send_redirects", "0"),
		)
	})
	for _, h := range append(slices.Clone(l.nodes), l.client) {
		h.do(func() error {
			err := sysctl("ipv6/conf/eth0/accept_redirects", "0")
			for _, a := range h.addrs {
				gw := slices.IndexFunc(gateways, func(g netip.Addr) bool {
					return a.Is4() == g.Is4() && a.AsSlice()[1] == g.AsSlice()[1]
				})
				err = errors.Join(err, netlink.RouteAdd(&netlink.Route{Gw: gateways[gw].AsSlice()}))
			}
			return err
		})
	}
	for _, n := range l.nodes {
		l.planes = append(l.planes, l.plane(n, nil))
	}
	l.leadTo(router, 0)
	return l, router
}

func sysctl(name, value string) error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0) }

// leadTo has the router send clients to a node.
func (l *lab) leadTo(router *host, node int) {
	l.t.Helper()
	router.do(func() (err error) {
		for i, f := range frontends {
			a := f.Addr()
			to := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
			err = errors.Join(err, netlink.RouteReplace(&netlink.Route{Dst: to, Gw: l.nodes[node].addrs[i%2].AsSlice()}))
		}
		return err
	})
}

// device is a node's end of the tunnel, or nil.
func (h *host) device() (dev *netlink.Vxlan) {
	h.t.Helper()
	h.do(func() error {
		link, err := netlink.LinkByName(tunnel.Name)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		dev, _ = link.(*netlink.Vxlan)
		return err
	})
	return dev
}

func (l *lab) closeTunnels() {
	for i, n := range l.nodes {
		l.t.Cleanup(func() { n.do(l.planes[i].cfg.Tunnel.(*tunnel.Device).Close) })
	}
}

// Clients that the router leads to any node reach every server, with their own address, and their connections stay
// while it leads them elsewhere: also through a host that drops what comes by another device than answers leave by,
// and with segments that fill the link.
func TestTunnel(t *testing.T) {
	for name, prepare := range map[string]func(l *lab, n *host){
		"IPv4, strict rp_filter": func(_ *lab, n *host) {
			n.do(func() error { return sysctl("ipv4/conf/all/rp_filter", "1") })
		},
		"IPv6, as a peer has nothing else": func(l *lab, _ *host) {
			l.further = []pathprobe.Node{{ID: "six", Addrs: subnet(77, 99)[1:]}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, router := newRacks(t)
			for i, n := range l.nodes {
				prepare(l, n)
				l.planes[i] = l.plane(n, nil)
			}
			l.closeTunnels()
			l.usable()
			l.apply([]int{0, 1, 2}, nil)
			s := l.open(40)
			seen := make(map[string]bool)
			for _, c := range s.conns {
				seen[c.server] = true
				if c.sees != c.LocalAddr().String() {
					t.Fatalf("%s sees %s, not %v", c.server, c.sees, c.LocalAddr())
				}
			}
			if len(seen) != 3 {
				t.Fatalf("only %v serve", seen)
			}
			for _, node := range []int{2, 1, 0, 2} {
				l.leadTo(router, node)
				s.flow(t)
			}
			// What was opened while a server was away is found at the others.
			l.apply([]int{0, 1}, []int{2})
			s.flow(t)
			more := l.open(20)
			l.apply([]int{0, 1, 2}, nil)
			for _, node := range []int{0, 2} {
				l.leadTo(router, node)
				s.flow(t)
				more.flow(t)
			}
			s.end(t)
			more.end(t)
			l.large(router)
			for _, i := range []int{0, 2} {
				if st := l.nodes[i].device().Statistics; st.TxPackets == 0 || st.RxPackets == 0 {
					t.Errorf("%s has sent %d packets through the tunnel, and got %d", l.nodes[i].name, st.TxPackets, st.RxPackets)
				}
			}
		})
	}
}

// large has each server echo much, by way of each node.
func (l *lab) large(router *host) {
	l.t.Helper()
	msg := make([]byte, 1<<20)
	rand.Read(msg)
	for _, node := range []int{0, 2} {
		l.leadTo(router, node)
		for _, f := range frontends[:2] {
			for tried := make(map[string]bool); len(tried) < 3; {
				c := l.dial(f)
				if tried[c.server] {
					continue
				}
				tried[c.server] = true
				sent := make(chan error, 1)
				go func() {
					_, err := c.Write(msg)
					sent <- err
				}()
				back := make([]byte, len(msg))
				_, err := readFull(c, back)
				if err = errors.Join(err, <-sent); err != nil {
					l.t.Errorf("by %s to %s: %v", l.nodes[node].name, c.server, err)
				}
			}
		}
	}
}

func readFull(c net.Conn, b []byte) (n int, err error) {
	for n < len(b) {
		c.SetDeadline(time.Now().Add(patience))
		m, err := c.Read(b[n:])
		if n += m; err != nil {
			return n, fmt.Errorf("after %d bytes: %w", n, err)
		}
	}
	return n, nil
}

// With all nodes on one link there is no tunnel, and not one rule differs.
func TestNoTunnelOnOneLink(t *testing.T) {
	l := newLab(t)
	l.usable()
	var before, after [3]any
	tables := func(into *[3]any) {
		l.nodes[0].do(func() error {
			d := l.planes[0]
			d.mu.Lock()
			defer d.mu.Unlock()
			now, _, err := d.neighbours.Look()
			for i, table := range d.plan(l.services([]int{0, 1, 2}, nil), now).tables() {
				sum, err := table.Digest()
				if err != nil {
					return err
				}
				into[i] = sum
			}
			return err
		})
	}
	tables(&before)
	l.routed = true
	for i, n := range l.nodes {
		l.planes[i] = l.plane(n, nil)
	}
	l.closeTunnels()
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	if tables(&after); !reflect.DeepEqual(before, after) {
		t.Errorf("the rules differ: %v, %v without a tunnel", after, before)
	}
	for _, n := range l.nodes {
		if dev := n.device(); dev != nil {
			t.Errorf("%s has %s", n.name, dev.Name)
		}
	}
}

// The tunnel is proved before it is used, stays for the next process, and goes with the last node that needs it.
func TestTunnelIsProved(t *testing.T) {
	l, _ := newRacks(t)
	probers, stop := l.probing()
	l.closeTunnels()
	auto := l.loadBalancer()
	// The third node's firewall lets nothing of the tunnel in.
	firewall := ruleset.Table{Family: nftables.TableFamilyIPv4, Name: "firewall", Chains: []ruleset.Chain{
		ruleset.FilterChain("in", *nftables.ChainHookInput, 0, ruleset.NewRule("nothing but TCP and ICMP", []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1}, ruleset.Equal(reg1, unix.IPPROTO_UDP),
		}, ruleset.Verdict(expr.VerdictDrop))),
	}}
	var closed ruleset.Reconciler
	l.nodes[2].do(func() error {
		_, err := closed.Apply(firewall)
		return err
	})
	l.nodes[0].do(func() error {
		err := l.planes[0].Usable(context.Background(), auto)
		if err == nil || !strings.Contains(err.Error(), "announce.tunnelPort") {
			return fmt.Errorf("without an answer through the tunnel: %w", err)
		}
		return nil
	})
	l.nodes[2].do(func() error {
		_, err := closed.Remove(firewall)
		return err
	})
	for i := range 3 {
		// Whoever comes first hears nobody.
		l.nodes[i].try(func() error { return l.planes[i].Usable(context.Background(), auto) })
		l.t.Cleanup(func() { l.nodes[i].do(l.planes[i].Close) })
	}
	l.apply([]int{0, 1, 2}, nil)
	becomes(t, probers[0], "node3", pathprobe.PathProved)
	becomes(t, probers[2], "node1", pathprobe.PathProved)
	becomes(t, probers[2], "node2", pathprobe.PathProved)
	becomes(t, probers[0], "node2", pathprobe.PathProved)
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	l.open(10).end(t)

	index := l.nodes[0].device().Index
	stop[0]()
	l.planes[0] = l.plane(l.nodes[0], nil)
	// Something is served before the load balancer that needs the tunnel is looked at.
	l.applyAt(0, []int{0, 1, 2}, nil)
	if dev := l.nodes[0].device(); dev == nil || dev.Index != index {
		t.Fatalf("the next process has %v", dev)
	}
	l.nodes[0].do(func() error { return l.planes[0].Usable(context.Background(), auto) })
	l.applyAt(0, []int{0, 1, 2}, nil)
	if dev := l.nodes[0].device(); dev == nil || dev.Index != index {
		t.Fatalf("the next process has made %v", dev)
	}
	near := l.planes[0].cfg.Nodes[:2]
	l.nodes[0].do(func() error {
		l.planes[0].SetNodes(near)
		_, err := l.planes[0].Apply(context.Background(), l.services([]int{0, 1}, nil))
		return err
	})
	if dev := l.nodes[0].device(); dev != nil {
		t.Errorf("the tunnel to nobody stays: %v", dev)
	}
}

// Nobody else gets a packet out of the tunnel, and nodes none but those for virtual addresses.
func TestTunnelIsClosed(t *testing.T) {
	l, _ := newRacks(t)
	l.closeTunnels()
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	third := l.nodes[2]
	socket, err := third.listenUDP(7000)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	inner := func(to netip.Addr) []byte {
		src, dst := tunnel.MAC(l.nodes[0].addrs[0]), tunnel.MAC(third.addrs[0])
		return slices.Concat([]byte{8, 0, 0, 0, 'a', 'p', 'l', 0}, dst[:], src[:], []byte{8, 0},
			datagram(l.client.addrs[0], to, 7000))
	}
	own, vip := third.addrs[0], frontends[0].Addr()
	for _, tt := range []struct {
		what    string
		from    *host
		to      netip.Addr
		arrives bool
	}{
		{"a node's, for a virtual address", l.nodes[0], vip, true},
		{"a node's, for another address", l.nodes[0], own, false},
		{"a stranger's, for a virtual address", l.client, vip, false},
	} {

		tt.from.do(func() error {
			c, err := net.Dial("udp4", netip.AddrPortFrom(own, tunnelPort).String())
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write(inner(tt.to))
			return err
		})
		var got []string
		read := func(until string) {
			for b := make([]byte, 100); !slices.Contains(got, until); {
				socket.SetReadDeadline(time.Now().Add(patience))
				n, _, err := socket.ReadFrom(b)
				if err != nil {
					t.Fatalf("%s: %v", tt.what, err)
				}
				got = append(got, string(b[:n]))
			}
		}
		if tt.arrives {
			read("first")
			continue
		}
		// What came before it has been seen when this one is.
		l.nodes[1].do(func() error {
			c, err := net.Dial("udp4", netip.AddrPortFrom(own, 7000).String())
			if err != nil {
				return err
			}
			defer c.Close()
			time.Sleep(50 * time.Millisecond)
			_, err = c.Write([]byte("last"))
			return err
		})
		if read("last"); len(got) > 1 {
			t.Errorf("%s: %q", tt.what, got)
		}
	}
}

func (h *host) listenUDP(port int) (c net.PacketConn, err error) {
	return c, h.try(func() (err error) {
		c, err = net.ListenPacket("udp4", fmt.Sprintf(":%d", port))
		return err
	})
}

// datagram is a packet of UDP without a checksum.
func datagram(from, to netip.Addr, port uint16) []byte {
	payload := []byte("first")
	b := []byte{0x45, 0, 0, byte(28 + len(payload)), 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	b = slices.Concat(b, from.AsSlice(), to.AsSlice())
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	sum = ^(sum&0xffff + sum>>16)
	b[10], b[11] = byte(sum>>8), byte(sum)
	return slices.Concat(b, []byte{0x1f, 0x40, byte(port >> 8), byte(port), 0, byte(8 + len(payload)), 0, 0}, payload)
}
