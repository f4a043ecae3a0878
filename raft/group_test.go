package raft

import (
	"context"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"appliance/raft/settings"
)

func TestListedPeersBeginTogether(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	first := b.holder()
	b.voters(3)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := b.nodes["b"].Propose(ctx, map[string]string{"drain/c": "yes"}); err != nil {
		t.Fatal(err)
	}
	b.eventually("the setting on every peer", func() bool {
		for _, n := range b.nodes {
			if n.Settings()["drain/c"] != "yes" || n.Settings()[settings.ClusterKey] == "" {
				return false
			}
		}
		return true
	})
	t.Logf("first holder %s", first)
}

func TestRestartOfAllKeepsEverything(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	b.holder()
	b.voters(3)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := b.nodes["a"].Propose(ctx, map[string]string{"k": "v"}); err != nil {
		t.Fatal(err)
	}
	b.eventually("the group to have an id", func() bool { return b.nodes["a"].Status().Cluster != "" })
	cluster := b.nodes["a"].Status().Cluster
	b.stop("a", "b", "c")
	b.start("a", "b", "c")
	b.holder()
	b.eventually("the setting after the restart", func() bool { return b.nodes["a"].Settings()["k"] == "v" })
	b.eventually("the same group", func() bool { return b.nodes["a"].Status().Cluster != "" })
	if now := b.nodes["a"].Status().Cluster; now != cluster {
		t.Errorf("the group was %q and is %q after a restart", cluster, now)
	}
}

func TestStartAsLeaderThenJoin(t *testing.T) {
	b := newBench(t, 3)
	c := b.config("b")
	c.StartAsLeader = true
	b.run(c)
	if h := b.holder(); h != "b" {
		t.Fatalf("holder is %s, want the one that starts as leader", h)
	}
	b.start("a")
	b.voters(2)
	b.start("c")
	b.voters(3)
	b.eventually("one group", func() bool {
		s := b.nodes["a"].Status().Cluster
		return s != "" && s == b.nodes["b"].Status().Cluster && s == b.nodes["c"].Status().Cluster
	})
}

func TestEveryPeerStartsAsLeader(t *testing.T) {
	b := newBench(t, 3)
	b.tweak = func(c *Config) { c.StartAsLeader = true }
	b.start("a", "b", "c")
	b.holder()
	b.voters(3)
}

func TestLostDiskRejoins(t *testing.T) {
	b := newBench(t, 3)
	b.tweak = func(c *Config) { c.StartAsLeader = c.ID == "a" } // and it stays in the file
	b.start("a", "b", "c")
	b.voters(3)
	b.eventually("the group's id on its peers' disks", func() bool {
		return b.nodes["a"].hello().Cluster != "" && b.nodes["b"].hello().Cluster != ""
	})
	cluster := b.nodes["b"].Status().Cluster
	b.stop("a")
	b.dirs["a"] = t.TempDir()
	b.holder("b", "c")
	b.start("a")
	b.voters(3)
	b.eventually("a to know its group", func() bool { return b.nodes["a"].Status().Cluster != "" })
	if now := b.nodes["a"].Status().Cluster; now != cluster {
		t.Errorf("the peer with the new disk is in group %q, want %q", now, cluster)
	}
}

func TestSingleNodeNeedsNoPort(t *testing.T) {
	b := newBench(t, 1)
	b.tweak = func(c *Config) { c.SingleNode = true }
	b.start("a")
	b.holder()
	if c, err := net.Dial("tcp", b.peers[0].Addr.String()); err == nil {
		c.Close()
		t.Error("a single node listens")
	}
	b.stop("a")
	b.start("a")
	b.holder()
}

func TestMinorityNeverHolds(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	old := b.holder()
	b.voters(3)
	b.wires.isolate(old, true)
	var rest []string
	for id := range b.nodes {
		if id != old {
			rest = append(rest, id)
		}
	}
	next := b.holder(rest...)
	if b.nodes[old].lawfully() {
		t.Errorf("%s still may answer although %s does", old, next)
	}
	for range 200 { // well over a lease: it stays silent
		if b.nodes[old].lawfully() {
			t.Fatalf("%s answers from the minority", old)
		}
		time.Sleep(time.Millisecond)
	}
	b.wires.heal()
	b.eventually("the old holder to follow", func() bool {
		return b.nodes[old].Status().Leader == b.nodes[next].Status().Leader
	})
}

func TestTransfer(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	old := b.holder()
	b.voters(3)
	to := "a"
	if old == "a" {
		to = "b"
	}
	ask := "c" // asks whoever leads
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var err error
	for range 50 { // a peer whose heartbeat is late on a busy machine is refused, rightly
		if err = b.nodes[ask].Transfer(ctx, to); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	b.holder()
	b.eventually("a transfer to nobody to be refused", func() bool { // on a busy machine c may lose the leader for a moment
		err := b.nodes[ask].Transfer(ctx, "nobody")
		if err == nil {
			t.Fatal("leadership went to nobody")
		}
		return strings.Contains(err.Error(), "not a member")
	})
	b.holder() // a refused hand-over does not end the tenure for good
}

func TestWitnessVotesAndNeverHolds(t *testing.T) {
	b := newBench(t, 3)
	b.peers[0].Witness = true
	b.start("a", "b", "c")
	old := b.holder("b", "c")
	b.voters(3)
	b.stop(old)
	var next string
	for id := range b.nodes {
		if id != "a" {
			next = id
		}
	}
	b.holder(next)
	if n := b.nodes["a"].Status().Counters.Tenures; n != 0 {
		t.Errorf("the witness held %d times", n)
	}
}

func TestSecondProcessOnOneDataDirectory(t *testing.T) {
	b := newBench(t, 1)
	b.start("a")
	b.holder()
	_, err := Open(b.config("a"))
	if err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Fatalf("got %v", err)
	}
}

func TestDamagedDatabase(t *testing.T) {
	b := newBench(t, 1)
	if err := os.WriteFile(b.dirs["a"]+"/raft.db", []byte(strings.Repeat("garbage ", 4096)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(b.config("a"))
	if err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Fatalf("got %v", err)
	}
}

func TestOtherGroupsDataDirectoryIsRefused(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b")
	b.holder()
	b.voters(3)
	b.eventually("the group to have an id", func() bool {
		return b.nodes["a"].hello().Cluster != "" && b.nodes["b"].hello().Cluster != ""
	})
	// c has been a group of its own.
	alone := b.config("c")
	alone.Peers = b.peers[2:]
	g := b.runApart(alone)
	b.eventually("c's own group to have an id on its disk", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.written != ""
	})
	b.stop("c")
	c, err := Open(b.config("c"))
	if err != nil {
		t.Fatal(err)
	}
	err = c.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "another group") {
		t.Fatalf("Run: %v", err)
	}
	b.holder("a", "b")
}

func TestDifferentListIsRefused(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b")
	b.holder()
	c := b.config("c")
	c.Peers = append([]Peer(nil), b.peers...)
	c.Peers[1].Witness = true // the others do not think so; what c says of itself they would take over
	n := b.run(c)
	b.eventually("both sides to say why", func() bool {
		for _, p := range b.nodes["a"].Status().Peers {
			if p.ID == "c" && strings.Contains(p.Conflict, "witness") {
				for _, q := range n.Status().Peers {
					if q.ID == "a" && strings.Contains(q.Conflict, "witness") {
						return true
					}
				}
			}
		}
		return false
	})
	if n.running() != nil {
		t.Error("raft runs on the refused peer")
	}
	b.holder("a", "b")
}

// TestAdmissionIsRefused: what a peer may not ask for changes nothing.
func TestAdmissionIsRefused(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	b.voters(3)
	h := b.holder()
	leader := b.nodes[h]
	other := "a"
	if h == "a" {
		other = "b"
	}
	p, _ := leader.cfg.peer(other)
	moved := p
	moved.Addr = freeAddr(t, 9)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for want, r := range map[string]request{
		"make the lists the same": {Op: opAdmit, Peer: &moved},
		"is not listed":           {Op: opAdmit, Peer: &Peer{ID: other + "2", Addr: moved.Addr}, Forwarded: true},
		"asks in the name of":     {Op: opAdmit, Peer: &Peer{ID: "c" + other, Addr: p.Addr}},
		"unknown request":         {Op: "reboot"},
		"incomplete request":      {Op: opAdmit},
	} {
		_, err := askApart(ctx, b.nodes[other].links.to(h), r)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", r, err, want)
		}
	}
	if n := len(leader.Group.voters(nil)); n != 3 {
		t.Errorf("%d voters after refused admissions, want 3", n)
	}
}

// TestElectionNeedsNoNewConnection: votes are asked for on connections that are open already.
func TestElectionNeedsNoNewConnection(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	old := b.holder()
	b.voters(3)
	b.eventually("idle connections between all", func() bool {
		for id, n := range b.nodes {
			for _, p := range b.peers {
				if p.ID != id && !n.stream.IsWarm(p.Addr) {
					return false
				}
			}
		}
		return true
	})
	b.wires.mu.Lock()
	b.wires.noNew = true
	b.wires.mu.Unlock()
	b.wires.isolate(old, true)
	var rest []string
	for id := range b.nodes {
		if id != old {
			rest = append(rest, id)
		}
	}
	b.holder(rest...)
}
