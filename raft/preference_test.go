package raft

import (
	"net/netip"
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
	both := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}
	cut := Fitness{NoCarrier: both[:1]}
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
		{"no carrier is worse than all else", cut, Fitness{Unserved: 3, Barred: "a track fails"}, cut, "b"},
		{"nobody has carrier", cut, cut, cut, "b"},
		{"some carrier", Fitness{NoCarrier: both}, cut, Fitness{NoCarrier: both}, "b"},
		{"all is well", Fitness{}, Fitness{}, Fitness{}, "b"},
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
	b.nodes["b"].SetFitness(bar)
	b.holder("a", "c")
	for _, id := range []string{"a", "c"} {
		b.nodes[id].SetFitness(bar)
	}
	time.Sleep(2 * time.Second)
	b.stop("a")
	b.holder("b", "c")
}

// The holder's trouble may hit its first successor at the same moment, for example when both look at one
// router: the third peer takes over at once.
func TestGivesWayByWhatIsTrueNow(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	b.voters(3)
	// A peer that a busy machine deposes is followed by whoever is elected, whatever its fitness: such a round
	// shows nothing, and is played again.
	deposed := func() (n uint64) {
		for _, node := range b.nodes {
			n += node.Status().Counters.Ended["deposed"]
		}
		return n
	}
	for rounds, tries := 0, 0; rounds < 3; tries++ {
		if tries == 30 {
			t.Skipf("%d rounds of 3: this machine is too busy to let a holder hold", rounds)
		}
		before := deposed()
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
		if now := b.nodes[rest[0]].Status().Counters.Tenures; now != passed && deposed() == before {
			t.Errorf("%s gave way to %s, which was no fitter", old, rest[0])
		}
		if deposed() == before {
			rounds++
		}
		b.nodes[rest[0]].SetFitness(Fitness{})
		b.nodes[old].SetFitness(Fitness{})
		time.Sleep(2 * time.Second) // all have heard
	}
}

// The worst trouble counts first, then what the operator wants.
func TestPreferenceOrder(t *testing.T) {
	order := []preference{
		{cut: 2, class: pinned, priority: 9}, {cut: 1, class: ordinary, priority: 9}, {cut: 1, class: pinned},
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

// Peers that lose carrier one after the other, and get it back, move the address a few times and then rest. The
// peers tell each other of a carrier at once.
func TestFlappingFitness(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	b.voters(3)
	first := b.holder()
	cut := Fitness{NoCarrier: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	handovers := func() (n uint64) { // a busy machine ends tenures too
		for _, id := range []string{"a", "b", "c"} {
			n += b.nodes[id].Status().Counters.Ended[countedAs(HandedOver)]
		}
		return n
	}
	before := handovers()
	b.nodes[first].SetFitness(cut)
	for end := time.Now().Add(6 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		for _, id := range []string{"a", "b", "c"} { // whoever holds is the one that is cut off
			if b.nodes[id].Status().Holder {
				b.nodes[id].SetFitness(cut)
			} else {
				b.nodes[id].SetFitness(Fitness{})
			}
		}
	}
	// One that might have helped, and two in vain.
	if n := handovers() - before; n < 1 || n > 4 {
		t.Errorf("%d hand-overs in 6 s", n)
	}
}
