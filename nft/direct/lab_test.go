package direct

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"appliance/balancer"
	"appliance/nft/ruleset"
	"appliance/nft/tunnel"
	"appliance/pathprobe"
)

const servicePort = 6443

// frontends are the VIPs of a lab, of either family in turns. Those of a family have their rules in common.
var frontends = []netip.AddrPort{
	netip.MustParseAddrPort("10.77.0.10:6443"),
	netip.MustParseAddrPort("[fd77::10]:6443"),
	netip.MustParseAddrPort("10.77.0.20:6443"),
	netip.MustParseAddrPort("[fd77::20]:6443"),
}

// A host is a network namespace with threads of its own.
type host struct {
	t     *testing.T
	name  string
	addrs []netip.Addr
	ns    netns.NsHandle
	mac   net.HardwareAddr
	ports []string // the bridge's ends of its cards
}

// do runs f in the namespace. The thread ends with it.
func (h *host) do(f func() error) {
	h.t.Helper()
	if err := h.try(f); err != nil {
		h.t.Fatalf("%s: %v", h.name, err)
	}
}

func (h *host) try(f func() error) error {
	done := make(chan error, 1)
	go func() {
		done <- h.inside(f)
	}()
	return <-done
}

// inside moves the calling goroutine's thread into the namespace for good.
func (h *host) inside(f func() error) error {
	runtime.LockOSThread()
	if err := netns.Set(h.ns); err != nil {
		return err
	}
	return f()
}

func newHost(t *testing.T, name string, addrs ...netip.Addr) *host {
	t.Helper()
	h := &host{t: t, name: name, addrs: addrs}
	made := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		var err error
		h.ns, err = netns.New()
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatalf("making a network namespace: %v", err)
	}
	t.Cleanup(func() { h.ns.Close() })
	h.do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return h
}

// A lab is some nodes, mostly three, and a client on one bridge.
type lab struct {
	t       *testing.T
	sw      *host
	nodes   []*host
	client  *host
	servers []*server
	planes  []*DataPlane
	ports   int
	kind    kind   // of every eth0
	worker  string // the node that is outside the group, if one is
	routed  bool   // the VIPs are announced to routers
	further []pathprobe.Node
}

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces and nf_tables need root")
	}
}

func newLab(t *testing.T) *lab {
	t.Helper()
	return newLabOf(t, kind{}, 3)
}

func newLabOf(t *testing.T, kind kind, nodes int) *lab {
	t.Helper()
	needsRoot(t)
	l := &lab{t: t, kind: kind, sw: newHost(t, "switch")}
	l.switchOn()
	for i := range nodes {
		l.serve(l.host(fmt.Sprintf("node%d", i+1), byte(11+i)))
	}
	l.client = l.host("client", 100)
	for _, n := range l.nodes {
		l.planes = append(l.planes, l.plane(n, nil))
	}
	l.hold(0)
	return l
}

// serve makes a host a node with a server.
func (l *lab) serve(n *host) {
	l.t.Helper()
	n.do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, f := range frontends {
			if err := addAddr(lo, netip.PrefixFrom(f.Addr(), f.Addr().BitLen())); err != nil {
				return err
			}
		}
		return nil
	})
	l.nodes = append(l.nodes, n)
	l.servers = append(l.servers, newServer(l.t, n))
}

// switchOn makes the bridge that all are on.
func (l *lab) switchOn() {
	l.t.Helper()
	l.sw.do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "sw0"
		snooping := false
		br := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		return netlink.LinkSetUp(br)
	})
}

// host makes a namespace with an interface on the bridge.
func (l *lab) host(name string, last byte) *host {
	l.t.Helper()
	return l.hostAt(name, subnet(77, last)...)
}

func subnet(net, last byte) []netip.Addr {
	return []netip.Addr{
		netip.AddrFrom4([4]byte{10, net, 0, last}), netip.MustParseAddr(fmt.Sprintf("fd%d::%d", net, last)),
	}
}

func (l *lab) hostAt(name string, addrs ...netip.Addr) *host {
	l.t.Helper()
	h := newHost(l.t, name, addrs...)
	l.plug(h)
	return h
}

// plug gives h an eth0, with a new MAC address each time.
func (l *lab) plug(h *host) {
	l.t.Helper()
	cards := []string{"eth0"}
	if l.kind.build != nil {
		cards = []string{"card0", "card1"}
	}
	h.ports = nil
	for _, card := range cards {
		h.ports = append(h.ports, l.wire(h, card))
	}
	h.do(func() error {
		if l.kind.build != nil {
			if err := l.kind.build(cards); err != nil {
				return err
			}
		}
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		h.mac = eth.Attrs().HardwareAddr
		for _, a := range h.addrs {
			bits := 24
			if a.Is6() {
				bits = 64
			}
			if err := addAddr(eth, netip.PrefixFrom(a, bits)); err != nil {
				return err
			}
		}
		// A request for a client's MAC must not name the VIP as its sender.
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/all/arp_announce", []byte("2"), 0); err != nil {
			return err
		}
		// No solicitation leaves while the link-local address is tentative.
		for _, which := range []string{"all", "eth0"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/accept_dad", []byte("0"), 0); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(eth)
	})
}

// wire puts a card into h, and gives the name of the bridge's end.
func (l *lab) wire(h *host, card string) (port string) {
	l.t.Helper()
	l.ports++
	port = fmt.Sprintf("p%d", l.ports)
	l.sw.do(func() error {
		br, err := netlink.LinkByName("sw0")
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = port
		attrs.MasterIndex = br.Attrs().Index
		veth := &netlink.Veth{
			LinkAttrs: attrs, PeerName: card, PeerNamespace: netlink.NsFd(int(h.ns)),
			PeerHardwareAddr: net.HardwareAddr{2, 0, 0, 0, byte(l.ports), h.addrs[0].As4()[3]},
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		return netlink.LinkSetUp(veth)
	})
	return port
}

func addAddr(l netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return netlink.AddrAdd(l, a)
}

// hold makes a node answer for the VIPs, as far as the client can tell.
func (l *lab) hold(node int) { l.holdFor(l.client, node) }

func (l *lab) holdFor(client *host, node int) {
	l.t.Helper()
	client.do(func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, f := range frontends {
			err := netlink.NeighSet(&netlink.Neigh{
				LinkIndex: eth.Attrs().Index, State: unix.NUD_PERMANENT,
				IP: f.Addr().AsSlice(), HardwareAddr: l.nodes[node].mac,
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func (l *lab) plane(self *host, p PathProber) *DataPlane {
	cfg := Config{Interfaces: make(map[netip.Addr]string), Self: self.name, Worker: self.name == l.worker, Prober: p}
	for _, f := range frontends {
		cfg.Interfaces[f.Addr()] = "eth0"
	}
	for _, n := range l.nodesOr(self) {
		if n.name != l.worker || n == self {
			cfg.Nodes = append(cfg.Nodes, pathprobe.Node{ID: n.name, Addrs: n.addrs, Serves: frontends})
			continue
		}
		for _, a := range n.addrs { // nobody knows that it is one machine
			cfg.Nodes = append(cfg.Nodes, pathprobe.Node{ID: workerAt(a), Addrs: []netip.Addr{a}, Worker: true,
				Serves: frontends})
		}
	}
	cfg.Nodes = append(cfg.Nodes, l.further...)
	if l.routed {
		for _, f := range frontends {
			cfg.Routed = append(cfg.Routed, f.Addr())
		}
		cfg.Tunnel = tunnel.New(tunnel.Config{Port: tunnelPort, VIPs: cfg.Routed})
	}
	return New(cfg)
}

func workerAt(a netip.Addr) string { return "worker " + a.String() }

func (l *lab) nodesOr(self *host) []*host {
	if len(l.nodes) == 0 {
		return []*host{self}
	}
	return l.nodes
}

func (l *lab) backend(node, family int) balancer.Backend {
	return balancer.Backend{Addr: netip.AddrPortFrom(l.nodes[node].addrs[family], servicePort), Weight: 1}
}

func (l *lab) loadBalancer() balancer.LoadBalancer {
	all := make([]int, len(l.nodes))
	for i := range all {
		all[i] = i
	}
	return l.loadBalancerOf(all...)
}

func (l *lab) loadBalancerOf(nodes ...int) balancer.LoadBalancer {
	lb := balancer.LoadBalancer{Name: "api", Frontends: frontends}
	for family := range 2 {
		for _, i := range nodes {
			lb.Backends = append(lb.Backends, l.backend(i, family))
		}
	}
	return lb
}

// services has the nodes in rotation, and others that drain.
func (l *lab) services(rotation, draining []int) []balancer.Service {
	var ss []balancer.Service
	for i, f := range frontends {
		family := i % 2
		s := balancer.Service{LoadBalancer: "api", Frontend: f}
		for _, i := range rotation {
			s.Backends = append(s.Backends, l.backend(i, family))
		}
		for _, i := range draining {
			s.Draining = append(s.Draining, l.backend(i, family))
		}
		ss = append(ss, s)
	}
	return ss
}

// usable asks every node, which lets them learn about each other.
func (l *lab) usable() {
	l.t.Helper()
	for i, n := range l.nodes {
		n.do(func() error { return l.planes[i].Usable(context.Background(), l.loadBalancer()) })
		l.t.Cleanup(func() { n.do(l.planes[i].Close) })
	}
}

// apply hands the same set to every node, one after the other.
func (l *lab) apply(rotation, draining []int) {
	l.t.Helper()
	for i := range l.nodes {
		l.applyAt(i, rotation, draining)
	}
}

func (l *lab) applyAt(node int, rotation, draining []int) (repaired int) {
	l.t.Helper()
	l.nodes[node].do(func() (err error) {
		repaired, err = l.planes[node].Apply(context.Background(), l.services(rotation, draining))
		return err
	})
	return repaired
}

// A server sends its name and the client's address, and echoes the rest.
type server struct {
	listener net.Listener
	wg       sync.WaitGroup
	mu       sync.Mutex
	conns    map[net.Conn]bool
}

func newServer(t *testing.T, h *host) *server {
	s := &server{conns: make(map[net.Conn]bool)}
	h.do(func() (err error) {
		s.listener, err = net.Listen("tcp", fmt.Sprintf(":%d", servicePort))
		return err
	})
	s.wg.Go(func() {
		for {
			c, err := s.listener.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns[c] = true
			s.mu.Unlock()
			s.wg.Go(func() {
				defer func() {
					c.Close()
					s.mu.Lock()
					delete(s.conns, c)
					s.mu.Unlock()
				}()
				remote := c.RemoteAddr().(*net.TCPAddr).AddrPort()
				fmt.Fprintf(c, "%s %s\n", h.name, netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port()))
				io.Copy(c, c)
			})
		}
	})
	t.Cleanup(s.close)
	return s
}

func (s *server) close() {
	s.listener.Close()
	s.mu.Lock()
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// counter reads one of the namespace's SNMP counters: a line of snmp6, or a
// line and column of snmp or netstat.
func (h *host) counter(name ...string) (value string) {
	h.t.Helper()
	h.do(func() error {
		files := []string{"snmp6"}
		if len(name) == 2 {
			files = []string{"snmp", "netstat"}
		}
		var b []byte
		for _, f := range files {
			text, err := os.ReadFile("/proc/thread-self/net/" + f)
			if err != nil {
				return err
			}
			b = append(b, text...)
		}
		column := 1
		for line := range strings.Lines(string(b)) {
			fields := strings.Fields(line)
			if strings.TrimSuffix(fields[0], ":") != name[0] {
				continue
			}
			if len(name) == 2 && column == 1 {
				column = slices.Index(fields, name[1])
				continue
			}
			value = fields[column]
			return nil
		}
		return fmt.Errorf("no counter %v", name)
	})
	return value
}

// patience bounds every wait. Everything takes longer in an emulated machine.
var patience = func() time.Duration {
	if os.Getenv("APPLIANCE_TEST_IN_VM") != "" {
		return 2 * time.Minute
	}
	return 20 * time.Second
}()

// A conn is a client's connection.
type conn struct {
	net.Conn
	server string // name of the node
	sees   string // the client's address, as the server sees it
}

func dialFrom(h *host, f netip.AddrPort) (*conn, error) {
	var c net.Conn
	err := h.try(func() (err error) {
		d := net.Dialer{Timeout: patience}
		c, err = d.Dial("tcp", f.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(patience))
	line := ""
	for b := make([]byte, 1); ; {
		if _, err := io.ReadFull(c, b); err != nil {
			c.Close()
			return nil, err
		}
		if b[0] == '\n' {
			break
		}
		line += string(b)
	}
	dc := &conn{Conn: c}
	dc.server, dc.sees, _ = strings.Cut(line, " ")
	return dc, nil
}

func (l *lab) dial(f netip.AddrPort) *conn {
	l.t.Helper()
	c, err := dialFrom(l.client, f)
	if err != nil {
		l.t.Fatalf("a new connection to %v: %v", f, err)
	}
	l.t.Cleanup(func() { c.Close() })
	return c
}

// echo sends a message and waits for it to come back.
func (c *conn) echo(msg []byte) error {
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(msg); err != nil {
		return err
	}
	back := make([]byte, len(msg))
	if _, err := io.ReadFull(c, back); err != nil {
		return err
	}
	if string(back) != string(msg) {
		return errors.New("another message came back")
	}
	return nil
}

// busy is how long connections pause between two messages.
const busy = 10 * time.Millisecond

// A stream is many connections with data in flight in both directions.
type stream struct {
	conns  []*conn
	stop   atomic.Bool
	wg     sync.WaitGroup
	errs   chan error
	echoes atomic.Int64
}

func startStream(conns []*conn, pause time.Duration) *stream {
	s := &stream{conns: conns, errs: make(chan error, len(conns))}
	for i, c := range conns {
		s.wg.Go(func() {
			for n := uint64(0); !s.stop.Load(); n++ {
				msg := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(i)), n)
				if err := c.echo(msg); err != nil {
					s.errs <- fmt.Errorf("connection %v to %s at %s: %w", c.LocalAddr(), c.RemoteAddr(), c.server, err)
					return
				}
				s.echoes.Add(1)
				time.Sleep(pause)
			}
		})
	}
	return s
}

// flow waits until every connection has echoed a few times more.
func (s *stream) flow(t *testing.T) {
	t.Helper()
	want := s.echoes.Load() + 3*int64(len(s.conns))
	for s.echoes.Load() < want {
		select {
		case err := <-s.errs:
			t.Fatal(err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (s *stream) end(t *testing.T) {
	t.Helper()
	s.stop.Store(true)
	s.wg.Wait()
	close(s.errs)
	broken := 0
	for err := range s.errs {
		if broken++; broken <= 5 {
			t.Error(err)
		}
	}
	if broken > 0 {
		t.Fatalf("%d of %d open connections broke", broken, len(s.conns))
	}
}

// jhash is the kernel's include/linux/jhash.h, Bob Jenkins' lookup3.
func jhash(key []byte, initval uint32) uint32 {
	a := 0xdeadbeef + uint32(len(key)) + initval
	b, c := a, a
	word := binary.NativeEndian.Uint32
	for ; len(key) > 12; key = key[12:] {
		a, b, c = a+word(key), b+word(key[4:]), c+word(key[8:])
		a -= c
		a ^= bits.RotateLeft32(c, 4)
		c += b
		b -= a
		b ^= bits.RotateLeft32(a, 6)
		a += c
		c -= b
		c ^= bits.RotateLeft32(b, 8)
		b += a
		a -= c
		a ^= bits.RotateLeft32(c, 16)
		c += b
		b -= a
		b ^= bits.RotateLeft32(a, 19)
		a += c
		c -= b
		c ^= bits.RotateLeft32(b, 4)
		b += a
	}
	var rest [12]byte
	copy(rest[:], key)
	a, b, c = a+word(rest[:]), b+word(rest[4:]), c+word(rest[8:])
	c ^= b
	c -= bits.RotateLeft32(b, 14)
	a ^= c
	a -= bits.RotateLeft32(c, 11)
	b ^= a
	b -= bits.RotateLeft32(a, 25)
	c ^= b
	c -= bits.RotateLeft32(b, 16)
	a ^= c
	a -= bits.RotateLeft32(c, 4)
	b ^= a
	b -= bits.RotateLeft32(a, 14)
	c ^= b
	c -= bits.RotateLeft32(b, 24)
	return c
}

// slotOf is the slot that the kernel computes for a client.
func slotOf(client netip.AddrPort, slots int) int {
	h := jhash(ruleset.AddrPortKey(client), slotSeed)
	return int(uint64(h) * uint64(slots) >> 32)
}
