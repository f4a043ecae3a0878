package direct

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"appliance/balancer"
	"appliance/neighbours"
	"appliance/pathprobe"
)

// newWorkerLab is a lab whose node3 is outside the group.
func newWorkerLab(t *testing.T) *lab {
	t.Helper()
	l := newLab(t)
	l.worker = "node3"
	for i, n := range l.nodes {
		l.planes[i] = l.plane(n, nil)
		t.Cleanup(func() { n.do(l.planes[i].Close) })
	}
	return l
}

// ask is Usable on a node.
func (l *lab) ask(node int, change func(*balancer.LoadBalancer)) error {
	lb := l.loadBalancer()
	if change != nil {
		change(&lb)
	}
	return l.nodes[node].try(func() error { return l.planes[node].Usable(context.Background(), lb) })
}

// refused checks that a node rejects the plane, with the reason.
func (l *lab) refused(node int, why string) {
	l.t.Helper()
	if err := l.ask(node, nil); err == nil || !strings.Contains(err.Error(), why) {
		l.t.Fatalf("direct on %s: %v, want %q in it", l.nodes[node].name, err, why)
	}
}

// admitted waits until a node accepts the plane.
func (l *lab) admitted(node int) {
	l.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		err := l.ask(node, nil)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("direct on %s: %v", l.nodes[node].name, err)
		}
	}
}

// way waits until the path from a peer to the worker, at each of its addresses, is in
// the wanted state.
func (l *lab) way(p *testProber, want pathprobe.Path) {
	l.t.Helper()
	for i, f := range frontends {
		family := i % 2
		id := workerAt(l.nodes[2].addrs[family])
		for deadline := time.Now().Add(patience); p.Path(f, id) != want; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				l.t.Fatalf("the way from %s to the %s is %v, want %v", p.cfg.Self, id, p.Path(f, id), want)
			}
		}
	}
}

// group has the two peers and the worker serve.
func (l *lab) group() (probers []*testProber, stop []func()) {
	l.t.Helper()
	for i := range l.nodes {
		p, end := l.probingAt(i, 50*time.Millisecond)
		probers, stop = append(probers, p), append(stop, end)
		p.Open()
	}
	for _, i := range []int{2, 0, 1} {
		l.admitted(i)
		l.applyAt(i, []int{0, 1, 2}, nil)
	}
	for i, p := range probers[:2] {
		l.way(p, pathprobe.PathProved)
		becomes(l.t, p, l.nodes[1-i].name, pathprobe.PathProved)
		becomes(l.t, probers[2], l.nodes[i].name, pathprobe.PathProved)
	}
	l.apply([]int{0, 1, 2}, nil)
	return probers, stop
}

// A machine that runs no appliance gets nothing in a client's name, and its own
// packets are a client's. The plane is rejected because of it, by name, until it has
// proved that it is a worker that serves.
func TestWorkersProveThemselves(t *testing.T) {
	l := newWorkerLab(t)
	heard := l.eavesdrop(2)
	var probers []*testProber
	for i := range 2 {
		p, _ := l.probingAt(i, 50*time.Millisecond)
		p.Open()
		probers = append(probers, p)
	}
	const strange = "backend 10.77.0.13:6443 is at none of the peers' addresses, and no worker answers"
	l.refused(0, strange)
	l.refused(1, strange)
	l.applyAt(0, []int{0, 1, 2}, nil)
	is := func(node int) bool {
		now, err := neighbours.View{}, error(nil)
		l.nodes[node].do(func() error { now, err = l.planes[node].look(); return err })
		return slices.Contains(l.planes[node].knownMACs(now), [6]byte(l.nodes[2].mac))
	}
	if is(0) {
		t.Error("an unknown machine is a node")
	}
	for range 60 {
		if c := l.dial(frontends[0]); c.server == "node3" {
			t.Fatal("an unknown machine got a connection")
		}
	}
	if passed := l.planes[0].PassedOver(); len(passed) == 0 {
		t.Error("nobody learns that the unknown machine is passed over")
	}
	l.nodes[0].do(l.planes[0].Close)
	// A worker of another group is unknown, too.
	_, end := l.probingWith(2, 50*time.Millisecond, func(c *pathprobe.Config) {
		c.Keys, c.WorkerKeys = [][]byte{[]byte("others")}, [][]byte{[]byte("others")}
	})
	time.Sleep(500 * time.Millisecond)
	l.refused(0, strange)
	end()
	for kind, n := range heard() {
		if kind != kindControl {
			t.Errorf("the unknown machine got %d probes of kind %d", n, kind)
		}
	}

	// It is a worker, and has neither the VIPs nor the rules.
	third, _ := l.probingAt(2, 50*time.Millisecond)
	l.proves(probers[0], pathprobe.ProofAnswered)
	l.refused(0, "worker 10.77.0.13 takes no packets of clients yet")
	if err := l.ask(0, func(lb *balancer.LoadBalancer) { lb.Plane = balancer.Direct }); err != nil {
		t.Errorf("direct that was forced waits for a worker: %v", err)
	}
	if !is(0) {
		t.Error("a worker is no node")
	}
	// It has the VIPs, and serves with another plane.
	third.Open()
	l.way(probers[0], pathprobe.PathUnready)
	l.refused(0, "another data plane")
	// It serves.
	l.admitted(2)
	l.applyAt(2, []int{0, 1, 2}, nil)
	l.admitted(0)
	l.admitted(1)
	for _, p := range probers {
		l.way(p, pathprobe.PathProved)
		if got := p.ProvedWorkers(); !slices.Equal(got, l.nodes[2].addrs) {
			t.Errorf("%s has reached %v, want %v", p.cfg.Self, got, l.nodes[2].addrs)
		}
	}
}

// proves waits until the worker has proved something at each of its addresses.
func (l *lab) proves(p *testProber, want pathprobe.Proof) {
	l.t.Helper()
	for _, a := range l.nodes[2].addrs {
		for deadline := time.Now().Add(patience); p.Proof(workerAt(a)) != want; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				l.t.Fatalf("%s takes %v for %v, want %v", p.cfg.Self, a, p.Proof(workerAt(a)), want)
			}
		}
	}
}

// kindControl is the probe from a node's own address to another's.
const kindControl byte = 0

// probeKind reads the kind of a path probe from its frame, if it was signed with
// the secret.
func probeKind(frame []byte, secret string) (kind byte, ok bool) {
	const kindAt, bodyLen = 8, 8 + 1 + 16 + 2*16 + 18
	var addrs []byte // as signed: each of 16 bytes, with its port
	var tcp []byte
	switch ip := frame[14:]; {
	case len(ip) >= 24 && ip[0] == 0x45:
		tcp = ip[20:]
		for i := range 2 {
			a := netip.AddrFrom4([4]byte(ip[12+4*i:])).As16()
			addrs = append(append(addrs, a[:]...), tcp[2*i:2*i+2]...)
		}
	case len(ip) >= 44 && ip[0] == 0x60:
		tcp = ip[40:]
		for i := range 2 {
			addrs = append(append(addrs, ip[8+16*i:24+16*i]...), tcp[2*i:2*i+2]...)
		}
	}
	if len(tcp) < 20+bodyLen+sha256.Size || string(tcp[20:28]) != pathprobe.Magic {
		return 0, false
	}
	body, signature := tcp[20:20+bodyLen], tcp[20+bodyLen:][:sha256.Size]
	key := sha256.Sum256([]byte("appliance path probe\x00" + secret))
	h := hmac.New(sha256.New, key[:])
	h.Write(body)
	h.Write(addrs)
	return body[kindAt], hmac.Equal(h.Sum(nil), signature)
}

// eavesdrop counts what probes reach a node, by kind.
func (l *lab) eavesdrop(node int) (heard func() map[byte]int) {
	l.t.Helper()
	h := l.nodes[node]
	var conn *packet.Conn
	h.do(func() error {
		eth, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		conn, err = packet.Listen(eth, packet.Raw, unix.ETH_P_ALL, nil)
		return err
	})
	var mu sync.Mutex
	var wg sync.WaitGroup
	kinds := make(map[byte]int)
	wg.Go(func() {
		for buf := make([]byte, 2048); ; {
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if kind, ok := probeKind(buf[:n], "workers"); ok && [6]byte(buf[6:12]) != [6]byte(h.mac) {
				mu.Lock()
				kinds[kind]++
				mu.Unlock()
			}
		}
	})
	stop := sync.OnceFunc(func() {
		conn.Close()
		wg.Wait()
	})
	l.t.Cleanup(stop)
	return func() map[byte]int {
		stop()
		mu.Lock()
		defer mu.Unlock()
		if kinds[kindControl] == 0 {
			l.t.Error("nothing was heard at all")
		}
		return kinds
	}
}

// A worker's server is like the peers': connections come, go on when the holder
// changes, and stay where they are when it leaves rotation and comes back.
func TestDirectServesWorkers(t *testing.T) {
	l := newWorkerLab(t)
	probers, stop := l.group()
	s, others := l.mixed(60)
	for _, holder := range []int{1, 0} {
		l.hold(holder)
		s.flow(t)
		others.flow(t)
	}
	// It leaves rotation and comes back. Connections that began in its slots meanwhile
	// come to it now, and it hands them on.
	l.apply([]int{0, 1}, []int{2})
	meanwhile := l.open(60)
	for _, c := range meanwhile.conns {
		if c.server == "node3" {
			t.Fatal("a worker that drains got a new connection")
		}
	}
	l.apply([]int{0, 1, 2}, nil)
	for _, s := range []*stream{s, others, meanwhile} {
		s.flow(t)
	}
	// Its server restarts, and nobody notices.
	l.servers[2].listener.Close()
	for _, f := range frontends {
		for range 40 {
			if c := l.dial(f); c.server == "node3" {
				t.Fatal("there is no server")
			}
		}
	}
	// The worker's own clients are served.
	for _, f := range frontends {
		c, err := dialFrom(l.nodes[0], f)
		if err != nil {
			t.Fatalf("a client on a peer: %v", err)
		}
		c.Close()
	}

	// Its appliance ends. It gets no new connections and keeps those that it has; this
	// is no reason to leave the plane.
	l.servers[2] = newServer(t, l.nodes[2])
	stop[2]()
	for i, p := range probers[:2] {
		l.way(p, pathprobe.PathNoAnswer)
		l.applyAt(i, []int{0, 1, 2}, nil)
		if err := l.ask(i, nil); err != nil {
			t.Errorf("direct on %s without the worker's appliance: %v", l.nodes[i].name, err)
		}
	}
	for _, f := range frontends {
		for range 30 {
			if c := l.dial(f); c.server == "node3" {
				t.Fatal("a worker without appliance got a new connection")
			}
		}
	}
	for _, s := range []*stream{s, others, meanwhile} {
		s.flow(t)
		s.end(t)
	}
}

// mixed opens n connections to each frontend, and separates those to the worker from
// the others. All carry data.
func (l *lab) mixed(n int) (worker, others *stream) {
	l.t.Helper()
	others, apart := l.openApart("node3", n)
	worker = startStream(apart, busy)
	l.t.Cleanup(func() {
		worker.stop.Store(true)
		worker.wg.Wait()
	})
	return worker, others
}

// A worker's backend is taken out of the configuration. Its open connections go on,
// and the worker stays in the plane as long as they may.
func TestDirectLeftByWorkers(t *testing.T) {
	l := newWorkerLab(t)
	probers, _ := l.group()
	var conns []*conn
	for _, f := range frontends {
		for range 25 {
			conns = append(conns, l.dial(f))
		}
	}
	without := func(lb *balancer.LoadBalancer) {
		lb.Backends = slices.DeleteFunc(lb.Backends, func(b balancer.Backend) bool {
			return slices.Contains(l.nodes[2].addrs, b.Addr.Addr())
		})
	}
	for i := range l.nodes {
		if err := l.ask(i, without); err != nil {
			t.Fatalf("direct on %s: %v", l.nodes[i].name, err)
		}
		l.applyAt(i, []int{0, 1}, []int{2})
	}
	at := map[string]int{}
	for _, c := range conns {
		if err := c.echo([]byte("hello")); err != nil {
			t.Errorf("the connection to %s: %v", c.server, err)
		}
		at[c.server]++
	}
	if at["node3"] == 0 {
		t.Fatalf("%v: the test tests nothing", at)
	}
	for _, p := range probers[:2] {
		l.way(p, pathprobe.PathProved)
	}
	// Nothing is open there any more.
	l.applyAt(2, []int{0, 1}, nil)
	if err := l.ask(2, without); err == nil || !strings.Contains(err.Error(), "none of the backends") {
		t.Errorf("direct on a worker without a backend: %v", err)
	}
}

// A worker to which an earlier process proved a path is still known while it is away,
// and gets nothing.
func TestDirectRemembersWorkers(t *testing.T) {
	l := newWorkerLab(t)
	for i := range 2 {
		p, _ := l.probingWith(i, 50*time.Millisecond, func(c *pathprobe.Config) { c.ProvedWorkers = l.nodes[2].addrs })
		p.Open()
	}
	for i := range 2 {
		if err := l.ask(i, nil); err != nil {
			t.Fatal(err)
		}
		l.applyAt(i, []int{0, 1, 2}, nil)
	}
	for _, f := range frontends {
		for range 30 {
			if c := l.dial(f); c.server == "node3" {
				t.Fatal("a worker that is away got a new connection")
			}
		}
	}
}

// A plane that serves already gives a new backend a moment to prove itself, and goes
// on meanwhile.
func TestDirectWaitsForNewWorkers(t *testing.T) {
	l := newWorkerLab(t)
	p, _ := l.probingAt(0, 50*time.Millisecond)
	p.Open()
	without := func(lb *balancer.LoadBalancer) {
		lb.Backends = slices.DeleteFunc(lb.Backends, func(b balancer.Backend) bool {
			return slices.Contains(l.nodes[2].addrs, b.Addr.Addr())
		})
	}
	plane := l.planes[0]
	with := plane.cfg.Nodes
	plane.SetNodes(with[:2])
	if err := l.ask(0, without); err != nil {
		t.Fatal(err)
	}
	l.applyAt(0, []int{0, 1}, nil)
	plane.SetNodes(with)
	if err := l.ask(0, nil); err != nil {
		t.Errorf("a backend that has just come costs the plane: %v", err)
	}
	l.applyAt(0, []int{0, 1, 2}, nil)
	for range 30 {
		if c := l.dial(frontends[0]); c.server == "node3" {
			t.Fatal("an unknown machine got a new connection")
		}
	}
	plane.mu.Lock()
	for id := range plane.workersSince {
		plane.workersSince[id] = plane.workersSince[id].Add(-newWorkerGrace)
	}
	plane.mu.Unlock()
	l.refused(0, "no worker answers")
}

// A worker gets another network card, and its peers follow.
func TestWorkerNewCard(t *testing.T) {
	l := newWorkerLab(t)
	l.group()
	for i := range l.nodes {
		l.follows(i)
	}
	s, others := l.mixed(20)
	l.nodes[2].do(func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(eth)
	})
	others.flow(t)
	l.plug(l.nodes[2])
	card := [6]byte(l.nodes[2].mac)
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		l.apply([]int{0, 1, 2}, nil)
		known := 0
		for i := range 2 {
			now, err := neighbours.View{}, error(nil)
			l.nodes[i].do(func() error { now, err = l.planes[i].look(); return err })
			for _, a := range l.nodes[2].addrs {
				if now.MACs[neighbours.Location{Link: "eth0", Addr: a}] == card {
					known++
				}
			}
		}
		if known == 4 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the peers have the worker's old card")
		}
	}
	l.apply([]int{0, 1, 2}, nil)
	for _, s := range []*stream{s, others} {
		s.flow(t)
		s.end(t)
	}
}

// follows is Run without the prober, which runs already.
func (l *lab) follows(node int) {
	l.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.nodes[node].inside(func() error { return l.planes[node].follow(ctx) }) }()
	l.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Errorf("following on %s: %v", l.nodes[node].name, err)
		}
	})
}

// A worker without a backend is no part of the plane.
func TestWorkerWithoutBackend(t *testing.T) {
	d := testPlane()
	d.cfg.Worker = true
	lb := balancer.LoadBalancer{Frontends: []netip.AddrPort{netip.MustParseAddrPort("10.77.0.10:6443")},
		Backends: backends("10.77.0.12:6443")}
	if err := d.suitable(lb); err == nil || !strings.Contains(err.Error(), "none of the backends") {
		t.Errorf("%v", err)
	}
	lb.Backends = backends("10.77.0.12:6443", "10.77.0.11:6443")
	if err := d.suitable(lb); err != nil {
		t.Error(err)
	}
}
