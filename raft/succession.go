package raft

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	hraft "github.com/hashicorp/raft"

	"appliance/raft/deathwatch"
	"appliance/raft/fence"
	"appliance/raft/settings"
	"appliance/raft/store"
)

// detect runs the detector on the group until ctx ends.
func (g *Group) detect(ctx context.Context) error {
	if g.packets == nil {
		return nil
	}
	e := &elections{Group: g, ctx: ctx}
	err := g.detector.Run(ctx, g.packets, g.cfg.kernels, e)
	e.running.Wait()
	return err
}

// elections is what the detector knows of a group, and does in it.
type elections struct {
	*Group
	ctx     context.Context
	running sync.WaitGroup // attempts to be elected
}

func (e *elections) Term() uint64 { return e.raft.CurrentTerm() }

func (e *elections) LeadsIn() uint64 {
	if term, ok := e.leads(); ok {
		return term
	}
	return 0
}

func (e *elections) Follows() (leader string, term uint64) {
	term = e.raft.CurrentTerm()
	_, id := e.raft.LeaderWithID()
	if e.raft.State() != hraft.Follower || e.raft.CurrentTerm() != term {
		return "", 0
	}
	return string(id), term
}

func (e *elections) Electorate() (ids []string) {
	voters := e.voters(nil)
	for _, p := range e.byPreference() {
		if slices.Contains(voters, p.ID) {
			ids = append(ids, p.ID)
		}
	}
	for _, id := range voters { // a majority is one of all voters
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

func (e *elections) HeardFrom(peer string, term uint64) (may bool) {
	e.heard(peer, term)
	// A datagram names no group: one of a group that has ended may come late, and its leader had a term of the same
	// number. Raft follows nobody but by messages that name the group.
	leader, in := e.Follows()
	return leader == peer && in == term && e.fence.Refusal(peer) == nil && e.grants.Follow(peer, term)
}

func (e *elections) Granted(peer string, term uint64, t0 time.Duration) {
	e.lease.Grant(peer, term, t0)
}

func (e *elections) Refresh(leader string, term uint64) (kept, writes bool) {
	if who, in := e.Follows(); who != leader || in != term {
		return false, false // it needs a message of raft's own first
	}
	// As its own heartbeats did, this leaves raft's timeout most of its length, and it spares most turns.
	since := time.Since(e.raft.LastContact())
	if since > e.cfg.raftTimeout()/3 {
		addr, id := e.raft.LeaderWithID()
		if string(id) != leader {
			return false, false
		}
		e.trans.Refresh(leader, addr, term)
	}
	if since < e.cfg.raftTimeout()/2 {
		return true, false
	}
	writes = e.store.Writes()
	return writes, writes
}

func (e *elections) Refreshed(peer string, term uint64, writes bool) {
	e.trans.Kept(peer, term, writes)
}

func (e *elections) Pulse(missed bool) { e.trans.Pulse(missed) }

func (e *elections) ReachChanged() { e.change.Fire() }

func (e *elections) Replace(leader string, term uint64) bool {
	if e.trans.Elects() != nil {
		return false
	}
	e.running.Go(func() {
		e.log.Info("a majority does not hear the leader, standing for election", "was", leader, "term", term)
		e.tally(func(c *Counters) { c.Missed++ })
		ctx, cancel := context.WithTimeout(e.ctx, e.cfg.Heartbeat)
		defer cancel()
		if err := e.trans.Stand(ctx); err != nil && e.ctx.Err() == nil {
			e.log.Warn("could not stand for election", "error", err)
		}
	})
	return true
}

// onSilence notes that a process never answers again, by its own word or because it is dead.
func (g *Group) onSilence(d deathwatch.Death) {
	// The terms of another group say nothing of this one's leases.
	if _, told := g.heartbeats.Of(d.Peer); told && !errors.Is(g.fence.Refusal(d.Peer), fence.ErrStranger) {
		g.grants.Silenced(d.Peer, d.Term)
	}
	g.history.departed(d.Peer, d.Term, d.Told)
	if d.Told {
		g.mu.Lock()
		g.left[d.Peer] = time.Now()
		g.mu.Unlock()
	}
	g.change.Fire()
}

// onDeath has this peer stand for election if the process that has ended led. That matters after a goodbye
// too, if the process could not hand over.
func (g *Group) onDeath(ctx context.Context, d deathwatch.Death) {
	g.detector.Ended(d.Peer)
	g.onSilence(d)
	rank, stands := g.rank(d)
	if !stands {
		return
	}
	// The first in rank stands at once, and each other a third of a heartbeat after the one before, if
	// nothing has happened by then: a split vote costs a whole election timeout.
	select {
	case <-time.After(time.Duration(rank) * max(g.cfg.Heartbeat/3, g.Patience()/2)):
	case <-g.stopping:
		return
	case <-ctx.Done():
		return
	}
	if _, stands = g.rank(d); !stands || g.trans.Elects() != nil {
		return
	}
	g.log.Info("the leader's process has ended, standing for election", "was", d.Peer, "term", d.Term)
	if !d.Told {
		g.tally(func(c *Counters) { c.Deaths++ })
	}
	once, cancel := context.WithTimeout(ctx, g.cfg.Heartbeat)
	defer cancel()
	if err := g.trans.Stand(once); err != nil {
		g.log.Warn("could not stand for election", "error", err)
	}
}

// rank is this peer's place among those that may take over from the dead process, and whether it still
// should.
func (g *Group) rank(d deathwatch.Death) (rank int, stands bool) {
	r := g.running()
	if r == nil || d.Term == 0 || r.CurrentTerm() != d.Term || r.State() != hraft.Follower {
		return 0, false
	}
	if _, leader := r.LeaderWithID(); leader != "" && leader != hraft.ServerID(d.Peer) {
		return 0, false
	}
	voting := make(map[string]bool)
	for _, id := range g.voters(nil) {
		voting[id] = true
	}
	for _, p := range g.byPreference() { // the same order everywhere
		switch {
		case p.ID == d.Peer || p.Witness || !voting[p.ID]:
		case p.ID == g.cfg.ID:
			return rank, true
		default:
			rank++
		}
	}
	return 0, false
}

// withheld is what this peer's disk has to reach again before its votes and grants count: package fence.
type withheld struct {
	on           bool
	Term, Commit uint64
	Why          string
}

// readDisk reads where the disk stands, and counts this start of it.
func (g *Group) readDisk(process string) (err error) {
	if g.known {
		if g.position, err = g.store.Position(); err != nil {
			return err
		}
		g.written, g.replaces = g.store.Own(settings.ClusterKey), g.store.Own(store.ReplacesKey)
		g.floor, _ = strconv.ParseUint(g.store.Own(store.FloorKey), 10, 64)
		g.withheld.on = json.Unmarshal([]byte(g.store.Own(store.WithheldKey)), &g.withheld) == nil
	}
	disk := g.store.Own(store.DiskKey)
	if disk == "" {
		disk = rand.Text()
		if g.store.SetOwn(store.DiskKey, disk) != nil {
			disk = ""
		}
	}
	g.disk = fence.Told{Fenced: true, Process: process, Disk: disk, Term: g.position.Term, Last: g.position.Last}
	g.disk.Commit, _ = strconv.ParseUint(g.store.Own(store.SettledKey), 10, 64)
	if disk != "" {
		g.disk.Boots = g.store.Boot()
	}
	var reached map[string]fence.Reached
	json.Unmarshal([]byte(g.store.Own(store.ReachedKey)), &reached) // what cannot be read is not remembered
	g.fence = fence.New(g.cluster, func(peer string) bool {
		_, member := g.server(peer)
		return member || len(g.servers()) == 0
	}, reached)
	return nil
}

// cluster is the name of this peer's group, "" if it is not known yet.
func (g *Group) cluster() string {
	if c := g.settings.Get(settings.ClusterKey); c != "" {
		return c
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.written
}

// errLate refuses what a process said before another one of the same peer took its place.
var errLate = errors.New("another process of this peer has spoken since; if two run with its id, stop one of them")

// learnFence notes what a process at an address has told of its group and of its disk.
func (g *Group) learnFence(h hello, at netip.Addr) error {
	told := fence.Told{Cluster: h.Cluster, HasState: h.HasState}
	if h.Fence != nil {
		told = *h.Fence
	}
	g.noteTwins(h.ID, g.twins.Hear(h.ID, told.Process, at, time.Now()))
	was := g.fence.ReachedBy(h.ID)
	keep, late := g.fence.Learn(h.ID, told)
	if late {
		return errLate
	}
	if !keep {
		return nil
	}
	if now := g.fence.ReachedBy(h.ID); now.Backwards != was.Backwards {
		if now.Backwards != "" {
			g.log.Warn("the disk of a peer went backwards, as if restored from an older copy: its votes do not count "+
				"until a leader has brought it up to date", "peer", h.ID, "why", now.Backwards)
		} else {
			g.log.Info("the disk of a peer is up to date again, its votes count", "peer", h.ID)
		}
		g.change.Fire()
	}
	if text, err := json.Marshal(g.fence.Reached()); err == nil {
		if err := g.store.SetOwn(store.ReachedKey, string(text)); err != nil {
			g.log.Debug("remembering what the others have reached", "error", err)
		}
	}
	return nil
}

// refusalOf is why a peer is granted nothing here, and asked for no vote, or nil.
func (g *Group) refusalOf(peer string) error {
	return errors.Join(g.heartbeats.Refusal(peer), g.fence.Refusal(peer))
}

// withhold notes that peer by remembers more of this peer's disk than the disk does.
func (g *Group) withhold(by string, r fence.Reached) {
	g.settling <- struct{}{}
	defer func() { <-g.settling }()
	own := g.cluster() // a copy from before the group had a name has none
	if h, ok := g.helloOf(by); ok && h.Cluster != "" && own != "" && h.Cluster != own || r.Process != g.disk.Process {
		return
	}
	self := g.hello().Fence
	g.mu.Lock()
	old := g.withheld
	if !old.on && g.floor > 0 && g.floor >= r.Term && self.Commit >= r.Commit {
		g.mu.Unlock()
		return // it has caught up, and by has not heard of that yet
	}
	g.withheld = withheld{on: true, Term: max(old.Term, r.Term), Commit: max(old.Commit, r.Commit), Why: r.Backwards}
	now := g.withheld
	g.mu.Unlock()
	if old.on && old.Term == now.Term && old.Commit == now.Commit {
		return
	}
	if !old.on {
		g.log.Error("the disk here went backwards, as if restored from an older copy: this peer neither votes nor "+
			"holds until a leader has brought it up to date", "says", by, "why", r.Backwards, "dir", g.cfg.DataDir)
	}
	if text, err := json.Marshal(now); err == nil {
		g.store.SetOwn(store.WithheldKey, string(text))
	}
	g.change.Fire()
}

var errWithheld = errors.New("the disk of this peer went backwards, and has not caught up yet")

// withholds is why this peer neither gives nor asks for votes, or nil.
func (g *Group) withholds() error {
	if g.doubled() != "" {
		return ErrTwice
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.withheld.on {
		return errWithheld
	}
	return nil
}

// settle has this peer take part again after its disk went backwards, once a leader has brought it at least to
// where it was. It then gives no vote in any term up to the leader's, because it may have given one.
func (g *Group) settle() {
	g.settling <- struct{}{}
	defer func() { <-g.settling }()
	g.mu.Lock()
	w := g.withheld
	g.mu.Unlock()
	leader, term := (&elections{Group: g}).Follows()
	commit := g.raft.CommitIndex()
	if !w.on || leader == "" || leader == g.cfg.ID || term < w.Term || commit < max(w.Commit, 1) ||
		g.raft.LastContact().IsZero() || time.Since(g.raft.LastContact()) > g.cfg.Heartbeat {
		return
	}
	if err := errors.Join(g.store.Forgo(term), g.store.SetOwn(store.FloorKey, strconv.FormatUint(term, 10)),
		g.store.SetOwn(store.SettledKey, strconv.FormatUint(commit, 10)), g.store.SetOwn(store.WithheldKey, "")); err != nil {
		return // again at the next tick
	}
	g.mu.Lock()
	g.withheld, g.floor, g.disk.Commit = withheld{}, term, commit
	g.mu.Unlock()
	g.log.Info("this disk is up to date again", "no vote up to term", term)
	g.change.Fire()
}

// backwards is what keeps this peer's votes from counting, or "".
func (g *Group) backwards() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.withheld.on {
		return ""
	}
	return fmt.Sprintf("the disk here went backwards (%s), as if restored from an older copy: this peer neither votes "+
		"nor holds until a leader has brought it up to date", g.withheld.Why)
}

// Slow disks
//
// A vote is a write of the term and one of the vote, at the candidate and at each voter, and raft's main loop waits for
// them. Where a write takes longer than an election, votes come too late, every candidate gives up and makes the others
// write once more, and nobody is ever elected. So every peer measures its writes and tells the others. With a slow disk
// in the group an election has the time of four such writes: raft's election timeout, the deadline of RPCs and the
// distance between candidates grow by it, and nobody stands while votes may be on their way. Nothing of this is on the
// way of a lease: datagrams are answered while the disk is busy.

const (
	// writesOfAnElection: the term and the vote, at the candidate and at a voter.
	writesOfAnElection = 4
	longestPatience    = 30 * time.Second
)

// isSlow says that an election with such writes does not fit into a heartbeat.
func (g *Group) isSlow(pace time.Duration) bool { return pace*writesOfAnElection > g.cfg.Heartbeat }

// slowest is the peer with the slowest disk, and the longest that a write took there lately.
func (g *Group) slowest() (peer string, pace time.Duration) {
	peer, pace = g.cfg.ID, g.store.Pace()
	g.mu.Lock()
	defer g.mu.Unlock()
	for id, h := range g.hellos {
		if h.Pace > pace {
			peer, pace = id, h.Pace
		}
	}
	return peer, pace
}

// Patience is how long an election takes because of the disks, up to 30 s; 0 if they are fast.
func (g *Group) Patience() time.Duration {
	_, pace := g.slowest()
	if !g.isSlow(pace) {
		return 0
	}
	return min(writesOfAnElection*pace, longestPatience)
}

// keepPatience has raft's election timeout follow the disks, and says so once.
func (g *Group) keepPatience() {
	peer, pace := g.slowest()
	base := g.electionTimeout()
	timeout := max(base, g.Patience())
	c := g.raft.ReloadableConfig()
	if ratio := float64(timeout) / float64(c.ElectionTimeout); ratio <= 0.8 || ratio >= 1.2 {
		c.ElectionTimeout = timeout
		if err := g.raft.ReloadConfig(c); err != nil {
			g.log.Warn("could not change the election timeout", "to", timeout, "error", err)
		}
	}
	// A busy disk crosses the line back and forth; what is worth a line is far beyond.
	switch {
	case !g.slow && pace > g.cfg.Heartbeat:
		g.slow = true
		g.log.Warn("a disk is slow: elections wait for its writes, and a failover takes as much longer",
			"peer", peer, "write", pace, "election timeout", timeout)
	case g.slow && !g.isSlow(pace):
		g.slow = false
		g.log.Info("the disks are fast enough again", "slowest write", pace)
	}
}
