package giveway

import (
	"slices"
	"sync"
	"time"
)

// A Reason is what makes a holder worse than the peer that it gives way to.
type Reason string

// The reasons, the worst first.
const (
	Carrier  Reason = "carrier"
	Tracks   Reason = "tracks"
	Drain    Reason = "drain"
	Unserved Reason = "unserved"
	Pin      Reason = "pin"
	Lowered  Reason = "lowered"
	Priority Reason = "priority"
)

// Unfit says that the reason is the state of a host, which may change by itself.
func (r Reason) Unfit() bool { return r == Carrier || r == Tracks || r == Unserved || r == Lowered }

const (
	vainBefore   = time.Second
	maxVain      = 2
	maxHandovers = 10
	retryAfter   = time.Minute
	calmAfter    = 10 * time.Minute
)

// A Handover is one hand-over to a fitter peer.
type Handover struct {
	For Reason        `json:"for"`
	Ago time.Duration `json:"ago"` // when it is told
	// Vain says that another for the same reason had come just before it, and so had not helped.
	Vain bool `json:"vain,omitempty"`

	at time.Duration // on this peer's clock
}

// A Limiter knows of the hand-overs to fitter peers. The zero Limiter knows of none; it is safe for concurrent
// use. All times are on one clock of this peer.
type Limiter struct {
	mu    sync.Mutex
	own   []Handover
	peers map[string][]Handover
}

// Note notes that this peer gives way.
func (h *Limiter) Note(why Reason, now time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, _, last := h.count(why, now)
	h.own = append(recent(h.own, now), Handover{For: why, Vain: last < vainBefore, at: now})
}

// count counts the hand-overs for one reason in the whole group. Last is how long ago the latest was. The caller
// holds mu.
func (h *Limiter) count(why Reason, now time.Duration) (all, vain int, last time.Duration) {
	last = calmAfter
	count := func(hs []Handover) {
		for _, o := range hs {
			if ago := now - o.at; o.For == why && ago < calmAfter {
				all++
				last = min(last, ago)
				if o.Vain {
					vain++
				}
			}
		}
	}
	count(h.own)
	for _, hs := range h.peers {
		count(hs)
	}
	return all, vain, last
}

// Learn notes what peer id tells of its own.
func (h *Limiter) Learn(id string, told []Handover, now time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(told) == 0 {
		delete(h.peers, id)
		return
	}
	if h.peers == nil {
		h.peers = make(map[string][]Handover)
	}
	told = slices.Clone(told)
	for i := range told {
		told[i].at = now - told[i].Ago
	}
	h.peers[id] = recent(told, now)
}

// Tell is what this peer tells the others.
func (h *Limiter) Tell(now time.Duration) []Handover {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.own = recent(h.own, now)
	told := slices.Clone(h.own)
	for i := range told {
		told[i].Ago = now - told[i].at
	}
	return told
}

// recent are those that still count, at most as many as are ever looked at.
func recent(all []Handover, now time.Duration) []Handover {
	all = slices.DeleteFunc(all, func(e Handover) bool { return now-e.at >= calmAfter })
	return all[max(0, len(all)-maxHandovers):]
}

// Allowed says whether to give way to peer id now.
func (h *Limiter) Allowed(why Reason, id string, now time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if why == Drain || why == Pin {
		return true // an operator's wish
	}
	if why == Priority {
		// A peer that has just been unfit is not preferred before it has been well for a while.
		return !slices.ContainsFunc(h.peers[id], func(o Handover) bool { return now-o.at < retryAfter })
	}
	all, vain, last := h.count(why, now)
	return last >= retryAfter || vain < maxVain && all < maxHandovers
}
