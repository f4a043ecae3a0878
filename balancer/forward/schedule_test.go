package forward

import (
	"math"
	"net/netip"
	"testing"

	"appliance/balancer"
)

// candidates with these weights and no connections.
func weighted(weights ...int) []candidate {
	var cs []candidate
	for i, w := range weights {
		addr := netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
		cs = append(cs, candidate{addr: netip.AddrPortFrom(addr, 6443), weight: w, share: fullShare})
	}
	return cs
}

func client(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

// The share of each backend after many picks for many clients, when every connection stays
// open.
func TestSchedulersDistribute(t *testing.T) {
	const n = 60_000
	tests := []struct {
		scheduler balancer.Scheduler
		want      [3]float64 // for weights 1, 2, 3
		within    float64
	}{
		{"", [3]float64{1. / 3, 1. / 3, 1. / 3}, 0},
		{balancer.RoundRobin, [3]float64{1. / 3, 1. / 3, 1. / 3}, 0},
		{balancer.WeightedRoundRobin, [3]float64{1. / 6, 2. / 6, 3. / 6}, 0},
		{balancer.LeastConn, [3]float64{1. / 3, 1. / 3, 1. / 3}, 0},
		{balancer.WeightedLeastConn, [3]float64{1. / 6, 2. / 6, 3. / 6}, 0.001},
		{balancer.SourceHash, [3]float64{1. / 6, 2. / 6, 3. / 6}, 0.01},
		{balancer.Random, [3]float64{1. / 6, 2. / 6, 3. / 6}, 0.02},
		{balancer.First, [3]float64{1, 0, 0}, 0},
	}
	for _, tt := range tests {
		t.Run("scheduler "+string(tt.scheduler), func(t *testing.T) {
			s, err := newScheduler(tt.scheduler)
			if err != nil {
				t.Fatal(err)
			}
			cs := weighted(1, 2, 3)
			for i := range n {
				cs[s.pick(cs, client(i))].open++
			}
			for i, c := range cs {
				if got := float64(c.open) / n; math.Abs(got-tt.want[i]) > tt.within {
					t.Errorf("backend %d got %.4f, want %.4f", i, got, tt.want[i])
				}
			}
		})
	}
	if _, err := newScheduler("lblcr"); err == nil {
		t.Error("an unknown scheduler is taken")
	}
}

// Weight 5 beside 1 and 1 gets its turns spread out, never five in a row.
func TestWeightedRoundRobinIsSmooth(t *testing.T) {
	s := &smooth{}
	cs := weighted(5, 1, 1)
	var got []int
	for range 14 {
		got = append(got, s.pick(cs, netip.Addr{}))
	}
	run := 0
	for _, i := range got {
		if run++; i != 0 {
			run = 0
		}
		if run > 4 {
			t.Fatalf("turns %v have more than four in a row", got)
		}
	}
	first, second := got[:7], got[7:]
	for i := range first {
		if first[i] != second[i] {
			t.Fatalf("turns %v do not repeat", got)
		}
	}
}

func TestLeastConnections(t *testing.T) {
	cs := weighted(1, 1, 4)
	cs[0].open, cs[1].open, cs[2].open = 3, 2, 8
	if got := (&least{equalWeights: true}).pick(cs, netip.Addr{}); got != 1 {
		t.Errorf("lc took %d, want the one with 2 open", got)
	}
	// (3+1)/1, (2+1)/1, (8+1)/4
	if got := (&least{}).pick(cs, netip.Addr{}); got != 2 {
		t.Errorf("wlc took %d, want the one of weight 4", got)
	}
	idle, l := weighted(1, 1, 1), &least{equalWeights: true}
	seen := map[int]bool{}
	for range 3 {
		seen[l.pick(idle, netip.Addr{})] = true
	}
	if len(seen) != 3 {
		t.Errorf("three idle backends took turns as %v", seen)
	}
	if n := testing.AllocsPerRun(100, func() { l.pick(idle, netip.Addr{}) }); n != 0 {
		t.Errorf("a pick among equals allocates %v times", n)
	}
	// One connection at a time: every backend is idle each time.
	turns, weighs := map[int]int{}, &least{}
	for range 20 {
		turns[weighs.pick(weighted(3, 1), netip.Addr{})]++
	}
	if turns[0] != 15 || turns[1] != 5 {
		t.Errorf("idle backends of weights 3 and 1 took turns as %v", turns)
	}
}

// A client stays with its backend, and a backend that leaves or comes moves only its own
// clients.
func TestSourceHashIsStable(t *testing.T) {
	const n = 20_000
	all := weighted(1, 1, 1, 1, 1)
	without := append(append([]candidate{}, all[:2]...), all[3:]...)
	moved := 0
	for i := range n {
		before := all[sourceHash{}.pick(all, client(i))].addr
		if again := all[sourceHash{}.pick(all, client(i))].addr; again != before {
			t.Fatalf("client %d moved with nothing changed", i)
		}
		after := without[sourceHash{}.pick(without, client(i))].addr
		if before == all[2].addr {
			moved++
		} else if after != before {
			t.Fatalf("client %d moved from %s to %s though its backend stayed", i, before, after)
		}
	}
	if share := float64(moved) / n; math.Abs(share-0.2) > 0.02 {
		t.Errorf("the backend that left had %.3f of the clients, want 0.2", share)
	}
}

// Backends that failed lately are passed over, unless there is no other.
func TestPickPrefersSoundBackends(t *testing.T) {
	s, _ := newScheduler(balancer.RoundRobin)
	tb := &table{scheduler: s}
	for _, c := range weighted(1, 1, 0) {
		tb.slots = append(tb.slots, slot{target: newTarget(balancer.Target{Backend: c.addr}), weight: c.weight})
	}
	a, b := tb.slots[0].target, tb.slots[1].target
	now := nanotime()
	a.avoid(now)
	for range 5 {
		if got, _ := tb.pick(client(1), nil, now); got != b {
			t.Fatalf("picked %v, want the sound one", got)
		}
	}
	if got, _ := tb.pick(client(1), []*target{b}, now); got != a {
		t.Errorf("picked %v, want the shunned one as the last resort", got)
	}
	if got, _ := tb.pick(client(1), []*target{a, b}, now); got != nil {
		t.Errorf("picked %v, want none: weight 0 gets nothing", got)
	}
	tries := 0
	for range 10 {
		if got, _ := tb.pick(client(1), nil, now+2*int64(avoidFor)); got == a {
			tries++
		}
	}
	if tries != 1 {
		t.Errorf("%d connections tried the shunned one, want 1", tries)
	}
}
