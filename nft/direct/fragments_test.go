package direct

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"appliance/balancer"
	"appliance/nft"
	"appliance/segment"
)

// far puts a client behind a router whose link to the nodes carries packets of at most
// mtu bytes. The client does not learn that: its packets may be fragmented.
func (l *lab) far(mtu int) (client *host) {
	l.t.Helper()
	router := l.host("router", 80)
	client = newHost(l.t, "far client", netip.MustParseAddr("10.78.0.50"))
	router.do(func() error {
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "far0"}, PeerName: "eth0",
			PeerNamespace: netlink.NsFd(int(client.ns))}
		if err := netlink.LinkAdd(pair); err != nil {
			return err
		}
		if err := addAddr(pair, netip.MustParsePrefix("10.78.0.1/24")); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(pair); err != nil {
			return err
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
			return err
		}
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		vip := &net.IPNet{IP: frontends[0].Addr().AsSlice(), Mask: net.CIDRMask(32, 32)}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: vip, Scope: netlink.SCOPE_LINK, MTU: mtu})
	})
	l.holdFor(router, 0)
	client.do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := addAddr(eth0, netip.MustParsePrefix("10.78.0.50/24")); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(eth0); err != nil {
			return err
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_no_pmtu_disc", []byte("1"), 0); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Gw: net.IPv4(10, 78, 0, 1)})
	})
	for _, n := range l.nodes {
		n.do(func() error {
			to := &net.IPNet{IP: net.IPv4(10, 78, 0, 0), Mask: net.CIDRMask(24, 32)}
			return netlink.RouteAdd(&netlink.Route{Dst: to, Gw: router.addrs[0].AsSlice()})
		})
	}
	return client
}

// A client behind a link with a smaller MTU, whose packets may be fragmented, reaches
// every backend with large packets, also those that are handed on, whoever holds.
func TestDirectFragments(t *testing.T) {
	l := newLab(t)
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	client := l.far(1000)
	before := l.client
	l.client = client
	reached := make(map[string]bool)
	var conns []*conn
	for len(reached) < 3 || len(conns) < 9 {
		c := l.dial(frontends[0])
		reached[c.server] = true
		conns = append(conns, c)
	}
	upload := func(when string) {
		t.Helper()
		for _, c := range conns {
			for range 5 {
				if err := c.echo(bytes.Repeat([]byte("x"), 8<<10)); err != nil {
					t.Fatalf("%s: an upload in fragments to %s: %v", when, c.server, err)
				}
			}
		}
	}
	upload("all in rotation")
	l.apply([]int{1, 2}, []int{0})
	upload("one is taken out, its connections go on")
	fragments := 0
	for _, n := range l.nodes {
		var got int
		fmt.Sscan(n.counter("Ip", "ReasmOKs"), &got)
		fragments += got
	}
	if fragments == 0 {
		t.Error("no node has seen a fragment: the test tests nothing")
	}
	l.client = before
}

// The fragments of a packet go one way in any order, in both families, also behind
// extension headers and options, and a packet whose fragments overlap goes nowhere.
func TestDirectFragmentOrder(t *testing.T) {
	l := newLab(t)
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	l.hold(0)
	for i, f := range frontends {
		family := i % 2
		client := l.client.addrs[family]
		for port := uint16(20001); port < 20013; port++ {
			src := netip.AddrPortFrom(client, port)
			whole := segment.Packet(src, f, 1, segment.SYN, make([]byte, 1440))
			parts := fragmentsOf(whole, 1288, uint32(port))
			switch port % 4 {
			case 1:
				parts[0], parts[1] = parts[1], parts[0]
			case 2:
				parts = [][]byte{withOptions(segment.Packet(src, f, 1, segment.SYN, nil))}
			}
			if answers := l.answers(f, src, parts, 1); answers != 1 {
				t.Errorf("%v: %d fragments to %v are answered by %d servers, want one", src, len(parts), f, answers)
			}
		}
	}
}

// answers sends packets of the client to the holder, and counts the nodes that answer
// with SYN and ACK.
func (l *lab) answers(f, client netip.AddrPort, packets [][]byte, expected int) (n int) {
	const aLittle = 50 * time.Millisecond
	l.t.Helper()
	family := unix.AF_INET
	if f.Addr().Is6() {
		family = unix.AF_INET6
	}
	ethertype := map[int]uint16{unix.AF_INET: unix.ETH_P_IP, unix.AF_INET6: unix.ETH_P_IPV6}[family]
	l.client.do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(ethertype>>8|ethertype<<8))
		if err != nil {
			return err
		}
		defer unix.Close(s)
		to := &unix.SockaddrLinklayer{Protocol: ethertype>>8 | ethertype<<8, Ifindex: eth0.Attrs().Index}
		if err := unix.Bind(s, to); err != nil {
			return err
		}
		header := append(append(append([]byte(nil), l.nodes[0].mac...), l.client.mac...), byte(ethertype>>8), byte(ethertype))
		for _, p := range packets {
			if err := unix.Sendto(s, append(bytes.Clone(header), p...), 0, to); err != nil {
				return err
			}
		}
		// It waits for as many as are expected, and then a little for more.
		buf := make([]byte, 2048)
		ip := 14 + 20
		if f.Addr().Is6() {
			ip = 14 + 40
		}
		deadline := time.Now().Add(patience)
		if expected == 0 {
			deadline = time.Now().Add(aLittle)
		}
		for time.Now().Before(deadline) {
			tv := unix.NsecToTimeval(max(int64(time.Until(deadline)), int64(time.Millisecond)))
			if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
				return err
			}
			size, err := unix.Read(s, buf)
			if err != nil || size < ip+20 || bytes.Equal(buf[6:12], l.client.mac) {
				continue
			}
			tcp := buf[ip:]
			if binary.BigEndian.Uint16(tcp) == f.Port() && binary.BigEndian.Uint16(tcp[2:]) == client.Port() &&
				tcp[13] == segment.SYN|segment.ACK {
				if n++; n == expected {
					deadline = time.Now().Add(aLittle)
				}
			}
		}
		return nil
	})
	return n
}

// fragmentsOf cuts an IP packet in two behind as many bytes of its payload.
func fragmentsOf(packet []byte, at int, id uint32) [][]byte {
	if packet[0]>>4 == 6 {
		piece := func(payload []byte, offset int, more uint16) []byte {
			b := bytes.Clone(packet[:40])
			binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
			b[6] = unix.IPPROTO_FRAGMENT // RFC 8200 section 4.5
			b = append(b, packet[6], 0)
			b = binary.BigEndian.AppendUint16(b, uint16(offset)|more)
			return append(binary.BigEndian.AppendUint32(b, id), payload...)
		}
		return [][]byte{piece(packet[40:40+at], 0, 1), piece(packet[40+at:], at, 0)}
	}
	piece := func(payload []byte, offset int, more uint16) []byte {
		b := append(bytes.Clone(packet[:20]), payload...)
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		binary.BigEndian.PutUint16(b[4:], uint16(id))
		binary.BigEndian.PutUint16(b[6:], uint16(offset/8)|more<<13)
		binary.BigEndian.PutUint16(b[10:], 0)
		binary.BigEndian.PutUint16(b[10:], segment.Checksum(b[:20]))
		return b
	}
	return [][]byte{piece(packet[20:20+at], 0, 1), piece(packet[20+at:], at, 0)}
}

// withOptions is the packet with options in its IPv4 header, or hop-by-hop and
// destination options of IPv6 before TCP.
func withOptions(packet []byte) []byte {
	if packet[0]>>4 == 6 {
		b := bytes.Clone(packet[:40])
		binary.BigEndian.PutUint16(b[4:], uint16(len(packet)-40+16))
		b[6] = unix.IPPROTO_HOPOPTS
		b = append(b, unix.IPPROTO_DSTOPTS, 0, 1, 4, 0, 0, 0, 0) // PadN: RFC 8200 section 4.2
		b = append(b, unix.IPPROTO_TCP, 0, 1, 4, 0, 0, 0, 0)
		return append(b, packet[40:]...)
	}
	b := append(bytes.Clone(packet[:20]), 1, 1, 1, 1) // no operation: RFC 791 section 3.1
	b = append(b, packet[20:]...)
	b[0]++
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[10:], 0)
	binary.BigEndian.PutUint16(b[10:], segment.Checksum(b[:24]))
	return b
}

// Who is denied, or not allowed, is refused whatever form its packets have: in
// fragments, tiny, overlapping, without the first, behind options and extension headers.
// Where the kernel cannot put fragments together, none of them passes.
func TestAccessOfFragments(t *testing.T) {
	l := newLab(t)
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	l.hold(0)
	var acl nft.ACL
	guarded := acl.Guard(l.planes[0])
	apply := func(o balancer.ConnOptions) {
		t.Helper()
		services := l.services([]int{0}, nil)
		for i := range services {
			services[i].ConnOptions = o
		}
		l.nodes[0].do(func() error {
			_, err := guarded.Apply(context.Background(), services)
			return err
		})
	}
	single := []netip.Prefix{netip.PrefixFrom(l.client.addrs[0], 32), netip.PrefixFrom(l.client.addrs[1], 128)}
	elsewhere := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:ffff::/48")}
	port := uint16(21000)
	for _, tt := range []struct {
		name    string
		options balancer.ConnOptions
		welcome int
	}{
		{"everybody", balancer.ConnOptions{}, 1},
		{"allowed", balancer.ConnOptions{Allow: single}, 1},
		{"denied", balancer.ConnOptions{Deny: single}, 0},
		{"not allowed", balancer.ConnOptions{Allow: elsewhere}, 0},
	} {
		apply(tt.options)
		for i, f := range frontends {
			family := i % 2
			for form, shape := range map[string]func(packet []byte) [][]byte{
				"whole":          func(p []byte) [][]byte { return [][]byte{p} },
				"options":        func(p []byte) [][]byte { return [][]byte{withOptions(p)} },
				"fragments":      func(p []byte) [][]byte { return fragmentsOf(p, 1288, uint32(port)) },
				"turned":         func(p []byte) [][]byte { return turned(fragmentsOf(p, 1288, uint32(port))) },
				"tiny first":     func(p []byte) [][]byte { return fragmentsOf(p, 8, uint32(port)) },
				"without first":  func(p []byte) [][]byte { return fragmentsOf(p, 1288, uint32(port))[1:] },
				"overlapping":    func(p []byte) [][]byte { return overlapping(p, uint32(port)) },
				"atomic and odd": func(p []byte) [][]byte { return fragmentsOf(p, 0, uint32(port))[1:] },
			} {
				port++
				src := netip.AddrPortFrom(l.client.addrs[family], port)
				packet := segment.Packet(src, f, 1, segment.SYN, make([]byte, 1440))
				if form == "options" || form == "atomic and odd" {
					packet = segment.Packet(src, f, 1, segment.SYN, nil)
				}
				want := tt.welcome
				switch {
				case form == "without first" || form == "overlapping":
					want = 0 // for everybody
				case form == "tiny first" && f.Addr().Is6():
					want = 0 // for everybody: the kernel takes no small fragment but the last
				}
				if got := l.answers(f, src, shape(packet), want); got != want {
					t.Errorf("%s, %s, to %v: answered %d times, want %d", tt.name, form, f, got, want)
				}
			}
		}
	}
}

// overlapping are three fragments of which two say different things about the same bytes.
func overlapping(packet []byte, id uint32) [][]byte {
	first := fragmentsOf(packet, 1288, id)
	second := fragmentsOf(packet, 1280, id)
	return [][]byte{first[0], second[1]}
}

func turned(parts [][]byte) [][]byte { return [][]byte{parts[1], parts[0]} }
