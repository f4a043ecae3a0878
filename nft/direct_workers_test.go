package nft

import (
	"context"
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
)

// newWorkerLab is a lab whose node3 is outside the group.
func newWorkerLab(t *testing.T) *directLab {
	t.Helper()
	l := newDirectLab(t)
	l.worker = "node3"
	for i, n := range l.nodes {
		l.planes[i] = l.plane(n, nil)
		t.Cleanup(func() { n.do(l.planes[i].Close) })
	}
	return l
}

// ask is Usable on a node.
func (l *directLab) ask(node int, change func(*balancer.LoadBalancer)) error {
	lb := l.loadBalancer()
	if change != nil {
		change(&lb)
	}
	return l.nodes[node].try(func() error { return l.planes[node].Usable(context.Background(), lb) })
}

// refused checks that a node does not take the plane, and says why.
func (l *directLab) refused(node int, why string) {
	l.t.Helper()
	if err := l.ask(node, nil); err == nil || !strings.Contains(err.Error(), why) {
		l.t.Fatalf("direct on %s: %v, want %q in it", l.nodes[node].name, err, why)
	}
}

// admitted waits until a node takes the plane.
func (l *directLab) admitted(node int) {
	l.t.Helper()
	for deadline := time.Now().Add(directPatience); ; time.Sleep(10 * time.Millisecond) {
		err := l.ask(node, nil)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("direct on %s: %v", l.nodes[node].name, err)
		}
	}
}

// way waits until what a peer knows of the way to the worker, at each of its
// addresses, is as wanted.
func (l *directLab) way(p *EthernetProber, want Path) {
	l.t.Helper()
	for family, f := range directFrontends {
		id := workerAt(l.nodes[2].addrs[family])
		for deadline := time.Now().Add(directPatience); p.Path(f, id) != want; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				l.t.Fatalf("the way from %s to the %s is %v, want %v", p.cfg.Self, id, p.Path(f, id), want)
			}
		}
	}
}

// group has the two peers and the worker serve.
func (l *directLab) group() (probers []*EthernetProber, stop []func()) {
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
		l.way(p, PathProved)
		becomes(l.t, p, l.nodes[1-i].name, PathProved)
		becomes(l.t, probers[2], l.nodes[i].name, PathProved)
	}
	l.apply([]int{0, 1, 2}, nil)
	return probers, stop
}

// A machine that runs no appliance gets nothing in a client's name, and its own
// packets are nobody's who hands on. The plane is refused for it by name, for as
// long as it has not proved that it is a worker that serves.
func TestWorkersProveThemselves(t *testing.T) {
	l := newWorkerLab(t)
	heard := l.eavesdrop(2)
	var probers []*EthernetProber
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
		now, err := surroundings{}, error(nil)
		l.nodes[node].do(func() error { now, err = l.planes[node].look(); return err })
		return slices.Contains(l.planes[node].fellows(now), [6]byte(l.nodes[2].mac))
	}
	if is(0) {
		t.Error("a stranger is a fellow")
	}
	for range 60 {
		if c := l.dial(directFrontends[0]); c.server == "node3" {
			t.Fatal("a stranger got a connection")
		}
	}
	if passed := l.planes[0].PassedOver(); len(passed) == 0 {
		t.Error("nobody is told that the stranger is passed over")
	}
	l.nodes[0].do(l.planes[0].Close)
	// One of another group is a stranger, too.
	_, end := l.probingWith(2, 50*time.Millisecond, func(c *ProberConfig) { c.Keys, c.WorkerKeys = [][]byte{[]byte("others")}, [][]byte{[]byte("others")} })
	time.Sleep(500 * time.Millisecond)
	l.refused(0, strange)
	end()
	for kind, n := range heard() {
		if kind != kindControl {
			t.Errorf("the stranger got %d probes of kind %d", n, kind)
		}
	}

	// It is a worker, and has neither the VIPs nor the rules.
	third, _ := l.probingAt(2, 50*time.Millisecond)
	l.proves(probers[0], ProofSpoken)
	l.refused(0, "worker 10.77.0.13 takes no packets of clients yet")
	if err := l.ask(0, func(lb *balancer.LoadBalancer) { lb.Plane = balancer.Direct }); err != nil {
		t.Errorf("direct that was forced waits for a worker: %v", err)
	}
	if !is(0) {
		t.Error("a worker is no fellow")
	}
	// It has the VIPs, and serves with another plane.
	third.Open()
	l.way(probers[0], PathUnready)
	l.refused(0, "another data plane")
	// It serves.
	l.admitted(2)
	l.applyAt(2, []int{0, 1, 2}, nil)
	l.admitted(0)
	l.admitted(1)
	for _, p := range probers {
		l.way(p, PathProved)
		if got := p.Reached(); !slices.Equal(got, l.nodes[2].addrs) {
			t.Errorf("%s has reached %v, want %v", p.cfg.Self, got, l.nodes[2].addrs)
		}
	}
}

// proves waits until the worker has proved something at each of its addresses.
func (l *directLab) proves(p *EthernetProber, want Proof) {
	l.t.Helper()
	for _, a := range l.nodes[2].addrs {
		for deadline := time.Now().Add(directPatience); p.Proof(workerAt(a)) != want; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				l.t.Fatalf("%s takes %v for %v, want %v", p.cfg.Self, a, p.Proof(workerAt(a)), want)
			}
		}
	}
}

// eavesdrop counts what probes reach a node, by kind.
func (l *directLab) eavesdrop(node int) (heard func() map[probeKind]int) {
	l.t.Helper()
	h := l.nodes[node]
	filter, err := probeFilter()
	if err != nil {
		l.t.Fatal(err)
	}
	var conn *packet.Conn
	h.do(func() error {
		eth, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		conn, err = packet.Listen(eth, packet.Raw, unix.ETH_P_ALL, &packet.Config{Filter: filter})
		return err
	})
	var mu sync.Mutex
	var wg sync.WaitGroup
	kinds := make(map[probeKind]int)
	wg.Go(func() {
		for buf := make([]byte, 2048); ; {
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if m, mac, ok := parseProbe(buf[:n], probeKeysOf([][]byte{[]byte("workers")})[0][:]); ok && mac != [6]byte(h.mac) {
				mu.Lock()
				kinds[m.kind]++
				mu.Unlock()
			}
		}
	})
	stop := sync.OnceFunc(func() {
		conn.Close()
		wg.Wait()
	})
	l.t.Cleanup(stop)
	return func() map[probeKind]int {
		stop()
		mu.Lock()
		defer mu.Unlock()
		if kinds[kindControl] == 0 {
			l.t.Error("nothing was heard at all")
		}
		return kinds
	}
}

// A worker's server is one like the peers': connections come, go on when the
// holder changes, and stay where they are when it leaves rotation and is back.
func TestDirectServesWorkers(t *testing.T) {
	l := newWorkerLab(t)
	probers, stop := l.group()
	s, others := l.mixed(60)
	for _, holder := range []int{1, 0} {
		l.hold(holder)
		s.flow(t)
		others.flow(t)
	}
	// It leaves rotation and comes back. What began in its slots meanwhile comes
	// to it now, and it hands that on.
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
	for _, f := range directFrontends {
		for range 40 {
			if c := l.dial(f); c.server == "node3" {
				t.Fatal("there is no server")
			}
		}
	}
	// The worker's own clients are served.
	for _, f := range directFrontends {
		c, err := dialFrom(l.nodes[0], f)
		if err != nil {
			t.Fatalf("a client on a peer: %v", err)
		}
		c.Close()
	}

	// Its appliance ends. It gets nothing new and keeps what it has; that is no
	// reason to leave the plane.
	l.servers[2] = newDirectServer(t, l.nodes[2])
	stop[2]()
	for i, p := range probers[:2] {
		l.way(p, PathSilent)
		l.applyAt(i, []int{0, 1, 2}, nil)
		if err := l.ask(i, nil); err != nil {
			t.Errorf("direct on %s without the worker's appliance: %v", l.nodes[i].name, err)
		}
	}
	for _, f := range directFrontends {
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

// mixed opens n connections to each frontend, and parts those to the worker from
// the others. All flow.
func (l *directLab) mixed(n int) (worker, others *stream) {
	l.t.Helper()
	others, apart := l.openApart("node3", n)
	worker = startStream(apart, busy)
	l.t.Cleanup(func() {
		worker.stop.Store(true)
		worker.wg.Wait()
	})
	return worker, others
}

// A worker's backend is taken out of the configuration. What is open there goes
// on, and the worker stays in the plane for as long as that may.
func TestDirectLeftByWorkers(t *testing.T) {
	l := newWorkerLab(t)
	probers, _ := l.group()
	var conns []*directConn
	for _, f := range directFrontends {
		for range 25 {
			conns = append(conns, l.dial(f))
		}
	}
	without := func(lb *balancer.LoadBalancer) {
		lb.Backends = slices.DeleteFunc(lb.Backends, func(b balancer.Backend) bool { return slices.Contains(l.nodes[2].addrs, b.Addr.Addr()) })
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
		l.way(p, PathProved)
	}
	// Nothing is open there any more.
	l.applyAt(2, []int{0, 1}, nil)
	if err := l.ask(2, without); err == nil || !strings.Contains(err.Error(), "none of the backends") {
		t.Errorf("direct on a worker without a backend: %v", err)
	}
}

// A worker that was reached in an earlier life is not taken for a stranger while
// it is away, and gets nothing.
func TestDirectRecallsWorkers(t *testing.T) {
	l := newWorkerLab(t)
	for i := range 2 {
		p, _ := l.probingWith(i, 50*time.Millisecond, func(c *ProberConfig) { c.Reached = l.nodes[2].addrs })
		p.Open()
	}
	for i := range 2 {
		if err := l.ask(i, nil); err != nil {
			t.Fatal(err)
		}
		l.applyAt(i, []int{0, 1, 2}, nil)
	}
	for _, f := range directFrontends {
		for range 30 {
			if c := l.dial(f); c.server == "node3" {
				t.Fatal("a worker that is away got a new connection")
			}
		}
	}
}

// Who serves already gives a backend that has just come a moment to prove itself,
// and goes on meanwhile.
func TestDirectWaitsForNewWorkers(t *testing.T) {
	l := newWorkerLab(t)
	p, _ := l.probingAt(0, 50*time.Millisecond)
	p.Open()
	without := func(lb *balancer.LoadBalancer) {
		lb.Backends = slices.DeleteFunc(lb.Backends, func(b balancer.Backend) bool { return slices.Contains(l.nodes[2].addrs, b.Addr.Addr()) })
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
		if c := l.dial(directFrontends[0]); c.server == "node3" {
			t.Fatal("a stranger got a new connection")
		}
	}
	plane.mu.Lock()
	for id := range plane.added {
		plane.added[id] = plane.added[id].Add(-strangerGrace)
	}
	plane.mu.Unlock()
	l.refused(0, "no worker answers")
}

// A worker gets another network card, and tells its peers.
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
	for deadline := time.Now().Add(directPatience); ; time.Sleep(50 * time.Millisecond) {
		l.apply([]int{0, 1, 2}, nil)
		known := 0
		for i := range 2 {
			now, err := surroundings{}, error(nil)
			l.nodes[i].do(func() error { now, err = l.planes[i].look(); return err })
			for _, a := range l.nodes[2].addrs {
				if now.macs[place{"eth0", a}] == card {
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

// follows is run without the prober, which runs already.
func (l *directLab) follows(node int) {
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

// The workers' key speaks for workers, and for no node of the group.
func TestWorkerKeySpeaksForWorkers(t *testing.T) {
	group, workers := [][]byte{[]byte("group")}, [][]byte{[]byte("workers")}
	peer, other, worker := netip.MustParseAddr("10.77.0.11"), netip.MustParseAddr("10.77.0.12"), netip.MustParseAddr("10.77.0.13")
	p := NewProber(ProberConfig{Self: "node1", Keys: group, WorkerKeys: workers, Nodes: []Node{
		{ID: "node1", Addrs: []netip.Addr{peer}}, {ID: "node2", Addrs: []netip.Addr{other}}, {ID: workerAt(worker), Addrs: []netip.Addr{worker}, Worker: true},
	}})
	signed := func(from netip.Addr, secrets [][]byte) []byte {
		m := testProbe(directFrontends[0])
		m.from, m.to = from, peer
		return m.frame([6]byte{}, [6]byte{}, probeKeysOf(secrets)[0][:])
	}
	for _, tt := range []struct {
		from    netip.Addr
		secrets [][]byte
		want    bool
	}{
		{other, group, true}, {other, workers, false}, {worker, workers, true}, {netip.MustParseAddr("10.77.0.99"), workers, false},
	} {
		if _, _, ok := p.parse(signed(tt.from, tt.secrets)); ok != tt.want {
			t.Errorf("%v with %s is heard: %v, want %v", tt.from, tt.secrets, ok, tt.want)
		}
	}
	if k, ok := p.keyTo(worker); !ok || k != probeKeysOf(workers)[0] {
		t.Error("a worker is not spoken to with the workers' key")
	}
	if k, ok := p.keyTo(other); !ok || k != probeKeysOf(group)[0] {
		t.Error("a peer is not spoken to with the group's key")
	}
	// Without such a key, no worker is heard or spoken to.
	p.SetKeys(group, nil)
	if _, _, ok := p.parse(signed(worker, workers)); ok {
		t.Error("a worker is heard without a key")
	}
	if _, ok := p.keyTo(worker); ok {
		t.Error("a worker is spoken to without a key")
	}
	// It has become a peer.
	p.SetKeys(group, workers)
	p.parse(signed(worker, workers))
	p.SetNodes([]Node{{ID: "node1", Addrs: []netip.Addr{peer}}, {ID: "node3", Addrs: []netip.Addr{worker}}})
	if k, ok := p.keyTo(worker); !ok || k != probeKeysOf(group)[0] {
		t.Error("a worker that has become a peer is not spoken to with the group's key")
	}
}

// A worker without a backend is no part of the plane.
func TestWorkerWithoutBackend(t *testing.T) {
	d := testPlane()
	d.cfg.Worker = true
	lb := balancer.LoadBalancer{Frontends: []netip.AddrPort{netip.MustParseAddrPort("10.77.0.10:6443")}, Backends: backends("10.77.0.12:6443")}
	if err := d.suits(lb); err == nil || !strings.Contains(err.Error(), "none of the backends") {
		t.Errorf("%v", err)
	}
	lb.Backends = backends("10.77.0.12:6443", "10.77.0.11:6443")
	if err := d.suits(lb); err != nil {
		t.Error(err)
	}
}

// Strangers are called less and less often, and at once when they speak.
func TestCallsBecomeSeldom(t *testing.T) {
	a := netip.MustParseAddr("10.77.0.13")
	p := NewProber(ProberConfig{Nodes: []Node{{ID: workerAt(a), Addrs: []netip.Addr{a}, Worker: true}}})
	calls := 0
	for range callOften + 10*callSeldom {
		if _, due := p.due(workerAt(a), true); due {
			calls++
		}
	}
	if calls < callOften+9 || calls > callOften+11 {
		t.Errorf("%d calls, want %d", calls, callOften+10)
	}
	if _, due := p.due(workerAt(a), false); due {
		t.Error("called in between")
	}
	p.called(a)
	if _, due := p.due(workerAt(a), false); !due {
		t.Error("not called although it has spoken")
	}
}
