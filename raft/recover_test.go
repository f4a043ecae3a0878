package raft

import (
	"log/slog"
	"os"
	"strings"
	"testing"

	"appliance/raft/recovery"
)

func TestRecoverOneOfThree(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	b.voters(3)
	b.holder()
	b.eventually("all to know their group", func() bool {
		for _, n := range b.nodes {
			if n.hello().Cluster == "" {
				return false
			}
		}
		return true
	})
	b.must("a setting", func() error { return b.nodes["a"].Propose(b.ctx(), map[string]string{"k": "v"}) })
	b.eventually("the setting on a", func() bool { return b.nodes["a"].Settings()["k"] == "v" })
	former := b.nodes["a"].hello().Cluster
	silent := slog.New(slog.DiscardHandler)
	if _, err := recovery.Run(b.dirs["a"], "a", b.peers[0].Addr, silent); err == nil ||
		!strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("recovery of a running peer: %v", err)
	}
	b.stop("b", "c", "a")
	if _, err := recovery.Run(t.TempDir(), "a", b.peers[0].Addr, silent); err == nil ||
		!strings.Contains(err.Error(), "no group's data") {
		t.Errorf("recovery of nothing: %v", err)
	}
	if _, err := recovery.Run(b.dirs["a"], "z", b.peers[0].Addr, silent); err == nil ||
		!strings.Contains(err.Error(), "none of its members") {
		t.Errorf("recovery of another's data: %v", err)
	}
	rec, err := recovery.Run(b.dirs["a"], "a", b.peers[0].Addr, silent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(rec.Copy) })
	if strings.Join(rec.Former, " ") != "a b c" {
		t.Errorf("former members %v", rec.Former)
	}
	if _, err := os.Stat(rec.Copy + "/raft.db"); err != nil {
		t.Error(err)
	}

	// It holds alone, with what the group knew.
	b.start("a")
	b.holder("a")
	b.eventually("the setting after the recovery", func() bool { return b.nodes["a"].Settings()["k"] == "v" })
	if now := b.nodes["a"].hello().Cluster; now == former || now == "" {
		t.Errorf("the recovered group is called %q, as before", now)
	}
	// A peer that comes back with its data is turned away; without, it joins.
	n, err := Open(b.config("b"))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Run(b.ctx()); err == nil || !strings.Contains(err.Error(), "another group") {
		t.Errorf("a member of the former group: %v", err)
	}
	b.dirs["b"], b.dirs["c"] = t.TempDir(), t.TempDir()
	b.start("b", "c")
	b.voters(3)
	b.holder()
}
