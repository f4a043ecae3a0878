package nft

import (
	"context"
	"net/netip"
	"runtime"
	"strings"
	"sync"
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

	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for _, c := range []*machine{w.client, w.client, w.far, w.node, w.node} {
		clients.Go(func() { w.load(ctx, c, all.Frontend) })
	}
	for i := range changes {
		w.apply(n, []balancer.Service{drained, heavy, all}[i%3])
	}
	cancel()
	clients.Wait()
}

// load opens connections one after the other until ctx ends.
func (w *world) load(ctx context.Context, from *machine, to netip.AddrPort) {
	runtime.LockOSThread() // and never unlocked: the thread ends in the namespace
	if err := netns.Set(from.ns); err != nil {
		w.t.Error(err)
		return
	}
	done := 0
	for ; ctx.Err() == nil; done++ {
		began := time.Now()
		err := connectOnce(to.Addr().As4(), int(to.Port()))
		if took := time.Since(began); err != nil || took > 900*time.Millisecond {
			w.t.Errorf("%s: connection %d: %v after %v", from.name, done, err, took)
		}
	}
	w.t.Logf("%s: %d connections", from.name, done)
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
