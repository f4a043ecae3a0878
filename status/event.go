package status

import "time"

// A Kind says what an Event is about.
type Kind string

// The kinds of events.
const (
	OfProcess Kind = "process" // this appliance began, ended, or found that it had been cut off
	OfHolder  Kind = "holder"  // who holds, as this node sees it
	OfTenure  Kind = "tenure"  // this node's own tenures
	OfPeer    Kind = "peer"    // another peer comes, goes, or cannot be of the group
	OfBackend Kind = "backend" // a backend's state
	OfService Kind = "service" // a load balancer and its data plane
	OfClaim   Kind = "claim"   // another machine speaks for a VIP
)

// An Event is one change, as the journal keeps it.
type Event struct {
	// Seq grows by one with each event of a node, over restarts too.
	Seq  uint64    `json:"seq"`
	Time time.Time `json:"time"`
	// Node is the id of the peer that saw it.
	Node string `json:"node"`
	Kind Kind   `json:"kind"`
	// Bad is what somebody may have to do something about.
	Bad bool `json:"bad,omitempty"`
	// Subject is what it happened to: a peer, a VIP, a load balancer and
	// backend.
	Subject string `json:"subject,omitempty"`
	// What is the change in a few words, Reason the cause.
	What   string `json:"what"`
	Reason string `json:"reason,omitempty"`
	From   string `json:"from,omitempty"`
	To     string `json:"to,omitempty"`
	// Took is the measured length of what the event ends: for a failover,
	// from the last sign of the old holder to the new one.
	Took time.Duration `json:"tookNs,omitempty"`
	Term uint64        `json:"term,omitempty"`
}

// String is the event as a line for people, without its time.
func (e Event) String() string {
	s := e.What
	if e.Subject != "" {
		s = e.Subject + ": " + s
	}
	if e.Reason != "" {
		s += " (" + e.Reason + ")"
	}
	if e.Took > 0 {
		s += ", took " + age(e.Took)
	}
	return s
}
