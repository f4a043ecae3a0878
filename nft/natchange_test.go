package nft

import (
	"context"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"appliance/balancer"
	"appliance/nft/ruleset"
)

// Hundreds of changes under load cost no connection, and no SYN: a lost SYN is sent
// again after 1 s (RFC 6298 section 2.1).
func TestNATChangesLoseNothing(t *testing.T) {
	const changes = 300
	w := newWorld(t)
	for _, c := range []*machine{w.client, w.far, w.node} {
		c.in(func() { w.sysctl("net/ipv4/ip_local_port_range", "1024 65535") })
	}
	n := w.newNAT()
	for _, b := range w.backends {
		b.discard(":6443")
	}
	all := w.service(ruleset.IPv4(), w.backends...)
	drained := w.service(ruleset.IPv4(), w.backends...)
	drained.Draining, drained.Backends = drained.Backends[2:], drained.Backends[:2]
	heavy := w.service(ruleset.IPv4(), w.backends...)
	heavy.Scheduler = balancer.WeightedRoundRobin
	heavy.Backends[0].Weight = 3
	w.apply(n, all)

	// A server that is short of CPU accepts late, and its kernel drops SYNs once its queue is full: that is not ours.
	full := func() (drops int) {
		for _, b := range w.backends {
			drops += b.listenDrops()
		}
		return drops
	}
	before := full()
	var slow atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for _, c := range []*machine{w.client, w.client, w.far, w.node, w.node} {
		clients.Go(func() { slow.Add(w.load(ctx, c, all.Frontend)) })
	}
	for i := range changes {
		w.apply(n, []balancer.Service{drained, heavy, all}[i%3])
	}
	cancel()
	clients.Wait()
	if lost, dropped := int(slow.Load()), full()-before; lost > dropped {
		t.Errorf("%d SYNs were sent again, and the servers' kernels have dropped %d", lost, dropped)
	}
}

// listenDrops returns how many SYNs this machine has dropped because a server was slow to accept.
func (m *machine) listenDrops() (drops int) {
	m.t.Helper()
	var text []byte
	m.in(func() {
		var err error
		if text, err = os.ReadFile("/proc/thread-self/net/netstat"); err != nil {
			m.t.Fatal(err)
		}
	})
	lines := strings.Split(string(text), "\n") // names, then values, of TcpExt
	names, values := strings.Fields(lines[0]), strings.Fields(lines[1])
	drops, err := strconv.Atoi(values[slices.Index(names, "ListenDrops")])
	if err != nil {
		m.t.Fatal(err)
	}
	return drops
}

// load opens connections one after the other until ctx ends. It returns how many were slow.
func (w *world) load(ctx context.Context, from *machine, to netip.AddrPort) (slow int64) {
	runtime.LockOSThread() // and never unlocked: the thread ends in the namespace
	if err := netns.Set(from.ns); err != nil {
		w.t.Error(err)
		return 0
	}
	done := 0
	for ; ctx.Err() == nil; done++ {
		began := time.Now()
		err := connectOnce(to.Addr().As4(), int(to.Port()))
		if err != nil {
			w.t.Errorf("%s: connection %d: %v", from.name, done, err)
		}
		if took := time.Since(began); took > 900*time.Millisecond {
			w.t.Logf("%s: connection %d after %v", from.name, done, took)
			slow++
		}
	}
	w.t.Logf("%s: %d connections", from.name, done)
	return slow
}

// Chains that are hooked twice are no damage, and go with the next change.
func TestHookedTwice(t *testing.T) {
	w := newWorld(t)
	n := w.newNAT()
	one, two := w.service(ruleset.IPv4(), w.backends...), w.service(ruleset.IPv4(), w.backends[:2]...)
	seen := false
	for i := range 2*ruleset.NATSteps + 2 {
		if r := w.apply(n, []balancer.Service{one, two}[i%2]); r != 0 {
			t.Errorf("change %d counted as a repair", i)
		}
		if rules := w.node.ruleset(); !strings.Contains(rules, "chain again_") {
			continue
		}
		seen = true
		generation := w.node.generation()
		if r := w.apply(n, []balancer.Service{one, two}[i%2]); r != 0 || w.node.generation() != generation {
			t.Errorf("change %d is made a second time", i)
		}
	}
	if !seen {
		t.Error("no chain was ever hooked twice")
	}
}
