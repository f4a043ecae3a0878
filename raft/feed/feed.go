package feed

import (
	"encoding/json"
	"net/netip"
	"time"
)

// A Feed is what workers follow.
type Feed struct {
	// Version is made of the content, so that every peer has the same.
	Version string `json:"version"`
	// Cluster is the group, and Index the place in its log up to which the peer had applied it when it made
	// the content; 0 if it does not tell.
	Cluster string           `json:"cluster,omitempty"`
	Index   uint64           `json:"index,omitempty"`
	Data    json.RawMessage  `json:"data,omitempty"`
	Peers   []netip.AddrPort `json:"peers,omitempty"`
}

// Op is the operation of a question for the feed on a control connection.
const Op = "follow"

// question and answer are the fields of the control protocol that a worker needs.
type question struct {
	Op    string `json:"op"`
	After string `json:"after,omitempty"`
	// Version is that of the worker's program.
	Version string `json:"version,omitempty"`
}

type answer struct {
	Error string `json:"error,omitempty"`
	Feed  *Feed  `json:"feed,omitempty"`
}

// hold is how long a worker's question waits for something new. It is shorter than what ends an idle
// connection, and long enough that a thousand workers ask fifty times a second.
const hold = 20 * time.Second

// older says that f was made from less of the same group's log than have. A feed of another group is never
// older: that group was recovered or begun anew.
func (f Feed) older(have Feed) bool {
	return f.Cluster != "" && f.Cluster == have.Cluster && f.Index != 0 && f.Index < have.Index
}
