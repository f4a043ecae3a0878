package raft

import (
	"context"
	"flag"
	"math/rand/v2"
	"testing"
	"time"
)

var chaosFor = flag.Duration("chaos", 8*time.Second, "how long TestChaosNeverTwo goes on")

// TestChaosNeverTwo cuts, heals, delays, restarts and hands over at random; the judge asks every holder all
// the time whether it may answer.
func TestChaosNeverTwo(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	b := newBench(t, 3)
	b.tweak = func(c *Config) { c.Heartbeat = 60 * time.Millisecond }
	b.start("a", "b", "c")
	b.holder()
	b.voters(3)
	ids := []string{"a", "b", "c"}
	pick := func() string { return ids[rnd.IntN(len(ids))] }
	end := time.Now().Add(*chaosFor)
	steps := 0
	for ; time.Now().Before(end); steps++ {
		switch rnd.IntN(8) {
		case 0, 1:
			b.wires.isolate(pick(), true)
		case 2:
			b.wires.set(pick(), pick(), true)
		case 3:
			b.wires.mu.Lock()
			b.wires.delay = time.Duration(rnd.IntN(20)) * time.Millisecond
			b.wires.mu.Unlock()
		case 4:
			id := pick()
			b.stop(id)
			time.Sleep(time.Duration(rnd.IntN(100)) * time.Millisecond)
			b.start(id)
		case 5:
			// A hand-over without the leader's part: peers vote although they know a leader.
			if g := b.nodes[pick()]; g.running() != nil {
				ctx, cancel := contextFor(20 * time.Millisecond)
				g.trans.Stand(ctx)
				cancel()
			}
		default:
			b.wires.heal()
		}
		time.Sleep(time.Duration(rnd.IntN(150)) * time.Millisecond)
	}
	b.wires.heal()
	b.wires.mu.Lock()
	b.wires.delay = 0
	b.wires.mu.Unlock()
	b.holder()
	if b.judge.answers.Load() == 0 {
		t.Fatal("nobody ever held: the test shows nothing")
	}
	t.Logf("%d steps, %d answers, up to term %d", steps, b.judge.answers.Load(), b.judge.highest.Load())
}

func contextFor(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}

// TestElectionDespiteALeaderWaits makes the worst case on purpose: the holder is cut off while its lease
// runs, and at the same moment the others are made to elect another although they know a leader. The judge
// checks the rest.
func TestElectionDespiteALeaderWaits(t *testing.T) {
	b := newBench(t, 3)
	b.tweak = func(c *Config) { c.Heartbeat = time.Second }
	b.start("a", "b", "c")
	old := b.holder()
	b.voters(3)
	var rest []string
	for id := range b.nodes {
		if id != old {
			rest = append(rest, id)
		}
	}
	time.Sleep(100 * time.Millisecond) // heartbeats of this term have been granted
	b.wires.isolate(old, true)
	cut := time.Now()
	ctx, cancel := contextFor(10 * time.Second)
	defer cancel()
	if err := b.nodes[rest[0]].trans.Stand(ctx); err != nil {
		t.Fatal(err)
	}
	next := b.holder(rest...)
	t.Logf("%s holds %v after the cut; the lease is %v", next, time.Since(cut).Round(time.Millisecond),
		b.nodes[next].cfg.span())
	if b.nodes[old].lawfully() {
		t.Errorf("%s may still answer", old)
	}
}
