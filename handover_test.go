package main

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"appliance/raft"
)

func TestHeir(t *testing.T) {
	self := raft.PeerStatus{ID: "a", Self: true, Role: "voter"}
	for name, tt := range map[string]struct {
		peers []raft.PeerStatus
		want  bool
	}{
		"alone":              {[]raft.PeerStatus{self}, false},
		"with a witness":     {[]raft.PeerStatus{self, {ID: "w", Role: "witness", Witness: true}}, false},
		"with one who joins": {[]raft.PeerStatus{self, {ID: "b", Role: "nonvoter"}}, false},
		"with another":       {[]raft.PeerStatus{self, {ID: "b", Role: "voter"}}, true},
	} {
		if got := heir(tt.peers); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

// TestLoneNodeStopsAtOnce: it has been holder, and there is nobody to hand to.
func TestLoneNodeStopsAtOnce(t *testing.T) {
	group, err := raft.Open(raft.Config{ID: "a", DataDir: t.TempDir(), SingleNode: true, Addr: netip.MustParseAddrPort("127.0.0.1:10000")})
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	synctest.Test(t, func(t *testing.T) {
		n := &node{group: group}
		now := time.Now()
		n.tenureEnded.Store(&now)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := n.lingerAfterTenure(ctx); err != nil || time.Since(now) > 0 {
			t.Errorf("%v after %v", err, time.Since(now))
		}
	})
}
