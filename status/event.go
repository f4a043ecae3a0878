package status

import (
	"time"

	"appliance/status/figures"
)

// An EventKind says what an Event is about.
type EventKind string

// The kinds of events.
const (
	OfProcess EventKind = "process" // this appliance started, stopped, or found that it had been cut off
	OfHolder  EventKind = "holder"  // who holds, as this node sees it
	OfTenure  EventKind = "tenure"  // this node's own tenures
	OfPeer    EventKind = "peer"    // another peer comes, goes, or cannot belong to the group
	OfBackend EventKind = "backend" // the state of a backend
	OfService EventKind = "service" // a load balancer and its data plane
	OfClaim   EventKind = "claim"   // another machine claims a VIP
	OfRoute   EventKind = "route"   // routers are told of a VIP, and sessions with them
)

// EventKinds lists all kinds.
func EventKinds() []EventKind {
	return []EventKind{OfProcess, OfHolder, OfTenure, OfPeer, OfBackend, OfService, OfClaim, OfRoute}
}

// An Event is one change, as the journal keeps it.
type Event struct {
	// Seq grows by one with each event of a node, across restarts too.
	Seq  uint64    `json:"seq"`
	Time time.Time `json:"time"`
	// Node is the id of the node that saw it.
	Node string    `json:"node"`
	Kind EventKind `json:"kind"`
	// Bad marks an event that somebody may have to act on.
	Bad bool `json:"bad,omitempty"`
	// Subject is what it happened to: a peer, a VIP, or a load balancer with its backend.
	Subject string `json:"subject,omitempty"`
	// What is the change in a few words, Reason its cause.
	What   string `json:"what"`
	Reason string `json:"reason,omitempty"`
	// Cause is one of a few fixed terms for the cause, for programs; empty: none fits.
	Cause string `json:"cause,omitempty"`
	From  string `json:"from,omitempty"`
	To    string `json:"to,omitempty"`
	// Took is the measured length of what the event ends. For a failover it runs from the last sign of the old
	// holder to the start of the new one.
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
		s += ", took " + figures.Age(e.Took)
	}
	return s
}
