package node

import (
	"context"
	"fmt"
	"time"

	"appliance/raft"
	"appliance/status"
)

// noteFailovers notes what happens in the group until ctx ends.
func (n *node) noteFailovers(ctx context.Context) error {
	self := n.site.self.ID
	eachEvent(ctx, n.group.Events(), func(e raft.GroupEvent) {
		if e.Kind == raft.HolderChanged && e.Peer == self && e.From != "" && e.From != self {
			n.observer.Metrics.TookOver(e.Took)
		}
		n.observer.Note(groupEvent(self, e))
	})
	return nil
}

// eachEvent calls note for each event until ctx ends, and then for those that have come by then: the end of this
// node's last tenure is among them.
func eachEvent(ctx context.Context, events <-chan raft.GroupEvent, note func(raft.GroupEvent)) {
	for {
		select {
		case e, more := <-events:
			if more {
				note(e)
				continue
			}
			<-ctx.Done() // the group has ended, and this part is about to be told
			return
		case <-ctx.Done():
		}
		for {
			select {
			case e, more := <-events:
				if !more {
					return
				}
				note(e)
			default:
				return
			}
		}
	}
}

// groupEvent is what the journal says of e on the node self.
func groupEvent(self string, e raft.GroupEvent) status.Event {
	s := status.Event{Time: e.Time, Subject: e.Peer, Term: e.Term, Took: e.Took, Cause: string(e.Cause)}
	switch e.Kind {
	case raft.HolderChanged:
		s.Kind, s.What, s.From, s.To = status.OfHolder, "holds", e.From, e.Peer
		s.Reason, s.Bad = whyHolder(self, e)
	case raft.TenureEnded:
		s.Kind, s.What = status.OfTenure, "holds no more"
		s.Reason, s.Bad = whyTenureEnded(e.Cause)
	case raft.PeerInReach:
		s.Kind, s.What = status.OfPeer, "is in reach"
		if e.Cause == raft.Returned {
			s.What = "is in reach again"
		}
	case raft.PeerOutOfReach:
		s.Kind, s.Bad, s.What, s.Reason = status.OfPeer, true, "is out of reach", e.Detail
	case raft.TroubleBegan:
		s.Kind, s.Bad, s.What, s.Reason = status.OfProcess, true, "has trouble in the group", e.Detail
	case raft.TroubleEnded:
		s.Kind, s.What = status.OfProcess, "takes part in the group fully again"
	case raft.PeerDoubled:
		s.Kind, s.Bad, s.What, s.Reason = status.OfPeer, true, "runs twice", e.Detail
	case raft.StoodStill:
		s.Kind, s.Bad, s.What, s.Reason = status.OfProcess, true, "stood still with its clock: its leases were over", e.Detail
	}
	return s
}

// whyHolder says why the holder is another, and whether that is bad. A holder that gave way says in its own
// journal why.
func whyHolder(self string, e raft.GroupEvent) (reason string, bad bool) {
	switch {
	case e.Cause == raft.FirstSeen:
		return "the first that this node knows of in this life", false
	case e.Cause == raft.ElectedAgain:
		return "elected again", false
	case e.From == self:
	case e.Cause == raft.ProcessEnded, e.Cause == raft.Stopped:
		return "the process of " + e.From + " ended", true
	case e.Cause == raft.HostSilent:
		return fmt.Sprintf("nothing was heard of %s for %s", e.From, e.Took.Round(time.Millisecond)), true
	}
	return e.From + " gave way", false
}

func whyTenureEnded(cause raft.Cause) (reason string, bad bool) {
	switch cause {
	case raft.Deposed:
		return "another peer leads, or a majority is out of reach", true
	case raft.Stopped:
		return "this node stops", false
	case raft.Failed:
		return "it could not answer", true
	}
	return "handed over", false
}
