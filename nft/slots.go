package nft

import (
	"encoding/binary"
	"hash/fnv"
	"math"

	"appliance/balancer"
	"appliance/nft/ruleset"
)

const (
	// mostSlots bounds the map of one service. A hundred backends with weights up to
	// 256 would otherwise need 25,600 slots.
	mostSlots = 2048
	// hashSlots is the number of slots for the source hash: many more than backends,
	// so that shares are even.
	hashSlots = 1021
)

// slots says to which backend each slot leads. All backends have a weight.
func slots(s balancer.Scheduler, backends []balancer.Backend) []int {
	weights := make([]int, len(backends))
	for i, b := range backends {
		weights[i] = b.Weight
	}
	switch s {
	case balancer.SourceHash:
		return rendezvous(backends, hashSlots)
	case balancer.WeightedRoundRobin, balancer.Random:
		return interleave(reduce(weights, mostSlots))
	}
	for i := range weights {
		weights[i] = 1 // round robin knows no weights
	}
	return interleave(weights)
}

// reduce makes weights as small as their ratios allow, and smaller, with rounding, if
// their sum is more than most.
func reduce(weights []int, most int) []int {
	divisor, sum := 0, 0
	for _, w := range weights {
		divisor, sum = gcd(divisor, w), sum+w
	}
	reduced := make([]int, len(weights))
	for i, w := range weights {
		reduced[i] = w / divisor
		if sum/divisor > most {
			reduced[i] = max(1, w*most/sum)
		}
	}
	return reduced
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// interleave gives each i weights[i] slots, spread evenly, so that a heavy backend
// does not get its connections in one go: each slot goes to the backend that is
// furthest behind its share.
func interleave(weights []int) []int {
	sum := 0
	for _, w := range weights {
		sum += w
	}
	slots := make([]int, 0, sum)
	behind := make([]int, len(weights))
	for range sum {
		best := 0
		for i, w := range weights {
			behind[i] += w
			if behind[i] > behind[best] {
				best = i
			}
		}
		behind[best] -= sum
		slots = append(slots, best)
	}
	return slots
}

// rendezvous gives each slot to the backend that draws the highest number for it
// (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998): a
// backend that leaves or comes moves only its own slots, and every node computes the
// same. Weights are shares, by the draw -w/ln(h).
func rendezvous(backends []balancer.Backend, n int) []int {
	slots := make([]int, n)
	for slot := range slots {
		best := math.Inf(-1)
		for i, b := range backends {
			if s := draw(b, slot); s > best {
				best, slots[slot] = s, i
			}
		}
	}
	return slots
}

func draw(b balancer.Backend, slot int) float64 {
	h := fnv.New64a()
	h.Write(ruleset.AddrPortKey(b.Addr))
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(slot)))
	// FNV's last bytes hardly change the upper bits, which matter here.
	x := h.Sum64()
	x ^= x >> 32
	x *= 0xd6e8feb86659fd93
	x ^= x >> 32
	x *= 0xd6e8feb86659fd93
	x ^= x >> 32
	uniform := (float64(x>>11) + 0.5) / (1 << 53) // in (0, 1)
	return -float64(b.Weight) / math.Log(uniform)
}
