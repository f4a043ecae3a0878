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
