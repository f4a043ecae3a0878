package lab

import (
	"fmt"
	"time"
)

// calm is how long tries must work for an outage to be over.
const calm = time.Second

// An Outage is what a client saw of a fault.
type Outage struct {
	// First is the time from the end of the last successful try before the
	// first failure until the end of the next successful one.
	First time.Duration
	// Steady is the time from the same moment until the end of the first
	// success after which a second passed without a failure. It is 0, as
	// First is, when no try failed.
	Steady time.Duration
	// Failed of Tries that ended after the fault have failed.
	Failed, Tries int
	// Recovered tells that the second without a failure has been seen.
	// Without it First and Steady last until the end of what was seen.
	Recovered bool
	// LastErr is the error of the last failed try.
	LastErr error
}

// String is one line for people.
func (o Outage) String() string {
	if o.Failed == 0 {
		return fmt.Sprintf("no outage: 0 of %d requests failed", o.Tries)
	}
	s := fmt.Sprintf("outage %d ms, steady after %d ms, %d of %d requests failed",
		o.First.Milliseconds(), o.Steady.Milliseconds(), o.Failed, o.Tries)
	if !o.Recovered {
		s += ", not recovered"
	}
	return s
}

// OutageSince computes the outage that began with fault. Tries must be in the
// order of their starts. A try that was under way at the fault counts.
func OutageSince(tries []Try, fault time.Time) Outage {
	var o Outage
	if len(tries) == 0 {
		return o
	}
	base := fault // the end of the last success before the first failure
	firstFail, lastFail := -1, -1
	for i, t := range tries {
		if t.End.Before(fault) {
			if t.Err == nil {
				base = t.End
			}
			continue
		}
		o.Tries++
		switch {
		case t.Err != nil:
			o.Failed++
			o.LastErr = t.Err
			if firstFail < 0 {
				firstFail = i
			}
			lastFail = i
		case firstFail < 0:
			base = t.End
		}
	}
	last := tries[len(tries)-1]
	if firstFail < 0 {
		o.Recovered = last.Start.Sub(fault) >= calm
		return o
	}
	o.First, o.Steady = last.End.Sub(base), last.End.Sub(base)
	seen := false
	for i := firstFail + 1; i < len(tries); i++ {
		if tries[i].Err != nil {
			continue
		}
		if !seen {
			o.First = max(0, tries[i].End.Sub(base))
			seen = true
		}
		if i > lastFail {
			o.Steady = max(0, tries[i].End.Sub(base))
			o.Recovered = last.Start.Sub(tries[i].Start) >= calm
			break
		}
	}
	return o
}
