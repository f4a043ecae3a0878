package overview

import (
	"testing"
	"time"

	"appliance/status/history"
)

func TestTrace(t *testing.T) {
	now := time.UnixMilli(int64(history.Span / time.Millisecond))
	at := func(fraction float64) int64 { return int64(fraction * float64(history.Span.Milliseconds())) }
	value := func(p history.Point) float64 { return float64(p.Latency) }
	step := history.Interval.Milliseconds()
	for name, tt := range map[string]struct {
		points []history.Point
		want   string
	}{
		"nothing": {nil, ""},
		"one":     {[]history.Point{{At: at(1), Latency: 5}}, "M600 40.0h1"},
		"two":     {[]history.Point{{At: at(.5), Latency: 0}, {At: at(.5) + step, Latency: 10}}, "M300 80.0h1L303 0.0"},
		"a gap": {
			[]history.Point{{At: at(.5), Latency: 5}, {At: at(.5) + step, Latency: -1}, {At: at(.5) + 2*step, Latency: 5}},
			"M300 40.0h1M307 40.0h1",
		},
		"a pause": {[]history.Point{{At: at(.25), Latency: 5}, {At: at(.5), Latency: 5}}, "M150 40.0h1M300 40.0h1"},
		"too old": {[]history.Point{{At: at(-1), Latency: 5}, {At: at(0), Latency: 5}}, "M0 40.0h1"},
	} {
		if got := trace(now, tt.points, 10, value); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

func TestNice(t *testing.T) {
	for v, want := range map[float64]float64{0: 1, 1: 1, 1.1: 2, 3: 5, 6: 10, 70: 100, .03: .05} {
		if got := nice(v); got != want {
			t.Errorf("nice(%v) is %v, want %v", v, got, want)
		}
	}
}
