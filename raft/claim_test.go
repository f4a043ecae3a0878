package raft

import (
	"testing"
	"time"
)

// A peer that is unfit gives way to one that is fitter, without preemption, and
// does not come back by itself. If nobody is fitter, nothing moves.
func TestClaim(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	b.voters(3)
	bar := Claim{Barred: "a track fails"}
	for _, tt := range []struct {
		name    string
		a, b, c Claim
		want    string // whose tenure it is then; more than one: whose it was before
	}{
		{"all but c are barred", bar, bar, Claim{}, "c"},
		{"all are barred", bar, bar, bar, "c"},
		{"the others are fit again", Claim{}, Claim{}, bar, "ab"},
		{"barred is worse than blind", Claim{Blind: 2}, bar, bar, "a"},
		{"some see more", Claim{Blind: 2}, Claim{Blind: 1}, Claim{Blind: 2}, "b"},
		{"none sees anything", Claim{Blind: 2}, Claim{Blind: 2}, Claim{Blind: 2}, "b"},
		{"lowered", Claim{}, Claim{Lowered: 10}, Claim{Lowered: 5}, "a"},
		{"lowered, and still the best", Claim{Lowered: 5}, Claim{Lowered: 10}, Claim{Lowered: 5}, "a"},
		{"all is well", Claim{}, Claim{}, Claim{}, "a"},
	} {
		b.nodes["a"].SetClaim(tt.a)
		b.nodes["b"].SetClaim(tt.b)
		b.nodes["c"].SetClaim(tt.c)
		var among []string
		for _, id := range tt.want {
			among = append(among, string(id))
		}
		t.Log(tt.name)
		b.holder(among...)
		time.Sleep(3 * time.Second) // each has heard of each other's claim, and duty has looked
		b.holder(among...)
	}
	// An unfit holder is better than none.
	b.nodes["a"].SetClaim(bar)
	b.holder("b", "c")
	for _, id := range []string{"b", "c"} {
		b.nodes[id].SetClaim(bar)
	}
	time.Sleep(2 * time.Second)
	b.stop("b")
	b.holder("a", "c")
}

// What ails the holder may have come over its first heir in the same moment,
// as of a router that both look at: the third takes over, and at once.
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
		bar := Claim{Barred: "the router does not answer"}
		b.nodes[rest[0]].SetClaim(bar)
		b.nodes[old].SetClaim(bar)
		b.holder(rest[1])
		if now := b.nodes[rest[0]].Status().Counters.Tenures; now != passed {
			t.Errorf("%s gave way to %s, which was no fitter", old, rest[0])
		}
		b.nodes[rest[0]].SetClaim(Claim{})
		b.nodes[old].SetClaim(Claim{})
		time.Sleep(2 * time.Second) // all have heard
	}
}

// The worst of a claim counts first, then what the operator wants.
func TestStandingOrder(t *testing.T) {
	order := []standing{
		{class: barred, priority: 9}, {class: drained, priority: 9}, {class: ordinary, blind: 2, priority: 9}, {class: ordinary, blind: 1},
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
