package lab

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const (
	// slack is how far apart frames may have been put into each other's
	// order on their way. An announcement, which nobody asked for, is taken
	// for the answer to a request this long before it arrived.
	slack = time.Millisecond
	// Turn is the shortest time that a legitimate tenure lasts, from the
	// last answer of the holder before to the first one of the holder
	// after. Whoever answers for less in the midst of another's answers
	// was one of two. A starved node that is pinned has come back after 88 ms;
	// requests are sent every 10 ms.
	Turn = 50 * time.Millisecond
)

// A Reply is one frame that says who has the VIP.
type Reply struct {
	// At is when it arrived.
	At time.Time
	// MAC is who has the VIP by it.
	MAC string
	// To is whom it answers; the zero Addr for an announcement to all.
	To netip.Addr
	// Asked is when the request that it answers was sent; zero for an
	// announcement.
	Asked time.Time
}

func (c Reply) cause() time.Time {
	if c.Asked.IsZero() {
		return c.At.Add(-slack)
	}
	return c.Asked
}

// Replies are those for one VIP in the order of arrival.
type Replies []Reply

// Since are the replies that arrived after t.
func (cs Replies) Since(t time.Time) Replies {
	// Arrivals carry no monotonic clock.
	t = t.Round(0)
	var out Replies
	for _, c := range cs {
		if c.At.After(t) {
			out = append(out, c)
		}
	}
	return out
}

// MACs are those who answered for the VIP, each once, by their first reply.
func (cs Replies) MACs() []string {
	var out []string
	for _, c := range cs {
		if !slices.Contains(out, c.MAC) {
			out = append(out, c.MAC)
		}
	}
	return out
}

// Overlap is how long two nodes answered for the VIP at the same time.
//
// Two nodes answer at a moment if it lies between two replies y and y' of one
// MAC, at most 50 ms apart, and there is a reply x of another MAC
// such that the request that x answers was sent after y had arrived, and the
// request that y' answers was sent after x had arrived. In words: Y had
// answered, then X was asked and answered, then Y was asked and answered
// again, so soon that it cannot have lost and won the VIP in between. An
// announcement counts as the answer to a request sent 1 ms before it arrived.
//
// Since only the order of an answer and a later request decides, and never
// the order of two answers to one request, a clean hand-over has an overlap
// of 0 even if frames overtake each other on their way; and a single answer
// that comes too late counts with the whole span around it.
func (cs Replies) Overlap() time.Duration {
	var total time.Duration
	var until time.Time
	for _, s := range cs.overlaps() {
		from := s.from
		if from.Before(until) {
			from = until
		}
		if s.to.After(from) {
			total += s.to.Sub(from)
			until = s.to
		}
	}
	return total
}

type span struct{ from, to time.Time }

// overlaps are the narrowest spans [y, y'] around each x, by their beginning.
func (cs Replies) overlaps() []span {
	macs := cs.MACs()
	if len(macs) < 2 {
		return nil
	}
	var out []span
	for i, x := range cs {
		for _, mac := range macs {
			if mac == x.MAC {
				continue
			}
			y, ok1 := cs.before(i, mac, x.cause())
			y2, ok2 := cs.after(i, mac, x.At)
			if ok1 && ok2 && y2.Sub(y) <= Turn {
				out = append(out, span{y, y2})
			}
		}
	}
	slices.SortFunc(out, func(a, b span) int { return a.from.Compare(b.from) })
	return out
}

// before is the last arrival of a reply from mac before t, looking back from i.
func (cs Replies) before(i int, mac string, t time.Time) (time.Time, bool) {
	for j := i - 1; j >= 0 && cs[i].At.Sub(cs[j].At) <= Turn; j-- {
		if cs[j].MAC == mac && cs[j].At.Before(t) {
			return cs[j].At, true
		}
	}
	return time.Time{}, false
}

// after is the first arrival of a reply from mac that was asked for after t,
// looking on from i.
func (cs Replies) after(i int, mac string, t time.Time) (time.Time, bool) {
	for j := i + 1; j < len(cs) && cs[j].At.Sub(cs[i].At) <= Turn; j++ {
		if cs[j].MAC == mac && cs[j].cause().After(t) {
			return cs[j].At, true
		}
	}
	return time.Time{}, false
}

// Around prints the replies near each overlap, for the message of a test that
// failed.
func (cs Replies) Around() string {
	var b strings.Builder
	for i, s := range cs.overlaps() {
		if i == 5 {
			b.WriteString("…\n")
			break
		}
		fmt.Fprintf(&b, "two answers for %s from %s:\n", s.to.Sub(s.from), s.from.Format(time.StampMicro))
		lines := 0
		for _, c := range cs {
			if c.At.Before(s.from.Add(-slack)) || c.At.After(s.to.Add(slack)) {
				continue
			}
			if lines++; lines > 10 {
				b.WriteString("  …\n")
				break
			}
			what := "announces"
			if !c.Asked.IsZero() {
				what = fmt.Sprintf("answers what was asked %s before", c.At.Sub(c.Asked))
			}
			fmt.Fprintf(&b, "  %s %s %s\n", c.At.Format(time.StampMicro), c.MAC, what)
		}
	}
	return b.String()
}

// Turns are the MACs that answered for the VIP one after the other; whoever answers
// again after another did is there again.
func (cs Replies) Turns() []string {
	var out []string
	for _, c := range cs {
		if len(out) == 0 || out[len(out)-1] != c.MAC {
			out = append(out, c.MAC)
		}
	}
	return out
}
