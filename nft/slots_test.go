package nft

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"testing"

	"appliance/balancer"
)

func backendsOf(weights ...int) []balancer.Backend {
	var list []balancer.Backend
	for i, w := range weights {
		list = append(list, balancer.Backend{Addr: netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:6443", i+1)), Weight: w})
	}
	return list
}

func TestSlots(t *testing.T) {
	for _, c := range []struct {
		scheduler balancer.Scheduler
		weights   []int
		want      []int
	}{
		{"", []int{5, 1}, []int{0, 1}},
		{balancer.RoundRobin, []int{1}, []int{0}},
		{balancer.RoundRobin, []int{7, 3, 1}, []int{0, 1, 2}},
		{balancer.WeightedRoundRobin, []int{100, 100}, []int{0, 1}},
		{balancer.WeightedRoundRobin, []int{3, 1}, []int{0, 0, 1, 0}},
		{balancer.WeightedRoundRobin, []int{5, 1, 1}, []int{0, 0, 1, 0, 2, 0, 0}},
		{balancer.Random, []int{2, 4}, []int{1, 0, 1}},
	} {
		if got := slots(c.scheduler, backendsOf(c.weights...)); !slices.Equal(got, c.want) {
			t.Errorf("slots of %q with weights %v are %v, want %v", c.scheduler, c.weights, got, c.want)
		}
	}
	// A sum beyond the bound keeps the shares to a percent, and everybody in.
	weights := make([]int, 100)
	for i := range weights {
		weights[i] = 255
	}
	weights[0], weights[1] = 1, 256
	many := slots(balancer.WeightedRoundRobin, backendsOf(weights...))
	if len(many) > mostSlots+len(weights) {
		t.Errorf("%d slots, want about %d at most", len(many), mostSlots)
	}
	if !slices.Contains(many, 0) {
		t.Error("the lightest backend has no slot")
	}
}

func TestRendezvous(t *testing.T) {
	backends := backendsOf(1, 1, 2, 0+1)
	before := slots(balancer.SourceHash, backends)
	count := make([]float64, len(backends))
	for _, b := range before {
		count[b]++
	}
	for i, b := range backends {
		want := float64(b.Weight) / 5 * hashSlots
		// Five standard deviations of a binomial share.
		if math.Abs(count[i]-want) > 5*math.Sqrt(want) {
			t.Errorf("%v with weight %d has %v slots, want about %.0f", b, b.Weight, count[i], want)
		}
	}
	// One leaves: only its slots move.
	after := slots(balancer.SourceHash, slices.Delete(slices.Clone(backends), 1, 2))
	renamed := []int{0, 2, 3}
	for i := range before {
		if before[i] != 1 && renamed[after[i]] != before[i] {
			t.Fatalf("slot %d moved from %d to %d, though its backend stayed", i, before[i], renamed[after[i]])
		}
	}
}
