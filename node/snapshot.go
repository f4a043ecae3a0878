package node

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"appliance/arp"
	"appliance/balancer"
	"appliance/configs"
	"appliance/confine"
	"appliance/connlog"
	"appliance/mask"
	"appliance/node/proving"
	"appliance/raft"
	"appliance/status"
)

// snapshot puts the snapshots of all rooms side by side.
func (n *node) snapshot() status.Snapshot {
	s := status.Snapshot{
		Version: n.version,
		Time:    time.Now(),
		Started: n.started,
		ID:      n.site.self.ID,
		Role:    string(n.site.self.Role),
		VIPs:    []status.VIPView{},

		LoadBalancers: []balancer.LoadBalancerStatus{},
	}
	if told, failed, dropped := n.hooks.Counts(); len(n.state.Load().Config.Hooks) > 0 || told+failed+dropped > 0 {
		s.Hooks = &status.HookCounts{Told: told, Failed: failed, Dropped: dropped}
	}
	notReady := func(kind status.NotReadyKind, subject, reason string) {
		s.NotReady = append(s.NotReady, status.NotReady{Kind: kind, Subject: subject, Reason: mask.Text(reason)})
	}
	if n.broken != nil {
		notReady(status.GroupNotReady, "", n.broken.Error())
	}
	if n.group != nil {
		group := n.group.Status()
		s.Holder, s.Term, s.Group = n.holder(group), group.Term, n.groupSnapshot(group)
		if group.Phase != "running" {
			notReady(status.GroupNotReady, "", group.Phase)
		}
		for _, p := range group.Peers {
			if p.Self && p.Role == "nonvoter" {
				notReady(status.GroupNotReady, "", "catching up, it does not vote yet")
			}
		}
		if group.Trouble != "" {
			notReady(status.GroupNotReady, "", group.Trouble)
		}
		if n.hasNoHolder() {
			notReady(status.GroupNotReady, "", nobodyHolds)
		}
	}
	s.OwnLog = logCounts(n.copies)
	privileges := status.Privileges(confine.Now())
	s.Privileges = &privileges
	if n.witness() {
		return s
	}
	for _, v := range n.vips() {
		s.VIPs = append(s.VIPs, status.VIPView{
			Address: v.VIP, Interface: v.Interface, MAC: v.MAC, Bound: v.Bound, Answering: v.Answering, Carrier: v.Carrier,
			Answers: v.Answers, Announcements: v.Announcements, Suppressed: v.Suppressed, Repairs: v.Repairs,
			ForeignClaims: v.ForeignClaims, ForeignMAC: v.LastForeignMAC, ForeignAt: v.LastForeign,
		})
		if !v.Bound {
			notReady(status.VIPUnbound, v.VIP.String(), "")
		}
		if !v.Carrier {
			notReady(status.NoCarrier, v.Interface, "")
		} else if v.Fault != "" {
			notReady(status.InterfaceFault, v.Interface, v.Fault)
		}
	}
	if taken := n.taken.Load(); taken != nil {
		for _, c := range *taken {
			if c.Here {
				notReady(status.VIPTakenHere, c.VIP.String(), c.Interface)
			} else {
				notReady(status.VIPTaken, c.VIP.String(), c.MAC)
			}
		}
	}
	if n.announcer != nil {
		s.Announce = n.announcer.Status()
	}
	for _, t := range n.tracker.Status() {
		if !t.OK && t.Weight == 0 {
			notReady(status.TrackFailed, t.Name, t.Reason)
		}
	}
	s.Differences = n.trials.Differences()
	if why := n.trials.Outvoted(); why != "" {
		notReady(status.GroupNotReady, "", why)
	}
	for name, a := range n.names.Known() {
		s.Names = append(s.Names, status.NameView{Name: name, Addresses: a.Addrs, Answered: a.At, Error: mask.Text(a.Error)})
	}
	slices.SortFunc(s.Names, func(a, b status.NameView) int { return strings.Compare(a.Name, b.Name) })
	s.ConnectionLog = logCounts(n.connections)
	served := n.balancer.Status()
	s.LoadBalancers, s.Planes, s.Shortages = served.LoadBalancers, served.Planes, served.Shortages
	for i := range s.LoadBalancers {
		n.secrets.mask(&s.LoadBalancers[i])
	}
	for i, lb := range s.LoadBalancers {
		if lb.Plane != "" {
			s.LoadBalancers[i].Proof = n.trials.Of(lb)
		}
		switch {
		case lb.Plane == "":
			notReady(status.NotServed, lb.Name, lb.Error)
		case !slices.ContainsFunc(lb.Backends, status.TakesConnections):
			notReady(status.NoBackend, lb.Name, "")
		case n.trials.Unserved(lb):
			notReady(status.NotProved, lb.Name, s.LoadBalancers[i].Proof.Reason)
		}
	}
	return s
}

// secrets masks what servers, programs and the kernel say. They may repeat what they were sent. Most say the same each
// second, and to look for secrets takes long.
type secrets struct {
	mu     sync.Mutex
	masked map[string]string
}

// maxMasked is how many texts are remembered: a few for each of a thousand backends.
const maxMasked = 4096

func (s *secrets) text(text string) string {
	if text == "" {
		return ""
	}
	masked, known := s.masked[text]
	if !known {
		if s.masked == nil || len(s.masked) >= maxMasked {
			s.masked = make(map[string]string)
		}
		masked = mask.Text(text)
		s.masked[text] = masked
	}
	return masked
}

func (s *secrets) mask(lb *balancer.LoadBalancerStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lb.Reason, lb.Error = s.text(lb.Reason), s.text(lb.Error)
	for i := range lb.Refused {
		lb.Refused[i].Reason = s.text(lb.Refused[i].Reason)
	}
	for i := range lb.Backends {
		lb.Backends[i].Reason = s.text(lb.Backends[i].Reason)
	}
}

// vips returns the state of the VIPs on the wire; a worker may have none.
func (n *node) vips() []arp.VIPStatus {
	if n.wire == nil {
		return nil
	}
	return n.wire.Status()
}

// holder returns who answers for the VIPs, as far as this peer knows: the leader, unless it is a witness, which hands
// over at once.
func (n *node) holder(group raft.Status) string {
	for _, p := range group.Peers {
		if p.ID == group.Leader && p.Witness {
			return ""
		}
	}
	return group.Leader
}

func (n *node) groupSnapshot(group raft.Status) status.GroupView {
	g := status.GroupView{
		State: group.Role, Reason: group.Trouble, Holding: group.Lease, Since: group.Since,
		Refused: group.Counters.Refused, Elections: group.Counters.Elections,
		Deaths: group.Counters.Deaths, Missed: group.Counters.Missed, Standstills: group.Counters.Standstills,
		Commits: group.Counters.Commits, CommitTime: group.Counters.CommitTime, Tenures: group.Counters.Tenures,
		TenuresEnded: group.Counters.Ended, SlowDisk: group.SlowDisk, Heartbeat: group.Heartbeat,
		HeartbeatFloor: group.Floor, Failover: group.Failover, Peers: []status.PeerView{},
	}
	if g.State == "" {
		g.State = group.Phase
	}
	g.WorkersTotal = len(group.Workers)
	for _, w := range group.Workers[:min(len(group.Workers), status.MaxWorkers)] {
		g.Workers = append(g.Workers, status.WorkerView{ID: printable(w.ID), Address: w.Addr, Since: w.Since,
			Version: printable(w.Version)})
	}
	holder := n.holder(group)
	for _, p := range group.Peers {
		peer := status.PeerView{
			ID: p.ID, Address: p.Addr, Role: p.Role, Self: p.Self, Holder: p.ID == holder,
			Connected: p.Connected, ConnectedSince: p.Since, LastContact: p.LastContact, RoundTrip: p.RoundTrip,
			Version: p.Version, Conflict: p.Conflict, Doubled: p.Doubled,
			Drained: p.Drained, Pinned: p.Pinned, Standby: p.Standby, Priority: p.Priority, Unfit: p.Unfit,
		}
		if flow, known := n.datagrams(p); known {
			peer.Datagrams = &flow
		}
		if peer.Role == "" {
			peer.Role = "not a member"
		}
		g.Peers = append(g.Peers, peer)
	}
	return g
}

// printable is what another program says of itself, without what would move a terminal's cursor.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, text)
}

// noCarrier says for each VIP which other peers have no carrier on its link, as they say themselves.
func noCarrier(peers []raft.PeerStatus) map[netip.Addr][]string {
	cut := make(map[netip.Addr][]string)
	for _, p := range peers {
		for _, vip := range p.NoCarrier {
			if !p.Self {
				cut[vip] = append(cut[vip], p.ID)
			}
		}
	}
	return cut
}

// isCutOff says that this node hears no majority of the peers, and does not serve without. Then it is as likely that its
// own link is down as that the others' hosts are.
func isCutOff(a configs.AnnounceSettings, routed bool, silent, peers int) bool {
	servesAlone := routed && !a.NeedsMajority && (!a.HolderOnly || a.Standby)
	return silent > 0 && 2*silent >= peers && !servesAlone
}

// vanishedOf are the peers whose hosts have vanished.
func vanishedOf(peers []raft.PeerStatus) map[string]bool {
	ids := make(map[string]bool)
	for _, p := range peers {
		if p.Vanished {
			ids[p.ID] = true
		}
	}
	return ids
}

// followGroup hands no packet to a peer whose link is cut, which that peer says over the group's own. It takes the
// backends on a peer's host out of rotation when the host vanishes: the group notices before any check does. It also
// announces the VIPs again whenever a peer comes back: hosts that were cut off together with it may
// have heard another holder last, and would keep its address until the next announcement.
func (n *node) followGroup(ctx context.Context) error {
	connected, before := make(map[string]bool), make(map[string]bool)
	for {
		changed := n.group.Changed()
		peers := n.group.Status().Peers
		silent, cfg := vanishedOf(peers), n.state.Load().Config
		cutOff := isCutOff(cfg.Announce, cfg.Routed(), len(silent), len(peers))
		if n.planes.Direct != nil {
			n.planes.Direct.SetCut(noCarrier(peers))
			n.planes.Direct.SetVanished(silent, cutOff)
		}
		n.balancer.SetCutOff(cutOff)
		for _, p := range peers {
			switch {
			case silent[p.ID] && !before[p.ID]:
				for _, a := range p.Addrs() {
					n.balancer.PeerDown(a)
				}
			case !silent[p.ID] && before[p.ID]:
				for _, a := range p.Addrs() {
					n.balancer.PeerUp(a)
				}
			}
			if p.Connected && !connected[p.ID] && !p.Self {
				n.wire.Announce()
			}
			connected[p.ID] = p.Connected
		}
		before = silent
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// datagrams says whether datagrams come from a peer, if that is known by now.
func (n *node) datagrams(p raft.PeerStatus) (flow, known bool) {
	blocked := n.blocked.Load()
	quiet := blocked != nil && (*blocked)[p.ID]
	return !quiet, !p.Self && p.Connected && p.Role != "" && (quiet || p.Datagrams)
}

// serves is what this node serves, by parts that all nodes of a group should have in common.
func (n *node) serves() map[string]string {
	cfg := n.state.Load().Config
	parts := map[string]string{"version": n.version}
	var vips, frontends []string
	for _, v := range cfg.VIPs {
		vips = append(vips, v.String())
	}
	for _, lb := range cfg.LoadBalancers {
		key := "loadBalancers." + lb.Name + "."
		parts[key+"dataPlane"], parts[key+"scheduler"] = string(lb.DataPlane), string(lb.Scheduler)
		var backends []string
		for _, be := range lb.Backends {
			// A name is the same everywhere while its records change.
			if at := be.Where(); !slices.Contains(backends, at) {
				backends = append(backends, at)
			}
		}
		slices.Sort(backends)
		parts[key+"backends"] = strings.Join(backends, " ")
	}
	for _, lb := range cfg.ForBalancer() {
		for _, f := range lb.Frontends {
			if slices.Contains(cfg.VIPs, f.Addr()) {
				frontends = append(frontends, f.String())
			}
		}
	}
	slices.Sort(vips)
	slices.Sort(frontends)
	parts["vips"], parts[proving.FrontendsKey] = strings.Join(vips, " "), strings.Join(frontends, " ")
	return parts
}

// logCounts are the counts of a sink, or nil while there was no line for it.
func logCounts(sink *connlog.Sink) *status.LogCounts {
	if sink == nil {
		return nil
	}
	c := sink.Counts()
	if c.Written+c.Dropped+c.Skipped == 0 {
		return nil
	}
	return &status.LogCounts{Written: c.Written, Dropped: c.Dropped, Skipped: c.Skipped, Error: c.Trouble}
}
