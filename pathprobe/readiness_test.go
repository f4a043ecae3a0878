package pathprobe

import (
	"net/netip"
	"testing"
	"time"
)

// The table at readiness.
func TestReadiness(t *testing.T) {
	f := netip.MustParseAddrPort("10.77.0.10:6443")
	known := map[string]bool{"a": true}
	now, long := time.Now(), time.Now().Add(-time.Hour)
	for _, tt := range []struct {
		what   string
		r      readiness
		node   string
		worker bool
		met    bool
		want   probeKind
	}{
		{"neither VIPs nor rules", readiness{}, "a", false, true, kindUnknown},
		{"VIPs without rules", readiness{opened: now}, "a", false, false, kindReady},
		{"rules without VIPs", readiness{known: known}, "a", false, true, kindNotReady},
		{"the asker is not in the rules", readiness{opened: now, known: known}, "b", false, true, kindUnknown},
		{"the asker is no node", readiness{opened: now, known: known}, "", false, true, kindUnknown},
		{"others are not met", readiness{opened: now, known: known}, "a", false, false, kindNotReady},
		{"all are met", readiness{opened: now, known: known}, "a", false, true, kindReady},
		{"others were not met in time", readiness{opened: long, known: known}, "a", false, false, kindReady},
		{"all were met once", readiness{opened: now, known: known, met: map[string]bool{"a": true}}, "a", false, false, kindReady},
		{"a worker that does not serve it", readiness{opened: now, known: known}, "a", true, true, kindNotReady},
		{"a worker with another plane", readiness{opened: now}, "a", true, true, kindNotReady},
		{"a worker that serves it", readiness{opened: now, known: known, handsTo: map[netip.AddrPort]map[string]bool{f: {}}},
			"a", true, true, kindReady},
	} {
		meets := tt.r.known != nil && !tt.r.opened.IsZero() && !tt.r.met["a"] && !tt.met && tt.r.opened != long
		if got := tt.r.meets(time.Minute, []string{"a"}, func(string) bool { return tt.met }); got != meets {
			t.Errorf("%s: meets is %v, want %v", tt.what, got, meets)
		}
		if got := tt.r.answer(tt.node, f, tt.worker, meets); got != tt.want {
			t.Errorf("%s: the answer is %d, want %d", tt.what, got, tt.want)
		}
	}
}

// Who began alone, and finds the group later, has met nobody. Who was met is so for good, and after three rounds
// nobody is waited for any more.
func TestReadinessMeetsThoseWhoCome(t *testing.T) {
	r := readiness{opened: time.Now().Add(-time.Hour), known: map[string]bool{}}
	knows := map[string]bool{}
	meets := func(want bool, others ...string) {
		t.Helper()
		if got := r.meets(time.Minute, others, func(n string) bool { return knows[n] }); got != want {
			t.Errorf("with %v, of whom %v are met: meets is %v, want %v", others, knows, got, want)
		}
	}
	meets(false)
	meets(true, "a")
	knows["a"] = true
	meets(false, "a")
	meets(true, "a", "b")
	knows["a"], knows["b"] = false, true
	meets(false, "a", "b")
	r.opened = time.Now().Add(-2 * time.Minute)
	meets(false, "a", "b", "c")
	meets(false)
	meets(false, "d")
}
