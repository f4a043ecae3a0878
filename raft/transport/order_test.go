package transport

import (
	"sync/atomic"
	"testing"
	"time"

	hraft "github.com/hashicorp/raft"
)

// voter answers every message, and lets an hour pass before it does.
func voter(t *testing.T, clock *atomic.Int64, success bool, term uint64) hraft.ServerAddress {
	t.Helper()
	n := libraryWire(t, "127.0.0.1:0")
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	go func() {
		for {
			select {
			case rpc := <-n.Consumer():
				clock.Add(int64(time.Hour))
				switch rpc.Command.(type) {
				case *hraft.AppendEntriesRequest:
					rpc.Respond(&hraft.AppendEntriesResponse{Term: term, Success: success}, nil)
				case *hraft.RequestVoteRequest:
					rpc.Respond(&hraft.RequestVoteResponse{Term: term, Granted: success}, nil)
				}
			case <-stop:
				return
			}
		}
	}()
	return n.LocalAddr()
}

// TestGrantCountsFromBeforeTheCall is step 1 of package lease on the leader's side: t0 is taken before the
// message is sent, and only a success in the term counts.
func TestGrantCountsFromBeforeTheCall(t *testing.T) {
	for name, tt := range map[string]struct {
		success bool
		term    uint64
		counts  bool
	}{
		"success": {true, 7, true}, "refusal": {false, 7, false}, "a newer term": {true, 8, false},
	} {
		t.Run(name, func(t *testing.T) {
			var clock atomic.Int64
			addr := voter(t, &clock, tt.success, tt.term)
			rules := freeRules()
			rules.Now = func() time.Duration { return time.Duration(clock.Load()) }
			var at []time.Duration
			rules.Granted = func(_ string, _ uint64, t0 time.Duration) { at = append(at, t0) }
			tr := &Transport{NetworkTransport: libraryWire(t, "127.0.0.1:0"), rules: rules, kept: kept{heartbeat: time.Hour}}
			tr.AppendEntries("b", addr, &hraft.AppendEntriesRequest{Term: 7}, new(hraft.AppendEntriesResponse))
			tr.RequestVote("b", addr, &hraft.RequestVoteRequest{Term: 7}, new(hraft.RequestVoteResponse))
			switch {
			case !tt.counts && len(at) > 0:
				t.Errorf("counted at %v", at)
			case tt.counts && (len(at) != 2 || at[0] != 0 || at[1] != time.Hour):
				t.Errorf("counted at %v, want [0s 1h0m0s]", at)
			}
		})
	}
}

// TestHeartbeatsPassThroughTheMainLoop: the library's fast path would acknowledge one in the old term while a
// vote for the new one is being written.
func TestHeartbeatsPassThroughTheMainLoop(t *testing.T) {
	n := libraryWire(t, "127.0.0.1:0")
	tr := &Transport{NetworkTransport: n, rules: freeRules(), consumer: n.Consumer(), rpcs: make(chan hraft.RPC)}
	tr.SetHeartbeatHandler(func(rpc hraft.RPC) {
		t.Error("a heartbeat took the fast path")
		rpc.Respond(new(hraft.AppendEntriesResponse), nil)
	})
	go tr.Relay(t.Context())
	go libraryWire(t, "127.0.0.1:0").AppendEntries("b", n.LocalAddr(), &hraft.AppendEntriesRequest{Term: 7,
		RPCHeader: hraft.RPCHeader{Addr: []byte("192.0.2.1:1")}}, new(hraft.AppendEntriesResponse))
	select {
	case rpc := <-tr.Consumer():
		rpc.Respond(new(hraft.AppendEntriesResponse), nil)
	case <-time.After(10 * time.Second):
		t.Error("the heartbeat did not come")
	}
}
