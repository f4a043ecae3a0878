package raft

import (
	"strings"
	"testing"
	"time"
)

// rebeat restarts a peer with another heartbeat.
func (b *bench) rebeat(id string, beat time.Duration) {
	b.t.Helper()
	c := b.config(id)
	c.Heartbeat = beat
	b.run(c)
}

func saysBoth(text string, beats ...time.Duration) bool {
	for _, beat := range beats {
		if !strings.Contains(text, beat.String()) {
			return false
		}
	}
	return strings.Contains(text, "group.heartbeat")
}

func TestNewPeerWithAnotherHeartbeatIsRefused(t *testing.T) {
	const short, long = 100 * time.Millisecond, time.Second
	b := newBench(t, 3)
	b.rebeat("a", long)
	b.rebeat("b", long)
	b.holder()
	b.rebeat("c", short)
	b.eventually("both sides to say why", func() bool {
		for _, pair := range [][2]string{{"a", "c"}, {"b", "c"}, {"c", "a"}, {"c", "b"}} {
			for _, p := range b.nodes[pair[0]].Status().Peers {
				if p.ID == pair[1] && !saysBoth(p.Conflict, short, long) {
					return false
				}
			}
		}
		return true
	})
	if b.nodes["c"].running() != nil {
		t.Error("raft runs on a peer that was refused")
	}
	b.holder("a", "b")
	b.stop("c")
	b.rebeat("c", long)
	b.voters(3)
}

// TestHeartbeatIsChangedWhileTheGroupLives: one peer after the other gets another heartbeat, first a shorter
// and then a longer one. The judge checks that no two answer.
func TestHeartbeatIsChangedWhileTheGroupLives(t *testing.T) {
	const short, long = 100 * time.Millisecond, time.Second
	b := newBench(t, 3)
	for _, p := range b.peers {
		b.rebeat(p.ID, long)
	}
	b.voters(3)
	b.holder()
	for _, step := range []struct{ from, to time.Duration }{{long, short}, {short, long}} {
		// The holder comes last: its lease may have another length.
		h := b.holder()
		var others []string
		for _, p := range b.peers {
			if p.ID != h {
				others = append(others, p.ID)
			}
		}
		odd := others[0]
		b.stop(odd)
		b.rebeat(odd, step.to)
		b.eventually("the odd one to say why", func() bool {
			return saysBoth(b.nodes[odd].Status().Trouble, step.from, step.to)
		})
		b.holder(h, others[1])
		// Its vote does not count: the holder falls silent without the third.
		b.stop(others[1])
		b.eventually("the holder to be silent", func() bool { return !b.nodes[h].lawfully() })
		term := b.nodes[odd].Status().Term
		for end := time.Now().Add(3 * step.from); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if b.nodes[h].lawfully() || b.nodes[odd].lawfully() {
				t.Fatal("a holder with the vote of a peer of another heartbeat")
			}
		}
		if now := b.nodes[odd].Status().Term; now != term {
			t.Errorf("the odd peer went from term %d to %d by itself", term, now)
		}
		// With the second the new value has a majority, against the old holder.
		b.rebeat(others[1], step.to)
		b.holder(odd, others[1])
		b.eventually("the former holder to say why", func() bool {
			return saysBoth(b.nodes[h].Status().Trouble, step.from, step.to)
		})
		b.stop(h)
		b.rebeat(h, step.to)
		b.voters(3)
		b.holder()
		b.eventually("everybody to be content", func() bool {
			for _, n := range b.nodes {
				if n.Status().Trouble != "" {
					return false
				}
			}
			return true
		})
	}
}

// TestRestartWithAShorterHeartbeatWaitsForTheLonger: what the former process granted is over before this one
// takes part.
func TestRestartWithAShorterHeartbeatWaitsForTheLonger(t *testing.T) {
	const long = 2 * time.Second
	b := newBench(t, 1)
	b.rebeat("a", long)
	b.holder()
	b.stop("a")
	b.run(func() Config { c := b.config("a"); c.Heartbeat = 50 * time.Millisecond; return c }())
	began := time.Now()
	b.eventually("raft to run", func() bool { return b.nodes["a"].running() != nil })
	if took := time.Since(began); took < long*9/10 {
		t.Errorf("takes part %v after its beginning, and the process before may have granted for %v", took, long)
	}
	b.holder()
	b.stop("a")
	b.rebeat("a", 50*time.Millisecond)
	began = time.Now()
	b.eventually("raft to run again", func() bool { return b.nodes["a"].running() != nil })
	if took := time.Since(began); took > long*9/10 {
		t.Errorf("waited %v for a heartbeat that is two lives old", took)
	}
}
