package lease

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// Heartbeats is what other peers have told this process of their heartbeat, from which the length of their
// leases comes. Peers that differ in it grant each other nothing.
type Heartbeats struct {
	own time.Duration
	// unknown is called when a peer that has told nothing yet wants something.
	unknown func()

	mu   sync.Mutex
	told map[string]time.Duration // 0: from a version that does not tell
}

// NewHeartbeats returns the heartbeats of a process whose own is own.
func NewHeartbeats(own time.Duration, unknown func()) *Heartbeats {
	return &Heartbeats{own: own, unknown: unknown, told: make(map[string]time.Duration)}
}

// Learn notes what a living process of peer has told, and reports whether it is news.
func (h *Heartbeats) Learn(peer string, beat time.Duration) (news bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	was, known := h.told[peer]
	// In insecure mode anybody can call itself anything.
	if known || len(h.told) < maxEntries {
		h.told[peer] = beat
		return !known || was != beat
	}
	return false
}

// Of is what peer has told, 0 for a version that does not tell.
func (h *Heartbeats) Of(peer string) (beat time.Duration, known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	beat, known = h.told[peer]
	return beat, known
}

// LongestHeartbeat is as long as Fitting makes a heartbeat: the round trip to a satellite and back fits in.
const LongestHeartbeat = 10 * time.Second

// Fitting is the heartbeat of peers that began with floor, have beat now, and of which two need trip for a round trip.
// A lease is three tenths of a heartbeat, is as old as a round trip when it begins, and is renewed every fifteenth of a
// heartbeat: with a sixth for the round trip one lost datagram still costs nothing. What does not fit is doubled, from
// floor on, until it is seven round trips, so that peers that measure a little more or less arrive at the same.
func Fitting(floor, beat, trip time.Duration) time.Duration {
	if trip <= beat/6 {
		return beat
	}
	fitting := floor
	for fitting < 7*trip && 2*fitting <= LongestHeartbeat {
		fitting *= 2
	}
	return max(beat, fitting)
}

// Stretches says that Fitting makes beat of floor for some round trip.
func Stretches(floor, beat time.Duration) bool {
	for ; floor > 0 && floor <= LongestHeartbeat; floor *= 2 {
		if floor == beat {
			return true
		}
	}
	return false
}

// Fits says that beat is this process's own heartbeat, or of a version that does not tell.
func (h *Heartbeats) Fits(beat time.Duration) bool { return beat == 0 || beat == h.own }

// Same says that peer has told the heartbeat of this process.
func (h *Heartbeats) Same(peer string) bool {
	beat, known := h.Of(peer)
	return known && h.Fits(beat)
}

// ErrNotTold is the refusal of a peer that has not told its heartbeat to this process.
var ErrNotTold = errors.New("this peer has not told its heartbeat yet")

// Refusal says why this process grants peer nothing and wants no vote of it, or nil.
func (h *Heartbeats) Refusal(peer string) error {
	switch beat, known := h.Of(peer); {
	case !known:
		h.unknown()
		return ErrNotTold
	case !h.Fits(beat):
		return fmt.Errorf("group.heartbeat is %v here and %v on peer %s", h.own, beat, peer)
	}
	return nil
}
