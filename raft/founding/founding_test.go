package founding

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestExactlyOneLoses: whatever two groups meet, both sides agree on which goes on, and it is never the one
// without a majority of the listed peers if the other has one.
func TestExactlyOneLoses(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	ids := []string{"a", "b", "c", "d", "e"}
	some := func(of []string) (out []string) {
		for _, id := range of {
			if rnd.IntN(2) == 0 {
				out = append(out, id)
			}
		}
		return out
	}
	for range 200_000 {
		a := Camp{Cluster: "x", Members: some(ids), Listed: some(ids), Leads: rnd.IntN(2) == 0}
		b := Camp{Cluster: "y", Members: some(ids), Listed: some(ids), Leads: rnd.IntN(2) == 0}
		if Loses(a, b) == Loses(b, a) {
			t.Fatalf("both or neither go on: %+v, %+v", a, b)
		}
		if HasMajority(a, b) && !HasMajority(b, a) && Loses(a, b) {
			t.Fatalf("a group with a majority ends for one without: %+v, %+v", a, b)
		}
	}
}

func TestLoses(t *testing.T) {
	three := []string{"a", "b", "c"}
	for name, tt := range map[string]struct {
		own, other Camp
		want       bool
	}{
		"the same group":            {Camp{Cluster: "x"}, Camp{Cluster: "x"}, false},
		"no name yet":               {Camp{}, Camp{Cluster: "x", Members: three, Listed: three}, false},
		"the other has no name yet": {Camp{Cluster: "x"}, Camp{Members: three, Listed: three, Leads: true}, false},
		"two founders, the first": {Camp{Cluster: "y", Members: []string{"a"}},
			Camp{Cluster: "x", Members: []string{"b"}}, false},
		"two founders, the second": {Camp{Cluster: "x", Members: []string{"b"}},
			Camp{Cluster: "y", Members: []string{"a"}}, true},
		"a wiped founder": {Camp{Cluster: "x", Members: []string{"a"}, Listed: three, Leads: true},
			Camp{Cluster: "y", Members: three, Listed: three}, true},
		"one founded alone, others joined the other": {Camp{Cluster: "x", Members: []string{"a"}, Listed: three},
			Camp{Cluster: "y", Members: []string{"b", "c"}, Listed: three}, true},
		"both have a majority, and this one a leader": {Camp{Cluster: "y", Members: three, Listed: three, Leads: true},
			Camp{Cluster: "x", Members: three, Listed: three}, false},
		"neither has a majority, and the other is larger": {
			Camp{Cluster: "x", Members: []string{"a"}, Listed: []string{"a", "b", "c", "d", "e"}},
			Camp{Cluster: "y", Members: []string{"b", "c"}, Listed: []string{"a", "b", "c", "d", "e"}}, true},
		"recovered, and nobody leads the former group": {Camp{Cluster: "x", Replaces: "y", Members: []string{"a"},
			Listed: three, Leads: true}, Camp{Cluster: "y", Members: three, Listed: three}, false},
		"recovered, and the former group lives": {Camp{Cluster: "x", Replaces: "y", Members: []string{"a"},
			Listed: three, Leads: true}, Camp{Cluster: "y", Members: three, Listed: three, Leads: true}, true},
		"replaced by a recovered one": {Camp{Cluster: "y", Members: three, Listed: three},
			Camp{Cluster: "x", Replaces: "y", Members: []string{"a"}, Listed: three, Leads: true}, false},
		"replaced by a recovered one that is larger": {Camp{Cluster: "y", Members: []string{"b"}, Listed: three},
			Camp{Cluster: "x", Replaces: "y", Members: []string{"a"}, Listed: three, Leads: true}, false},
	} {
		if got := Loses(tt.own, tt.other); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

// TestHasMajority: half of the peers that either side lists is none, and who is not listed does not count.
func TestHasMajority(t *testing.T) {
	for _, tt := range []struct {
		members, listed, others string
		want                    bool
	}{
		{"a", "a", "", true}, {"a", "ab", "", false}, {"ab", "abc", "", true}, {"ab", "abcd", "", false},
		{"ab", "ab", "cd", false}, {"abc", "ab", "cd", true}, {"axy", "abc", "abc", false},
	} {
		ids := func(letters string) []string { return strings.Split(letters, "") }
		c, other := Camp{Members: ids(tt.members), Listed: ids(tt.listed)}, Camp{Listed: ids(tt.others)}
		if got := HasMajority(c, other); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

// TestManyFoundersEndAsOne: any number of groups that meet pairwise, in any order, end as one, which is the
// one that the order prefers.
func TestManyFoundersEndAsOne(t *testing.T) {
	ids := []string{"a", "b", "c"}
	camps := []Camp{}
	for i, id := range ids {
		camps = append(camps, Camp{Cluster: string(rune('z' - i)), Members: []string{id}, Listed: ids, Leads: true})
	}
	for range 100 {
		left := slices.Clone(camps)
		rand.Shuffle(len(left), func(i, j int) { left[i], left[j] = left[j], left[i] })
		for len(left) > 1 {
			i := 1
			if Loses(left[0], left[1]) {
				i = 0
			}
			left = slices.Delete(left, i, i+1)
		}
		if left[0].Members[0] != "a" {
			t.Fatalf("%+v is left", left[0])
		}
	}
}

func TestWaits(t *testing.T) {
	for _, tt := range []struct {
		listed, fresh, refused int
		asked                  time.Duration
		want                   bool
	}{
		{1, 1, 0, 0, false}, {2, 1, 0, 0, true}, {2, 1, 1, 0, false}, {3, 1, 0, Patience - 1, true},
		{3, 1, 0, Patience, false}, {3, 2, 0, 0, false}, {3, 1, 2, 0, false}, {5, 1, 1, 0, true},
	} {
		if got := Waits(tt.listed, tt.fresh, tt.refused, tt.asked, Patience); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}
