package lease

import (
	"testing"
	"time"
)

func TestGrantsOnlyWithTheSameHeartbeat(t *testing.T) {
	asked := 0
	h := NewHeartbeats(100*time.Millisecond, func() { asked++ })
	h.Learn("same", 100*time.Millisecond)
	h.Learn("other", time.Second)
	h.Learn("old version", 0)
	for peer, want := range map[string]bool{"same": true, "other": false, "old version": true, "unknown": false} {
		now := time.Hour
		l := New("a", 30*time.Millisecond, func() time.Duration { return now }, h.Same)
		l.Begin(7)
		l.Grant(peer, 7, now)
		if got := l.Left(7, []string{"a", peer}) > 0; got != want {
			t.Errorf("a grant of %s counts: %v, want %v", peer, got, want)
		}
		if got := h.Refusal(peer) == nil; got != want {
			t.Errorf("%s is granted: %v, want %v", peer, got, want)
		}
	}
	before := asked
	if h.Refusal("unknown"); asked == before {
		t.Error("nobody is told that somebody unknown is there")
	}
}

func TestFitting(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct{ floor, beat, trip, want time.Duration }{
		{150 * ms, 150 * ms, 0, 150 * ms}, // not known
		{150 * ms, 150 * ms, 25 * ms, 150 * ms},
		{150 * ms, 150 * ms, 26 * ms, 300 * ms},
		{150 * ms, 300 * ms, 26 * ms, 300 * ms},
		{150 * ms, 300 * ms, 50 * ms, 300 * ms}, // another peer that begins with 150 ms takes 600 ms, and this one follows
		{150 * ms, 150 * ms, 50 * ms, 600 * ms},
		{150 * ms, 150 * ms, 150 * ms, 1200 * ms},
		{150 * ms, 1200 * ms, ms, 1200 * ms}, // never back
		{200 * ms, 200 * ms, 100 * ms, 800 * ms},
		{150 * ms, 150 * ms, time.Hour, 9600 * ms},
		{10 * time.Second, 10 * time.Second, 5 * time.Second, 10 * time.Second},
	} {
		got := Fitting(c.floor, c.beat, c.trip)
		if got != c.want {
			t.Errorf("%v apart, from %v, with %v now: %v, want %v", c.trip, c.floor, c.beat, got, c.want)
		}
		if !Stretches(c.floor, got) {
			t.Errorf("peers with %v do not take %v", c.floor, got)
		}
	}
	if Stretches(150*ms, 200*ms) || Stretches(0, 0) || Stretches(150*ms, 150*ms<<20) {
		t.Error("a heartbeat that comes of no round trip is taken")
	}
}
