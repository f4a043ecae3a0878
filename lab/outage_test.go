package lab

import (
	"errors"
	"testing"
	"time"
)

// tries each 5 ms, which take 1 ms if they work and 200 ms if not.
func tries(until float64, works func(at float64) bool) []Try {
	var ts []Try
	for at := 0.0; at < until; at += 5 {
		t := Try{Start: ms(at), End: ms(at + 1)}
		if !works(at) {
			t.End, t.Err = ms(at+200), errors.New("timeout")
		}
		ts = append(ts, t)
	}
	return ts
}

func TestOutageSince(t *testing.T) {
	for name, c := range map[string]struct {
		until float64
		fault float64
		works func(at float64) bool
		want  Outage
	}{
		"none": {
			5000, 1000, func(float64) bool { return true },
			Outage{Tries: 800, Recovered: true},
		},
		"too early to say": {
			1500, 1000, func(float64) bool { return true },
			Outage{Tries: 100},
		},
		"one gap": {
			5000, 1000, func(at float64) bool { return at < 1000 || at >= 1100 },
			// From the end of the try of 995 to that of 1100.
			Outage{First: 105 * time.Millisecond, Steady: 105 * time.Millisecond, Failed: 20, Tries: 800, Recovered: true},
		},
		"a try under way at the fault": {
			5000, 1000, func(at float64) bool { return at < 990 || at >= 1100 },
			Outage{First: 115 * time.Millisecond, Steady: 115 * time.Millisecond, Failed: 22, Tries: 802, Recovered: true},
		},
		"flickers before it is steady": {
			5000, 1000, func(at float64) bool { return at < 1000 || (at >= 1050 && at != 1400) },
			Outage{First: 55 * time.Millisecond, Steady: 410 * time.Millisecond, Failed: 11, Tries: 800, Recovered: true},
		},
		"a failure in the last second": {
			3000, 1000, func(at float64) bool { return at < 1000 || (at >= 1050 && at != 2500) },
			Outage{First: 55 * time.Millisecond, Steady: 1510 * time.Millisecond, Failed: 11, Tries: 400},
		},
		"for good": {
			3000, 1000, func(at float64) bool { return at < 1000 },
			Outage{First: 2199 * time.Millisecond, Steady: 2199 * time.Millisecond, Failed: 400, Tries: 400},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := OutageSince(tries(c.until, c.works), ms(c.fault))
			failed := got.LastErr != nil
			got.LastErr = nil
			if got != c.want {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
			if failed != (c.want.Failed > 0) {
				t.Errorf("last error is set: %v", failed)
			}
		})
	}
}
