package raft

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// heartbeats is what other peers have told this process of their heartbeat, from
// which the term of their leases comes. Peers that differ in it grant each
// other nothing: lease.go, "Why every lease has the same term".
type heartbeats struct {
	own   time.Duration
	unmet beacon // somebody who has told nothing yet wants something

	mu   sync.Mutex
	told map[string]time.Duration // 0: of a version that does not tell
}

func newHeartbeats(own time.Duration) *heartbeats {
	return &heartbeats{own: own, told: make(map[string]time.Duration)}
}

// learn notes what a living process of peer has told.
func (h *heartbeats) learn(peer string, beat time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	// In insecure mode anybody can call itself anything.
	if _, known := h.told[peer]; known || len(h.told) < maxEntries {
		h.told[peer] = beat
	}
}

// of is what peer has told, 0 for a version that does not tell.
func (h *heartbeats) of(peer string) (beat time.Duration, known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	beat, known = h.told[peer]
	return beat, known
}

func (h *heartbeats) fits(beat time.Duration) bool { return beat == 0 || beat == h.own }

// same says that peer has told the heartbeat of this process.
func (h *heartbeats) same(peer string) bool {
	beat, known := h.of(peer)
	return known && h.fits(beat)
}

var errNotMet = errors.New("this peer has not told its heartbeat yet")

// refusal says why this process grants peer nothing and wants no vote of it, or nil.
func (h *heartbeats) refusal(peer string) error {
	switch beat, known := h.of(peer); {
	case !known:
		h.unmet.fire()
		return errNotMet
	case !h.fits(beat):
		return fmt.Errorf("group.heartbeat is %v here and %v on peer %s", h.own, beat, peer)
	}
	return nil
}

// helloRequest asks another peer who it is. Every one tells the heartbeat: without
// it, it would be that of a version that does not tell.
func (g *Group) helloRequest() request {
	return request{Op: opHello, From: g.cfg.ID, Heartbeat: g.cfg.Heartbeat}
}

// differ says that two peers have another heartbeat, or "".
func differ(a, b hello) string {
	if a.Heartbeat == 0 || b.Heartbeat == 0 || a.Heartbeat == b.Heartbeat {
		return ""
	}
	return fmt.Sprintf("group.heartbeat is %v on peer %s and %v on peer %s; write the same value on every peer and restart the appliance there",
		a.Heartbeat, a.ID, b.Heartbeat, b.ID)
}

// oddHeartbeat says that the voters with this peer's heartbeat are no majority, or "".
func (g *Group) oddHeartbeat() string {
	if g.running() == nil {
		return ""
	}
	var others []string
	voters := g.voters(nil)
	for _, id := range voters {
		if beat, known := g.heartbeats.of(id); id != g.cfg.ID && known && !g.heartbeats.fits(beat) {
			others = append(others, fmt.Sprintf("%v on peer %s", beat, id))
		}
	}
	if len(others) == 0 || len(voters)-len(others) > len(voters)/2 {
		return ""
	}
	return fmt.Sprintf("group.heartbeat is %v here and %s: this peer neither votes nor holds until a majority has the same; write one value on every peer and restart the appliance there",
		g.cfg.Heartbeat, strings.Join(others, ", "))
}

// heartbeatKey is where the heartbeat is on disk that this peer last took part with.
const heartbeatKey = "heartbeat"

// lastHeartbeat is that of the process before this one, 0 if it is not known.
func (g *Group) lastHeartbeat() time.Duration {
	text, err := g.store.Get([]byte(heartbeatKey))
	if err != nil {
		return 0 // none is stored
	}
	beat, _ := time.ParseDuration(string(text))
	return beat
}

// rememberHeartbeat comes before the first grant of this process.
func (g *Group) rememberHeartbeat() error {
	if g.lastHeartbeat() == g.cfg.Heartbeat {
		return nil
	}
	if err := g.store.BoltStore.Set([]byte(heartbeatKey), []byte(g.cfg.Heartbeat.String())); err != nil {
		return fmt.Errorf("data directory %s: %w; free some space, and start again", g.cfg.DataDir, err)
	}
	return nil
}
