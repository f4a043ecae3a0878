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
	shortTenure  = time.Second
	maxShort     = 2
	maxHandovers = 10
	retryAfter   = time.Minute
	calmAfter    = 10 * time.Minute
)

// A Handover is one hand-over to a fitter peer.
type Handover struct {
	For   Reason        `json:"for"`
	Ago   time.Duration `json:"ago"` // when it is told
	Short bool          `json:"short,omitempty"`

	at time.Duration // on this peer's clock
}

// A Limiter knows of the hand-overs to fitter peers. The zero Limiter knows of none; it is safe for concurrent
// use. All times are on one clock of this peer.
type Limiter struct {
	mu    sync.Mutex
	own   []Handover
	peers map[string][]Handover
}

// Note notes that this peer gives way after a tenure of that length.
func (h *Limiter) Note(why Reason, held, now time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.own = append(recent(h.own, now), Handover{For: why, Short: held < shortTenure, at: now})
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
	all, short, last := 0, 0, calmAfter
	count := func(ways []Handover) {
		for _, o := range ways {
			if ago := now - o.at; o.For == why && ago < calmAfter {
				all++
				last = min(last, ago)
				if o.Short {
					short++
				}
			}
		}
	}
	count(h.own)
	for _, ways := range h.peers {
		count(ways)
	}
	return last >= retryAfter || short < maxShort && all < maxHandovers
}
