package proof

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Subject is what is proved: a load balancer as a data plane serves it.
type Subject struct{ LoadBalancer, Plane string }

const (
	// failuresInRow, over at least failingFor, end a proof, so that neither a lost packet nor a busy host does.
	failuresInRow = 3
	failingFor    = time.Second
	// longestRun is how many failures are kept while they do not suffice: one node alone finds them.
	longestRun = 64
	// firstPause is how long a data plane without proof is left alone before it is tried again. The pause doubles up
	// to longestPause with each failure, and begins anew once the plane has been proved for longestPause.
	firstPause   = 2 * time.Minute
	longestPause = time.Hour
)

// An Entry is what is known of a Subject.
type Entry struct {
	// Proved is when it was last proved, and By whom; zero if never.
	Proved time.Time
	By     string
	// Unproved says that it was tried and serves nobody, Why the reason.
	Unproved bool
	Why      string
	// Failures counts failed trials by result.
	Failures map[Result]uint64
	// Since is when the trials in a row that failed began; zero if the last one succeeded.
	Since time.Time
}

type entry struct {
	Entry
	run    []failure // the last ones in a row that would do
	same   int       // of those in a row, the last ones with the same result
	askers map[string]bool
	last   Result
	said   [2]string // result and hint of Why
	pause  time.Duration
	until  time.Time // the plane is left alone
	first  time.Time // of the proofs in a row
}

// A failure is a trial that failed.
type failure struct {
	begun time.Time
	by    string
}

// A Book judges data planes by what trials find. The zero Book is ready; it is safe for concurrent use.
type Book struct {
	mu      sync.Mutex
	entries map[Subject]*entry
}

func (b *Book) of(s Subject) *entry {
	if b.entries == nil {
		b.entries = make(map[Subject]*entry)
	}
	e := b.entries[s]
	if e == nil {
		e = &entry{askers: make(map[string]bool)}
		b.entries[s] = e
	}
	return e
}

// A Trying is one trial of a Subject.
type Trying struct {
	Begun, At time.Time // its start and its end
	By        string    // who tried
	Others    bool      // somebody else could have tried too
	Findings  []TrialResult
	// Settled says that the backends' checks have ended since a time, with nothing new: what fails is not a server that
	// has ended. Those that have not ended are hurried.
	Settled func(since time.Time) bool
	// Hint says what may be the cause of a result.
	Hint func(Result) string
}

// Note takes a trial, and says whether the judgement of the Subject has changed.
func (b *Book) Note(s Subject, t Trying) (changed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.of(s)
	worst, failed := worstOf(t.Findings)
	if !failed {
		changed = e.Unproved || e.Proved.IsZero()
		if e.Unproved || e.first.IsZero() {
			e.first = t.At
		}
		if t.At.Sub(e.first) >= longestPause {
			e.pause = 0
		}
		e.Proved, e.By, e.Unproved, e.Why, e.Since = t.At, t.By, false, "", time.Time{}
		e.run, e.same, e.until = nil, 0, time.Time{}
		clear(e.askers)
		return changed
	}
	if e.Failures == nil {
		e.Failures = make(map[Result]uint64)
	}
	e.Failures[worst.Result]++
	if e.Since.IsZero() {
		e.Since = t.Begun
	}
	if e.last != worst.Result {
		e.same = 0
	}
	e.run = append(e.run, failure{t.Begun, t.By})
	e.same++
	e.askers[t.By] = true
	e.last = worst.Result
	// What fails may fail in another way by now, or for a cause that was not seen at first.
	if e.Unproved && e.same >= failuresInRow {
		e.say(worst, t.Hint)
	}
	// A check whose outcome changes while trials fail explains those until then, and none of those after it.
	for len(e.run) > 1 && t.suffice(e.run[1:]) {
		e.run = e.run[1:]
	}
	e.run = e.run[max(0, len(e.run)-longestRun):]
	if e.Unproved && t.At.Before(e.until) {
		return false
	}
	// To ask hurries the checks, so that they have ended when it matters.
	if settled := t.Settled(e.run[0].begun); !settled || !t.suffice(e.run) {
		return false
	}
	changed = !e.Unproved
	e.Unproved, e.first = true, time.Time{}
	e.said = [2]string{}
	e.say(worst, t.Hint)
	e.pause = min(max(2*e.pause, firstPause), longestPause)
	e.until = t.At.Add(e.pause)
	return changed
}

// suffice says whether so many failures are no lost packets and no busy host.
func (t Trying) suffice(run []failure) bool {
	two := slices.ContainsFunc(run, func(f failure) bool { return f.by != run[0].by })
	return len(run) >= failuresInRow && t.At.Sub(run[0].begun) >= failingFor && (two || !t.Others)
}

func worstOf(fs []TrialResult) (worst TrialResult, failed bool) {
	for _, f := range fs {
		if f.lost() {
			f.Result, f.Failed = Silent, f.Late
		}
		if f.Result != Served && (!failed || f.Failed > worst.Failed) {
			worst, failed = f, true
		}
	}
	return worst, failed
}

// say makes Why the reason for people, unless it says the same already.
func (e *entry) say(worst TrialResult, hint func(Result) string) {
	if said := [2]string{string(worst.Result), hint(worst.Result)}; said != e.said {
		e.Why, e.said = e.why(worst, said[1]), said
	}
}

// why is the reason for people.
func (e *entry) why(f TrialResult, hint string) string {
	by := strings.Join(slices.Sorted(maps.Keys(e.askers)), " and ")
	what := map[Result]string{
		Refused: "is refused", Unreachable: "is answered by an ICMP error", Silent: "is not answered",
	}[f.Result]
	text := fmt.Sprintf("a connection from %s to %s %s", by, f.Frontend, what)
	if f.Failed < f.Of {
		text = fmt.Sprintf("%d of %d connections from %s to %s fail: one %s", f.Failed, f.Of, by, f.Frontend, what)
	}
	text += ", while the checks of the backends succeed"
	if hint != "" {
		text += ": " + hint
	}
	return text
}

// Unproved says why a Subject should not be chosen now, or "". When its pause is over, it may be tried again.
func (b *Book) Unproved(s Subject, now time.Time) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.entries[s]; e != nil && e.Unproved && now.Before(e.until) {
		return e.Why
	}
	return ""
}

// Entry is what is known of a Subject.
func (b *Book) Entry(s Subject) Entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[s]
	if e == nil {
		return Entry{}
	}
	out := e.Entry
	out.Failures = maps.Clone(e.Failures)
	return out
}

// Keep forgets all load balancers but these.
func (b *Book) Keep(names map[string]bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.DeleteFunc(b.entries, func(s Subject, _ *entry) bool { return !names[s.LoadBalancer] })
}

// Forgive has all data planes tried again: the configuration is another one.
func (b *Book) Forgive() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.entries {
		e.until, e.pause = time.Time{}, 0
	}
}

// Begin starts the failures in a row anew: the plane has just begun to serve.
func (b *Book) Begin(s Subject) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.of(s)
	e.run, e.same, e.Since = nil, 0, time.Time{}
	clear(e.askers)
}
