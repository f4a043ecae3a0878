package raft

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	hraft "github.com/hashicorp/raft"

	"appliance/raft/auth"
	"appliance/raft/fence"
	"appliance/raft/lease"
	"appliance/raft/peerport"
	"appliance/raft/standstill"
	"appliance/raft/store"
)

// The tests here are about one ordering each that the argument in package lease rests on. They hold a group
// still between the two steps and look whether the second has been taken. On a slow machine they may miss that
// it has; they never fail when it has not.

// gate stops whoever reads the clock inside of a function, until it is opened.
type gate struct {
	inside string
	armed  atomic.Bool
	in     chan struct{}
	open   chan struct{}
}

func newGate(inside string) *gate {
	return &gate{inside: inside, in: make(chan struct{}, 100), open: make(chan struct{})}
}

func (g *gate) clock() time.Duration {
	if g.armed.Load() && within(g.inside) {
		select {
		case g.in <- struct{}{}:
		default:
		}
		<-g.open
	}
	return lease.Boottime()
}

func within(function string) bool {
	var pcs [32]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for {
		f, more := frames.Next()
		if strings.Contains(f.Function, function) {
			return true
		}
		if !more {
			return false
		}
	}
}

// still is long enough for a step that is taken too early to be seen.
const still = 700 * ms

// leaderThatWaits hands over in a group of three, and returns a new leader that still waits out older leases, until
// open is called. Who has led before is old.
func leaderThatWaits(t *testing.T) (b *bench, leader *node, old string, open func()) {
	b = newBench(t, 3)
	gates := map[string]*gate{}
	b.tweak = func(c *Config) {
		gates[c.ID] = newGate("waitOutLeases")
		c.now = gates[c.ID].clock
	}
	b.start("a", "b", "c")
	b.voters(3)
	b.named()
	old = b.holder()
	open = sync.OnceFunc(func() {
		for _, g := range gates {
			close(g.open)
		}
	})
	t.Cleanup(open) // before the peers are stopped
	for _, g := range gates {
		g.armed.Store(true)
	}
	if err := b.nodes[old].Transfer(b.ctx(), ""); err != nil {
		t.Fatal(err)
	}
	b.eventually("a leader that waits", func() bool {
		for _, n := range b.nodes {
			if _, ok := n.leads(); ok && n.cfg.ID != old {
				leader = n
			}
		}
		return leader != nil && len(gates[leader.cfg.ID].in) > 0
	})
	return b, leader, old, open
}

// TestNothingHappensBeforeOlderLeasesAreOver: a leader that still waits them out answers nothing, changes no
// members and takes nobody in.
func TestNothingHappensBeforeOlderLeasesAreOver(t *testing.T) {
	b, leader, old, open := leaderThatWaits(t)
	before := leader.Group.servers()
	ctx, cancel := context.WithTimeout(t.Context(), still)
	defer cancel()
	p := Peer{ID: "d", Addr: freeAddr(t, 9)}
	var wg sync.WaitGroup
	for what, f := range map[string]func() error{
		"a removal":        func() error { return leader.lead(ctx, request{Op: opRemove, To: old, Force: true}) },
		"an expected peer": func() error { return leader.lead(ctx, request{Op: opAdd, Peer: &p, Force: true}) },
	} {
		wg.Go(func() {
			if err := f(); err == nil {
				t.Errorf("%s was done by a leader that does not know yet whether older leases are over", what)
			}
		})
	}
	wg.Go(func() { leader.admit(ctx, *b.peer(old), false) })
	wg.Wait()
	if leader.holds.Load() {
		t.Error("hold runs before older leases are over")
	}
	if leader.lease.Begun(leader.raft.CurrentTerm()) {
		t.Error("the lease began before older ones are over")
	}
	if after := leader.Group.servers(); !slices.Equal(after, before) {
		t.Errorf("members were changed before older leases are over: %v", after)
	}
	open()
	b.holder()
}

// TestNobodyIsPromotedBeforeOlderLeasesAreOver is the same for what the leader does without being asked.
func TestNobodyIsPromotedBeforeOlderLeasesAreOver(t *testing.T) {
	b, leader, old, open := leaderThatWaits(t)
	b.eventually("a member without a vote", func() bool {
		for id, n := range b.nodes { // whoever leads waits
			if _, leads := n.leads(); leads && id != old {
				leader = n
			}
		}
		return leader.raft.DemoteVoter(hraft.ServerID(old), 0, patience).Error() == nil
	})
	for until := time.Now().Add(still); time.Now().Before(until); time.Sleep(10 * ms) {
		if len(leader.Group.voters(nil)) > 2 {
			t.Fatal("a member got a vote from a leader that does not know yet whether older leases are over")
		}
	}
	open()
	b.voters(3)
}

func (b *bench) peer(id string) *Peer {
	for i := range b.peers {
		if b.peers[i].ID == id {
			return &b.peers[i]
		}
	}
	return nil
}

// TestAccountReadsTheTermFirst is step 3: an account counts only if its voter had reached the term before it
// read its grants.
func TestAccountReadsTheTermFirst(t *testing.T) {
	b := newBench(t, 3)
	gates := map[string]*gate{}
	b.tweak = func(c *Config) {
		gates[c.ID] = newGate("Grants).Account")
		c.now = gates[c.ID].clock
	}
	b.start("a", "b", "c")
	b.voters(3)
	b.holder()
	n := b.nodes["a"]
	at := n.raft.CurrentTerm()
	g := gates["a"]
	g.armed.Store(true)
	open := sync.OnceFunc(func() { close(g.open) })
	t.Cleanup(open)
	told := make(chan reply, 1)
	go func() {
		told <- n.answer(t.Context(), auth.Identity{Role: auth.Peer, ID: "b"}, netip.Addr{},
			request{Op: opAccount})
	}()
	<-g.in
	b.eventually("a newer term", func() bool {
		for _, id := range []string{"b", "c"} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			b.nodes[id].trans.Stand(ctx)
			cancel()
		}
		return n.raft.CurrentTerm() > at
	})
	open()
	if rep := <-told; rep.Account == nil || rep.Account.Term > at {
		t.Errorf("account %+v: the grants were read in term %d", rep.Account, at)
	}
}

// slowHold runs a peer whose hold returns only when it is let go.
func (b *bench) slowHold(id string) (n *node, letGo func(), ended <-chan struct{}) {
	gone, end := make(chan struct{}), make(chan struct{}, 1)
	n = b.holdWith(b.config(id), func(ctx context.Context, may func() bool) {
		<-ctx.Done()
		if errors.Is(context.Cause(ctx), errHandover) && may() {
			b.t.Error("may says yes after the end of the tenure")
		}
		select {
		case end <- struct{}{}:
		default:
		}
		<-gone
	})
	letGo = sync.OnceFunc(func() { close(gone) })
	b.t.Cleanup(letGo)
	return n, letGo, end
}

// holds starts a group in which id holds, with a hold that returns only when it is let go.
func (b *bench) holds(id string) (n *node, letGo func(), ended <-chan struct{}) {
	n, letGo, ended = b.slowHold(id)
	for _, p := range b.peers {
		if p.ID != id {
			b.start(p.ID)
		}
	}
	b.voters(3)
	b.eventually(id+" to hold", func() bool {
		for other, o := range b.nodes {
			if _, leads := o.leads(); leads && other != id {
				o.Transfer(b.ctx(), id)
			}
		}
		return n.holds.Load() && n.lawfully()
	})
	return n, letGo, ended
}

// TestSilenceIsSaidAfterHoldHasReturned is step 4: who says that it never answers again has stopped.
func TestSilenceIsSaidAfterHoldHasReturned(t *testing.T) {
	b := newBench(t, 3)
	n, letGo, ended := b.holds("a")
	term := n.raft.CurrentTerm()
	n.cancel()
	<-ended
	silenced := func() bool {
		for _, id := range []string{"b", "c"} {
			if _, _, s, _ := b.nodes[id].grants.Sign("a"); s >= term {
				return true
			}
		}
		return false
	}
	for until := time.Now().Add(still); time.Now().Before(until); time.Sleep(ms) {
		if silenced() {
			t.Fatal("the peer said that it is silent while hold still runs")
		}
	}
	letGo()
	b.eventually("the peer to say so afterwards", silenced)
}

// TestReplyFromANewTermProvesSilenceAfterHold is step 4 for who is deposed: a thread of hold may have looked at the lease
// before, and answer now.
func TestReplyFromANewTermProvesSilenceAfterHold(t *testing.T) {
	b := newBench(t, 3)
	n, letGo, ended := b.holds("a")
	at := n.raft.CurrentTerm()
	b.eventually("a newer term", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		b.nodes["b"].trans.Stand(ctx)
		return n.raft.CurrentTerm() > at
	})
	<-ended
	account := func() *lease.Account {
		return n.answer(t.Context(), auth.Identity{Role: auth.Peer, ID: "b"}, netip.Addr{}, request{Op: opAccount}).Account
	}
	if a := account(); a == nil || a.Term <= at || !a.Answering {
		t.Errorf("account %+v while hold still runs, in term %d before", a, at)
	}
	letGo()
	b.eventually("an account that proves silence", func() bool { a := account(); return a != nil && !a.Answering })
}

// TestHandOverComesAfterHoldHasReturned: the next leader has nothing to wait for, so the last one has stopped.
func TestHandOverComesAfterHoldHasReturned(t *testing.T) {
	b := newBench(t, 3)
	n, letGo, ended := b.holds("a")
	term := n.raft.CurrentTerm()
	b.eventually("the tenure to end", func() bool {
		// A busy machine may be late with b's word: then the transfer is refused. It returns after hold.
		go n.Transfer(b.ctx(), "b")
		select {
		case <-ended:
			return true
		case <-time.After(100 * ms):
			return false
		}
	})
	for until := time.Now().Add(still); time.Now().Before(until); time.Sleep(ms) {
		// A newer term than the next is an election that has other reasons.
		if _, leads := b.nodes["b"].leads(); leads && b.nodes["b"].raft.CurrentTerm() == term+1 &&
			b.nodes["b"].Status().Counters.Missed == 0 && n.raft.State() == hraft.Follower {
			t.Fatal("leadership was handed over while hold still runs")
		}
	}
	letGo()
	b.holder()
}

// TestWatchersKnowTheTermBeforeTheFirstAnswer: the death of a holder proves that its leases up to the term that
// the watchers have been told are over.
func TestWatchersKnowTheTermBeforeTheFirstAnswer(t *testing.T) {
	b := newBench(t, 3)
	type greeting struct{ told, term uint64 }
	first := make(chan greeting, 10)
	var nodes sync.Map
	for _, p := range b.peers {
		n := b.holdWith(b.config(p.ID), func(ctx context.Context, may func() bool) {
			v, _ := nodes.Load(p.ID)
			self := v.(*node)
			term := self.raft.CurrentTerm()
			for ctx.Err() == nil { // a busy machine may be too late for a handshake
				conn, err := self.port.Open(ctx, p.Addr, p.ID, peerport.PreambleWatch)
				if err != nil {
					continue
				}
				var g [17]byte
				_, err = io.ReadFull(conn, g[:])
				conn.Close()
				if err == nil {
					first <- greeting{binary.BigEndian.Uint64(g[9:]), term}
					break
				}
			}
			<-ctx.Done()
		})
		nodes.Store(p.ID, n)
	}
	if g := <-first; g.told != g.term {
		t.Errorf("hold runs in term %d, and the watchers have been told %d", g.term, g.told)
	}
}

// TestRestartWaitsForWhatTheFormerProcessGranted is step 5, for leases of the longer heartbeat of both.
func TestRestartWaitsForWhatTheFormerProcessGranted(t *testing.T) {
	b := newBench(t, 1)
	b.tweak = func(c *Config) { c.Heartbeat = time.Second }
	b.start("a")
	b.holder()
	b.stop("a")
	b.tweak = func(c *Config) { c.Heartbeat = 20 * ms }
	began := time.Now()
	b.start("a")
	b.eventually("a to run", func() bool { return b.nodes["a"].running() != nil })
	if took := time.Since(began); took < time.Second {
		t.Errorf("took part after %v, and leases of 1s heartbeats may run", took)
	}
}

// TestLateProbeOfAnotherGroup: a leader's datagram names no group. One of a group that has ended, whose term has the
// number that this one's leader will have, must not take that leader's place.
func TestLateProbeOfAnotherGroup(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	b.voters(3)
	holder := b.holder()
	for id, g := range b.nodes {
		if id == holder {
			continue
		}
		e := &elections{Group: g.Group, ctx: t.Context()}
		const later = 1 << 20
		if e.HeardFrom("stranger", later) {
			t.Errorf("%s grants by a datagram of a leader that its raft does not follow", id)
		}
		if !g.grants.Follow("next", later) {
			t.Errorf("%s keeps the term for whoever sent a datagram, and the group's own leader out", id)
		}
		b.eventually("its own leader is granted", func() bool {
			leader, term := e.Follows()
			return leader != "" && e.HeardFrom(leader, term)
		})
	}
}

// gatedDisk holds back the first word that the disk went backwards.
type gatedDisk struct {
	store.Disk
	once     *sync.Once
	in, open chan struct{}
}

func (d gatedDisk) Set(key, value []byte) error {
	if string(key) == store.WithheldKey && len(value) > 0 {
		d.once.Do(func() {
			close(d.in)
			<-d.open
		})
	}
	return d.Disk.Set(key, value)
}

// TestWithheldIsOnDiskWhatItIsInMemory: a peer that has caught up while a slow disk still takes the word that it has not
// would know of it after its next start only. A group of two votes could have no leader then.
func TestWithheldIsOnDiskWhatItIsInMemory(t *testing.T) {
	b := newBench(t, 3)
	gates := map[string]gatedDisk{}
	b.tweak = func(c *Config) {
		gate := gatedDisk{once: new(sync.Once), in: make(chan struct{}), open: make(chan struct{})}
		gates[c.ID] = gate
		c.disk = func(d store.Disk) store.Disk { return gatedDisk{d, gate.once, gate.in, gate.open} }
	}
	b.start("a", "b", "c")
	b.voters(3)
	var n *node
	b.eventually("a follower", func() bool {
		n = b.nodes["a"]
		if n.raft.State() != hraft.Follower {
			n = b.nodes["b"]
		}
		return n.raft.State() == hraft.Follower
	})
	told := make(chan struct{})
	go func() {
		defer close(told)
		n.withhold("c", fence.Reached{Process: n.disk.Process, Term: 1, Commit: 1, Backwards: "a test says so"})
	}()
	gate := gates[n.cfg.ID]
	<-gate.in
	for until := time.Now().Add(still); time.Now().Before(until) && n.withholds() != nil; time.Sleep(ms) {
	}
	close(gate.open)
	<-told
	n.settling <- struct{}{}
	is, text := n.withholds(), n.store.Own(store.WithheldKey)
	<-n.settling
	if (is != nil) != (text != "") {
		t.Errorf("in memory: %v, on disk: %q", is, text)
	}
	b.eventually("it has caught up", func() bool { return n.withholds() == nil })
}

// hostClock is the clock of a host whose machine stood still for lost nanoseconds.
func hostClock(lost *atomic.Int64) func() standstill.Sources {
	return func() standstill.Sources {
		return standstill.Sources{Clocks: []standstill.OtherClock{{Name: "the host's clock", Apart: true,
			Read: func() (time.Duration, bool) { return lease.Boottime() + time.Duration(lost.Load()), true }}}}
	}
}

// TestStandstillIsSeenBeforeTheNextAnswer: whoever asks whether it may answer after the machine was paused is told no, or
// the lease is one that was granted since.
func TestStandstillIsSeenBeforeTheNextAnswer(t *testing.T) {
	b := newBench(t, 3)
	var lost atomic.Int64
	b.tweak = func(c *Config) {
		c.now, c.sources = lease.Boottime, hostClock(&lost)
	}
	b.start("a", "b", "c")
	b.voters(3)
	for range 20 {
		n := b.nodes[b.holder()]
		b.eventually("a lease", func() bool { return n.Status().Lease || n != b.nodes[b.holder()] })
		term, before := n.raft.CurrentTerm(), n.Status().Counters.Standstills
		lost.Add(int64(time.Second))
		if n.mayAnswer(term) && n.Status().Counters.Standstills == before {
			t.Fatal("it answers with what was left of its lease")
		}
	}
}
