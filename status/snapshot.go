package status

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"appliance/balancer"
)

// A Snapshot is everything that one appliance knows about itself and its group
// at one moment, as `appliance status --json` prints it.
type Snapshot struct {
	// Version is the version of the running binary.
	Version string `json:"version"`
	// Time is when the snapshot was taken.
	Time time.Time `json:"time"`
	// Started is when the process began.
	Started time.Time `json:"started"`
	// ID is this peer's id in the group.
	ID string `json:"id"`
	// Role is what this node is in the group now: peer, witness or worker.
	Role string `json:"role"`
	// Holder is the id of the peer that answers for the VIPs, empty where this
	// peer knows of none.
	Holder string `json:"holder"`
	// Term is the Raft term.
	Term uint64 `json:"term"`
	// NotReady are the reasons why this node would not serve the VIPs if it
	// were asked to now; empty means ready.
	NotReady []string `json:"notReady,omitempty"`

	Group         Group                         `json:"group"`
	VIPs          []VIP                         `json:"vips"`
	LoadBalancers []balancer.LoadBalancerStatus `json:"loadBalancers"`
	// Planes are the data planes that this host has been asked for.
	Planes []balancer.PlaneStatus `json:"planes,omitempty"`
	// Hooks is absent while no hook is configured.
	Hooks *Hooks `json:"hooks,omitempty"`
}

// Hooks counts the events that hooks were told of, the times that they failed,
// and the events that they were not told of because they were too slow.
type Hooks struct {
	Told    uint64 `json:"told"`
	Failed  uint64 `json:"failed"`
	Dropped uint64 `json:"dropped"`
}

// Words says it for people, empty while all is well or none is configured.
func (h *Hooks) Words() string {
	if h == nil || h.Failed == 0 && h.Dropped == 0 {
		return ""
	}
	return fmt.Sprintf("hooks: %d events told, %d failed, %d dropped; the log says why", h.Told, h.Failed, h.Dropped)
}

// Group is this peer's view of its group.
type Group struct {
	// State is Raft's: follower, candidate, leader, or what keeps this peer
	// from taking part (joining, bootstrapping, ...).
	State string `json:"state"`
	// Reason says more about a State that is no Raft state.
	Reason string `json:"reason,omitempty"`
	// Holding is whether this peer may answer for the VIPs at this moment.
	Holding bool `json:"holding"`
	// Since is when this peer's own tenure began.
	Since time.Time `json:"since,omitzero"`
	// Refused counts connections to the peer port that were no peer's.
	Refused uint64 `json:"refused"`
	// Elections counts those that this peer stood in, Tenures its own.
	Elections uint64 `json:"elections"`
	// Deaths counts the holders' processes whose end this peer proved.
	Deaths uint64 `json:"deaths"`
	// Missed counts the holders that fell silent for a majority of peers, this
	// one among them.
	Missed uint64 `json:"missed"`
	// Commits counts the changes that this peer committed as leader, which took
	// CommitTime in all.
	Commits    uint64        `json:"commits"`
	CommitTime time.Duration `json:"commitTimeNs"`
	Tenures    uint64        `json:"tenures"`
	// TenuresEnded counts the ends of this peer's tenures by cause: deposed,
	// leaving, handover, failed.
	TenuresEnded map[string]uint64 `json:"tenuresEnded,omitempty"`
	Peers        []Peer            `json:"peers"`
}

// Peer is one listed peer of the group.
type Peer struct {
	ID      string         `json:"id"`
	Address netip.AddrPort `json:"address"`
	Version string         `json:"version,omitempty"`
	// Role is voter, nonvoter, witness, or "not a member".
	Role   string `json:"role"`
	Holder bool   `json:"holder,omitempty"`
	Self   bool   `json:"self,omitempty"`
	// Connected is whether this node reaches the peer, since ConnectedSince.
	Connected      bool      `json:"connected"`
	ConnectedSince time.Time `json:"connectedSince,omitzero"`
	// LastContact is how long before the snapshot the leader heard of the peer,
	// or this peer of its leader; zero where that is not known here.
	LastContact time.Duration `json:"lastContactNs,omitempty"`
	RoundTrip   time.Duration `json:"roundTripNs,omitempty"`
	// Conflict says why the peer cannot be of this group.
	Conflict string `json:"conflict,omitempty"`
	// Drained, Pinned and Standby are orders of the operator's: not to hold, to
	// hold if it can, and to follow without a vote.
	Drained bool `json:"drained,omitempty"`
	Pinned  bool `json:"pinned,omitempty"`
	Standby bool `json:"standby,omitempty"`
	// Priority is how much it is wanted as holder.
	Priority int `json:"priority,omitempty"`
	// Unfit is why it would rather not hold.
	Unfit string `json:"unfit,omitempty"`
}

// Marks are what is special about p among peers, in words.
func (p Peer) Marks(peers []Peer) []string {
	differs := slices.ContainsFunc(peers, func(q Peer) bool { return q.Priority != p.Priority })
	var marks []string
	for _, m := range []struct {
		is   bool
		word string
	}{
		{p.Drained, "drained"}, {p.Pinned, "pinned"}, {p.Standby, "without a vote"},
		{differs, fmt.Sprintf("priority %d", p.Priority)},
	} {
		if m.is {
			marks = append(marks, m.word)
		}
	}
	return marks
}

// VIP is one virtual IP on the wire, as this node has it.
type VIP struct {
	Address   netip.Addr `json:"address"`
	Interface string     `json:"interface"`
	MAC       string     `json:"mac,omitempty"`
	// Bound is whether the VIP is on this node's loopback interface.
	Bound bool `json:"bound"`
	// Answering is whether this node answers for the VIP now.
	Answering     bool   `json:"answering"`
	Carrier       bool   `json:"carrier"`
	Answers       uint64 `json:"answers"`
	Announcements uint64 `json:"announcements"`
	// Suppressed counts packets that were not sent because the lease was over.
	Suppressed    uint64    `json:"suppressed"`
	ForeignClaims uint64    `json:"foreignClaims"`
	ForeignMAC    string    `json:"foreignMAC,omitempty"`
	ForeignAt     time.Time `json:"foreignAt,omitzero"`
	Repairs       uint64    `json:"repairs"`
}
