package raft

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"time"

	hraft "github.com/hashicorp/raft"

	"appliance/raft/detector"
	"appliance/raft/settings"
)

// Counters only grow.
type Counters struct {
	// Refused connections: strangers, wrong keys, garbage, port scans.
	Refused uint64 `json:"refused"`
	// Elections that this peer stood in.
	Elections uint64 `json:"elections"`
	// Deaths is how often this peer proved the death of the holder's process and stood for election.
	Deaths uint64 `json:"deaths"`
	// Missed is how often a majority did not hear the holder and this peer stood for election.
	Missed uint64 `json:"missed"`
	// Tenures of this peer.
	Tenures uint64 `json:"tenures"`
	// Commits counts changes that this peer made as leader; CommitTime is the sum of the times from the
	// request until a majority had them on disk.
	Commits    uint64        `json:"commits"`
	CommitTime time.Duration `json:"commitTime"`
	// Standstills is how often this peer's machine was seen to have stood still, and its clock with it.
	Standstills uint64 `json:"standstills"`
	// Ended counts ends of tenures by cause: deposed, leaving, handover, failed.
	Ended map[string]uint64 `json:"ended,omitempty"`
}

// A Status is what a peer knows of its group at one moment.
type Status struct {
	ID      string `json:"id"`
	Cluster string `json:"cluster,omitempty"`
	// Phase says what the peer is doing: "looking for the group", "running", ...
	Phase string `json:"phase"`
	// Role is "follower", "candidate", "leader", or "" before raft runs.
	Role   string `json:"role,omitempty"`
	Term   uint64 `json:"term"`
	Leader string `json:"leader,omitempty"`
	// Holder is true during a tenure, Lease while the lease runs.
	Holder bool      `json:"holder"`
	Lease  bool      `json:"lease"`
	Since  time.Time `json:"since,omitzero"`
	// Trouble is what keeps this peer from taking part fully, or "".
	Trouble string `json:"trouble,omitempty"`
	// SlowDisk says whose disk makes elections wait, or "".
	SlowDisk string `json:"slowDisk,omitempty"`
	// Heartbeat is in force, Floor is that of the file. Failover is about how long a lost host is missed, until another
	// peer holds.
	Heartbeat time.Duration `json:"heartbeatNs"`
	Floor     time.Duration `json:"heartbeatFloorNs"`
	Failover  time.Duration `json:"failoverNs"`
	Peers     []PeerStatus  `json:"peers"`
	// Workers are those that follow this peer, ordered by id.
	Workers  []WorkerStatus `json:"workers,omitempty"`
	Counters Counters       `json:"counters"`
}

// A WorkerStatus is what a peer knows of a worker that follows it.
type WorkerStatus struct {
	ID   string     `json:"id"`
	Addr netip.Addr `json:"address"`
	// Since is when it connected.
	Since time.Time `json:"since"`
	// Version is that of its program, as it says; "" from programs that do not tell.
	Version string `json:"version,omitempty"`
}

// workers are those that follow this peer.
func (g *Group) workers() (all []WorkerStatus) {
	var ids []string
	connected := g.port.Workers()
	for _, w := range connected {
		ids = append(ids, w.ID)
	}
	versions := g.feed.Versions(ids)
	for _, w := range connected {
		all = append(all, WorkerStatus{w.ID, w.Addr, w.Since, versions[w.ID]})
	}
	return all
}

// A PeerStatus is what a peer knows of another, or of itself.
type PeerStatus struct {
	ID   string         `json:"id"`
	Addr netip.AddrPort `json:"address"`
	// Further are other addresses of its host.
	Further []netip.Addr `json:"addresses,omitempty"`
	// OnLink are addresses that, as the peer says, its host has on the links of the virtual addresses. Nobody
	// had to configure them.
	OnLink []netip.Addr `json:"onLink,omitempty"`
	// Role is "voter", "nonvoter", "witness", or "" for one that is no member.
	Role      string        `json:"role,omitempty"`
	Self      bool          `json:"self,omitempty"`
	Connected bool          `json:"connected"`
	Since     time.Time     `json:"since,omitzero"` // of Connected
	RoundTrip time.Duration `json:"roundTrip,omitempty"`
	// Datagrams says that datagrams come from the peer. Vanished says that they have stopped although its
	// process is not known to have ended: its host or the way to it is gone.
	Datagrams bool `json:"datagrams"`
	Vanished  bool `json:"vanished"`
	// LastContact is how long ago the leader heard from the peer, or the peer from its leader. Zero: unknown.
	LastContact time.Duration `json:"lastContact,omitempty"`
	// Heard is how long ago a heartbeat, a probe or a request for a vote came from the peer, and HeardTerm is
	// the latest term of one. Zero: never.
	Heard     time.Duration `json:"heard,omitempty"`
	HeardTerm uint64        `json:"heardTerm,omitempty"`
	// Died is the last term led by a process of the peer that is known to have ended.
	Died uint64 `json:"died,omitempty"`
	// Left is when a process of the peer last said that it leaves. Zero: never.
	Left    time.Time `json:"left,omitzero"`
	Version string    `json:"version,omitempty"`
	// Priority, Drained and Pinned say how much it is wanted as holder. Standby says that it follows without
	// a vote until it is promoted.
	Priority int  `json:"priority,omitempty"`
	Drained  bool `json:"drained,omitempty"`
	Pinned   bool `json:"pinned,omitempty"`
	Standby  bool `json:"standby,omitempty"`
	// Unfit is why another peer should rather hold, or "".
	Unfit string `json:"unfit,omitempty"`
	// NoCarrier are the virtual addresses whose link at the peer has no carrier, as it says.
	NoCarrier []netip.Addr `json:"noCarrier,omitempty"`
	Witness   bool         `json:"witness,omitempty"`
	// Expected says that the peer may join and has not done so yet.
	Expected bool `json:"expected,omitempty"`
	// Problem says why the peer is not connected, or "".
	Problem string `json:"problem,omitempty"`
	// Conflict says why the peer is refused, or "".
	Conflict string `json:"conflict,omitempty"`
	// Doubled says that two processes run as the peer, and where, or "".
	Doubled string `json:"doubled,omitempty"`
}

// Addrs are the configured addresses of the peer's host.
func (p PeerStatus) Addrs() []netip.Addr { return Peer{Addr: p.Addr, Further: p.Further}.Addrs() }

// Changed is closed at the next change of roles, leader or members. Take it before Status.
func (g *Group) Changed() <-chan struct{} { return g.change.Next() }

// Status is a snapshot. It does not block.
func (g *Group) Status() Status {
	self := g.hello()
	s := Status{ID: g.cfg.ID, Cluster: self.Cluster, Term: self.Term, Leader: self.Leader}
	g.mu.Lock()
	s.Phase = g.phase
	s.Counters = g.count
	s.Counters.Ended = maps.Clone(g.count.Ended)
	tenure := g.tenure
	hellos, left := maps.Clone(g.hellos), maps.Clone(g.left)
	g.mu.Unlock()
	s.Counters.Refused, s.Counters.Standstills = g.port.Refused(), g.stood.Load()
	s.Workers = g.workers()
	if tenure.may != nil {
		s.Holder, s.Since, s.Lease = true, tenure.since, tenure.may()
	}
	_, s.Trouble = g.trouble()
	if peer, pace := g.slowest(); pace > g.cfg.Heartbeat {
		s.SlowDisk = fmt.Sprintf("the disk of %s is slow: a write takes up to %v, and a failover waits for several", peer,
			pace.Round(time.Millisecond))
	}
	s.Heartbeat, s.Floor = g.cfg.Heartbeat, g.cfg.floor
	s.Failover = detector.Suspicion(g.cfg.Heartbeat) + g.Patience()
	known := g.settings.All()
	suffrage := make(map[string]hraft.ServerSuffrage)
	r := g.running()
	if r != nil {
		s.Role = map[hraft.RaftState]string{hraft.Follower: "follower", hraft.Candidate: "candidate",
			hraft.Leader: "leader"}[r.State()]
		for _, m := range r.GetConfiguration().Configuration().Servers {
			suffrage[string(m.ID)] = m.Suffrage
		}
	}
	var farthest time.Duration
	for _, p := range g.roster() {
		ps := PeerStatus{ID: p.ID, Addr: p.Addr, Further: p.Further, OnLink: hellos[p.ID].OnLink,
			Self: p.ID == g.cfg.ID, Version: hellos[p.ID].Version}
		ps.Priority, ps.Drained, ps.Pinned = g.preferenceOf(p.ID).priority, known[settings.DrainPrefix+p.ID] != "",
			known[settings.PinKey] == p.ID
		ps.Witness, ps.Left = p.Witness, left[p.ID]
		fitness := g.fitnessOf(p.ID)
		ps.Unfit, ps.NoCarrier = fitness.String(), fitness.NoCarrier
		m, known := settings.MemberOf(known, p.ID)
		ps.Standby = m.Standby
		_, in := suffrage[p.ID]
		ps.Expected = known && !in
		switch suf, member := suffrage[p.ID]; {
		case !member:
		case suf != hraft.Voter:
			ps.Role = "nonvoter"
		case p.Witness:
			ps.Role = "witness"
		default:
			ps.Role = "voter"
		}
		ps.Datagrams, ps.Vanished = g.detector.Reach(p.ID)
		if l := g.links.to(p.ID); l != nil {
			state := l.State()
			ps.Connected, ps.Since, ps.RoundTrip = state.Connected, state.Since, state.RoundTrip
			ps.Problem = errText(state.Problem)
			farthest = max(farthest, state.Wire)
		} else {
			ps.Connected, ps.Version = true, g.cfg.Version
		}
		if h, ok := hellos[p.ID]; ok && !ps.Self {
			ps.Conflict = conflict(self, h)
		}
		ps.Doubled = g.twins.Of(p.ID, time.Now())
		if ago, ok := g.lease.GrantedAgo(self.Term, p.ID); ok && s.Role == "leader" {
			ps.LastContact = ago
		} else if r != nil && p.ID == s.Leader && !ps.Self {
			ps.LastContact = time.Since(r.LastContact())
		}
		if ago, term, died, heard := g.grants.Sign(p.ID); heard {
			ps.Heard, ps.HeardTerm, ps.Died = max(ago, 1), term, died
		}
		s.Peers = append(s.Peers, ps)
	}
	// The others are asked what they hear of the leader, for their votes, and what they granted.
	s.Failover += 3 * farthest
	return s
}

// oddHeartbeat says that the voters with this peer's heartbeat are no majority, or "".
func (g *Group) oddHeartbeat() string {
	if g.running() == nil {
		return ""
	}
	var others []string
	voters := g.voters(nil)
	for _, id := range voters {
		if beat, known := g.heartbeats.Of(id); id != g.cfg.ID && known && !g.heartbeats.Fits(beat) {
			others = append(others, fmt.Sprintf("%v on peer %s", beat, id))
		}
	}
	if len(others) == 0 || len(voters)-len(others) > len(voters)/2 {
		return ""
	}
	return fmt.Sprintf("group.heartbeat is %v here and %s: this peer neither votes nor holds until a majority "+
		"has the same; write one value on every peer and restart the appliance there",
		g.cfg.Heartbeat, strings.Join(others, ", "))
}
