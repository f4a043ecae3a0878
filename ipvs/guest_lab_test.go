package ipvs_test

import (
	"bufio"
	"context"
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
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"appliance/balancer"
	"appliance/ipvs"
	"appliance/nft"
)

// slow bounds what has to happen at once, in an emulated machine that shares its processors. A SYN without an answer is
// sent again after one second.
const slow = 900 * time.Millisecond

// The lab: hosts on one bridge, and one host behind a router. The hosts node and peer run the data plane and have the
// virtual addresses on lo; servers run on node, peer and third, on every address of the host.
//
//	node .1   peer .2   third .3   client .10   router .254 -- far
var hosts = []string{"node", "peer", "third", "client", "router"}

const serverPort = 6443

func address(ip6 bool, last string) netip.Addr {
	if ip6 {
		return netip.MustParseAddr("fd00:1::" + last)
	}
	return netip.MustParseAddr("10.1.0." + last)
}

func vip(ip6 bool) netip.Addr { return address(ip6, "100") }

func backend(ip6 bool, last string) balancer.Backend {
	return balancer.Backend{Addr: netip.AddrPortFrom(address(ip6, last), serverPort), Weight: 1}
}

// all lists the three backends, which answer with the names of their hosts.
func all(ip6 bool) []balancer.Backend {
	return []balancer.Backend{backend(ip6, "1"), backend(ip6, "2"), backend(ip6, "3")}
}

func service(ip6 bool, port uint16, s balancer.Scheduler, backends ...balancer.Backend) balancer.Service {
	return balancer.Service{
		LoadBalancer: "api",
		Frontend:     netip.AddrPortFrom(vip(ip6), port),
		Scheduler:    s,
		Backends:     backends,
	}
}

// build makes the lab. The machine is thrown away, so nothing is undone.
func build(t *testing.T) {
	t.Helper()
	var script strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&script, format+"\n", args...) }
	say("set -e; ip netns add wire; ip -n wire link add name br0 type bridge; ip -n wire link set br0 up")
	lasts := map[string]string{"node": "1", "peer": "2", "third": "3", "client": "10", "router": "254"}
	for _, h := range hosts {
		say("ip netns add %s; ip -n %s link set lo up", h, h)
		say("ip -n wire link add %s type veth peer name eth0 netns %s", h, h)
		say("ip -n wire link set %s master br0 up; ip -n %s link set eth0 up", h, h)
		say("ip -n %s addr add 10.1.0.%s/24 dev eth0", h, lasts[h])
		say("ip -n %s addr add fd00:1::%s/64 dev eth0 nodad", h, lasts[h])
		say("ip netns exec %s sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0", h)
	}
	say("ip netns add far; ip -n far link set lo up; ip -n router link add far type veth peer name eth0 netns far")
	say("ip -n router link set far up; ip -n router addr add 10.2.0.1/24 dev far")
	say("ip -n router addr add fd00:2::1/64 dev far nodad")
	say("ip -n far link set eth0 up; ip -n far addr add 10.2.0.10/24 dev eth0")
	say("ip -n far addr add fd00:2::10/64 dev eth0 nodad")
	say("ip -n far route add default via 10.2.0.1; ip -n far route add default via fd00:2::1")
	say("ip netns exec router sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	for _, h := range []string{"node", "peer"} {
		say("ip -n %s addr add 10.1.0.100/32 dev lo scope host", h)
		say("ip -n %s addr add fd00:1::100/128 dev lo nodad preferred_lft 0", h)
	}
	for _, h := range []string{"node", "peer", "third"} {
		say("ip -n %s route add 10.2.0.0/24 via 10.1.0.254; ip -n %s route add fd00:2::/64 via fd00:1::254", h, h)
	}
	// Static routes: answering for the address on the link is another package's work.
	for _, h := range []string{"client", "router"} {
		say("ip -n %s route add 10.1.0.100/32 via 10.1.0.1; ip -n %s route add fd00:1::100/128 via fd00:1::1", h, h)
	}
	if out, err := exec.Command("sh", "-c", script.String()).CombinedOutput(); err != nil {
		t.Fatalf("build the lab: %v\n%s", err, out)
	}
	for _, h := range []string{"node", "peer", "third"} {
		serve(t, h)
	}
}

// in runs f on a thread in the namespace of a host. The thread ends with f.
func in(host string, f func()) {
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // and never unlocked: the thread is not used again
		ns, err := netns.GetFromName(host)
		if err == nil {
			err = netns.Set(ns)
			ns.Close()
		}
		if err != nil {
			panic(fmt.Sprintf("namespace %s: %v", host, err))
		}
		f()
	})
	wg.Wait()
}

// serve sends every client the name of the host, and then what it receives.
func serve(t *testing.T, host string) {
	t.Helper()
	var l net.Listener
	var err error
	in(host, func() { l, err = net.Listen("tcp", fmt.Sprintf("[::]:%d", serverPort)) })
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with its connection, or with the machine
				defer c.Close()
				fmt.Fprintln(c, host)
				io.Copy(c, c)
			}()
		}
	})
}

// A conn is an open connection and the name of the host that serves it.
type conn struct {
	net.Conn
	r    *bufio.Reader
	host string
}

func dial(from string, at netip.AddrPort) (c *conn, err error) {
	in(from, func() {
		var n net.Conn
		if n, err = net.DialTimeout("tcp", at.String(), 5*time.Second); err != nil {
			return
		}
		n.SetDeadline(time.Now().Add(5 * time.Second))
		c = &conn{Conn: n, r: bufio.NewReader(n)}
		if c.host, err = c.r.ReadString('\n'); err != nil {
			n.Close()
			return
		}
		c.host = strings.TrimSpace(c.host)
		n.SetDeadline(time.Time{})
	})
	return c, err
}

func mustDial(t *testing.T, from string, at netip.AddrPort) *conn {
	t.Helper()
	c, err := dial(from, at)
	if err != nil {
		t.Fatalf("from %s: %v", from, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// echo sends a line and expects it back.
func (c *conn) echo(within time.Duration) error {
	c.SetDeadline(time.Now().Add(within))
	defer c.SetDeadline(time.Time{})
	if _, err := fmt.Fprintln(c, "ping"); err != nil {
		return err
	}
	line, err := c.r.ReadString('\n')
	if err == nil && line != "ping\n" {
		err = fmt.Errorf("sent ping, got %q", line)
	}
	return err
}

// spread dials n times, closes each, and counts who answered.
func spread(t *testing.T, from string, at netip.AddrPort, n int) map[string]int {
	t.Helper()
	got := map[string]int{}
	for range n {
		c, err := dial(from, at)
		if err != nil {
			t.Errorf("from %s: %v", from, err)
			continue
		}
		got[c.host]++
		c.Close()
	}
	return got
}

// A plane is the real one with its rules, in the namespace of its host.
type plane struct {
	t    *testing.T
	host string
	*ipvs.VirtualServer
}

func newPlane(t *testing.T, host string, change ...func(*ipvs.Config)) *plane {
	t.Helper()
	c := ipvs.Config{Masquerader: &nft.IPVSMasquerade{}, Refuser: &nft.Rejecter{}}
	for _, f := range change {
		f(&c)
	}
	p, err := ipvs.New(c)
	if err != nil {
		t.Fatal(err)
	}
	here := &plane{t, host, p}
	t.Cleanup(here.close)
	return here
}

func (p *plane) apply(services ...balancer.Service) (repaired int) {
	p.t.Helper()
	repaired, err := p.try(services...)
	if err != nil {
		p.t.Fatalf("apply on %s: %v", p.host, err)
	}
	return repaired
}

func (p *plane) try(services ...balancer.Service) (repaired int, err error) {
	in(p.host, func() { repaired, err = p.Apply(context.Background(), services) })
	return repaired, err
}

func (p *plane) close() {
	in(p.host, func() {
		if err := p.Close(); err != nil {
			p.t.Errorf("close on %s: %v", p.host, err)
		}
	})
}

// command runs a program in the namespace of a host.
func command(t *testing.T, host string, args ...string) string {
	t.Helper()
	out, err := exec.Command("ip", append([]string{"netns", "exec", host}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s on %s: %v\n%s", args, host, err, out)
	}
	return string(out)
}

func sysctl(t *testing.T, host, key string) string {
	t.Helper()
	var b []byte
	var err error
	in(host, func() { b, err = os.ReadFile("/proc/sys/" + key) })
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}
