package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	nl "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"appliance/nft/ruleset"
)

// patience bounds what should take no time: reaching it is a failure.
const patience = 10 * time.Second

// A world is machines in network namespaces, on one link, with a router to
// another:
//
//	client, node, b1, b2, b3 ─ link ─ router ─ far
type world struct {
	t    testing.TB
	link *machine // holds the bridge
	// node carries the rules and the VIPs.
	node, client, router, far *machine
	backends                  []*machine
}

type machine struct {
	t    testing.TB
	name string
	ns   netns.NsHandle
	// addr4 and addr6 are the addresses on the link.
	addr4, addr6 netip.Addr
}

var (
	vip4 = netip.MustParseAddr("10.0.0.200")
	vip6 = netip.MustParseAddr("fd00::200")
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces and nf_tables")
	}
}

func newWorld(t testing.TB) *world {
	needRoot(t)
	w := &world{t: t, link: newMachine(t, "link")}
	w.link.in(func() {
		w.must(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
		w.up("br0")
	})
	w.node = w.join("node", 1)
	w.client = w.join("client", 100)
	w.router = w.join("router", 254)
	for i := range 3 {
		w.backends = append(w.backends, w.join(fmt.Sprintf("b%d", i+1), 11+i))
	}
	w.far = newMachine(t, "far")
	w.cable(w.router, "eth1", w.far, "eth0")
	w.router.in(func() {
		w.address("eth1", "10.9.0.254/24")
		w.address("eth1", "fd09::254/64")
		w.sysctl("net/ipv4/ip_forward", "1")
		w.sysctl("net/ipv6/conf/all/forwarding", "1")
	})
	w.far.addr4, w.far.addr6 = netip.MustParseAddr("10.9.0.100"), netip.MustParseAddr("fd09::100")
	w.far.in(func() {
		w.address("eth0", "10.9.0.100/24")
		w.address("eth0", "fd09::100/64")
		w.route("eth0", "10.0.0.0/24", "10.9.0.254")
		w.route("eth0", "fd00::/64", "fd09::254")
	})
	for _, m := range append([]*machine{w.node, w.client}, w.backends...) {
		m.in(func() {
			w.route("eth0", "10.9.0.0/24", "10.0.0.254")
			w.route("eth0", "fd09::/64", "fd00::254")
		})
	}
	w.node.in(func() {
		w.sysctl("net/ipv4/conf/all/rp_filter", "1")
		w.sysctl("net/ipv4/conf/eth0/rp_filter", "1")
		w.address("lo", vip4.String()+"/32")
		w.address("lo", vip6.String()+"/128")
	})
	// The holder would answer for the VIP; here, the kernel of the node does
	// for IPv4, and a route does for IPv6.
	for _, m := range append([]*machine{w.client, w.router}, w.backends...) {
		m.in(func() { w.route("eth0", vip6.String()+"/128", w.node.addr6.String()) })
	}
	return w
}

// join makes a machine on the link.
func (w *world) join(name string, number int) *machine {
	m := newMachine(w.t, name)
	w.cable(w.link, name, m, "eth0")
	w.link.in(func() {
		br, err := netlink.LinkByName("br0")
		w.must(err)
		port, err := netlink.LinkByName(name)
		w.must(err)
		w.must(netlink.LinkSetMaster(port, br))
	})
	m.addr4 = netip.AddrFrom4([4]byte{10, 0, 0, byte(number)})
	m.addr6 = netip.MustParseAddr(fmt.Sprintf("fd00::%d", number))
	m.in(func() {
		w.address("eth0", m.addr4.String()+"/24")
		w.address("eth0", m.addr6.String()+"/64")
	})
	return m
}

func newMachine(t testing.TB, name string) *machine {
	m := &machine{t: t, name: name}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	m.ns, err = netns.New() // enters it
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netns.Set(home); err != nil {
			panic(err)
		}
	}()
	t.Cleanup(func() { m.ns.Close() })
	// Addresses are good at once: the kernel's own duplicate detection takes
	// longer than the tests.
	for _, key := range []string{"net/ipv6/conf/default/accept_dad", "net/ipv6/conf/default/dad_transmits"} {
		if err := writeSetting(key, "0"); err != nil {
			t.Fatal(err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	return m
}

// in runs f in the machine's namespace.
func (m *machine) in(f func()) {
	m.t.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		m.t.Fatal(err)
	}
	defer home.Close()
	if err := netns.Set(m.ns); err != nil {
		m.t.Fatal(err)
	}
	// t.Fatal in f ends the goroutine and runs this, too.
	defer func() {
		if err := netns.Set(home); err == nil {
			runtime.UnlockOSThread()
		}
	}()
	f()
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) up(link string) {
	w.t.Helper()
	l, err := netlink.LinkByName(link)
	w.must(err)
	w.must(netlink.LinkSetUp(l))
}

func (w *world) cable(a *machine, aName string, b *machine, bName string) {
	w.t.Helper()
	a.in(func() {
		w.must(netlink.LinkAdd(&netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: aName},
			PeerName:      bName,
			PeerNamespace: netlink.NsFd(int(b.ns)),
		}))
		w.up(aName)
	})
	b.in(func() { w.up(bName) })
}

func (w *world) address(link, prefix string) {
	w.t.Helper()
	l, err := netlink.LinkByName(link)
	w.must(err)
	a, err := netlink.ParseAddr(prefix)
	w.must(err)
	if a.IP.To4() == nil {
		a.Flags = 0x02 // IFA_F_NODAD
		if link == "lo" {
			a.PreferedLft, a.ValidLft = 0, 1<<31-1
		}
	} else if link == "lo" {
		a.Scope = int(netlink.SCOPE_HOST)
	}
	w.must(netlink.AddrAdd(l, a))
}

func (w *world) route(link, to, via string) {
	w.t.Helper()
	l, err := netlink.LinkByName(link)
	w.must(err)
	_, dst, err := net.ParseCIDR(to)
	w.must(err)
	w.must(netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Gw: net.ParseIP(via)}))
}

func (w *world) sysctl(path, value string) {
	w.t.Helper()
	w.must(writeSetting(path, value))
}

func (m *machine) addr(f ruleset.IPFamily) netip.Addr {
	if f.Has(m.addr4) {
		return m.addr4
	}
	return m.addr6
}

// serve answers every connection to address with name and the client's
// address, then echoes lines until the client goes.
func (m *machine) serve(name, address string) { m.serveOn(net.ListenConfig{}, name, address) }

// forward is serve with a transparent socket.
func (m *machine) forward(name string, at netip.AddrPort) {
	m.serveOn(transparent(at), name, at.String())
}

// transparent listens with IP_TRANSPARENT.
func transparent(at netip.AddrPort) net.ListenConfig {
	level, option := unix.IPPROTO_IP, unix.IP_TRANSPARENT
	if at.Addr().Is6() {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT
	}
	return net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }), err)
	}}
}

func (m *machine) serveOn(c net.ListenConfig, name, address string) {
	m.t.Helper()
	var l net.Listener
	m.in(func() {
		var err error
		if l, err = c.Listen(context.Background(), "tcp", address); err != nil {
			m.t.Fatal(err)
		}
	})
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := make(map[net.Conn]bool)
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			wg.Add(1)
			go func() {
				defer wg.Done()
				defer c.Close()
				fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr())
				io.Copy(c, c)
			}()
		}
	}()
	m.t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
}

// A session is an open connection to a server made by serve.
type session struct {
	net.Conn
	server string // the name of the server
	seenAs string // our address as the server sees it
}

func (m *machine) dial(to netip.AddrPort) (*session, error) {
	var s *session
	var err error
	m.in(func() {
		var c net.Conn
		if c, err = (&net.Dialer{Timeout: patience}).DialContext(context.Background(), "tcp", to.String()); err != nil {
			return
		}
		c.SetDeadline(time.Now().Add(patience))
		var line [256]byte
		n, rerr := c.Read(line[:])
		if rerr != nil {
			c.Close()
			err = rerr
			return
		}
		server, seenAs, _ := strings.Cut(strings.TrimSpace(string(line[:n])), " ")
		s = &session{Conn: c, server: server, seenAs: seenAs}
	})
	return s, err
}

// ask opens a connection, closes it, and returns who answered.
func (m *machine) ask(to netip.AddrPort) string {
	m.t.Helper()
	s, err := m.dial(to)
	if err != nil {
		m.t.Fatalf("%s asks %v: %v", m.name, to, err)
	}
	s.Close()
	return s.server
}

// echo sends a line and waits for it to come back.
func (s *session) echo() error {
	s.SetDeadline(time.Now().Add(patience))
	if _, err := s.Write([]byte("hello\n")); err != nil {
		return err
	}
	var b [6]byte
	if _, err := io.ReadFull(s, b[:]); err != nil {
		return err
	}
	if string(b[:]) != "hello\n" {
		return errors.New("echo is garbled: " + string(b[:]))
	}
	return nil
}

// ruleset is what nft shows of the machine.
func (m *machine) ruleset() string {
	m.t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		m.t.Skip("needs the program nft, to look at the rules from outside")
	}
	var out []byte
	var err error
	m.in(func() { out, err = exec.Command("nft", "list", "ruleset").CombinedOutput() })
	if err != nil {
		m.t.Fatalf("nft list ruleset: %v\n%s", err, out)
	}
	return string(out)
}

func (m *machine) run(command ...string) {
	m.t.Helper()
	m.in(func() {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			m.t.Fatalf("%v: %v\n%s", command, err, out)
		}
	})
}

// generation is the number of changes that the machine's nf_tables have seen.
func (m *machine) generation() uint32 {
	m.t.Helper()
	var id uint32
	m.in(func() {
		c, err := nl.Dial(unix.NETLINK_NETFILTER, nil)
		if err != nil {
			m.t.Fatal(err)
		}
		defer c.Close()
		answers, err := c.Execute(nl.Message{
			Header: nl.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: nl.Request},
			Data:   make([]byte, 4),
		})
		if err != nil || len(answers) != 1 {
			m.t.Fatalf("asking for the generation: %d answers, %v", len(answers), err)
		}
		ad, err := nl.NewAttributeDecoder(answers[0].Data[4:])
		if err != nil {
			m.t.Fatal(err)
		}
		ad.ByteOrder = binary.BigEndian
		for ad.Next() {
			if ad.Type() == unix.NFTA_GEN_ID {
				id = ad.Uint32()
			}
		}
	})
	return id
}
