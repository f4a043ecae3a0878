package direct

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"appliance/neighbours"
	"appliance/nft/ruleset"
	"appliance/nft/tunnel"
	"appliance/pathprobe"
)

// A testProber knows its configuration.
type testProber struct {
	*pathprobe.EthernetProber
	cfg pathprobe.Config
}

// probing makes planes with probers, which run until stop is called.
func (l *lab) probing() (probers []*testProber, stop []func()) {
	l.t.Helper()
	for i := range l.nodes {
		p, end := l.probingAt(i, 50*time.Millisecond)
		p.Open()
		probers, stop = append(probers, p), append(stop, end)
	}
	return probers, stop
}

// probingAt makes a plane with a prober on a node, which runs until stop is called.
// The prober is not open.
func (l *lab) probingAt(i int, every time.Duration) (p *testProber, stop func()) {
	l.t.Helper()
	return l.probingWith(i, every, nil)
}

// probingWith may change the prober's configuration.
func (l *lab) probingWith(i int, every time.Duration, change func(*pathprobe.Config)) (p *testProber, stop func()) {
	l.t.Helper()
	n, cfg := l.nodes[i], l.planes[i].cfg
	pc := pathprobe.Config{
		Interfaces: cfg.Interfaces, Nodes: cfg.Nodes, Self: n.name, Worker: cfg.Worker,
		Keys: [][]byte{[]byte("group")}, WorkerKeys: [][]byte{[]byte("workers")}, Every: every, Log: cfg.Log,
	}
	if cfg.Worker {
		pc.Keys = pc.WorkerKeys
	}
	if cfg.Tunnel != nil {
		pc.Tunnel, pc.Routed = tunnel.Name, cfg.Routed
	}
	if change != nil {
		change(&pc)
	}
	p = &testProber{pathprobe.New(pc), pc}
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

// becomes waits until the path from a prober is in the wanted state.
func becomes(t *testing.T, p *testProber, node string, want pathprobe.Path) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		done := true
		for _, f := range frontends {
			done = done && p.Path(f, node) == want
		}
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the path from %s to %s is %v and %v, want %v", p.cfg.Self, node,
				p.Path(frontends[0], node), p.Path(frontends[1], node), want)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// never fails if a path is in a bad state within ten rounds, which take half a second.
func never(t *testing.T, p *testProber, node string, bad pathprobe.Path) {
	t.Helper()
	for end := time.Now().Add(10 * p.cfg.Every); time.Now().Before(end); time.Sleep(p.cfg.Every / 10) {
		for _, f := range frontends {
			if p.Path(f, node) == bad {
				t.Fatalf("the path from %s to %s for %v is %v", p.cfg.Self, node, f, bad)
			}
		}
	}
}

func TestProberProvesAndFindsFilters(t *testing.T) {
	l := newLab(t)
	probers, stop := l.probing()
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	for _, p := range probers {
		for _, n := range l.nodes {
			if n.name != p.cfg.Self {
				becomes(t, p, n.name, pathprobe.PathProved)
			}
		}
	}
	if n := l.nodes[1].counter("Tcp", "OutRsts"); n != "0" {
		t.Errorf("node2 has answered probes with %s resets", n)
	}

	// A hypervisor lets a port send from its own addresses only.
	l.antispoof("p1", true)
	becomes(t, probers[0], "node2", pathprobe.PathFiltered)
	becomes(t, probers[0], "node3", pathprobe.PathFiltered)
	err := l.nodes[0].try(func() error { return l.planes[0].Usable(context.Background(), l.loadBalancer()) })
	if err == nil {
		t.Error("the plane is usable on a network that filters")
	} else {
		t.Log(err)
	}
	l.antispoof("p1", false)
	for i := range l.nodes {
		becomes(t, probers[i], l.nodes[(i+1)%3].name, pathprobe.PathProved)
		becomes(t, probers[i], l.nodes[(i+2)%3].name, pathprobe.PathProved)
	}
	l.nodes[0].do(func() error { return l.planes[0].Usable(context.Background(), l.loadBalancer()) })

	// A node whose appliance ends sends a leave notice: it gets no new connections,
	// though its server is healthy, and keeps those that it has.
	l.apply([]int{0, 1, 2}, nil)
	s := l.open(20)
	stop[1]()
	becomes(t, probers[0], "node2", pathprobe.PathNoAnswer)
	becomes(t, probers[2], "node2", pathprobe.PathNoAnswer)
	l.applyAt(0, []int{0, 1, 2}, nil)
	l.applyAt(2, []int{0, 1, 2}, nil)
	for _, f := range frontends {
		for range 30 {
			if c := l.dial(f); c.server == "node2" {
				t.Fatal("a node without appliance got a new connection")
			}
		}
	}
	s.flow(t)
	s.end(t)
	// This is no reason to leave the plane.
	l.nodes[0].do(func() error { return l.planes[0].Usable(context.Background(), l.loadBalancer()) })
}

// The group's key is replaced on one node after the other, and the nodes
// understand each other all the time.
func TestProberFollowsKeys(t *testing.T) {
	l := newLab(t)
	probers, _ := l.probing()
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	proved := func() {
		t.Helper()
		for i, p := range probers {
			becomes(t, p, l.nodes[(i+1)%3].name, pathprobe.PathProved)
			becomes(t, p, l.nodes[(i+2)%3].name, pathprobe.PathProved)
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
	// A node without any of the keys is ignored.
	probers[1].SetKeys([][]byte{old}, nil)
	becomes(t, probers[0], "node2", pathprobe.PathNoAnswer)
	becomes(t, probers[1], "node1", pathprobe.PathNoAnswer)
	becomes(t, probers[0], "node3", pathprobe.PathProved)
	probers[1].SetKeys([][]byte{young}, nil)
	proved()
}

// A node that joins later is found without any event from the network, and a node that
// is removed is forgotten. The open connections of the others notice neither.
func TestNodesComeAndGo(t *testing.T) {
	l := newLab(t)
	all := l.nodes
	newcomer := pathprobe.Node{ID: all[2].name, Addrs: all[2].addrs}
	l.nodes = all[:2] // who plans and probes
	probers, _ := l.probing()
	l.nodes = all
	for i, p := range l.planes[:2] {
		nodes := []pathprobe.Node{{ID: all[0].name, Addrs: all[0].addrs}, {ID: all[1].name, Addrs: all[1].addrs}}
		p.SetNodes(nodes)
		err := all[i].try(func() error { return p.Usable(context.Background(), l.loadBalancer()) })
		if err == nil || !strings.Contains(err.Error(), "at none of the peers' addresses") {
			t.Fatalf("a backend on an unknown machine is served: %v", err)
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
	becomes(t, probers[0], "node2", pathprobe.PathProved)
	becomes(t, probers[0], "node3", pathprobe.PathNoAnswer)
	l.apply([]int{0, 1, 2}, nil)
	before := l.open(20)

	// Its appliance starts. It gets nothing before it has the VIPs and the rules, while
	// a node would take what it hands on for a client's packet, and before it hands on
	// to all nodes whose packets it may get.
	l.planes[1].SetNodes([]pathprobe.Node{{ID: all[0].name, Addrs: all[0].addrs}, {ID: all[1].name, Addrs: all[1].addrs}})
	l.applyAt(1, []int{0, 1}, nil)
	third, _ := l.probingAt(2, 2*time.Second) // it waits for others for 6 s
	all[2].do(func() error { return l.planes[2].Usable(context.Background(), l.loadBalancer()) })
	becomes(t, probers[0], "node3", pathprobe.PathUnmet)
	l.applyAt(2, []int{2}, nil)
	becomes(t, third, "node1", pathprobe.PathProved)
	becomes(t, third, "node2", pathprobe.PathUnmet)
	third.Open()
	never(t, probers[0], "node3", pathprobe.PathProved)
	l.planes[1].SetNodes([]pathprobe.Node{{ID: all[0].name, Addrs: all[0].addrs}, {ID: all[1].name, Addrs: all[1].addrs},
		newcomer})
	all[1].do(func() error { return l.planes[1].Usable(context.Background(), l.loadBalancer()) })
	l.applyAt(1, []int{0, 1, 2}, nil)
	becomes(t, third, "node2", pathprobe.PathProved)
	never(t, probers[0], "node3", pathprobe.PathProved)
	l.applyAt(2, []int{0, 1, 2}, nil)
	becomes(t, probers[0], "node3", pathprobe.PathProved)
	becomes(t, probers[1], "node3", pathprobe.PathProved)
	l.apply([]int{0, 1, 2}, nil)
	seen := map[string]bool{}
	for range 60 {
		c := l.dial(frontends[0])
		seen[c.server] = true
		c.Close()
	}
	if len(seen) != 3 {
		t.Errorf("connections went to %v", seen)
	}
	before.flow(t)

	// It is removed.
	for i, p := range l.planes[:2] {
		p.SetNodes([]pathprobe.Node{{ID: all[0].name, Addrs: all[0].addrs}, {ID: all[1].name, Addrs: all[1].addrs}})
		now, err := neighbours.View{}, error(nil)
		all[i].do(func() error { now, err = p.look(); return err })
		if slices.Contains(l.planes[i].knownMACs(now), [6]byte(all[2].mac)) {
			t.Errorf("%s still knows the removed node", all[i].name)
		}
		if got := probers[i].Path(frontends[0], "node3"); got != pathprobe.PathNoAnswer {
			t.Errorf("%s takes the way to the removed node for %v", all[i].name, got)
		}
	}
	l.applyAt(0, []int{0, 1}, nil)
	l.applyAt(1, []int{0, 1}, nil)
	for range 30 {
		c := l.dial(frontends[1])
		if c.server == "node3" {
			t.Fatal("a removed node got a new connection")
		}
		c.Close()
	}
	before.flow(t)
	before.end(t)
}

// antispoof drops frames from a port of the switch whose source is a made-up client.
func (l *lab) antispoof(port string, on bool) {
	l.t.Helper()
	l.sw.do(func() error {
		conn, err := ruleset.Dial()
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
			ruleset.Concat(family{ruleset.IPv4()}.ethertype(), []expr.Any{
				&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: 12,
					Len: 2}, ruleset.Equal(reg1, 198, 18),
			}),
			ruleset.Concat(family{ruleset.IPv6()}.ethertype(), []expr.Any{
				&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: 8,
					Len: 4}, ruleset.Equal(reg1, 0x20, 0x01, 0, 2),
			}),
		} {
			name := make([]byte, unix.IFNAMSIZ)
			copy(name, port)
			conn.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: ruleset.Concat([]expr.Any{
				&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg1}, ruleset.Equal(reg1, name...),
			}, match, ruleset.Verdict(expr.VerdictDrop))})
		}
		return conn.Flush()
	})
}
