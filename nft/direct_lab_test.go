package nft

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
)

const servicePort = 6443

// frontends are the VIPs of a directLab.
var directFrontends = []netip.AddrPort{
	netip.MustParseAddrPort("10.77.0.10:6443"),
	netip.MustParseAddrPort("[fd77::10]:6443"),
}

// A directHost is a network namespace with threads of its own.
type directHost struct {
	t     *testing.T
	name  string
	addrs []netip.Addr
	ns    netns.NsHandle
	mac   net.HardwareAddr
	ports []string // the bridge's ends of its cards
}

// do runs f in the namespace. The thread ends with it.
func (h *directHost) do(f func() error) {
	h.t.Helper()
	if err := h.try(f); err != nil {
		h.t.Fatalf("%s: %v", h.name, err)
	}
}

func (h *directHost) try(f func() error) error {
	done := make(chan error, 1)
	go func() {
		done <- h.inside(f)
	}()
	return <-done
}

// inside moves the calling goroutine's thread into the namespace for good.
func (h *directHost) inside(f func() error) error {
	runtime.LockOSThread()
	if err := netns.Set(h.ns); err != nil {
		return err
	}
	return f()
}

func newDirectHost(t *testing.T, name string, addrs ...netip.Addr) *directHost {
	t.Helper()
	h := &directHost{t: t, name: name, addrs: addrs}
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

// A directLab is some nodes, mostly three, and a client on one bridge.
type directLab struct {
	t       *testing.T
	sw      *directHost
	nodes   []*directHost
	client  *directHost
	servers []*directServer
	planes  []*Direct
	ports   int
	kind    kind   // of every eth0
	worker  string // the node that is outside the group, if one is
}

func newDirectLab(t *testing.T) *directLab {
	t.Helper()
	return newDirectLabOf(t, kind{}, 3)
}

func newDirectLabOf(t *testing.T, kind kind, nodes int) *directLab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces and nf_tables need root")
	}
	l := &directLab{t: t, kind: kind, sw: newDirectHost(t, "switch")}
	l.switchOn()
	for i := range nodes {
		n := l.host(fmt.Sprintf("node%d", i+1), byte(11+i))
		n.do(func() error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			for _, f := range directFrontends {
				if err := addAddr(lo, netip.PrefixFrom(f.Addr(), f.Addr().BitLen())); err != nil {
					return err
				}
			}
			return nil
		})
		l.nodes = append(l.nodes, n)
		l.servers = append(l.servers, newDirectServer(t, n))
	}
	l.client = l.host("client", 100)
	for _, n := range l.nodes {
		l.planes = append(l.planes, l.plane(n, nil))
	}
	l.hold(0)
	return l
}

// switchOn makes the bridge that all are on.
func (l *directLab) switchOn() {
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
func (l *directLab) host(name string, last byte) *directHost {
	l.t.Helper()
	h := newDirectHost(l.t, name,
		netip.AddrFrom4([4]byte{10, 77, 0, last}),
		netip.MustParseAddr(fmt.Sprintf("fd77::%d", last)))
	l.plug(h)
	return h
}

// plug gives h an eth0, whose MAC is a new one each time.
func (l *directLab) plug(h *directHost) {
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
		// No solicitation leaves while the link-local address is being tried.
		for _, which := range []string{"all", "eth0"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/accept_dad", []byte("0"), 0); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(eth)
	})
}

// wire puts a card into h, and gives the name of the bridge's end.
func (l *directLab) wire(h *directHost, card string) (port string) {
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
func (l *directLab) hold(node int) { l.holdFor(l.client, node) }

func (l *directLab) holdFor(client *directHost, node int) {
	l.t.Helper()
	client.do(func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, f := range directFrontends {
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

func (l *directLab) plane(self *directHost, p Prober) *Direct {
	cfg := DirectConfig{Interfaces: make(map[netip.Addr]string), Self: self.name, Worker: self.name == l.worker, Prober: p}
	for _, f := range directFrontends {
		cfg.Interfaces[f.Addr()] = "eth0"
	}
	for _, n := range l.nodesOr(self) {
		if n.name != l.worker || n == self {
			cfg.Nodes = append(cfg.Nodes, Node{ID: n.name, Addrs: n.addrs, Serves: directFrontends})
			continue
		}
		for _, a := range n.addrs { // nobody knows that it is one machine
			cfg.Nodes = append(cfg.Nodes, Node{ID: workerAt(a), Addrs: []netip.Addr{a}, Worker: true, Serves: directFrontends})
		}
	}
	return NewDirect(cfg)
}

func workerAt(a netip.Addr) string { return "worker " + a.String() }

func (l *directLab) nodesOr(self *directHost) []*directHost {
	if len(l.nodes) == 0 {
		return []*directHost{self}
	}
	return l.nodes
}

func (l *directLab) backend(node, family int) balancer.Backend {
	return balancer.Backend{Addr: netip.AddrPortFrom(l.nodes[node].addrs[family], servicePort), Weight: 1}
}

func (l *directLab) loadBalancer() balancer.LoadBalancer {
	all := make([]int, len(l.nodes))
	for i := range all {
		all[i] = i
	}
	return l.loadBalancerOf(all...)
}

func (l *directLab) loadBalancerOf(nodes ...int) balancer.LoadBalancer {
	lb := balancer.LoadBalancer{Name: "api", Frontends: directFrontends}
	for family := range directFrontends {
		for _, i := range nodes {
			lb.Backends = append(lb.Backends, l.backend(i, family))
		}
	}
	return lb
}

// services has the nodes in rotation, and others that drain.
func (l *directLab) services(rotation, draining []int) []balancer.Service {
	var ss []balancer.Service
	for family, f := range directFrontends {
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
func (l *directLab) usable() {
	l.t.Helper()
	for i, n := range l.nodes {
		n.do(func() error { return l.planes[i].Usable(context.Background(), l.loadBalancer()) })
		l.t.Cleanup(func() { n.do(l.planes[i].Close) })
	}
}

// apply hands the same set to every node, one after the other.
func (l *directLab) apply(rotation, draining []int) {
	l.t.Helper()
	for i := range l.nodes {
		l.applyAt(i, rotation, draining)
	}
}

func (l *directLab) applyAt(node int, rotation, draining []int) (repaired int) {
	l.t.Helper()
	l.nodes[node].do(func() (err error) {
		repaired, err = l.planes[node].Apply(context.Background(), l.services(rotation, draining))
		return err
	})
	return repaired
}

// A directServer says its name and who the client is, and echoes the rest.
type directServer struct {
	listener net.Listener
	wg       sync.WaitGroup
	mu       sync.Mutex
	conns    map[net.Conn]bool
}

func newDirectServer(t *testing.T, h *directHost) *directServer {
	s := &directServer{conns: make(map[net.Conn]bool)}
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

func (s *directServer) close() {
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
func (h *directHost) counter(name ...string) (value string) {
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

// directPatience bounds every wait. In an emulated machine all takes longer.
var directPatience = func() time.Duration {
	if os.Getenv("APPLIANCE_TEST_IN_VM") != "" {
		return 2 * time.Minute
	}
	return 20 * time.Second
}()

// A directConn is a client's connection.
type directConn struct {
	net.Conn
	server string // name of the node
	sees   string // the client's address, as the server sees it
}

func dialFrom(h *directHost, f netip.AddrPort) (*directConn, error) {
	var c net.Conn
	err := h.try(func() (err error) {
		d := net.Dialer{Timeout: directPatience}
		c, err = d.Dial("tcp", f.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(directPatience))
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
	dc := &directConn{Conn: c}
	dc.server, dc.sees, _ = strings.Cut(line, " ")
	return dc, nil
}

func (l *directLab) dial(f netip.AddrPort) *directConn {
	l.t.Helper()
	c, err := dialFrom(l.client, f)
	if err != nil {
		l.t.Fatalf("a new connection to %v: %v", f, err)
	}
	l.t.Cleanup(func() { c.Close() })
	return c
}

// echo sends a message and waits for it to come back.
func (c *directConn) echo(msg []byte) error {
	c.SetDeadline(time.Now().Add(directPatience))
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

// busy is how long connections are silent between two messages.
const busy = 10 * time.Millisecond

// A stream is many connections with data in flight in both directions.
type stream struct {
	conns  []*directConn
	stop   atomic.Bool
	wg     sync.WaitGroup
	errs   chan error
	echoes atomic.Int64
}

func startStream(conns []*directConn, pause time.Duration) *stream {
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
	h := jhash(addrPortKey(client), slotSeed)
	return int(uint64(h) * uint64(slots) >> 32)
}
