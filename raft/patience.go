package raft

import (
	"time"
)

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
	base := g.raftConfig(nil).ElectionTimeout
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
