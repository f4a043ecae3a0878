package nft

import (
	"bytes"
	"context"
	"encoding/hex"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

func testProbe(f netip.AddrPort) probe {
	m := probe{
		kind: kindPath, nonce: nonce{1, 2, 3, 4, 5}, frontend: f,
		from: netip.MustParseAddr("10.77.0.11"), to: netip.MustParseAddr("10.77.0.12"),
		dst: f,
	}
	m.src = madeUpClient(f.Addr(), m.nonce)
	return m
}

func TestProbeFrame(t *testing.T) {
	key := []byte("key")
	src, dst := [6]byte{2, 0, 0, 0, 0, 1}, [6]byte{2, 0, 0, 0, 0, 2}
	filter := probeVM(t)
	eachFrontend(t, func(t *testing.T, f netip.AddrPort) {
		want := testProbe(f)
		frame := want.frame(src, dst, key)
		got, mac, ok := parseProbe(frame, key)
		if !ok || got != want || mac != src {
			t.Fatalf("got %+v from %x (%v), want %+v", got, mac, ok, want)
		}
		if n, err := filter.Run(frame); err != nil || n < len(frame) {
			t.Errorf("the socket's filter takes %d of %d bytes: %v", n, len(frame), err)
		}
		if _, _, ok := parseProbe(frame, []byte("another")); ok {
			t.Error("a probe of another group was taken")
		}
		// Whatever is altered on the way, the probe is no more.
		for i := etherLen; i < len(frame); i++ {
			bad := bytes.Clone(frame)
			bad[i] ^= 1
			if m, _, ok := parseProbe(bad, key); ok && m != want {
				t.Errorf("byte %d altered: taken as %+v", i, m)
			}
		}
		for n := range frame {
			if _, _, ok := parseProbe(frame[:n], key); ok {
				t.Errorf("taken though cut after %d bytes", n)
			}
		}
	})
}

// Nodes are not upgraded at once, so a probe stays what it is. The key is that of
// the secret "key".
func TestProbeOfTheFirstVersion(t *testing.T) {
	key := probeKeysOf([][]byte{[]byte("key")})[0]
	for f, want := range map[netip.AddrPort]string{
		directFrontends[0]: "0200000000020200000000010800" + // Ethernet
			"4500009300004000400668fac61201020a4d000a" + // IP
			"0704192b0102030400000000500400002c2b0000" + // TCP
			"61706c70726f62310101020304050000000000000000000000" + // magic, kind, nonce
			"00000000000000000000ffff0a4d000b" + // from
			"00000000000000000000ffff0a4d000c" + // to
			"00000000000000000000ffff0a4d000a192b" + // frontend
			"1472de1aeab51201ae36d096bf4ec80e19d8f031ef8c018547cd7f1015d31a75", // signature
		directFrontends[1]: "02000000000202000000000186dd" + // Ethernet
			"60000000007f064020010002000000000000000000000102fd770000000000000000000000000010" + // IP
			"0704192b0102030400000000500400006ee40000" + // TCP
			"61706c70726f62310101020304050000000000000000000000" + // magic, kind, nonce
			"00000000000000000000ffff0a4d000b" + // from
			"00000000000000000000ffff0a4d000c" + // to
			"fd770000000000000000000000000010192b" + // frontend
			"9f3001693d4383a2d4e3bc9431972edb3e9db03d4cbbccb462b97bf972c96cbe", // signature
	} {
		frame := testProbe(f).frame([6]byte{2, 0, 0, 0, 0, 1}, [6]byte{2, 0, 0, 0, 0, 2}, key[:])
		if got := hex.EncodeToString(frame); got != want {
			t.Errorf("%v: %s, want %s", f, got, want)
		}
	}
}

func probeVM(t *testing.T) *bpf.VM {
	t.Helper()
	raw, err := probeFilter()
	if err != nil {
		t.Fatal(err)
	}
	ins, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("the filter does not disassemble")
	}
	vm, err := bpf.NewVM(ins)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

func TestProbeFilterDropsOthers(t *testing.T) {
	vm := probeVM(t)
	frame := testProbe(directFrontends[0]).frame([6]byte{}, [6]byte{}, nil)
	for what, b := range map[string][]byte{
		"ARP":           append([]byte{12: 0x08, 13: 0x06}, frame[14:]...),
		"short":         frame[:40],
		"another magic": bytes.Replace(frame, []byte(probeMagic), []byte("GET / HT"), 1),
	} {
		if n, err := vm.Run(b); err != nil || n != 0 {
			t.Errorf("%s: the filter takes %d bytes (%v)", what, n, err)
		}
	}
}

func FuzzParseProbe(f *testing.F) {
	for _, front := range directFrontends {
		f.Add(testProbe(front).frame([6]byte{}, [6]byte{}, []byte("key")))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, _, ok := parseProbe(b, []byte("key"))
		if ok && (!m.src.IsValid() || !m.dst.IsValid()) {
			t.Errorf("a probe without addresses: %+v", m)
		}
	})
}

// probing makes planes with probers, which run until stop is called.
func (l *directLab) probing() (probers []*EthernetProber, stop []func()) {
	l.t.Helper()
	for i := range l.nodes {
		p, end := l.probingAt(i, 50*time.Millisecond)
		p.Open()
		probers, stop = append(probers, p), append(stop, end)
	}
	return probers, stop
}

// probingAt makes a plane with a prober on a node, which runs until stop is
// called. It is not open.
func (l *directLab) probingAt(i int, every time.Duration) (p *EthernetProber, stop func()) {
	l.t.Helper()
	return l.probingWith(i, every, nil)
}

// probingWith may change what the prober is told.
func (l *directLab) probingWith(i int, every time.Duration, change func(*ProberConfig)) (p *EthernetProber, stop func()) {
	l.t.Helper()
	n, cfg := l.nodes[i], l.planes[i].cfg
	pc := ProberConfig{
		Interfaces: cfg.Interfaces, Nodes: cfg.Nodes, Self: n.name, Worker: cfg.Worker,
		Keys: [][]byte{[]byte("group")}, WorkerKeys: [][]byte{[]byte("workers")}, Every: every, Log: cfg.Log,
	}
	if cfg.Worker {
		pc.Keys = pc.WorkerKeys
	}
	if change != nil {
		change(&pc)
	}
	p = NewProber(pc)
	plane := l.plane(n, p)
	l.planes[i] = plane
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	// The plane's Run would start it on a thread outside the namespace.
	go func() { done <- n.inside(func() error { return p.Run(ctx, plane.notify) }) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Errorf("prober on %s: %v", n.name, err)
		}
	})
	l.t.Cleanup(stop)
	return p, stop
}

// becomes waits until the path from a prober is as wanted.
func becomes(t *testing.T, p *EthernetProber, node string, want Path) {
	t.Helper()
	for deadline := time.Now().Add(directPatience); ; {
		done := true
		for _, f := range directFrontends {
			done = done && p.Path(f, node) == want
		}
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the path from %s to %s is %v and %v, want %v", p.cfg.Self, node,
				p.Path(directFrontends[0], node), p.Path(directFrontends[1], node), want)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// never looks for ten rounds, half a second, whether a path is what it must not
// be.
func never(t *testing.T, p *EthernetProber, node string, bad Path) {
	t.Helper()
	for end := time.Now().Add(10 * p.cfg.Every); time.Now().Before(end); time.Sleep(p.cfg.Every / 10) {
		for _, f := range directFrontends {
			if p.Path(f, node) == bad {
				t.Fatalf("the path from %s to %s for %v is %v", p.cfg.Self, node, f, bad)
			}
		}
	}
}

func TestProberProvesAndFindsFilters(t *testing.T) {
	l := newDirectLab(t)
	probers, stop := l.probing()
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	for _, p := range probers {
		for _, n := range l.nodes {
			if n.name != p.cfg.Self {
				becomes(t, p, n.name, PathProved)
			}
		}
	}
	if n := l.nodes[1].counter("Tcp", "OutRsts"); n != "0" {
		t.Errorf("node2 has answered probes with %s resets", n)
	}

	// A hypervisor that lets a port send from its own addresses only.
	l.antispoof("p1", true)
	becomes(t, probers[0], "node2", PathFiltered)
	becomes(t, probers[0], "node3", PathFiltered)
	err := l.nodes[0].try(func() error { return l.planes[0].Usable(context.Background(), l.loadBalancer()) })
	if err == nil {
		t.Error("the plane is usable on a network that filters")
	} else {
		t.Log(err)
	}
	l.antispoof("p1", false)
	becomes(t, probers[0], "node2", PathProved)
	l.nodes[0].do(func() error { return l.planes[0].Usable(context.Background(), l.loadBalancer()) })

	// A node whose appliance ends says so: it gets no new connections, though
	// its server is well, and keeps those that it has.
	for i := range l.nodes {
		becomes(t, probers[i], l.nodes[(i+1)%3].name, PathProved)
		becomes(t, probers[i], l.nodes[(i+2)%3].name, PathProved)
	}
	l.apply([]int{0, 1, 2}, nil)
	s := l.open(20)
	stop[1]()
	becomes(t, probers[0], "node2", PathSilent)
	becomes(t, probers[2], "node2", PathSilent)
	l.applyAt(0, []int{0, 1, 2}, nil)
	l.applyAt(2, []int{0, 1, 2}, nil)
	for _, f := range directFrontends {
		for range 30 {
			if c := l.dial(f); c.server == "node2" {
				t.Fatal("a node without appliance got a new connection")
			}
		}
	}
	s.flow(t)
	s.end(t)
	// It is no reason to leave the plane either.
	l.nodes[0].do(func() error { return l.planes[0].Usable(context.Background(), l.loadBalancer()) })
}

// The group's key is replaced on one node after the other, and the nodes
// understand each other all the time.
func TestProberFollowsKeys(t *testing.T) {
	l := newDirectLab(t)
	probers, _ := l.probing()
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	proved := func() {
		t.Helper()
		for i, p := range probers {
			becomes(t, p, l.nodes[(i+1)%3].name, PathProved)
			becomes(t, p, l.nodes[(i+2)%3].name, PathProved)
		}
	}
	proved()
	old, young := []byte("group"), []byte("another")
	for _, keys := range [][][]byte{{young, old}, {young}} {
		for _, p := range probers {
			p.SetKeys(keys, nil)
			time.Sleep(10 * p.cfg.Every) // who is not understood is silent by then
			proved()
		}
	}
	// Who has none of them is not heard.
	probers[1].SetKeys([][]byte{old}, nil)
	becomes(t, probers[0], "node2", PathSilent)
	becomes(t, probers[1], "node1", PathSilent)
	becomes(t, probers[0], "node3", PathProved)
	probers[1].SetKeys([][]byte{young}, nil)
	proved()
}

// Who joins later is met without a word from the network, and who is removed is
// forgotten; the open connections of the others notice neither.
func TestNodesComeAndGo(t *testing.T) {
	l := newDirectLab(t)
	all := l.nodes
	newcomer := Node{ID: all[2].name, Addrs: all[2].addrs}
	l.nodes = all[:2] // who plans and probes
	probers, _ := l.probing()
	l.nodes = all
	for i, p := range l.planes[:2] {
		nodes := []Node{{ID: all[0].name, Addrs: all[0].addrs}, {ID: all[1].name, Addrs: all[1].addrs}}
		p.SetNodes(nodes)
		err := all[i].try(func() error { return p.Usable(context.Background(), l.loadBalancer()) })
		if err == nil || !strings.Contains(err.Error(), "at none of the peers' addresses") {
			t.Fatalf("a backend on a stranger is served: %v", err)
		}
		select {
		case <-p.Changed():
		default:
		}
		p.SetNodes(append(nodes, newcomer))
		select {
		case <-p.Changed():
		default:
			t.Error("the plane does not tell that there is another node")
		}
		p.SetNodes(append(nodes, newcomer))
		select {
		case <-p.Changed():
			t.Error("the plane tells of the same nodes as news")
		default:
		}
	}
	l.usable()
	becomes(t, probers[0], "node2", PathProved)
	becomes(t, probers[0], "node3", PathSilent)
	l.apply([]int{0, 1, 2}, nil)
	before := l.open(20)

	// Its appliance begins. Nothing is sent to it before it has the VIPs and the
	// rules, before nobody takes what it hands on for a client's packet, and
	// before it hands on to everybody whose packets it may get.
	l.planes[1].SetNodes([]Node{{ID: all[0].name, Addrs: all[0].addrs}, {ID: all[1].name, Addrs: all[1].addrs}})
	l.applyAt(1, []int{0, 1}, nil)
	third, _ := l.probingAt(2, 2*time.Second) // it waits for others for 6 s
	all[2].do(func() error { return l.planes[2].Usable(context.Background(), l.loadBalancer()) })
	becomes(t, probers[0], "node3", PathUnready)
	l.applyAt(2, []int{2}, nil)
	becomes(t, third, "node1", PathProved)
	becomes(t, third, "node2", PathUnready)
	third.Open()
	never(t, probers[0], "node3", PathProved)
	l.planes[1].SetNodes([]Node{{ID: all[0].name, Addrs: all[0].addrs}, {ID: all[1].name, Addrs: all[1].addrs}, newcomer})
	all[1].do(func() error { return l.planes[1].Usable(context.Background(), l.loadBalancer()) })
	l.applyAt(1, []int{0, 1, 2}, nil)
	becomes(t, third, "node2", PathProved)
	never(t, probers[0], "node3", PathProved)
	l.applyAt(2, []int{0, 1, 2}, nil)
	becomes(t, probers[0], "node3", PathProved)
	becomes(t, probers[1], "node3", PathProved)
	l.apply([]int{0, 1, 2}, nil)
	seen := map[string]bool{}
	for range 60 {
		c := l.dial(directFrontends[0])
		seen[c.server] = true
		c.Close()
	}
	if len(seen) != 3 {
		t.Errorf("connections went to %v", seen)
	}
	before.flow(t)

	// It is removed.
	for i, p := range l.planes[:2] {
		p.SetNodes([]Node{{ID: all[0].name, Addrs: all[0].addrs}, {ID: all[1].name, Addrs: all[1].addrs}})
		now, err := surroundings{}, error(nil)
		all[i].do(func() error { now, err = p.look(); return err })
		if slices.Contains(l.planes[i].fellows(now), [6]byte(all[2].mac)) {
			t.Errorf("%s takes the removed node for a fellow", all[i].name)
		}
		if got := probers[i].Path(directFrontends[0], "node3"); got != PathSilent {
			t.Errorf("%s takes the way to the removed node for %v", all[i].name, got)
		}
	}
	l.applyAt(0, []int{0, 1}, nil)
	l.applyAt(1, []int{0, 1}, nil)
	for range 30 {
		c := l.dial(directFrontends[1])
		if c.server == "node3" {
			t.Fatal("a removed node got a new connection")
		}
		c.Close()
	}
	before.flow(t)
	before.end(t)
}

// antispoof drops frames from a port of the switch whose source is a made-up client.
func (l *directLab) antispoof(port string, on bool) {
	l.t.Helper()
	l.sw.do(func() error {
		conn, err := dial()
		if err != nil {
			return err
		}
		table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyBridge, Name: "antispoof"})
		if !on {
			conn.DelTable(table)
			return conn.Flush()
		}
		accept := nftables.ChainPolicyAccept
		c := conn.AddChain(&nftables.Chain{
			Table: table, Name: "forward", Type: nftables.ChainTypeFilter, Policy: &accept,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
		})
		for _, match := range [][]expr.Any{
			concat(ipv4().ethertype(), []expr.Any{
				&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 2}, equal(reg1, 198, 18),
			}),
			concat(ipv6().ethertype(), []expr.Any{
				&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: 8, Len: 4}, equal(reg1, 0x20, 0x01, 0, 2),
			}),
		} {
			name := make([]byte, unix.IFNAMSIZ)
			copy(name, port)
			conn.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: concat([]expr.Any{
				&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg1}, equal(reg1, name...),
			}, match, verdict(expr.VerdictDrop))})
		}
		return conn.Flush()
	})
}

// A node that goes and comes is one line each, however many frontends it serves.
func TestProberTellsOncePerNode(t *testing.T) {
	var log strings.Builder
	p := NewProber(ProberConfig{Log: slog.New(slog.NewTextHandler(&log, nil))})
	for _, path := range []Path{PathProved, PathSilent} {
		for port := range uint16(50) {
			for _, node := range []string{"n2", "n3"} {
				p.report(pathID{netip.AddrPortFrom(netip.MustParseAddr("10.77.0.10"), 6443+port), node}, path)
			}
		}
	}
	if n := strings.Count(log.String(), "\n"); n != 4 {
		t.Errorf("%d lines, want 4:\n%s", n, log.String())
	}
}
