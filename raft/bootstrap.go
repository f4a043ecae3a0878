package raft

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"appliance/raft/fence"
	"appliance/raft/founding"
	"appliance/raft/giveway"
	"appliance/raft/lease"
)

// hello is what peers tell each other about themselves.
type hello struct {
	ID            string `json:"id"`
	Version       string `json:"version,omitempty"`
	Cluster       string `json:"cluster,omitempty"`
	HasState      bool   `json:"hasState"`
	LastIndex     uint64 `json:"lastIndex,omitempty"`
	Term          uint64 `json:"term,omitempty"`
	Leader        string `json:"leader,omitempty"`
	StartAsLeader bool   `json:"startAsLeader,omitempty"`
	Intent        intent `json:"intent,omitempty"`
	Peers         []Peer `json:"peers"`
	// Members are the ids in the group's configuration as this peer knows it.
	Members []string `json:"members,omitempty"`
	// Self is what the peer says of itself, and Joins that its file lists nobody.
	Self     Peer `json:"self,omitzero"`
	Joins    bool `json:"joins,omitempty"`
	Priority int  `json:"priority,omitempty"`
	// Fitness is how fit the peer is to hold.
	Fitness Fitness `json:"claim,omitzero"`
	// GaveWay is when the peer gave way to fitter ones lately.
	GaveWay []giveway.Handover `json:"gaveWay,omitempty"`
	// Heartbeat is the peer's, in nanoseconds; 0 is from a version that does not tell.
	Heartbeat time.Duration `json:"heartbeat,omitempty"`
	// Floor is the heartbeat in the peer's file, in nanoseconds; 0 is from a version that never takes a longer one.
	Floor time.Duration `json:"floor,omitempty"`
	// Pace is the longest that a write to the peer's disk took lately, in nanoseconds.
	Pace time.Duration `json:"pace,omitempty"`
	// Serves says that clients of the peer wait for its process: user space serves a load balancer there.
	Serves bool `json:"serves,omitempty"`
	// OnLink are addresses of the peer's host on the links of the virtual addresses.
	OnLink []netip.Addr `json:"onLink,omitempty"`
	// Removed says that the group has removed the peer that asks.
	Removed string `json:"removed,omitempty"`
	// Fence is what tells a stranger, and a disk that went backwards, from a member; nil is from a version that
	// does not tell. Backwards is what the peer that asks had reached before its disk went backwards.
	Fence     *fence.Told    `json:"fence,omitempty"`
	Backwards *fence.Reached `json:"backwards,omitempty"`
	// Listed are the peers in the file of this one, and Replaces is the group that its own was recovered from.
	Listed   []string `json:"listed,omitempty"`
	Replaces string   `json:"replaces,omitempty"`
	// Protocol is what the peer speaks, Oldest what it still understands.
	Protocol int `json:"protocol,omitempty"`
	Oldest   int `json:"oldest,omitempty"`
}

// The protocol between peers: what is said on the peer port, and what the group's log holds. A peer refuses
// another whose protocol is older than its own oldest, so that two neighbouring releases always understand
// each other.
const (
	protocolVersion = 1
	oldestProtocol  = 1
)

// misunderstanding says why the versions of two peers do not fit, or "". A peer that tells no protocol speaks
// the first one.
func misunderstanding(a, b hello) string {
	if max(b.Protocol, 1) < a.Oldest {
		return fmt.Sprintf("peer %s (version %s, protocol %d) is too old for peer %s (version %s), which "+
			"understands protocol %d to %d; install a newer version there first",
			b.ID, b.Version, max(b.Protocol, 1), a.ID, a.Version, a.Oldest, a.Protocol)
	}
	return ""
}

// differ says that the heartbeats of two peers differ, or "".
func differ(a, b hello) string {
	if a.Heartbeat == 0 || b.Heartbeat == 0 || a.Heartbeat == b.Heartbeat {
		return ""
	}
	return fmt.Sprintf("group.heartbeat is %v on peer %s and %v on peer %s; write the same value on every peer "+
		"and restart the appliance there",
		a.Heartbeat, a.ID, b.Heartbeat, b.ID)
}

// willFit says that the heartbeats of two peers differ until the one with the shorter has begun anew.
func willFit(a, b hello) bool {
	return a.Floor == b.Floor && a.Heartbeat != b.Heartbeat && lease.Stretches(a.Floor, a.Heartbeat) &&
		lease.Stretches(b.Floor, b.Heartbeat)
}

// conflict says why two peers cannot be in one group, or "".
func conflict(a, b hello) string {
	for _, why := range []string{misunderstanding(a, b), misunderstanding(b, a)} {
		if why != "" {
			return why
		}
	}
	if a.Cluster != "" && b.Cluster != "" && a.Cluster != b.Cluster {
		return fmt.Sprintf("peer %s belongs to another group (%.8s, not %.8s); if it shall belong to this one, "+
			"empty its data directory", b.ID, b.Cluster, a.Cluster)
	}
	if why := differ(a, b); why != "" {
		return why
	}
	if a.Cluster != "" && a.Cluster == b.Cluster || a.Joins || b.Joins {
		return "" // the group decides who is in, not a file
	}
	for _, p := range a.Peers {
		for _, q := range b.Peers {
			switch {
			case p.ID == q.ID && p.Addr != q.Addr:
				return fmt.Sprintf("peer %s lists %s at %s, peer %s lists it at %s; make the lists the same",
					a.ID, p.ID, p.Addr, b.ID, q.Addr)
			case p.ID != q.ID && p.Addr == q.Addr:
				return fmt.Sprintf("peer %s calls %s %q, peer %s calls it %q; make the lists the same",
					a.ID, p.Addr, p.ID, b.ID, q.ID)
			case p.ID == q.ID && p.Witness != q.Witness:
				return fmt.Sprintf("peers %s and %s differ about whether %s is a witness; make the lists the same",
					a.ID, b.ID, p.ID)
			}
		}
	}
	if !slices.ContainsFunc(a.Peers, func(p Peer) bool { return p.ID == b.ID }) {
		return fmt.Sprintf("peer %s is not listed by peer %s; add it to the list there, or with 'appliance peers "+
			"add', or start it with --join", b.ID, a.ID)
	}
	return ""
}

// intent is what a peer without state is about to do. It tells the others before it asks them a last time: of
// two peers that want different things, at least one sees the other's intent and gives way.
type intent string

const (
	undecided      intent = ""
	intentAlone    intent = "alone"    // a group of one, which the others join
	intentTogether intent = "together" // all listed peers
)

// verdict is what a peer without state does next.
type verdict struct {
	do  action
	why string
}

type action int

const (
	askAgain action = iota
	bootstrapAlone
	bootstrapTogether
	join
)

// decide says what a peer without state does, given who answered. It is pure: the same answers lead to the
// same decision on every peer.
func decide(self hello, others []hello) verdict {
	var differing []string
	fresh := 1 // peers that may bootstrap together, or have just done so
	begun, together, alone := "", "", ""
	starter := ""
	if self.StartAsLeader {
		starter = self.ID
	}
	if self.Joins {
		return decideToJoin(self, others)
	}
	for _, o := range others {
		switch why := conflict(self, o); {
		case why != "":
			differing = append(differing, why)
			continue
		case o.HasState && !justBootstrapped(self, o):
			return verdict{join, "peer " + o.ID + " is in a group already"}
		case !slices.EqualFunc(self.Peers, o.Peers, Peer.same):
			// A peer that joins only has to be listed by the leader. Peers that begin a group together need
			// the same list: it is the first entry of the log.
			differing = append(differing, fmt.Sprintf("peers %s and %s list different peers (%s; %s); make the "+
				"lists the same",
				self.ID, o.ID, names(self.Peers), names(o.Peers)))
			continue
		case o.HasState:
			begun = o.ID
		case o.StartAsLeader && (starter == "" || o.ID < starter):
			starter = o.ID
		}
		switch o.Intent {
		case intentTogether:
			together = o.ID
		case intentAlone:
			alone = o.ID
		}
		fresh++
	}
	switch need := len(self.Peers)/2 + 1; {
	case len(differing) > 0:
		return verdict{askAgain, strings.Join(differing, "; ")}
	case begun == "" && starter == self.ID && together != "":
		return verdict{askAgain, "peer " + together + " is about to begin a group of all listed peers"}
	case begun == "" && starter == self.ID && alone != "": // it may have asked before this process began
		return verdict{askAgain, "peer " + alone + " is about to begin a group"}
	case begun == "" && starter == self.ID:
		return verdict{bootstrapAlone, "startAsLeader, and no listed peer that answers has a group"}
	case begun == "" && starter != "":
		return verdict{askAgain, "peer " + starter + " is to start as leader"}
	case fresh < need:
		return verdict{askAgain,
			fmt.Sprintf("%d of %d listed peers answer, %d are needed", fresh, len(self.Peers), need)}
	}
	return verdict{bootstrapTogether,
		fmt.Sprintf("%d of %d listed peers answer, none has a group", fresh, len(self.Peers))}
}

// decideToJoin is decide for a peer that was told whom to join.
func decideToJoin(self hello, others []hello) verdict {
	why := "no member of the group to join answers"
	for _, o := range others {
		if differs := conflict(self, o); differs != "" {
			why = differs
		} else if o.HasState {
			return verdict{join, "peer " + o.ID + " is in the group"}
		}
	}
	return verdict{askAgain, why}
}

// justBootstrapped says that o has only the first entry, with every listed peer in it, and has never voted:
// BootstrapCluster writes term 1, and a vote makes it 2. After that a peer without state must not bootstrap:
// it may have voted and forgotten.
func justBootstrapped(self, o hello) bool {
	return o.LastIndex == 1 && o.Term <= 1 && len(o.Members) == len(self.Peers)
}

// camp is the group of the peer that says h.
func (h hello) camp() founding.Camp {
	return founding.Camp{Cluster: h.Cluster, Replaces: h.Replaces, Members: h.Members, Listed: h.Listed,
		Leads: h.Leader != ""}
}
