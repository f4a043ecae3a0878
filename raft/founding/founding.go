package founding

import (
	"cmp"
	"slices"
	"time"
)

// Patience is how long a peer with startAsLeader waits for listed peers that are silent before it founds a
// group alone. A switch port that runs the classic spanning tree listens and learns for 15 s each before it
// forwards (IEEE 802.1D-1998, 8.10.2), and nothing tells that from hosts that do not exist yet. A host that
// refuses the connection is there and runs no appliance: it is not waited for.
const Patience = 30 * time.Second

// A Camp is a group as one of its members shows it.
type Camp struct {
	Cluster string
	// Replaces is the group that an operator has replaced by this one: 'appliance recover --as-single'.
	Replaces string
	// Members are those of its configuration, Listed the peers in the member's file.
	Members, Listed []string
	// Leads says that the member knows a leader.
	Leads bool
}

// apart says that both have names, and different ones.
func apart(a, b Camp) bool { return a.Cluster != "" && b.Cluster != "" && a.Cluster != b.Cluster }

// Loses says that own has to end because other goes on. Of two groups exactly one loses, whichever side asks,
// but for a recovered group and its former one, of which neither ends as long as only one can lead.
//
// A group with a majority of the listed peers never loses to one without. Otherwise the larger one goes on, and
// of two equal ones that with the first peer in order, which is the one that would have founded had both been
// able to ask.
func Loses(own, other Camp) bool {
	switch {
	case !apart(own, other), other.Replaces == own.Cluster:
		return false
	case own.Replaces == other.Cluster:
		return other.Leads // the former group lives: the operator was wrong
	}
	return order(own, other) < 0
}

// Replaced says that an operator has replaced own by other, so that own must not start any more.
func Replaced(own, other Camp) bool { return apart(own, other) && other.Replaces == own.Cluster }

// HasMajority says that c has a majority of the peers that either side lists.
func HasMajority(c, other Camp) bool {
	listed := union(c.Listed, other.Listed)
	return count(c.Members, listed) > len(listed)/2
}

// order is positive if a goes on, negative if b does.
func order(a, b Camp) int {
	listed := union(a.Listed, b.Listed)
	am, bm := HasMajority(a, b), HasMajority(b, a)
	switch {
	case am != bm:
		return yes(am)
	case am && a.Leads != b.Leads:
		return yes(a.Leads) // they share members, so one of the two has no majority that runs
	}
	return cmp.Or(cmp.Compare(count(a.Members, listed), count(b.Members, listed)),
		cmp.Compare(first(b.Members), first(a.Members)), cmp.Compare(b.Cluster, a.Cluster))
}

func yes(b bool) int {
	if b {
		return 1
	}
	return -1
}

func first(ids []string) string {
	if len(ids) == 0 {
		return "\xff"
	}
	return slices.Min(ids)
}

func union(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

func count(members, listed []string) (n int) {
	for _, id := range union(members, nil) {
		if slices.Contains(listed, id) {
			n++
		}
	}
	return n
}

// Waits says that a peer that may found alone has to wait, since it has asked for so long: a majority of the
// listed peers has neither told that it has no group nor refused the connection.
func Waits(listed, fresh, refused int, asked, patience time.Duration) bool {
	return fresh+refused < listed/2+1 && asked < patience
}
