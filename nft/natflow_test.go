package nft

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"appliance/balancer"
	"appliance/nft/conntrack"
	"appliance/nft/ruleset"
)

// service balances port 6443 of the VIP over the world's backends.
func (w *world) service(f ruleset.IPFamily, backends ...*machine) balancer.Service {
	s := balancer.Service{LoadBalancer: "api", Frontend: vip(f, 6443), Scheduler: balancer.RoundRobin}
	for _, b := range backends {
		s.Backends = append(s.Backends, balancer.Backend{Name: b.name, Addr: netip.AddrPortFrom(b.addr(f), 6443), Weight: 1})
	}
	return s
}

func (w *world) clients() []*machine { return []*machine{w.client, w.far, w.node} }

func TestNATWithoutBackendsRefuses(t *testing.T) {
	w := newWorld(t)
	n := w.newNAT()
	// It must not reach the listener of the node either.
	w.node.serve("node", ":6443")
	w.apply(n, w.service(ruleset.IPv4()), w.service(ruleset.IPv6()))
	for _, f := range ruleset.Families() {
		for _, c := range w.clients() {
			best := patience
			for range 3 {
				start := time.Now()
				_, err := c.dial(vip(f, 6443))
				if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%s dials %v: got %v, want connection refused", c.name, vip(f, 6443), err)
				}
				best = min(best, time.Since(start))
			}
			// A dropped packet costs at least the first retransmission, 1 s
			// (RFC 6298 section 2.1).
			if best > 900*time.Millisecond {
				t.Errorf("%s was refused after %v at best: not at once", c.name, best)
			}
		}
	}
	w.node.in(func() {
		s, err := n.Stats()
		if err != nil {
			t.Fatal(err)
		}
		if want := uint64(2 * 3 * len(w.clients())); s.Refused < want {
			t.Errorf("refused counts %d, want at least %d", s.Refused, want)
		}
	})
}

func TestNATBackendLeaves(t *testing.T) {
	w := newWorld(t)
	n := w.newNAT()
	for _, b := range w.backends {
		b.serve(b.name, ":6443")
	}
	other := func(f ruleset.IPFamily) balancer.Service {
		s := w.service(f, w.backends[2])
		s.Frontend = vip(f, 7443)
		return s
	}
	w.apply(n, w.service(ruleset.IPv4(), w.backends...), w.service(ruleset.IPv6(), w.backends...))
	open := make(map[string][]*session) // by server
	for _, f := range ruleset.Families() {
		for _, c := range w.clients() {
			for range w.backends {
				s, err := c.dial(vip(f, 6443))
				if err != nil {
					t.Fatalf("%s: %v", c.name, err)
				}
				defer s.Close()
				open[s.server] = append(open[s.server], s)
			}
		}
	}
	for _, b := range w.backends {
		if len(open[b.name]) != 2*len(w.clients()) {
			t.Fatalf("%s has %d sessions, want %d", b.name, len(open[b.name]), 2*len(w.clients()))
		}
	}

	// b1 leaves, b2 drains, b3 stays.
	drain := func(f ruleset.IPFamily) balancer.Service {
		s := w.service(f, w.backends[1:]...)
		s.Draining, s.Backends = s.Backends[:1], s.Backends[1:]
		return s
	}
	start := time.Now()
	w.apply(n, drain(ruleset.IPv4()), drain(ruleset.IPv6()))

	// Nobody sends anything; still the clients of b1 are reset.
	for _, s := range open["b1"] {
		s.SetDeadline(time.Now().Add(patience))
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("idle client %v of the backend that left: got %v, want a reset", s.LocalAddr(), err)
		}
	}
	t.Logf("%d idle clients were reset after %v", len(open["b1"]), time.Since(start))
	for _, name := range []string{"b2", "b3"} {
		for _, s := range open[name] {
			if err := s.echo(); err != nil {
				t.Errorf("client %v of %s: %v", s.LocalAddr(), name, err)
			}
		}
	}
	for _, f := range ruleset.Families() {
		for range 4 {
			if got := w.client.ask(vip(f, 6443)); got != "b3" {
				t.Errorf("new connection went to %s, want b3 alone", got)
			}
		}
	}

	// The last draining backend goes, too.
	w.apply(n, w.service(ruleset.IPv4(), w.backends[2]), w.service(ruleset.IPv6(), w.backends[2]))
	for _, s := range open["b2"] {
		s.SetDeadline(time.Now().Add(patience))
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("client %v of the backend that was drained: got %v, want a reset", s.LocalAddr(), err)
		}
	}
	// Open connections of a service that is dropped stay: another plane or process of
	// ours may go on with it.
	w.apply(n, other(ruleset.IPv4()), other(ruleset.IPv6()))
	for _, s := range open["b3"] {
		if err := s.echo(); err != nil {
			t.Errorf("client %v after its service was dropped: %v", s.LocalAddr(), err)
		}
	}
}

// A client that sends is reset by the answer, even if no acknowledgement has reached
// it.
func TestNATClientOfGoneBackendIsResetWhenItSends(t *testing.T) {
	w := newWorld(t)
	n := w.newNAT()
	w.backends[0].serve("b1", ":6443")
	w.backends[1].serve("b2", ":6443")
	for _, f := range ruleset.Families() {
		w.apply(n, w.service(f, w.backends[0]))
		s, err := w.client.dial(vip(f, 6443))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		// Nothing reaches the client while the backend goes.
		w.client.run("nft", "add table inet deaf; add chain inet deaf in { type filter hook prerouting priority -300; }; "+
			"add rule inet deaf in iif eth0 meta l4proto tcp drop")
		w.apply(n, w.service(f, w.backends[1]))
		w.node.in(func() {
			for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
				flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range flows {
					src, _ := netip.AddrFromSlice(f.Forward.SrcIP)
					if from := netip.AddrPortFrom(src.Unmap(), f.Forward.SrcPort); from == vip(ruleset.IPv4(), 6443) ||
						from == vip(ruleset.IPv6(), 6443) {
						t.Errorf("conntrack takes the acknowledgement for a connection: %v", f)
					}
				}
			}
		})
		w.client.run("nft", "delete table inet deaf")
		if _, err := s.Write([]byte("hello\n")); err != nil {
			t.Fatal(err)
		}
		s.SetDeadline(time.Now().Add(patience))
		if _, err := io.ReadAll(s); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("IPv%s: got %v, want a reset", f.Name, err)
		}
	}
}

// A client that still waits for a backend that vanished gets to another.
func TestNATClientOfVanishedBackendConnectsToAnother(t *testing.T) {
	w := newWorld(t)
	n := w.newNAT()
	w.backends[1].serve("b2", ":6443")
	w.backends[0].run("nft", "add table inet gone; add chain inet gone in { type filter hook prerouting priority -300; "+
		"}; add rule inet gone in meta l4proto tcp counter drop")
	for _, f := range ruleset.Families() {
		w.apply(n, w.service(f, w.backends[0]))
		type result struct {
			s   *session
			err error
		}
		done := make(chan result, 1)
		go func() {
			s, err := w.client.dial(vip(f, 6443))
			done <- result{s, err}
		}()
		for end := time.Now().Add(patience); strings.Contains(w.backends[0].ruleset(),
			"packets 0"); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("no SYN reaches the backend")
			}
		}
		start := time.Now()
		w.apply(n, w.service(f, w.backends[1]))
		r := <-done
		if r.err != nil {
			t.Fatalf("IPv%s: %v", f.Name, r.err)
		}
		t.Logf("IPv%s: connected %v after the backend had left", f.Name, time.Since(start))
		if r.s.server != "b2" {
			t.Errorf("IPv%s: connected to %s, want b2", f.Name, r.s.server)
		}
		r.s.Close()
		w.backends[0].run("nft", "flush chain inet gone in; add rule inet gone in meta l4proto tcp counter drop")
	}
}

func TestNATSchedulers(t *testing.T) {
	w := newWorld(t)
	n := w.newNAT()
	for _, b := range w.backends {
		b.serve(b.name, ":6443")
	}
	for _, f := range ruleset.Families() {
		s := w.service(f, w.backends...)
		s.Backends[0].Weight, s.Backends[1].Weight, s.Backends[2].Weight = 3, 1, 0
		count := func(scheduler balancer.Scheduler, from *machine, times int) map[string]int {
			s.Scheduler = scheduler
			w.apply(n, s)
			got := make(map[string]int)
			for range times {
				got[from.ask(s.Frontend)]++
			}
			return got
		}
		if got := count(balancer.RoundRobin, w.client, 8); got["b1"] != 4 || got["b2"] != 4 {
			t.Errorf("rr: %v, want 4 each of b1 and b2, whose weights are not zero", got)
		}
		if got := count(balancer.WeightedRoundRobin, w.client, 8); got["b1"] != 6 || got["b2"] != 2 {
			t.Errorf("wrr: %v, want 6 and 2", got)
		}
		// 200 draws with probability 3/4: mean 150, deviation 6; six of them aside.
		if got := count(balancer.Random, w.client, 200); got["b1"] < 114 || got["b1"] > 186 || got["b1"]+got["b2"] != 200 {
			t.Errorf("random: %v, want about 150 and 50", got)
		}
		for _, c := range w.clients() {
			if got := count(balancer.SourceHash, c, 6); len(got) != 1 {
				t.Errorf("sh: %s reached %v, want one server only", c.name, got)
			}
		}
		w.node.in(func() {
			st, err := n.Stats()
			if err != nil {
				t.Fatal(err)
			}
			// What the earlier schedulers counted is carried along.
			var sum uint64
			for _, c := range st.Counts {
				if c.LoadBalancer != "api" || c.Frontend != s.Frontend {
					t.Errorf("count of %v", c)
				}
				sum += c.Connections
			}
			if want := uint64(8 + 8 + 200 + 18); sum != want {
				t.Errorf("counters say %d connections, want %d: %v", sum, want, st.Counts)
			}
		})
	}
}

func TestNATRepair(t *testing.T) {
	w := newWorld(t)
	n := w.newNAT()
	w.backends[0].serve("b1", ":6443")
	services := []balancer.Service{w.service(ruleset.IPv4(), w.backends[0]), w.service(ruleset.IPv6(), w.backends[0])}
	if r := w.apply(n, services...); r != 0 {
		t.Errorf("first Apply repaired %d", r)
	}
	var open []*session
	for _, f := range ruleset.Families() {
		for _, c := range w.clients() {
			s, err := c.dial(vip(f, 6443))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			open = append(open, s)
		}
	}
	for _, damage := range [][]string{
		{"nft", "flush", "ruleset"},
		{"nft", "delete", "table", "ip", "appliance_nat"},
		{"nft", "flush", "table", "ip", "appliance_nat"},
		{"nft", "flush", "chain", "ip", "appliance_nat", "postrouting"},
		{"nft", "flush", "map", "ip", "appliance_nat", "services"},
		{"nft", "add", "rule", "ip", "appliance_nat", "prerouting", "drop"},
		{"sysctl", "-qw", "net.ipv4.ip_forward=0"},
	} {
		what := strings.Join(damage, " ")
		// A delayed acknowledgement (at most 200 ms on Linux, TCP_DELACK_MAX) that comes
		// while there is no NAT reaches the node itself, which resets it.
		time.Sleep(250 * time.Millisecond)
		w.node.run(damage...)
		if r := w.apply(n, services...); r == 0 {
			t.Errorf("%s: no repair counted", what)
		}
		for _, f := range ruleset.Families() {
			if got := w.client.ask(vip(f, 6443)); got != "b1" {
				t.Errorf("%s: then %s answers", what, got)
			}
		}
		// Open connections go on, as conntrack remembers them.
		for _, s := range open {
			if err := s.echo(); err != nil {
				t.Fatalf("%s: open connection of %v: %v", what, s.LocalAddr(), err)
			}
		}
		if r := w.apply(n, services...); r != 0 {
			t.Errorf("%s: repaired twice", what)
		}
	}
	// A change of what is wanted is no repair.
	if r := w.apply(n, services[0]); r != 0 {
		t.Errorf("change counted as %d repairs", r)
	}
}

// A connection that a server on the node has, from before the host had any rule that needs conntrack, goes on: a
// haproxy that is replaced keeps its clients. One that nobody has is reset.
func TestNATLeavesConnectionsOfThisHost(t *testing.T) {
	w := newWorld(t)
	for _, f := range ruleset.Families() {
		w.node.serve("haproxy", vip(f, 6443).String())
	}
	var open []*session
	for _, f := range ruleset.Families() {
		for range 5 {
			s, err := w.client.dial(vip(f, 6443))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			open = append(open, s)
		}
	}
	n := w.newNAT()
	w.apply(n, w.service(ruleset.IPv4(), w.backends...), w.service(ruleset.IPv6(), w.backends...))
	for _, s := range open {
		for range 2 {
			if err := s.echo(); err != nil {
				t.Errorf("open connection of %v: %v", s.LocalAddr(), err)
			}
		}
	}
}

// cut has what is sent from the frontends to clients, or the other way, lost on the way until the returned function is
// called. Conntrack does not see it.
func (w *world) cut(hook, match string) (mend func()) {
	w.node.run("nft", "add table inet cut; add chain inet cut cut { type filter hook "+hook+" priority -310; }; "+
		"add rule inet cut cut "+match+" drop")
	return func() { w.node.run("nft", "delete table inet cut") }
}

// A connection that is being opened to a server on the node while the rules come is opened.
func TestNATLeavesHandshakesOfThisHost(t *testing.T) {
	w := newWorld(t)
	for _, f := range ruleset.Families() {
		w.node.serve("haproxy", vip(f, 6443).String())
	}
	var begun []net.Conn
	mend := w.cut("prerouting", "tcp dport 6443 tcp flags & (syn | ack) == ack")
	for _, f := range ruleset.Families() {
		w.client.in(func() {
			c, err := net.Dial("tcp", vip(f, 6443).String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			begun = append(begun, c)
		})
	}
	w.apply(w.newNAT(), w.service(ruleset.IPv4(), w.backends...), w.service(ruleset.IPv6(), w.backends...))
	mend()
	for _, c := range begun {
		c.SetDeadline(time.Now().Add(patience))
		var line [7]byte
		if _, err := io.ReadFull(c, line[:]); err != nil || string(line[:]) != "haproxy" {
			t.Errorf("connection of %v: %q, %v", c.LocalAddr(), line, err)
		}
	}
}

// Where a server on the node is the first to speak once the rules are there, conntrack takes the frontend for the one
// that opened the connection. The client may open another from the same port as soon as this one has ended.
func TestNATServesPortsOfEarlierConnections(t *testing.T) {
	w := newWorld(t)
	w.backends[0].serve("b1", ":6443")
	open := make(map[netip.AddrPort][2]net.Conn) // the client's end, and the server's
	var services []balancer.Service
	for _, f := range ruleset.Families() {
		services = append(services, w.service(f, w.backends[0]))
		var ends [2]net.Conn
		var l net.Listener
		var err error
		w.node.in(func() { l, err = net.Listen("tcp", vip(f, 6443).String()) })
		if err == nil {
			w.client.in(func() { ends[0], err = net.Dial("tcp", vip(f, 6443).String()) })
		}
		if err == nil {
			ends[1], err = l.Accept()
		}
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		for _, c := range ends {
			t.Cleanup(func() { c.Close() })
			c.SetDeadline(time.Now().Add(patience))
		}
		open[vip(f, 6443)] = ends
	}
	say := func(from, to net.Conn) {
		t.Helper()
		if _, err := from.Write([]byte{'.'}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(to, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	n := w.newNAT()
	w.apply(n, services...)
	for _, ends := range open {
		say(ends[1], ends[0])
	}
	n.turned = time.Time{} // 2 s later
	w.apply(n, services...)
	for frontend, ends := range open {
		say(ends[0], ends[1])
		say(ends[1], ends[0])
		port := ends[0].LocalAddr()
		if err := ends[0].(*net.TCPConn).SetLinger(0); err != nil { // it ends with a reset
			t.Fatal(err)
		}
		ends[0].Close()
		w.client.in(func() {
			c, err := (&net.Dialer{LocalAddr: port, Timeout: patience}).Dial("tcp", frontend.String())
			if err != nil {
				t.Error(err)
				return
			}
			c.Close()
		})
	}
}

// Connections count that sockets here have, and that are translated to backends elsewhere, but not those of clients
// here.
func TestOpenConnections(t *testing.T) {
	w := newWorld(t)
	w.backends[0].serve("b1", ":6443")
	w.node.serve("node", ":6444")
	w.node.serve("haproxy", ":6443")
	for _, f := range ruleset.Families() {
		own := netip.AddrPortFrom(w.node.addr(f), 6444)
		count := func() (n int) {
			t.Helper()
			var err error
			w.node.in(func() {
				n, err = conntrack.Open([]netip.AddrPort{vip(f, 6443)}, []netip.AddrPort{
					own, netip.AddrPortFrom(w.backends[0].addr(f), 6443)})
			})
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		var open []*session
		dial := func(m *machine, to netip.AddrPort, want int) {
			t.Helper()
			s, err := m.dial(to)
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, s)
			if n := count(); n != want {
				t.Errorf("%v: %d connections count, not %d", to, n, want)
			}
		}
		dial(w.client, vip(f, 6443), 1)                             // of a socket on the VIP
		dial(w.client, own, 2)                                      // of a backend on this host
		dial(w.client, netip.AddrPortFrom(w.node.addr(f), 6443), 2) // past the VIP, and of no backend
		dial(w.node, own, 2)                                        // of this host itself
		n := w.newNAT()
		w.apply(n, w.service(f, w.backends[0]))
		dial(w.client, vip(f, 6443), 3) // translated
		dial(w.node, vip(f, 6443), 3)
		for _, s := range open {
			s.Close()
		}
		for end := time.Now().Add(patience); count() > 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d connections count that are closed", count())
			}
		}
	}
}

// Nothing is sent when the rules are right, even by a new process that finds the rules
// of the last.
func TestApplyTwiceSendsNothing(t *testing.T) {
	w := newWorld(t)
	n := w.newNAT()
	services := []balancer.Service{w.service(ruleset.IPv4(), w.backends...), w.service(ruleset.IPv6())}
	w.apply(n, services...)
	next := NewNAT("", nil)
	w.node.in(func() { next.sockets() }) // as Usable does, before the first Apply
	generation := w.node.generation()
	slices.Reverse(services)
	slices.Reverse(services[1].Backends)
	w.apply(n, services...)
	w.apply(next, services...)
	if got := w.node.generation(); got != generation {
		t.Errorf("generation of nf_tables went from %d to %d", generation, got)
	}
}

func TestNATForwardingIsPutBack(t *testing.T) {
	w := newWorld(t)
	setting := func(path string) (v string) {
		w.node.in(func() {
			var err error
			if v, err = readSetting(path); err != nil {
				t.Fatal(err)
			}
		})
		return v
	}
	const ra = "net/ipv6/conf/eth0/accept_ra"
	n := NewNAT("", nil)
	node := w.service(ruleset.IPv4(), w.node)
	w.apply(n, node)
	if v := setting(ipv4Forward); v != "0" {
		t.Errorf("ip_forward is %s for a backend on the node itself, want 0", v)
	}
	before := setting(ra)
	w.apply(n, w.service(ruleset.IPv4(), w.backends...), w.service(ruleset.IPv6(), w.backends...))
	if v4, v6, r := setting(ipv4Forward), setting(ipv6Forward), setting(ra); v4 != "1" || v6 != "1" || r != "2" {
		t.Errorf("ip_forward %s, forwarding %s, accept_ra %s; want 1, 1, 2", v4, v6, r)
	}
	w.node.in(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	if v4, v6, r := setting(ipv4Forward), setting(ipv6Forward), setting(ra); v4 != "0" || v6 != "0" || r != before {
		t.Errorf("after Close: ip_forward %s, forwarding %s, accept_ra %s; want 0, 0, %s", v4, v6, r, before)
	}
	if rules := w.node.ruleset(); rules != "" {
		t.Errorf("after Close there is\n%s", rules)
	}
}

func TestNATUsable(t *testing.T) {
	w := newWorld(t)
	good := func() balancer.LoadBalancer {
		s := w.service(ruleset.IPv4(), w.backends...)
		return balancer.LoadBalancer{Name: "api", Frontends: []netip.AddrPort{s.Frontend}, Scheduler: s.Scheduler,
			Backends: s.Backends}
	}
	ap := netip.MustParseAddrPort
	for what, c := range map[string]struct {
		change func(*balancer.LoadBalancer)
		want   string // part of the error
	}{
		"good":        {func(*balancer.LoadBalancer) {}, ""},
		"no backends": {func(lb *balancer.LoadBalancer) { lb.Backends = nil }, ""},
		"least connections": {func(lb *balancer.LoadBalancer) { lb.Scheduler = balancer.LeastConn },
			"rr, wrr, sh or random"},
		"cross family": {func(lb *balancer.LoadBalancer) {
			lb.Frontends = []netip.AddrPort{vip(ruleset.IPv6(),
				6443)}
		}, "translate between families"},
		"second family": {func(lb *balancer.LoadBalancer) {
			lb.Frontends = append(lb.Frontends,
				vip(ruleset.IPv6(), 6443))
		}, "no backend has the address family"},
		"loopback frontend": {func(lb *balancer.LoadBalancer) { lb.Frontends[0] = ap("127.0.0.1:6443") },
			"dataPlane: userspace"},
		"unspecified": {func(lb *balancer.LoadBalancer) { lb.Frontends[0] = ap("0.0.0.0:6443") },
			"name the addresses"},
		"loopback backend": {func(lb *balancer.LoadBalancer) { lb.Backends[0].Addr = ap("127.0.0.1:6443") },
			"address of the node"},
		"backend is frontend": {func(lb *balancer.LoadBalancer) { lb.Backends[0].Addr = lb.Frontends[0] },
			"server's own address"},
		"listed twice": {func(lb *balancer.LoadBalancer) { lb.Frontends = append(lb.Frontends, lb.Frontends[0]) },
			"two load balancers"},
	} {
		t.Run(what, func(t *testing.T) {
			lb := good()
			c.change(&lb)
			var err error
			w.node.in(func() { err = NewNAT("", nil).Usable(context.Background(), lb) })
			switch {
			case c.want == "" && err != nil:
				t.Errorf("got %v, want none", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
	if rules := w.node.ruleset(); rules != "" {
		t.Errorf("Usable left\n%s", rules)
	}
	w.node.in(func() {
		for _, path := range []string{ipv4Forward, ipv6Forward} {
			if v, err := readSetting(path); err != nil || v != "0" {
				t.Errorf("Usable changed %s to %s (%v)", path, v, err)
			}
		}
	})
}
