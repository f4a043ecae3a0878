package overview

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"appliance/status"
	"appliance/status/report"
)

// An address is one virtual address on the wire of all nodes.
type address struct {
	Address   netip.Addr
	Interface string
	// By is bgp or routes where routers are told of the address, and nobody answers for it on the link.
	By string
	// Answering are the nodes that answer now. Unless it is exactly one, there is trouble.
	Answering                       []string
	MAC                             string
	Answers, Announcements, Repairs uint64
	ForeignClaims                   uint64
	ForeignMAC                      string
	ForeignAt                       time.Time
	Nodes                           []addressNode
	Level                           level
}

// An addressNode is one node's part in an address.
type addressNode struct {
	ID                        string
	Bound, Answering, Carrier bool
	// Announced says that this node tells routers of the address, Leaving that it asks them to prefer others, Standby that
	// its path is longer than the holder's. Why says why.
	Announced, Leaving, Standby bool
	Why                         string
}

// A foreign claim is bad while it is younger than claimIsBad, and told while it is younger than claimIsTold.
const (
	claimIsBad  = 5 * time.Minute
	claimIsTold = time.Hour
)

func newAddress(v status.VIPView, now time.Time, reports []report.PeerReport) address {
	a := address{Address: v.Address, Interface: v.Interface, Level: good}
	for _, r := range reports {
		s := &r.Report.Snapshot
		for _, w := range s.VIPs {
			if w.Address != v.Address {
				continue
			}
			// The lease decides who may answer: a tenure that is ending does not count.
			answering := w.Answering && s.Group.Holding
			one := addressNode{ID: s.ID, Bound: w.Bound, Answering: answering, Carrier: w.Carrier}
			if r, ok := announcement(s, v.Address); ok {
				a.By, one.Announced, one.Leaving, one.Standby, one.Why = r.By, r.Announced, r.Leaving, r.Standby, r.Reason
			}
			a.Nodes = append(a.Nodes, one)
			if answering {
				a.Answering = append(a.Answering, s.ID)
				a.MAC, a.Interface = w.MAC, w.Interface
			}
			a.Answers += w.Answers
			a.Announcements += w.Announcements
			a.Repairs += w.Repairs
			a.ForeignClaims += w.ForeignClaims
			if w.ForeignAt.After(a.ForeignAt) {
				a.ForeignAt, a.ForeignMAC = w.ForeignAt, w.ForeignMAC
			}
		}
	}
	slices.SortFunc(a.Nodes, func(x, y addressNode) int { return cmp.Compare(x.ID, y.ID) })
	announced := slices.ContainsFunc(a.Nodes, func(n addressNode) bool { return n.Announced })
	if a.By == "" && len(a.Answering) != 1 || a.By != "" && !announced || within(now, a.ForeignAt, claimIsBad) {
		a.Level = bad
	}
	return a
}

// untold says why nobody tells routers of the address.
func (a *address) untold() string {
	var why []string
	for _, n := range a.Nodes {
		why = append(why, n.ID+": "+n.Why)
	}
	return strings.Join(why, "; ")
}

// within reports whether t is less than span ago.
func within(now, t time.Time, span time.Duration) bool { return !t.IsZero() && now.Sub(t) < span }
