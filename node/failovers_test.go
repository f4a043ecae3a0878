package node

import (
	"context"
	"slices"
	"testing"
	"time"

	"appliance/raft"
	"appliance/status"
)

func TestGroupEvents(t *testing.T) {
	const ms = time.Millisecond
	moved := func(from, to string, cause raft.Cause, took time.Duration) raft.GroupEvent {
		return raft.GroupEvent{Kind: raft.HolderChanged, Peer: to, From: from, Cause: cause, Term: 3, Took: took}
	}
	ended := func(cause raft.Cause) raft.GroupEvent {
		return raft.GroupEvent{Kind: raft.TenureEnded, Peer: "n1", Cause: cause, Term: 2}
	}
	for name, tt := range map[string]struct {
		event raft.GroupEvent
		want  string
		bad   bool
		kind  status.EventKind
	}{
		"at first": {moved("", "n2", raft.FirstSeen, 0),
			"n2: holds (the first that this node knows of in this life)", false, status.OfHolder},
		"killed": {moved("n2", "n1", raft.ProcessEnded, 12*ms),
			"n1: holds (the process of n2 ended), took 12ms", true, status.OfHolder},
		"stopped": {moved("n2", "n3", raft.Stopped, 12*ms),
			"n3: holds (the process of n2 ended), took 12ms", true, status.OfHolder},
		"frozen": {moved("n2", "n1", raft.HostSilent, 180*ms),
			"n1: holds (nothing was heard of n2 for 180ms), took 180ms", true, status.OfHolder},
		"silent for long": {moved("n2", "n1", raft.HostSilent, 60005*ms),
			"n1: holds (nothing was heard of n2 for 1m0.005s), took 1m0s", true, status.OfHolder},
		"handed over": {moved("n2", "n1", raft.HandedOver, 9*ms),
			"n1: holds (n2 gave way), took 9ms", false, status.OfHolder},
		"drained": {moved("n2", "n1", raft.Drained, 9*ms),
			"n1: holds (n2 gave way), took 9ms", false, status.OfHolder},
		"by this node":   {moved("n1", "n2", raft.HandedOver, 0), "n2: holds (n1 gave way)", false, status.OfHolder},
		"from this node": {moved("n1", "n2", raft.Deposed, 0), "n2: holds (n1 gave way)", false, status.OfHolder},
		"elected again": {moved("n1", "n1", raft.ElectedAgain, 0), "n1: holds (elected again)", false,
			status.OfHolder},

		"tenure handed over": {ended(raft.HandedOver), "n1: holds no more (handed over)", false, status.OfTenure},
		"tenure drained":     {ended(raft.Drained), "n1: holds no more (handed over)", false, status.OfTenure},
		"tenure deposed": {ended(raft.Deposed),
			"n1: holds no more (another peer leads, or a majority is out of reach)", true, status.OfTenure},
		"tenure stopped": {ended(raft.Stopped), "n1: holds no more (this node stops)", false, status.OfTenure},
		"tenure failed":  {ended(raft.Failed), "n1: holds no more (it could not answer)", true, status.OfTenure},

		"in reach": {raft.GroupEvent{Kind: raft.PeerInReach, Peer: "n2", Cause: raft.FirstSeen},
			"n2: is in reach", false, status.OfPeer},
		"out of reach": {raft.GroupEvent{Kind: raft.PeerOutOfReach, Peer: "n3", Detail: "refused"},
			"n3: is out of reach (refused)", true, status.OfPeer},
		"in reach again": {raft.GroupEvent{Kind: raft.PeerInReach, Peer: "n3", Cause: raft.Returned, Took: 2000 * ms},
			"n3: is in reach again, took 2s", false, status.OfPeer},
		"twice": {raft.GroupEvent{Kind: raft.PeerDoubled, Peer: "n3", Cause: raft.IDTaken, Detail: "two run"},
			"n3: runs twice (two run)", true, status.OfPeer},
		"trouble": {raft.GroupEvent{Kind: raft.TroubleBegan, Cause: raft.DiskFailed, Detail: "cannot write"},
			"has trouble in the group (cannot write)", true, status.OfProcess},
		"no trouble": {raft.GroupEvent{Kind: raft.TroubleEnded}, "takes part in the group fully again", false,
			status.OfProcess},
	} {
		t.Run(name, func(t *testing.T) {
			got := groupEvent("n1", tt.event)
			if got.String() != tt.want || got.Bad != tt.bad || got.Kind != tt.kind {
				t.Errorf("%q (bad: %v, of %s), want %q (bad: %v, of %s)", got, got.Bad, got.Kind, tt.want, tt.bad,
					tt.kind)
			}
			if got.Cause != string(tt.event.Cause) || got.Term != tt.event.Term || got.Took != tt.event.Took {
				t.Errorf("%+v of %+v", got, tt.event)
			}
		})
	}
}

// The part is told to stop while the group still runs, and may outlive it too.
func TestEachEvent(t *testing.T) {
	for _, groupEndsFirst := range []bool{false, true} {
		events := make(chan raft.GroupEvent, 4)
		ctx, cancel := context.WithCancel(t.Context())
		events <- raft.GroupEvent{Kind: raft.HolderChanged}
		events <- raft.GroupEvent{Kind: raft.TenureEnded}
		if groupEndsFirst {
			close(events)
			time.AfterFunc(10*time.Millisecond, cancel)
		} else {
			cancel()
		}
		var kinds []raft.GroupEventKind
		eachEvent(ctx, events, func(e raft.GroupEvent) { kinds = append(kinds, e.Kind) })
		if !slices.Equal(kinds, []raft.GroupEventKind{raft.HolderChanged, raft.TenureEnded}) || ctx.Err() == nil {
			t.Errorf("noted %v before the end, the group first: %v", kinds, groupEndsFirst)
		}
		cancel()
	}
}
