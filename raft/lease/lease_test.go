package lease

import (
	"math/rand/v2"
	"testing"
	"time"
)

const ms = time.Millisecond

func TestLeaseNeedsAMajorityThatGrantedLately(t *testing.T) {
	var now time.Duration
	l := New("a", 100*ms, func() time.Duration { return now }, nil)
	three := []string{"a", "b", "c"}
	l.Begin(5)
	check := func(what string, term uint64, voters []string, want time.Duration) {
		t.Helper()
		if got := max(l.Left(term, voters), 0); got != want {
			t.Errorf("%s: %v left, want %v", what, got, want)
		}
	}
	now = time.Second
	check("alone of three", 5, three, 0)
	check("alone of one", 5, []string{"a"}, 100*ms)
	l.Grant("b", 5, now-30*ms)
	check("one granted 30 ms ago", 5, three, 70*ms)
	l.Grant("c", 5, now-10*ms)
	check("the latest majority counts", 5, three, 90*ms)
	l.Grant("c", 5, now-50*ms)
	check("a late reply takes nothing back", 5, three, 90*ms)
	l.Grant("b", 4, now)
	check("older terms do not count", 5, three, 90*ms)
	check("four voters need three", 5, []string{"a", "b", "c", "d"}, 70*ms)
	check("five voters, two silent", 5, []string{"a", "b", "c", "d", "e"}, 70*ms)
	check("not in the group", 5, []string{"b", "c"}, 0)
	check("another term", 6, three, 0)
	l.Grant("b", 6, now)
	check("deposed by a newer term", 5, three, 0)
	check("older leases are not over", 6, three, 0)
	l.Begin(6)
	check("now they are", 6, three, 100*ms)
	now += 100 * ms
	check("run out", 6, three, 0)
}

func TestWait(t *testing.T) {
	const term, span = 9, 100 * ms
	old := time.Hour
	voters := []string{"a", "b", "c"}
	to := func(id string, in uint64, age time.Duration) GrantAge { return GrantAge{id, in, age} }
	for name, tt := range map[string]struct {
		accounts map[string]Account
		want     time.Duration
		enough   bool
	}{
		"no majority": {map[string]Account{"a": {Term: 9, Lived: old}}, 0, false},
		"a reply from an older term": {map[string]Account{"a": {Term: 9, Lived: old}, "b": {Term: 8,
			Lived: old}}, 0, false},
		"nobody granted": {map[string]Account{"a": {Term: 9, Lived: old}, "b": {Term: 9,
			Lived: old}}, 0, true},
		"granted long ago": {map[string]Account{"a": {Term: 9, Lived: old}, "b": {Term: 9,
			Lived: old, Granted: []GrantAge{to("c", 8, 101*ms)}}}, 0, true},
		"granted lately": {map[string]Account{"a": {Term: 9, Lived: old}, "b": {Term: 9,
			Lived: old, Granted: []GrantAge{to("c", 8, 41*ms)}}}, 60 * ms, true},
		"own grants count too": {map[string]Account{"a": {Term: 9, Lived: old,
			Granted: []GrantAge{to("c", 8, 41*ms)}}, "b": {Term: 9, Lived: old}}, 60 * ms, true},
		"granted to the asker": {map[string]Account{"a": {Term: 9, Lived: old}, "b": {Term: 9,
			Lived: old, Granted: []GrantAge{to("a", 9, 0)}}}, 0, true},
		"the old leader has spoken": {map[string]Account{"a": {Term: 9, Lived: old,
			Granted: []GrantAge{to("c", 8, 0)}}, "c": {Term: 9, Lived: old}}, 0, true},
		"an answer of it is under way": {map[string]Account{"a": {Term: 9, Lived: old,
			Granted: []GrantAge{to("c", 8, 0)}}, "c": {Term: 9, Lived: old, Answering: true}}, 101 * ms, true},
		"it spoke from an old term": {map[string]Account{"a": {Term: 9, Lived: old,
			Granted: []GrantAge{to("c", 8, 0)}}, "b": {Term: 9, Lived: old}, "c": {Term: 8, Lived: old}}, 101 * ms,
			true},
		"its process is dead": {map[string]Account{"a": {Term: 9, Lived: old,
			Granted: []GrantAge{to("c", 8, 0)}}, "b": {Term: 9, Lived: old, Dead: map[string]uint64{"c": 8}}}, 0, true},
		"an earlier process of it is": {map[string]Account{"a": {Term: 9, Lived: old,
			Granted: []GrantAge{to("c", 8, 0)}}, "b": {Term: 9, Lived: old, Dead: map[string]uint64{"c": 7}}},
			101 * ms, true},
		"leases of another term are there": {map[string]Account{"a": {Term: 9, Lived: old}, "b": {Term: 9,
			Lived: old, Lease: 7 * ms}}, 0, false},
		"leases of the same term": {map[string]Account{"a": {Term: 9, Lived: old}, "b": {Term: 9,
			Lived: old, Lease: 100 * ms, Granted: []GrantAge{to("c", 8, 41*ms)}}}, 60 * ms, true},
		"another term, and has spoken": {map[string]Account{"a": {Term: 9, Lived: old,
			Granted: []GrantAge{to("c", 8, 0)}}, "b": {Term: 9, Lived: old}, "c": {Term: 9, Lived: old,
			Lease: 7 * ms}}, 0, true},
		"a voter that has just restarted": {map[string]Account{"a": {Term: 9, Lived: old}, "b": {Term: 9,
			Lived: 31 * ms}}, 70 * ms, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, enough := Wait("a", term, span, voters, tt.accounts)
			if max(got, 0) != tt.want || enough != tt.enough {
				t.Errorf("wait %v (%v), want %v (%v)", got, enough, tt.want, tt.enough)
			}
		})
	}
}

// TestGrantsOfOneTermGoToOneLeader: even if a disk that forgot a vote makes two leaders of one term.
func TestGrantsOfOneTermGoToOneLeader(t *testing.T) {
	g := NewGrants(func() time.Duration { return 0 })
	for i, tt := range []struct {
		leader string
		term   uint64
		want   bool
	}{{"a", 5, true}, {"a", 5, true}, {"b", 5, false}, {"b", 6, true}, {"a", 6, false}, {"b", 6, true}} {
		if got := g.Follow(tt.leader, tt.term); got != tt.want {
			t.Errorf("%d: grants to %s in term %d: %v", i, tt.leader, tt.term, got)
		}
	}
}

// TestEntriesOnlyGetMoreCautious: a message that was held back hides nothing.
func TestEntriesOnlyGetMoreCautious(t *testing.T) {
	now := time.Second
	g := NewGrants(func() time.Duration { return now })
	g.Heard("a", 7)
	now += 10 * ms
	g.Heard("a", 6) // held back
	if a := g.Account(7).Granted[0]; a.Term != 7 || a.Age != 0 {
		t.Errorf("%+v, want term 7 and no age", a)
	}
}

// TestModelNeverTwo plays lease, grants and waiting over a network that delays, loses and reorders, with
// voters that restart, die and elect at the worst of moments (no leader is ever respected), on clocks of
// different rates. After each step at most one living process may answer.
func TestModelNeverTwo(t *testing.T) {
	steps := 10_000_000
	if testing.Short() {
		steps = 100_000
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	m := newModel(rand.New(rand.NewPCG(seed, 1)), 3)
	held := 0
	for i := range steps {
		m.step()
		answering := 0
		for _, p := range m.procs {
			if p.may(m.ids) {
				answering++
			}
		}
		if answering > 1 {
			t.Fatalf("step %d at %v: %d peers may answer", i, m.now, answering)
		}
		held += answering
	}
	if held < steps/100 {
		t.Fatalf("somebody answered in %d of %d steps only: the model shows nothing", held, steps)
	}
	t.Logf("%d steps, %d with a holder, %v of model time, %d tenures begun with a wait cut short", steps, held,
		m.now, m.short)
}

// TestLapse: after a standstill only what was sent later counts.
func TestLapse(t *testing.T) {
	now := time.Second
	l := New("a", 100*ms, func() time.Duration { return now }, nil)
	voters := []string{"a", "b", "c"}
	l.Begin(5)
	l.Grant("b", 5, now)
	l.Lapse()
	if left := l.Left(5, voters); left > 0 {
		t.Errorf("%v left of a lease from before", left)
	}
	l.Grant("c", 5, now-10*ms)
	if left := l.Left(5, voters); left > 0 {
		t.Errorf("%v left by an answer to a message from before", left)
	}
	now += ms
	l.Grant("c", 5, now)
	if left := l.Left(5, voters); left != 100*ms {
		t.Errorf("%v left after a fresh grant", left)
	}
}
