package overview

import (
	"slices"
	"time"

	"appliance/status"
	"appliance/status/report"
)

// An event is a journal entry with the nodes that have it.
type event struct {
	status.Event
	Nodes []string
}

// A tenure is one node's time as holder.
type tenure struct {
	Holder      string
	From        time.Time
	Until       time.Time // zero while it lasts
	Lasted      time.Duration
	Cause       string
	Took        time.Duration
	Term        uint64
	ByNewHolder bool // Took is what the new holder measured itself
}

const (
	// shownEvents is how many events of the whole group the page shows, shownTenures how many holders.
	shownEvents  = 100
	shownTenures = 12
	// sameEvent is how far apart two nodes may note one event.
	sameEvent = 3 * time.Second
	// sameChange is how far apart the old holder and this node may note the end of a tenure.
	sameChange = 2 * time.Second
)

// events are the entries of all nodes, the newest first. What several nodes saw within sameEvent is one entry.
func events(reports []report.PeerReport) []event {
	var all []status.Event
	for _, r := range reports {
		all = append(all, r.Report.Events...)
	}
	slices.SortStableFunc(all, func(a, b status.Event) int { return b.Time.Compare(a.Time) })
	var out []event
	for _, e := range all {
		same := -1
		for i := len(out) - 1; i >= 0 && out[i].Time.Sub(e.Time) < sameEvent; i-- {
			o := out[i]
			if o.Kind == e.Kind && o.What == e.What && o.Subject == e.Subject && !slices.Contains(o.Nodes, e.Node) {
				same = i
				break
			}
		}
		if same >= 0 {
			out[same].Nodes = append(out[same].Nodes, e.Node)
			continue
		}
		if len(out) == shownEvents {
			break
		}
		out = append(out, event{Event: e, Nodes: []string{e.Node}})
	}
	for i := range out {
		slices.Sort(out[i].Nodes)
	}
	return out
}

// tenures are the tenures that this node saw, the newest first. What the new holders measured themselves is used if it
// is known.
func tenures(self report.PeerReport, reports []report.PeerReport) []tenure {
	var out []tenure
	until := time.Time{}
	events := self.Report.Events
	for i := len(events) - 1; i >= 0 && len(out) < shownTenures; i-- {
		e := events[i]
		if e.Kind != status.OfHolder {
			continue
		}
		t := tenure{Holder: e.To, From: e.Time, Until: until, Cause: e.Reason, Took: e.Took, Term: e.Term}
		if !until.IsZero() {
			t.Lasted = until.Sub(e.Time)
		}
		for _, r := range reports {
			if r.Report.Snapshot.ID != e.To {
				continue
			}
			for _, own := range r.Report.Events {
				if own.Kind == status.OfHolder && own.To == e.To && own.Term == e.Term {
					t.Took, t.Cause, t.ByNewHolder = own.Took, own.Reason, true
				}
			}
		}
		if why := releaseReason(reports, e); why != "" {
			t.Cause = why
		}
		until = e.Time
		out = append(out, t)
	}
	return out
}

// releaseReason is how the old holder itself explains the end of its tenure.
func releaseReason(reports []report.PeerReport, e status.Event) string {
	for _, r := range reports {
		if r.Report.Snapshot.ID != e.From || e.From == e.To {
			continue
		}
		for _, own := range r.Report.Events {
			if gap := own.Time.Sub(e.Time); own.Kind == status.OfTenure && gap.Abs() < sameChange && own.Term < e.Term {
				return e.From + ": " + own.Reason
			}
		}
	}
	return ""
}
