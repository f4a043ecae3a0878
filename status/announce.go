package status

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// AnnounceView is what this node tells routers of the VIPs.
type AnnounceView struct {
	// Who announces: all nodes that serve, or the holder.
	Who       string          `json:"who"`
	Addresses []AnnouncedView `json:"addresses"`
	Sessions  []SessionView   `json:"sessions"`
}

// AnnouncedView is one VIP that routers are told of.
type AnnouncedView struct {
	Address netip.Addr `json:"address"`
	// By is bgp or routes.
	By        string `json:"by"`
	Announced bool   `json:"announced"`
	// Leaving says that routers have been asked to prefer other paths.
	Leaving bool `json:"leaving,omitempty"`
	// Standby says that its path is longer than the holder's.
	Standby bool `json:"standby,omitempty"`
	// Reason is why it is not announced, leaves, or stands by.
	Reason string `json:"reason,omitempty"`
}

// SessionView is one BGP session.
type SessionView struct {
	Neighbour netip.Addr `json:"neighbour"`
	AS        uint32     `json:"as"`
	// State is idle, connecting, opening or established, Since when the session began or ended.
	State string    `json:"state"`
	Since time.Time `json:"since"`
	// Reason is why it is not established.
	Reason   string        `json:"reason,omitempty"`
	RouterID netip.Addr    `json:"routerID,omitzero"`
	Local    netip.Addr    `json:"local,omitzero"`
	HoldTime time.Duration `json:"holdTimeNs,omitempty"`
	// Announced are the VIPs that the router was told of, Untold those that it should have been, with the reason.
	Announced []netip.Addr `json:"announced,omitempty"`
	Untold    []string     `json:"untold,omitempty"`
	// NextHops are where the router sends packets for them: this node's own addresses.
	NextHops []netip.Addr `json:"nextHops,omitempty"`
	// Ended counts the sessions that ended; Sent and Received count the messages of this one.
	Ended    uint64 `json:"ended"`
	Sent     uint64 `json:"sent"`
	Received uint64 `json:"received"`
	// BFD is absent where the router is not watched by it.
	BFD *BFDView `json:"bfd,omitempty"`
}

// BFDView is how a router is watched.
type BFDView struct {
	// State is admin-down, down, init or up.
	State string    `json:"state"`
	Since time.Time `json:"since"`
	// Detection is how long the router may be silent.
	Detection time.Duration `json:"detectionNs,omitempty"`
	// Lost counts how often it was up and fell silent.
	Lost uint64 `json:"lost"`
}

// Established reports whether the router can be told.
func (s SessionView) Established() bool { return s.State == "established" }

// Tells is what the router was told, for people.
func (s SessionView) Tells() string {
	told := make([]string, len(s.Announced))
	for i, a := range s.Announced {
		told[i] = a.String()
	}
	return strings.Join(append(told, s.Untold...), ", ")
}

// State is the address' state for people.
func (a AnnouncedView) State() string {
	switch {
	case a.Leaving:
		return "leaving"
	case a.Announced && a.Standby:
		return "announced with a longer path"
	case a.Announced:
		return fmt.Sprintf("announced by %s", a.By)
	}
	return "not announced"
}
