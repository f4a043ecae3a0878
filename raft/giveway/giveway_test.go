package giveway

import (
	"testing"
	"time"
)

// group is three peers that tell each other before they give way.
type group struct {
	peers map[string]*Limiter
	now   time.Duration
}

func newGroup() *group {
	return &group{peers: map[string]*Limiter{"a": {}, "b": {}, "c": {}}, now: time.Hour}
}

// giveWay has from give way to another peer, if it may.
func (g *group) giveWay(from, to string, why Reason) bool {
	for id, p := range g.peers {
		if id != from {
			g.peers[from].Learn(id, p.Tell(g.now), g.now)
		}
	}
	if !g.peers[from].Allowed(why, to, g.now) {
		return false
	}
	g.peers[from].Note(why, g.now)
	return true
}

// storm has whoever holds give way every 10 ms if it may, and counts.
func (g *group) storm(why Reason, of time.Duration) (moves int) {
	next := map[string]string{"a": "b", "b": "c", "c": "a"}
	holder := "a"
	for end := g.now + of; g.now < end; g.now += 10 * time.Millisecond {
		if g.giveWay(holder, next[holder], why) {
			holder = next[holder]
			moves++
		}
	}
	return moves
}

func TestStorm(t *testing.T) {
	g := newGroup()
	if n := g.storm(Carrier, 30*time.Second); n != 3 {
		t.Errorf("%d hand-overs in the first 30 s, want one and two in vain", n)
	}
	if n := g.storm(Carrier, 5*time.Minute); n != 5 {
		t.Errorf("%d hand-overs in the next 5 minutes, want one per minute", n)
	}
	if n := g.storm(Tracks, 10*time.Second); n != 3 {
		t.Errorf("%d hand-overs for another reason, which counts by itself", n)
	}
	g.now += calmAfter
	if n := g.storm(Carrier, 30*time.Second); n != 3 {
		t.Errorf("%d hand-overs after a calm time", n)
	}
}

// Hand-overs that do help, for they last, are not in the way of the next; but not without end.
func TestSlowFlap(t *testing.T) {
	g := newGroup()
	n := 0
	for range 20 {
		if g.giveWay("a", "b", Unserved) {
			n++
		}
		g.now += 2 * time.Second
	}
	if n != maxHandovers {
		t.Errorf("%d hand-overs, want %d", n, maxHandovers)
	}
}

func TestWishes(t *testing.T) {
	g := newGroup()
	g.storm(Carrier, time.Second)
	for _, why := range []Reason{Drain, Pin} {
		if !g.giveWay("b", "a", why) {
			t.Errorf("an operator's %s has to wait", why)
		}
	}
	if g.giveWay("b", "a", Priority) {
		t.Error("preferred a peer that has just been unfit")
	}
	if g.now += retryAfter; !g.giveWay("b", "a", Priority) {
		t.Error("a peer that is well again is not preferred")
	}
}
