package arp

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// claimantsMax bounds what is remembered, and so logged, of foreign claims: an
// attacker has as many MACs as it likes.
const claimantsMax = 64

// VIPStatus is the state of one VIP.
type VIPStatus struct {
	VIP       netip.Addr `json:"vip"`
	Interface string     `json:"interface"`
	// MAC is the interface's own address, by which we answer.
	MAC       string `json:"mac"`
	Carrier   bool   `json:"carrier"`
	Bound     bool   `json:"bound"`
	Answering bool   `json:"answering"`

	Answers       uint64 `json:"answers"`
	Announcements uint64 `json:"announcements"`
	// Suppressed counts packets that the lease forbade.
	Suppressed    uint64 `json:"suppressed"`
	ForeignClaims uint64 `json:"foreignClaims"`
	// Repairs counts what had been taken away by others and was restored:
	// the address, and the kernel's silence.
	Repairs uint64 `json:"repairs"`

	LastForeignMAC string    `json:"lastForeignMAC,omitempty"`
	LastForeign    time.Time `json:"lastForeign,omitzero"`
}

// A record is what is counted and remembered of one VIP.
type record struct {
	vip VIP

	answers, announcements, suppressed, foreign, repairs atomic.Uint64

	mu        sync.Mutex
	bound     bool
	last      Claim
	claimants map[string]quiet // by MAC
}

func (r *record) setBound(b bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bound = b
}

// claimed counts c and says whether it deserves a log line.
func (r *record) claimed(c Claim) bool {
	r.foreign.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = c
	if r.claimants == nil {
		r.claimants = make(map[string]quiet)
	}
	q, known := r.claimants[c.MAC]
	if !known && len(r.claimants) >= claimantsMax {
		for mac, old := range r.claimants {
			if c.At.Sub(old.last) >= quietFor {
				delete(r.claimants, mac)
			}
		}
		if len(r.claimants) >= claimantsMax {
			return false
		}
	}
	loud := q.loud(c.At)
	r.claimants[c.MAC] = q
	return loud
}

// Status is a snapshot for people and metrics, in the order of Config.VIPs.
func (w *Wire) Status() []VIPStatus {
	answering := w.tenure.Load() != nil
	all := make([]VIPStatus, 0, len(w.order))
	for _, vip := range w.order {
		r := w.vips[vip]
		link, _, _ := w.links.get(r.vip.Interface)
		r.mu.Lock()
		bound, last := r.bound, r.last
		r.mu.Unlock()
		all = append(all, VIPStatus{
			VIP:            vip,
			Interface:      r.vip.Interface,
			MAC:            net.HardwareAddr(link.mac).String(),
			Carrier:        link.up,
			Bound:          bound,
			Answering:      answering,
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

// Repaired counts repairs of rules for the VIPs that others keep, as those of the
// first VIP.
func (w *Wire) Repaired(n int) {
	if n > 0 {
		w.vips[w.order[0]].repairs.Add(uint64(n))
	}
}
