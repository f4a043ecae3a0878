package connlog

import (
	"testing"
	"time"
)

// TestSampler: one of so many connections is logged, and no more in a second than wanted.
func TestSampler(t *testing.T) {
	const second = int64(time.Second)
	var s Sampler
	count := func(n, every, rate int, now int64) (got [3]int) {
		for range n {
			got[s.Judge(every, rate, now)]++
		}
		return got
	}
	for _, tt := range []struct {
		n, every, rate int
		now            int64
		want           [3]int // Logged, NotItsTurn, TooMany
	}{
		{5, 0, 0, 0, [3]int{5, 0, 0}},
		{5, 1, 0, 0, [3]int{5, 0, 0}},
		{90, 10, 0, 0, [3]int{9, 81, 0}},
		{5, 0, 3, 7 * second, [3]int{3, 0, 2}},
		{5, 0, 3, 8*second - 1, [3]int{0, 0, 5}},
		{5, 0, 3, 8 * second, [3]int{3, 0, 2}},
		{5, 0, 4, 8 * second, [3]int{1, 0, 4}},
		{20, 10, 1, 9 * second, [3]int{1, 18, 1}},
	} {
		if got := count(tt.n, tt.every, tt.rate, tt.now); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}
