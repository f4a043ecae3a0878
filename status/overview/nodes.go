package overview

import (
	"cmp"
	"net/netip"
	"time"

	"appliance/status"
	"appliance/status/report"
)

// A node is one node of the group by its own report, or why there is none.
type node struct {
	ID      string
	Self    bool
	Address netip.AddrPort
	Role    string
	// Raft is the state of the node in the group.
	Raft    string
	Version string
	Holder  bool
	// SaysHolder is who holds according to this node; Disagrees marks that others say otherwise.
	SaysHolder string
	Disagrees  bool
	Term       uint64
	NotReady   []status.NotReady
	Started    time.Time
	RoundTrip  time.Duration
	Contact    time.Duration
	// Unreachable says why there is no report.
	Unreachable string
	Connected   bool
	Since       time.Time // of Connected
	Conflict    string
	Doubled     string // that two processes run with the node's id, and where
	Labels      []string
	// Unfit is why the node would rather not hold, Hooks what its hooks failed to do.
	Unfit, Hooks string
	// Unreached are the peers that this node does not reach.
	Unreached []string
	Level     level
	// State is the state in a few words, for those who do not see colours.
	State string
}

func newNode(p status.PeerView, holder string, self report.PeerReport, peers map[string]report.PeerReport) node {
	n := node{
		ID: p.ID, Self: p.Self, Address: p.Address, Role: p.Role, Version: p.Version, Holder: p.ID == holder,
		RoundTrip: p.RoundTrip, Contact: p.LastContact, Connected: p.Connected, Since: p.ConnectedSince,
		Conflict: p.Conflict, Doubled: p.Doubled, Labels: p.Labels(self.Report.Snapshot.Group.Peers), Unfit: p.Unfit,
	}
	one := self
	if !p.Self {
		one = peers[p.ID]
	}
	if !p.Self && !fresh(one, self.Report.Snapshot) {
		switch {
		case one.Err != nil:
			n.Level, n.State, n.Unreachable = bad, "no answer", one.Err.Error()
		case p.Connected:
			n.Level, n.State, n.Unreachable = warn, "asked", "it has not answered yet"
		default:
			n.Level, n.State, n.Unreachable = bad, "no answer", "it does not answer"
		}
		return n
	}
	s := one.Report.Snapshot
	n.Raft, n.SaysHolder, n.Term, n.NotReady, n.Started = s.Group.State, s.Holder, s.Term, s.NotReady, s.Started
	n.Version = cmp.Or(s.Version, n.Version)
	n.Hooks = s.Hooks.Trouble()
	n.Disagrees = s.Holder != holder
	for _, q := range s.Group.Peers {
		switch {
		case q.Self:
			n.Doubled = cmp.Or(n.Doubled, q.Doubled) // the other one may have asked nobody else
		case !q.Connected:
			n.Unreached = append(n.Unreached, q.ID)
		}
	}
	switch {
	case n.Disagrees || n.Conflict != "":
		n.Level, n.State = bad, "disagrees"
	case n.Doubled != "":
		n.Level, n.State = bad, "runs twice"
	case len(n.NotReady) > 0:
		n.Level, n.State = warn, "not ready"
	case len(n.Unreached) > 0:
		n.Level, n.State = warn, "misses peers"
	case n.Unfit != "":
		n.Level, n.State = warn, "unfit"
	default:
		n.Level, n.State = good, "ready"
	}
	return n
}
