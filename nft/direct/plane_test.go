package direct

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"appliance/neighbours"
	"appliance/nft/ruleset"
	"appliance/segment"
)

func eachFrontend(t *testing.T, test func(t *testing.T, f netip.AddrPort)) {
	for _, f := range frontends {
		name := "IPv4"
		if f.Addr().Is6() {
			name = "IPv6"
		}
		t.Run(name, func(t *testing.T) { test(t, f) })
	}
}

func local(c net.Conn) netip.AddrPort {
	a := c.LocalAddr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// Every connection goes where the Maglev table leads, whichever node is the holder,
// and the server sees the client's own address.
func TestDirectBalances(t *testing.T) {
	l := newLab(t)
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	opened := [2]map[string]int{{}, {}}
	for i, f := range frontends {
		family := i % 2
		var members []member
		names := make(map[netip.AddrPort]string)
		for i, n := range l.nodes {
			b := l.backend(i, family)
			members = append(members, member{b.Addr, 1})
			names[b.Addr] = n.name
		}
		table := slotsOf(prefer(members).table(everyone, everyone))
		got := make(map[string]int)
		for i := range 150 {
			l.hold(i % 3)
			c := l.dial(f)
			got[c.server]++
			want := names[table[slotOf(local(c), len(table))].owner]
			if c.server != want {
				t.Fatalf("%v is served by %s, and its slot is %s's", local(c), c.server, want)
			}
			if c.sees != local(c).String() {
				t.Fatalf("the server sees %s and the client is %v", c.sees, local(c))
			}
		}
		for i, n := range l.nodes {
			if got[n.name] < 20 {
				t.Errorf("%s got %d of 150 connections to %v", n.name, got[n.name], f)
			}
			// Each node counts its own; a SYN that was sent again counts again.
			counted := l.counted(i, f)
			opened[family][n.name] += got[n.name]
			if own, want := counted[n.name], opened[family][n.name]; own < want || own > want+10 || len(counted) != 1 {
				t.Errorf("%s counted %v of %d connections to %v", n.name, counted, want, f)
			}
		}
	}
}

// counted is what a node counted for each node's backend, if anything, at all VIPs that have their rules in common with f.
func (l *lab) counted(node int, f netip.AddrPort) map[string]int {
	l.t.Helper()
	got := make(map[string]int)
	err := l.nodes[node].inside(func() error {
		s, err := l.planes[node].Stats()
		for _, c := range s.Counts {
			for i, n := range l.nodes {
				if c.Frontend.Addr().Is4() == f.Addr().Is4() && c.Connections > 0 && slices.Contains(l.planes[node].cfg.Nodes[i].Addrs,
					c.Backend.Addr.Addr()) {
					got[n.name] += int(c.Connections)
				}
			}
		}
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return got
}

func (l *lab) open(n int) *stream {
	l.t.Helper()
	return l.openSlow(n, busy)
}

func (l *lab) openSlow(n int, pause time.Duration) *stream {
	l.t.Helper()
	var conns []*conn
	for _, f := range frontends {
		for range n {
			conns = append(conns, l.dial(f))
		}
	}
	s := startStream(conns, pause)
	l.t.Cleanup(func() {
		s.stop.Store(true)
		s.wg.Wait()
	})
	return s
}

func TestDirectSurvivesHolder(t *testing.T) {
	l := newLab(t)
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	s := l.open(200)
	for _, holder := range []int{1, 2, 0} {
		l.hold(holder)
		s.flow(t)
	}
	s.end(t)
}

// A backend drains, comes back, and the holder changes at the same time: no connection
// breaks, and the draining backend gets no new ones.
func TestDirectDrainAndReturn(t *testing.T) {
	l := newLab(t)
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	s := l.open(60)
	s.flow(t)
	l.apply([]int{0, 2}, []int{1})
	s.flow(t)
	l.hold(2)
	s.flow(t)
	eachFrontend(t, func(t *testing.T, f netip.AddrPort) {
		for range 40 {
			if c := l.dial(f); c.server == "node2" {
				t.Fatal("a draining backend got a new connection")
			}
		}
	})
	// Connections that began meanwhile are in slots of node2.
	meanwhile := l.open(60)
	l.apply([]int{0, 1, 2}, nil)
	l.hold(1)
	s.flow(t)
	meanwhile.flow(t)
	l.apply([]int{2}, []int{0, 1})
	s.flow(t)
	meanwhile.flow(t)
	l.apply(nil, []int{0, 1, 2})
	s.flow(t)
	if c, err := dialFrom(l.client, frontends[0]); err == nil {
		c.Close()
		t.Fatal("a new connection was taken though every backend drains")
	}
	s.end(t)
	meanwhile.end(t)
}

// The connections to a backend that is gone are reset when the client sends. All
// others stay open, also when the backend comes back.
func TestDirectLeaveAndReturn(t *testing.T) {
	l := newLab(t)
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	stay, leave := l.openApart("node2", 40)
	l.apply([]int{0, 2}, nil)
	var all sync.WaitGroup
	for _, c := range leave { // at once: those after the first few are reset at their second try (meter.go)
		all.Go(func() {
			if err := c.echo([]byte("hello")); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
				t.Errorf("a connection to the backend that left: %v, want a reset", err)
			}
		})
	}
	all.Wait()
	stay.flow(t)
	meanwhile := l.open(40)
	l.apply([]int{0, 1, 2}, nil)
	stay.flow(t)
	meanwhile.flow(t)
	stay.end(t)
	meanwhile.end(t)
	eachFrontend(t, func(t *testing.T, f netip.AddrPort) {
		for range 60 {
			if l.dial(f).server == "node2" {
				return
			}
		}
		t.Error("the backend that came back gets no connections")
	})
}

// While a server is away, before any check knows, its new connections go to the
// others: nobody notices a server that restarts. They stay where they are when it is
// back. If there is no server at all, clients are refused at once.
func TestDirectServerRestarts(t *testing.T) {
	l := newLab(t)
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	for away, n := range l.nodes { // the first one holds
		l.servers[away].close()
		meanwhile := l.open(30)
		for _, c := range meanwhile.conns {
			if c.server == n.name {
				t.Fatalf("%v is served by %s, which has no server", local(c), n.name)
			}
		}
		l.servers[away] = newServer(t, n)
		meanwhile.flow(t)
		meanwhile.end(t)
		eachFrontend(t, func(t *testing.T, f netip.AddrPort) {
			for range 60 {
				if l.dial(f).server == n.name {
					return
				}
			}
			t.Errorf("the server of %s that is back gets no connections", n.name)
		})
	}
	for _, s := range l.servers {
		s.close()
	}
	eachFrontend(t, func(t *testing.T, f netip.AddrPort) {
		for range 20 {
			if _, err := dialFrom(l.client, f); !errors.Is(err, unix.ECONNREFUSED) {
				t.Fatalf("no server anywhere: %v, want it refused", err)
			}
		}
	})
}

// openApart opens n connections to each frontend and separates those to a server from
// the others, which carry data.
func (l *lab) openApart(server string, n int) (others *stream, apart []*conn) {
	l.t.Helper()
	var rest []*conn
	for _, f := range frontends {
		for range n {
			c := l.dial(f)
			if c.server == server {
				apart = append(apart, c)
			} else {
				rest = append(rest, c)
			}
		}
	}
	if len(apart) == 0 {
		l.t.Fatalf("none of %d connections went to %s", 2*n, server)
	}
	others = startStream(rest, busy)
	l.t.Cleanup(func() {
		others.stop.Store(true)
		others.wg.Wait()
	})
	return others, apart
}

// Open connections survive while nodes disagree about who is in rotation.
func TestDirectDisagreement(t *testing.T) {
	l := newLab(t)
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	s := l.open(60)
	views := [][2][]int{
		{{0}, {1, 2}}, {{1, 2}, {0}}, {{2}, {0, 1}}, {{0, 1, 2}, nil}, {nil, {0, 1, 2}},
	}
	for i := range 10 {
		for node := range l.nodes {
			v := views[(i+node*2)%len(views)]
			l.applyAt(node, v[0], v[1])
		}
		l.hold(i % 3)
		s.flow(t)
	}
	s.end(t)
}

// A packet that belongs to no connection is answered once and does not circulate, even
// if no two nodes know the same backends.
func TestDirectEndsLoops(t *testing.T) {
	l := newLab(t)
	l.usable()
	for _, views := range [][3][2][]int{
		{{{0, 1, 2}, nil}, {{0, 1, 2}, nil}, {{0, 1, 2}, nil}},
		{{{1}, {0, 2}}, {{2}, {0, 1}}, {{0}, {1, 2}}},
		{{{1}, nil}, {{2}, nil}, {{0}, nil}},
		{{{1}, {2}}, {{0}, {2}}, {{0}, {1}}},
	} {
		for node, v := range views {
			l.applyAt(node, v[0], v[1])
		}
		for holder := range l.nodes {
			l.hold(holder)
			before := l.settled()
			const strays, tries = 30, 3
			sent := uint64(len(frontends) * strays * tries)
			for i, f := range frontends {
				family := i % 2
				for range tries { // at its second try at the latest, each goes round
					l.strays(l.client.addrs[family], f, strays)
				}
			}
			// Each may be forwarded, handed on five times (to one of three, to
			// three in their order and one more, to the owner) and be answered.
			n := l.settled() - before
			if n < sent {
				t.Fatalf("%d stray packets became %d: they did not arrive", sent, n)
			}
			if n > sent*7+20 {
				t.Errorf("%d stray packets became %d at holder %d with views %v", sent, n, holder+1, views)
			}
		}
	}
}

// Where a switch clears the DSCP, in which nodes count, the TTL ends the round of a packet that nobody has.
func TestDirectEndsLoopsBySpentTTL(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("no nft: install nftables")
	}
	l := newLab(t)
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	l.sw.do(func() error {
		return exec.Command(nft, "table bridge clear { chain forward { type filter hook forward priority 0; "+
			"ip dscp set 0; ip6 dscp set 0; }; }").Run()
	})
	for family, f := range frontends[:2] {
		before := l.settled()
		l.strays(l.client.addrs[family], f, 1)
		const most = 64 + 20 // each round lowers it; there are resets, and questions for addresses
		for quiet, last := 0, before; quiet < 4 && last-before <= most; {
			time.Sleep(50 * time.Millisecond)
			now := l.sent()
			if quiet++; now != last {
				quiet = 0
			}
			last = now
			if n := now - before; n > most {
				t.Errorf("%v: one packet was sent %d times", f, n)
			}
		}
	}
}

// settled waits until the nodes send nothing more, and returns how much they have
// sent.
func (l *lab) settled() uint64 {
	l.t.Helper()
	for n, quiet := l.sent(), 0; ; {
		time.Sleep(50 * time.Millisecond)
		now := l.sent()
		if quiet++; now-n > 5 {
			quiet = 0
		}
		if n = now; quiet == 4 {
			return n
		}
	}
}

// sent is the number of packets that the nodes have sent.
func (l *lab) sent() (n uint64) {
	l.t.Helper()
	for _, h := range l.nodes {
		h.do(func() error {
			eth, err := netlink.LinkByName("eth0")
			if err == nil {
				n += eth.Attrs().Statistics.TxPackets
			}
			return err
		})
	}
	return n
}

func TestDirectRepairs(t *testing.T) {
	l := newLab(t)
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	before := l.handles(0)
	if n := l.applyAt(0, []int{0, 1, 2}, nil); n != 0 {
		t.Errorf("%d repairs of what was right", n)
	}
	if after := l.handles(0); !slices.Equal(after, before) {
		t.Error("rules were written anew though nothing had changed")
	}
	l.nodes[0].do(func() error {
		conn, err := ruleset.Dial()
		if err != nil {
			return err
		}
		conn.FlushRuleset()
		return conn.Flush()
	})
	if n := l.applyAt(0, []int{0, 1, 2}, nil); n == 0 {
		t.Error("a flushed ruleset was not counted as a repair")
	}
	if n := l.applyAt(0, []int{0, 1, 2}, nil); n != 0 {
		t.Errorf("%d repairs of what had been repaired", n)
	}
	s := l.open(20)
	s.flow(t)
	s.end(t)
	// Neither an Apply without services nor Close leaves anything behind.
	l.nodes[0].do(func() error {
		_, err := l.planes[0].Apply(context.Background(), nil)
		return err
	})
	if h := l.handles(0); len(h) != 0 {
		t.Errorf("%d rules are left", len(h))
	}
	l.nodes[1].do(l.planes[1].Close)
	if h := l.handles(1); len(h) != 0 {
		t.Errorf("%d rules are left after Close", len(h))
	}
}

// A backend that leaves or comes back changes a few rules. The rest stays as it is, or
// a busy node would need too long when another node dies.
func TestDirectChangesLittle(t *testing.T) {
	l := newLab(t)
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	before := l.handles(0)
	for _, rotation := range [][]int{{0, 1}, {0, 1, 2}, {1, 2}, {0, 1, 2}} {
		l.applyAt(0, rotation, nil)
		after := l.handles(0)
		kept := slices.DeleteFunc(slices.Clone(after), func(h uint64) bool { return !slices.Contains(before, h) })
		if len(kept) == len(before) || len(kept) < len(before)/2 {
			t.Errorf("%v: %d of %d rules were kept", rotation, len(kept), len(before))
		}
		if n := l.applyAt(0, rotation, nil); n != 0 {
			t.Errorf("%v: what was written last is not what is wanted", rotation)
		}
		s := l.open(20)
		s.flow(t)
		s.end(t)
		before = after
	}
	// The next round finds what somebody else has removed meanwhile.
	l.nodes[0].do(func() error {
		conn, err := ruleset.Dial()
		if err != nil {
			return err
		}
		at := rulePlan{}.ingress().Kernel()
		conn.FlushChain(&nftables.Chain{Table: at, Name: "slot_" + ruleset.NameOf(frontends[0])})
		return conn.Flush()
	})
	l.applyAt(0, []int{0, 1}, nil)
	if n := l.applyAt(0, []int{0, 1}, nil); n == 0 {
		t.Error("a change of the set of backends hides what somebody else has taken out")
	}
	if n := l.applyAt(0, []int{0, 1}, nil); n != 0 {
		t.Errorf("%d repairs of what had been repaired", n)
	}
}

// handles are the handles of all rules of a node: a rule that is written again has a
// new one.
func (l *lab) handles(node int) (handles []uint64) {
	l.t.Helper()
	l.nodes[node].do(func() error {
		conn, err := ruleset.Dial()
		if err != nil {
			return err
		}
		want := rulePlan{}.ingress()
		chains, err := conn.ListChainsOfTableFamily(want.Family)
		if err != nil {
			return err
		}
		for _, c := range chains {
			rules, err := conn.GetRules(want.Kernel(), c)
			if err != nil {
				return err
			}
			for _, r := range rules {
				handles = append(handles, r.Handle)
			}
		}
		return nil
	})
	return handles
}

// A client on a node is served by the node's own backend if that is in rotation, else
// by the others.
func TestDirectLocalClients(t *testing.T) {
	l := newLab(t)
	l.usable()
	ask := func(f netip.AddrPort, n int) map[string]int {
		got := make(map[string]int)
		for range n {
			c, err := dialFrom(l.nodes[0], f)
			if err != nil {
				t.Fatalf("a client on node1 of %v: %v", f, err)
			}
			got[c.server]++
			c.Close()
		}
		return got
	}
	eachFrontend(t, func(t *testing.T, f netip.AddrPort) {
		l.apply([]int{0, 1, 2}, nil)
		if got := ask(f, 10); got["node1"] != 10 {
			t.Errorf("a client on node1 got %v", got)
		}
		kept, err := dialFrom(l.nodes[0], f)
		if err != nil {
			t.Fatal(err)
		}
		defer kept.Close()
		l.apply([]int{1, 2}, []int{0})
		if err := kept.echo([]byte("hello")); err != nil {
			t.Errorf("the connection to the node's own draining backend: %v", err)
		}
		if got := ask(f, 60); got["node2"] < 10 || got["node3"] < 10 || got["node1"] > 0 {
			t.Errorf("a client on node1, whose backend drains, got %v", got)
		}
		if n := l.counted(0, f); n["node1"] < 11 || n["node2"]+n["node3"] < 60 {
			t.Errorf("node1 counted %v of 11 connections to itself and 60 to the others", n)
		}
		away, err := dialFrom(l.nodes[0], f)
		if err != nil {
			t.Fatal(err)
		}
		defer away.Close()
		left := 1
		if away.server == "node3" {
			left = 2
		}
		l.apply([]int{3 - left}, []int{0})
		if err := away.echo([]byte("hello")); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
			t.Errorf("the connection to a backend that left: %v, want a reset", err)
		}
		l.apply(nil, nil)
		if c, err := dialFrom(l.nodes[0], f); !errors.Is(err, unix.ECONNREFUSED) {
			if err == nil {
				c.Close()
			}
			t.Errorf("a client on node1 of no backend: %v, want a refusal", err)
		}
		if c, err := dialFrom(l.client, f); !errors.Is(err, unix.ECONNREFUSED) {
			if err == nil {
				c.Close()
			}
			t.Errorf("a client of no backend: %v, want a refusal", err)
		}
	})
}

// run follows links and neighbours on a node until the test ends.
func (l *lab) run(node int) {
	l.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- l.nodes[node].inside(func() error { return l.planes[node].Run(ctx) })
	}()
	l.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Errorf("Run on %s: %v", l.nodes[node].name, err)
		}
	})
}

// A node gets another network card: the other nodes follow, and so does the node
// itself.
func TestDirectNewCard(t *testing.T) {
	l := newLab(t)
	l.usable()
	for i := range l.nodes {
		l.run(i)
	}
	l.apply([]int{0, 1, 2}, nil)
	stay, _ := l.openApart("node2", 20)
	l.nodes[1].do(func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(eth)
	})
	stay.flow(t)
	old := l.nodes[1].mac.String()
	l.plug(l.nodes[1])
	if l.nodes[1].mac.String() == old {
		t.Fatal("the new card has the old MAC address")
	}
	// The balancer applies on every change and every few seconds.
	deadline := time.Now().Add(patience)
	for served := false; !served; {
		select {
		case <-l.planes[0].Changed():
		case <-l.planes[1].Changed():
		case <-time.After(100 * time.Millisecond):
		}
		l.apply([]int{0, 1, 2}, nil)
		served = true
		var table neighbours.View
		for _, node := range []int{0, 2} {
			l.nodes[node].do(func() (err error) {
				table, _, err = l.planes[node].neighbours.Look()
				return err
			})
			for _, a := range l.nodes[1].addrs {
				served = served && table.MACs[neighbours.Location{Link: "eth0", Addr: a}] == [6]byte(l.nodes[1].mac)
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("node1 still has the old card of node2: %v", table.MACs)
		}
	}
	l.apply([]int{0, 1, 2}, nil)
	stay.flow(t)
	stay.end(t)
	for holder := range l.nodes {
		l.hold(holder)
		s := l.open(20)
		s.flow(t)
		s.end(t)
	}
}

// "Fragmentation needed" about a connection reaches the server that has it.
func TestDirectPathMTU(t *testing.T) {
	l := newLab(t)
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	for i, f := range frontends {
		family := i % 2
		counter := []string{"Icmp", "InDestUnreachs"}
		if f.Addr().Is6() {
			counter = []string{"Icmp6InPktTooBigs"}
		}
		tried := make(map[string]bool)
		for len(tried) < 3 {
			c := l.dial(f)
			if tried[c.server] {
				continue
			}
			tried[c.server] = true
			node := l.nodes[slices.IndexFunc(l.nodes, func(n *host) bool { return n.name == c.server })]
			before := node.counter(counter...)
			l.client.do(func() error { return tooBig(l.client.addrs[family], f, local(c)) })
			for deadline := time.Now().Add(patience); node.counter(counter...) == before; {
				if time.Now().After(deadline) {
					t.Fatalf("%s did not hear of the path MTU to %v", c.server, local(c))
				}
				time.Sleep(5 * time.Millisecond)
			}
		}
	}
}

// tooBig sends an ICMP error about a packet from a server to a client, as a
// router would: the next link carries 1400 bytes (RFC 1191, RFC 8201).
func tooBig(from netip.Addr, server, client netip.AddrPort) error {
	quote := make([]byte, 20)
	tcp := make([]byte, 20)
	binary.BigEndian.PutUint16(tcp[0:], server.Port())
	binary.BigEndian.PutUint16(tcp[2:], client.Port())
	src, dst := server.Addr().AsSlice(), client.Addr().AsSlice()
	if from.Is4() {
		quote[0], quote[8], quote[9] = 0x45, 64, unix.IPPROTO_TCP
		binary.BigEndian.PutUint16(quote[2:], 1500)
		quote[6] = 0x40
		copy(quote[12:], src)
		copy(quote[16:], dst)
		binary.BigEndian.PutUint16(quote[10:], segment.Checksum(quote))
		icmp := append([]byte{3, 4, 0, 0, 0, 0, 1400 >> 8, 1400 & 0xff}, append(quote, tcp...)...)
		binary.BigEndian.PutUint16(icmp[2:], segment.Checksum(icmp))
		return sendRaw(unix.AF_INET, unix.IPPROTO_ICMP, icmp, &unix.SockaddrInet4{Addr: server.Addr().As4()})
	}
	quote = make([]byte, 40)
	quote[0], quote[6], quote[7] = 6<<4, unix.IPPROTO_TCP, 64
	binary.BigEndian.PutUint16(quote[4:], 1460)
	copy(quote[8:], src)
	copy(quote[24:], dst)
	icmp := append([]byte{2, 0, 0, 0, 0, 0, 1400 >> 8, 1400 & 0xff}, append(quote, tcp...)...)
	// The kernel computes the checksum of raw ICMPv6 (RFC 3542 section 3.1).
	return sendRaw(unix.AF_INET6, unix.IPPROTO_ICMPV6, icmp, &unix.SockaddrInet6{Addr: server.Addr().As16()})
}

func sendRaw(family, proto int, b []byte, to unix.Sockaddr) error {
	s, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	return unix.Sendto(s, b, 0, to)
}

// A server under a flood of SYNs keeps no socket for the handshakes that it answers
// (SYN cookies, RFC 4987 section 3.6). Their last packet must not be taken for a
// packet of another node's connection.
func TestDirectSYNCookies(t *testing.T) {
	l := newLab(t)
	for _, n := range l.nodes {
		n.do(func() error { // 2: always
			return os.WriteFile("/proc/sys/net/ipv4/tcp_syncookies", []byte("2"), 0)
		})
	}
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	s := l.open(40)
	s.flow(t)
	l.apply([]int{1, 2}, []int{0})
	s.flow(t)
	s.end(t)
	for _, n := range l.nodes {
		if n.counter("TcpExt", "SyncookiesRecv") == "0" {
			t.Errorf("%s has had no handshake by cookie: the test tests nothing", n.name)
		}
	}
}
