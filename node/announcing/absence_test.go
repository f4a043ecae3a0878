package announcing

import (
	"strings"
	"testing"
	"time"
)

// A node that was cut off from everybody announces again when it has looked at all servers, or could not for a while.
func TestAbsence(t *testing.T) {
	start := time.Now()
	answer := func(is bool) func(time.Time) bool {
		return func(since time.Time) bool {
			if want := start.Add(-catchUpWithin); since.Before(want) || since.After(want.Add(time.Second)) {
				t.Errorf("asked since %v, and it was cut off at the beginning", since.Sub(start))
			}
			return is
		}
	}
	yes, no := answer(true), answer(false)
	type look struct {
		at       time.Duration
		cutOff   bool
		caughtUp func(time.Time) bool
		why      string // a part; "": it may announce
	}
	for name, looks := range map[string][]look{
		"never away": {{0, false, no, ""}, {time.Minute, false, no, ""}},
		"away": {{0, true, yes, "reaches no router"}, {time.Minute, true, yes, "reaches no router"},
			{time.Minute + 1, false, no, "looks at the servers"}, {time.Hour, false, yes, ""}},
		"back, and knows all": {{0, true, no, "reaches no router"}, {time.Second, false, yes, "looks at the servers"},
			{time.Second + inForceWithin - 1, false, yes, "looks at the servers"},
			{time.Second + inForceWithin, false, yes, ""}, {2 * time.Second, false, no, ""}},
		"back, and looks": {{0, true, no, "reaches no router"}, {time.Second, false, no, "looks at the servers"},
			{2 * time.Second, false, yes, "looks at the servers"}, {3 * time.Second, false, yes, ""}},
		"back, and a server comes and goes": {{0, true, no, "reaches no router"},
			{time.Second, false, yes, "looks at the servers"}, {time.Second + 1, false, no, "looks at the servers"},
			{2 * time.Second, false, yes, "looks at the servers"}, {2*time.Second + inForceWithin, false, yes, ""}},
		"back, and a server is gone for good": {{0, true, no, "reaches no router"},
			{time.Minute, false, no, "looks at the servers"},
			{time.Minute + catchUpWithin - 1, false, no, "looks at the servers"},
			{time.Minute + catchUpWithin, false, no, ""}, {time.Hour, false, no, ""}},
		"away once more": {{0, true, no, "reaches no router"}, {1, false, no, "looks at the servers"},
			{2, true, no, "reaches no router"}, {3 + catchUpWithin, false, no, "looks at the servers"}},
	} {
		var b absence
		for i, l := range looks {
			b = b.step(start.Add(l.at), l.cutOff, l.caughtUp)
			if why := b.why(); (why == "") != (l.why == "") || !strings.Contains(why, l.why) {
				t.Errorf("%s, look %d: %q, want %q", name, i, why, l.why)
			}
		}
	}
}
