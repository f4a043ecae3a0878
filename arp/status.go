package arp

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// claimantsMax bounds the MACs that are remembered, and so logged, of foreign claims: an attacker has as many as it
// likes.
const claimantsMax = 8

// VIPStatus is the state of one VIP.
type VIPStatus struct {
	VIP       netip.Addr `json:"vip"`
	Interface string     `json:"interface"`
	// MAC is the interface's own address, which answers carry.
	MAC     string `json:"mac"`
	Carrier bool   `json:"carrier"`
	// Fault is what else is wrong with the interface: it goes on after its name.
	Fault     string `json:"fault,omitempty"`
	Bound     bool   `json:"bound"`
	Answering bool   `json:"answering"`

	Answers       uint64 `json:"answers"`
	Announcements uint64 `json:"announcements"`
	// Suppressed counts packets that were not sent because the lease had run out.
	Suppressed    uint64 `json:"suppressed"`
	ForeignClaims uint64 `json:"foreignClaims"`
	// Repairs counts what others had removed and was restored: the address, and what silences the kernel.
	Repairs uint64 `json:"repairs"`

	LastForeignMAC string    `json:"lastForeignMAC,omitempty"`
	LastForeign    time.Time `json:"lastForeign,omitzero"`
}

// A vipState is what is counted and remembered of one VIP.
type vipState struct {
	vip        VIP
	unanswered bool

	answers, announcements, suppressed, foreign, repairs atomic.Uint64

	mu        sync.Mutex
	bound     bool
	left      string // the interface of this host on which something else has the VIP, if it is left to it
	last      Claim
	claimants map[string]damper // by MAC
	crowd     damper            // more of them
}

func (s *vipState) setBound(b bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bound = b
}

// leaveTo notes the interface on which the VIP is left to something else, or "" for none.
func (s *vipState) leaveTo(iface string) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed = s.left != iface
	s.left = iface
	return changed
}

// leftTo is what leaveTo was told last.
func (s *vipState) leftTo() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.left
}

// countClaim counts c. It reports whether that is to be logged, and whether it is to be logged that so many others
// claim the VIP that no more are told apart.
func (s *vipState) countClaim(c Claim) (due, crowd bool) {
	s.foreign.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = c
	if s.claimants == nil {
		s.claimants = make(map[string]damper)
	}
	q, known := s.claimants[c.MAC]
	if !known && len(s.claimants) >= claimantsMax {
		for mac, old := range s.claimants {
			if c.At.Sub(old.last) >= logAgainAfter {
				delete(s.claimants, mac)
			}
		}
		if len(s.claimants) >= claimantsMax {
			return false, s.crowd.due(c.At)
		}
	}
	due = q.due(c.At)
	s.claimants[c.MAC] = q
	return due, false
}

// Status is the state of every VIP, in the order of Config.VIPs.
func (w *Wire) Status() []VIPStatus {
	t := w.tenure.Load()
	answering := t != nil && !t.asks
	all := make([]VIPStatus, 0, len(w.order))
	for _, vip := range w.order {
		r := w.vips[vip]
		link, fault := w.links.look(r.vip.Interface)
		r.mu.Lock()
		bound, last := r.bound, r.last
		r.mu.Unlock()
		all = append(all, VIPStatus{
			VIP:            vip,
			Interface:      r.vip.Interface,
			MAC:            net.HardwareAddr(link.mac).String(),
			Carrier:        link.up,
			Fault:          fault,
			Bound:          bound,
			Answering:      answering && !r.unanswered,
			Answers:        r.answers.Load(),
			Announcements:  r.announcements.Load(),
			Suppressed:     r.suppressed.Load(),
			ForeignClaims:  r.foreign.Load(),
			Repairs:        r.repairs.Load(),
			LastForeignMAC: last.MAC,
			LastForeign:    last.At,
		})
	}
	return all
}

// leaves reports whether a VIP is left to something else on this host.
func (w *Wire) leaves() bool {
	return slices.ContainsFunc(w.order, func(vip netip.Addr) bool { return w.vips[vip].leftTo() != "" })
}

// Repaired counts n repairs of rules for the VIPs that are not this package's. They count for the first VIP.
func (w *Wire) Repaired(n int) {
	if n > 0 {
		w.vips[w.order[0]].repairs.Add(uint64(n))
	}
}
