package nft

import (
	"context"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"appliance/balancer"
)

// Hundreds of changes under load cost no connection, and no SYN: one that is
// lost is sent again after 1 s (RFC 6298 section 2.1).
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
	all := w.service(ipv4(), w.backends...)
	drained := w.service(ipv4(), w.backends...)
	drained.Draining, drained.Backends = drained.Backends[2:], drained.Backends[:2]
	heavy := w.service(ipv4(), w.backends...)
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

// At every step the chain that replaces another comes after it, in one of the
// two places that it may have.
func TestStaggerNeverPutsTheNewChainFirst(t *testing.T) {
	want := nat(ipv4(), []balancer.Service{{Frontend: netip.AddrPortFrom(vip4, 6443)}})
	have := found{}
	for step := range 3 * int(natSteps) {
		next := found{chains: map[string]foundChain{}}
		for _, c := range want.stagger(have).chains {
			if c.hook != nil {
				next.chains[c.name] = foundChain{hook: true, num: c.hook.num, priority: c.hook.priority}
			}
		}
		for name, old := range have.chains {
			again, twice := next.chains[twicePrefix+name]
			if _, is := next.chains[name]; !is || twice && again.num != old.num {
				t.Fatalf("step %d: %s is gone, or hooked elsewhere", step, name)
			}
			wanted := want.chains[slices.IndexFunc(want.chains, func(c chain) bool { return c.name == name })].hook
			if wanted.steps == 0 {
				continue
			}
			if next.chains[name].priority <= old.priority && (!twice || again.priority <= old.priority) {
				t.Errorf("step %d: %s at %d replaces one at %d", step, name, next.chains[name].priority, old.priority)
			}
			if most := wanted.priority + wanted.steps; next.chains[name].priority >= most || twice && again.priority > most {
				t.Errorf("step %d: %s leaves its range", step, name)
			}
		}
		for name := range next.chains {
			if strings.HasPrefix(name, twicePrefix) {
				delete(next.chains, name)
			}
		}
		have = next
	}
}

// Chains that are hooked for the second time are no damage, and go with the next change.
func TestHookedTwice(t *testing.T) {
	w := newWorld(t)
	n := w.newNAT()
	one, two := w.service(ipv4(), w.backends...), w.service(ipv4(), w.backends[:2]...)
	seen := false
	for i := range 2*natSteps + 2 {
		if r := w.apply(n, []balancer.Service{one, two}[i%2]); r != 0 {
			t.Errorf("change %d counted as a repair", i)
		}
		if rules := w.node.ruleset(); !strings.Contains(rules, "chain "+twicePrefix) {
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
