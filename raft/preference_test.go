package raft

import (
	"testing"
	"time"
)

// A peer that is unfit gives way to one that is fitter, without preemption, and does not come back by itself.
// If nobody is fitter, nothing moves.
func TestFitness(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	b.voters(3)
	bar := Fitness{Barred: "a track fails"}
	for _, tt := range []struct {
		name    string
		a, b, c Fitness
		want    string // whose tenure it is then; more than one: whose it was before
	}{
		{"all but c are barred", bar, bar, Fitness{}, "c"},
		{"all are barred", bar, bar, bar, "c"},
		{"the others are fit again", Fitness{}, Fitness{}, bar, "ab"},
		{"barred is worse than unserved", Fitness{Unserved: 2}, bar, bar, "a"},
		{"some see more", Fitness{Unserved: 2}, Fitness{Unserved: 1}, Fitness{Unserved: 2}, "b"},
		{"none sees anything", Fitness{Unserved: 2}, Fitness{Unserved: 2}, Fitness{Unserved: 2}, "b"},
		{"lowered", Fitness{}, Fitness{Lowered: 10}, Fitness{Lowered: 5}, "a"},
		{"lowered, and still the best", Fitness{Lowered: 5}, Fitness{Lowered: 10}, Fitness{Lowered: 5}, "a"},
		{"all is well", Fitness{}, Fitness{}, Fitness{}, "a"},
	} {
		b.nodes["a"].SetFitness(tt.a)
		b.nodes["b"].SetFitness(tt.b)
		b.nodes["c"].SetFitness(tt.c)
		var among []string
		for _, id := range tt.want {
			among = append(among, string(id))
		}
		t.Log(tt.name)
		b.holder(among...)
		time.Sleep(3 * time.Second) // each has heard of each other, and the leader loop has looked
		b.holder(among...)
	}
	// An unfit holder is better than none.
	b.nodes["a"].SetFitness(bar)
	b.holder("b", "c")
	for _, id := range []string{"b", "c"} {
		b.nodes[id].SetFitness(bar)
	}
	time.Sleep(2 * time.Second)
	b.stop("b")
	b.holder("a", "c")
}

// The holder's trouble may hit its first successor at the same moment, for example when both look at one
// router: the third peer takes over at once.
func TestGivesWayByWhatIsTrueNow(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	b.voters(3)
	for range 3 {
		old := b.holder()
		var rest []string // in the order in which they are wanted
		for _, p := range b.peers {
			if p.ID != old {
				rest = append(rest, p.ID)
			}
		}
		passed := b.nodes[rest[0]].Status().Counters.Tenures
		bar := Fitness{Barred: "the router does not answer"}
		b.nodes[rest[0]].SetFitness(bar)
		b.nodes[old].SetFitness(bar)
		b.holder(rest[1])
		if now := b.nodes[rest[0]].Status().Counters.Tenures; now != passed {
			t.Errorf("%s gave way to %s, which was no fitter", old, rest[0])
		}
		b.nodes[rest[0]].SetFitness(Fitness{})
		b.nodes[old].SetFitness(Fitness{})
		time.Sleep(2 * time.Second) // all have heard
	}
}

// The worst trouble counts first, then what the operator wants.
func TestPreferenceOrder(t *testing.T) {
	order := []preference{
		{class: barred, priority: 9}, {class: drained, priority: 9}, {class: ordinary, unserved: 2, priority: 9},
		{class: ordinary, unserved: 1},
		{class: ordinary}, {class: ordinary, priority: 1}, {class: pinned},
	}
	for i, s := range order {
		for j, o := range order {
			if got := s.compare(o); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%+v against %+v: %d", s, o, got)
			}
		}
	}
}
