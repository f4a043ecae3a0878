package lab

import (
	"net/netip"
	"testing"
	"time"
)

var t0 = time.Unix(1_700_000_000, 0)

func ms(x float64) time.Time { return t0.Add(time.Duration(x * float64(time.Millisecond))) }

// answer is mac's answer, asked for and arrived at the given milliseconds.
func answer(mac string, asked, at float64) Reply {
	return Reply{At: ms(at), MAC: mac, To: netip.MustParseAddr("10.77.0.200"), Asked: ms(asked)}
}

// series are answers to the requests sent each 5 ms from the first to before
// the last, each arriving late ms after its request.
func series(mac string, from, until, late float64) Replies {
	var cs Replies
	for at := from; at < until; at += 5 {
		cs = append(cs, answer(mac, at, at+late))
	}
	return cs
}

func join(all ...Replies) Replies {
	var cs Replies
	for _, c := range all {
		cs = append(cs, c...)
	}
	for i := range cs { // insertion keeps equal ones in order
		for j := i; j > 0 && cs[j].At.Before(cs[j-1].At); j-- {
			cs[j], cs[j-1] = cs[j-1], cs[j]
		}
	}
	return cs
}

func TestOverlap(t *testing.T) {
	for name, c := range map[string]struct {
		replies  Replies
		min, max float64 // ms
	}{
		"nobody":         {nil, 0, 0},
		"one":            {series("a", 0, 1000, 0.2), 0, 0},
		"clean handover": {join(series("a", 0, 500, 0.2), series("b", 500, 1000, 0.2)), 0, 0},
		"handover with a gap": {
			join(series("a", 0, 500, 0.2), series("b", 700, 1000, 0.2)), 0, 0,
		},
		// The last request reaches both: the old holder's answer to it
		// arrives after the new one's.
		"both answer the request of the handover": {
			join(series("a", 0, 505, 0.6), series("b", 500, 1000, 0.2)), 0, 0,
		},
		"an answer is delayed by a busy machine": {
			join(series("a", 0, 500, 0.2), Replies{answer("a", 500, 540)}, series("b", 505, 1000, 0.2)), 0, 0,
		},
		"handed back after a whole tenure": {
			join(series("a", 0, 500, 0.2), series("b", 500, 1100, 0.2), series("a", 1100, 1500, 0.2)), 0, 0,
		},
		"a short tenure between two": {
			join(series("a", 0, 500, 0.2), series("b", 510, 570, 0.2), series("a", 590, 1000, 0.2)), 0, 0,
		},
		"two for 300 ms": {
			join(series("a", 0, 800, 0.2), series("b", 500, 1000, 0.3)), 290, 310,
		},
		"two for ever": {
			join(series("a", 0, 1000, 0.3), series("b", 0, 1000, 0.2)), 985, 1000,
		},
		"one stale answer": {
			join(series("a", 0, 500, 0.2), series("b", 500, 1000, 0.2), Replies{answer("a", 805, 805.1)}), 4, 11,
		},
		"a short false reply": {
			join(series("a", 0, 1000, 0.2), series("b", 505, 530, 0.1)), 20, 40,
		},
		"stale announcement": {
			join(series("a", 0, 500, 0.2), series("b", 500, 1000, 0.2), Replies{{At: ms(803), MAC: "a"}}), 4, 11,
		},
		"announcement overtaken by less than the slack": {
			join(series("a", 0, 500, 0.2), Replies{{At: ms(500.9), MAC: "a"}}, series("b", 500, 1000, 0.2)), 0, 0,
		},
		"three": {
			join(series("a", 0, 1000, 0.2), series("b", 200, 300, 0.3), series("c", 250, 400, 0.4)), 185, 215,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := float64(c.replies.Overlap()) / float64(time.Millisecond)
			if got < c.min || got > c.max {
				t.Errorf("overlap is %.1f ms, want %.0f to %.0f\n%s", got, c.min, c.max, c.replies.Around())
			}
			if (got > 0) != (c.replies.Around() != "") {
				t.Errorf("%.1f ms are explained by %q", got, c.replies.Around())
			}
		})
	}
}

func TestTurns(t *testing.T) {
	cs := join(series("a", 0, 20, 0.2), series("b", 20, 40, 0.2), series("a", 40, 60, 0.2))
	if got := cs.Turns(); len(got) != 3 || got[0] != "a" || got[1] != "b" || got[2] != "a" {
		t.Errorf("turns %v, want a b a", got)
	}
	if got := cs.Since(ms(30)).MACs(); len(got) != 2 || got[0] != "b" {
		t.Errorf("replies since 30 ms are by %v, want b a", got)
	}
}
