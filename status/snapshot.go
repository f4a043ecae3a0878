package status

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"appliance/balancer"
)

// A Snapshot is everything that one appliance knows about itself and its group at one moment, as
// `appliance status --json` prints it.
type Snapshot struct {
	// Version is the version of the running binary.
	Version string `json:"version"`
	// Time is when the snapshot was taken.
	Time time.Time `json:"time"`
	// Started is when the process started.
	Started time.Time `json:"started"`
	// ID is this peer's id in the group.
	ID string `json:"id"`
	// Role is what this node is in the group now: peer, witness or worker.
	Role string `json:"role"`
	// Holder is the id of the peer that answers for the VIPs, empty if this peer knows of none.
	Holder string `json:"holder"`
	// Term is the Raft term.
	Term uint64 `json:"term"`
	// NotReady are the reasons why this node could not serve the VIPs now; empty means ready.
	NotReady []NotReady `json:"notReady,omitempty"`

	Group         GroupView                     `json:"group"`
	VIPs          []VIPView                     `json:"vips"`
	LoadBalancers []balancer.LoadBalancerStatus `json:"loadBalancers"`
	// Announce is absent where no VIP is announced to routers.
	Announce *AnnounceView `json:"announce,omitempty"`
	// Differences are what this node and its peers should have in common and have not.
	Differences []Difference `json:"differences,omitempty"`
	// Planes are the data planes that this host was asked for.
	Planes []balancer.PlaneStatus `json:"planes,omitempty"`
	// Privileges are what the process may do.
	Privileges *Privileges `json:"privileges,omitempty"`
	// Shortages are what this host has been short of since the start.
	Shortages []balancer.Shortage `json:"shortages,omitempty"`
	// Names are the names of servers, with the addresses that are in force.
	Names []NameView `json:"names,omitempty"`
	// ConnectionLog is absent while no connection was logged.
	ConnectionLog *LogCounts `json:"connectionLog,omitempty"`
	// OwnLog is the same of the program's own lines, where they go elsewhere besides stderr.
	OwnLog *LogCounts `json:"log,omitempty"`
	// Hooks is absent while no hook is configured.
	Hooks *HookCounts `json:"hooks,omitempty"`
}

// NameView is the name of a server.
type NameView struct {
	Name string `json:"name"`
	// Addresses are those of the last answer; none if there never was one.
	Addresses []netip.Addr `json:"addresses"`
	// Answered is when the last answer came.
	Answered time.Time `json:"answered,omitzero"`
	// Error is why the last look-up failed; empty if it did not.
	Error string `json:"error,omitempty"`
}

// LogCounts counts the lines of a log.
type LogCounts struct {
	Written uint64 `json:"written"`
	// Dropped counts the lines that were lost, because their reader was too slow or gone.
	Dropped uint64 `json:"dropped"`
	// Skipped counts those that were more in a second than was wanted.
	Skipped uint64 `json:"skipped"`
	// Error is why none can be written now; empty if they can.
	Error string `json:"error,omitempty"`
}

// HookCounts counts what became of events for hooks.
type HookCounts struct {
	// Told counts the events that hooks were told of, Failed the runs that failed.
	Told   uint64 `json:"told"`
	Failed uint64 `json:"failed"`
	// Dropped counts the events that no hook was told of, because the hooks were too slow.
	Dropped uint64 `json:"dropped"`
}

// Trouble is the counts for people, empty while nothing failed or no hook is configured.
func (h *HookCounts) Trouble() string {
	if h == nil || h.Failed == 0 && h.Dropped == 0 {
		return ""
	}
	return fmt.Sprintf("hooks: %d events told, %d failed, %d dropped; the log says why", h.Told, h.Failed, h.Dropped)
}

// GroupView is this peer's view of its group.
type GroupView struct {
	// State is the Raft state, follower, candidate or leader, or else what keeps this peer from taking part (joining,
	// bootstrapping, ...).
	State string `json:"state"`
	// Reason explains a State that is not a Raft state.
	Reason string `json:"reason,omitempty"`
	// Holding reports whether this peer may answer for the VIPs now.
	Holding bool `json:"holding"`
	// Since is when this peer's own tenure started.
	Since time.Time `json:"since,omitzero"`
	// Refused counts connections to the peer port that did not come from a peer.
	Refused uint64 `json:"refused"`
	// Elections counts the elections in which this peer was a candidate.
	Elections uint64 `json:"elections"`
	// Deaths counts the holder processes whose end this peer proved.
	Deaths uint64 `json:"deaths"`
	// Missed counts the holders that a majority of peers, this one among them, no longer heard.
	Missed uint64 `json:"missed"`
	// Standstills counts the times that this peer's machine was seen to have stood still, and its clock with it.
	Standstills uint64 `json:"standstills"`
	// Commits counts the changes that this peer committed as leader; together they took CommitTime.
	Commits    uint64        `json:"commits"`
	CommitTime time.Duration `json:"commitTimeNs"`
	// SlowDisk says whose disk makes elections wait, and how long a write takes there; "" if all are fast enough.
	SlowDisk string `json:"slowDisk,omitempty"`
	// Heartbeat is in force; HeartbeatFloor is the configured one, which peers that are far apart stretch. Failover is
	// about how long a lost host is missed, until another peer holds.
	Heartbeat      time.Duration `json:"heartbeatNs,omitempty"`
	HeartbeatFloor time.Duration `json:"heartbeatFloorNs,omitempty"`
	Failover       time.Duration `json:"failoverNs,omitempty"`
	// Tenures counts the tenures of this peer.
	Tenures uint64 `json:"tenures"`
	// TenuresEnded counts the ends of this peer's tenures by cause: deposed, leaving, handover, failed.
	TenuresEnded map[string]uint64 `json:"tenuresEnded,omitempty"`
	Peers        []PeerView        `json:"peers"`
	// Workers are those that follow this peer, the first MaxWorkers by id; WorkersTotal is how many there are.
	Workers      []WorkerView `json:"workers,omitempty"`
	WorkersTotal int          `json:"workersTotal,omitempty"`
}

// MaxWorkers is how many workers a snapshot lists: some 150 bytes each, which peers and pages fetch every second.
const MaxWorkers = 1000

// WorkerView is a worker that follows this peer.
type WorkerView struct {
	ID      string     `json:"id"`
	Address netip.Addr `json:"address"`
	// Since is when it connected to this peer.
	Since time.Time `json:"since"`
	// Version is that of its program, as it says; empty from programs that do not tell.
	Version string `json:"version,omitempty"`
}

// PeerView is one listed peer of the group, as this node sees it.
type PeerView struct {
	ID      string         `json:"id"`
	Address netip.AddrPort `json:"address"`
	Version string         `json:"version,omitempty"`
	// Role is voter, nonvoter, witness, or "not a member".
	Role   string `json:"role"`
	Holder bool   `json:"holder,omitempty"`
	Self   bool   `json:"self,omitempty"`
	// Connected reports whether this node reaches the peer; ConnectedSince is when that changed last.
	Connected      bool      `json:"connected"`
	ConnectedSince time.Time `json:"connectedSince,omitzero"`
	// LastContact is how long ago the leader heard from the peer, or this peer from its leader; zero if unknown here.
	LastContact time.Duration `json:"lastContactNs,omitempty"`
	RoundTrip   time.Duration `json:"roundTripNs,omitempty"`
	// Datagrams says whether datagrams come from the peer; null while it is out of reach or has just come into reach.
	Datagrams *bool `json:"datagrams,omitempty"`
	// Conflict says why the peer cannot belong to this group.
	Conflict string `json:"conflict,omitempty"`
	// Doubled says that two processes run with the peer's id, where, and what to do.
	Doubled string `json:"doubled,omitempty"`
	// Drained, Pinned and Standby are the operator's orders: never hold, hold if possible, follow without a vote.
	Drained bool `json:"drained,omitempty"`
	Pinned  bool `json:"pinned,omitempty"`
	Standby bool `json:"standby,omitempty"`
	// Priority is how much the peer is preferred as holder.
	Priority int `json:"priority,omitempty"`
	// Unfit is why the peer would rather not hold.
	Unfit string `json:"unfit,omitempty"`
}

// Labels say in words what sets p apart from the other peers.
func (p PeerView) Labels(peers []PeerView) []string {
	differs := slices.ContainsFunc(peers, func(q PeerView) bool { return q.Priority != p.Priority })
	var labels []string
	for _, label := range []struct {
		is   bool
		word string
	}{
		{p.Drained, "drained"}, {p.Pinned, "pinned"}, {p.Standby, "without a vote"},
		{p.Datagrams != nil && !*p.Datagrams, "its datagrams do not arrive"},
		{differs, fmt.Sprintf("priority %d", p.Priority)},
	} {
		if label.is {
			labels = append(labels, label.word)
		}
	}
	return labels
}

// VIPView is one virtual IP on the wire, as this node has it.
type VIPView struct {
	Address   netip.Addr `json:"address"`
	Interface string     `json:"interface"`
	MAC       string     `json:"mac,omitempty"`
	// Bound reports whether the VIP is on this node's loopback interface.
	Bound bool `json:"bound"`
	// Answering reports whether this node answers for the VIP now.
	Answering     bool   `json:"answering"`
	Carrier       bool   `json:"carrier"`
	Answers       uint64 `json:"answers"`
	Announcements uint64 `json:"announcements"`
	// Suppressed counts packets that were not sent because the lease had expired.
	Suppressed    uint64    `json:"suppressed"`
	ForeignClaims uint64    `json:"foreignClaims"`
	ForeignMAC    string    `json:"foreignMAC,omitempty"`
	ForeignAt     time.Time `json:"foreignAt,omitzero"`
	Repairs       uint64    `json:"repairs"`
}
