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
		{"all were met once", readiness{opened: now, known: known, met: map[netip.AddrPort]bool{f: true}}, "a", false, false, kindReady},
		{"a worker that does not serve it", readiness{opened: now, known: known}, "a", true, true, kindNotReady},
		{"a worker with another plane", readiness{opened: now}, "a", true, true, kindNotReady},
		{"a worker that serves it", readiness{opened: now, known: known, handsTo: map[netip.AddrPort]map[string]bool{f: {}}},
			"a", true, true, kindReady},
	} {
		meets := tt.r.known != nil && !tt.r.opened.IsZero() && !tt.r.met[f] && !tt.met && tt.r.opened != long
		if got := tt.r.meets(f, time.Time{}, time.Minute, false, func() bool { return tt.met }); got != meets {
			t.Errorf("%s: meets is %v, want %v", tt.what, got, meets)
		}
		if got := tt.r.answer(tt.node, f, tt.worker, meets); got != tt.want {
			t.Errorf("%s: the answer is %d, want %d", tt.what, got, tt.want)
		}
	}
}

// Who began alone, and finds the group later, has met nobody. Who has met others stays open for what it serves, and meets
// them for what comes later; and after three rounds nobody is waited for any more.
func TestReadinessMeetsThoseWhoCome(t *testing.T) {
	f, g := netip.MustParseAddrPort("10.77.0.10:6443"), netip.MustParseAddrPort("[fd77::10]:6443")
	longAgo := time.Now().Add(-time.Hour)
	r := readiness{opened: longAgo, known: map[string]bool{}}
	meets := func(want bool, f netip.AddrPort, since time.Time, alone, hasMet bool) {
		t.Helper()
		if got := r.meets(f, since, time.Minute, alone, func() bool { return hasMet }); got != want {
			t.Errorf("meets at %v is %v, want %v", f, got, want)
		}
	}
	meets(false, f, longAgo, true, false)
	meets(true, f, longAgo, false, false)
	meets(false, f, longAgo, false, true)
	meets(false, f, longAgo, false, false)
	meets(true, g, longAgo, false, false)
	r.opened = time.Now().Add(-2 * time.Minute)
	meets(true, g, time.Now(), false, false)
	meets(false, g, longAgo, false, false)
}

// Who was cut off does not know what was opened at others meanwhile, and meets them anew.
func TestReadinessAfterBeingCutOff(t *testing.T) {
	f := netip.MustParseAddrPort("10.77.0.10:6443")
	longAgo := time.Now().Add(-time.Hour)
	r := readiness{opened: longAgo, known: map[string]bool{}}
	meets := func(when string, want, hasMet bool) {
		t.Helper()
		if got := r.meets(f, longAgo, time.Minute, false, func() bool { return hasMet }); got != want {
			t.Errorf("%s: meets is %v, want %v", when, got, want)
		}
	}
	meets("all were met", false, true)
	meets("one of them is away", false, false)
	if !r.setCutOff(true) || r.setCutOff(true) {
		t.Error("cut off is not news once")
	}
	meets("cut off", true, true)
	r.setCutOff(false)
	meets("back, and the others' backends are not known", true, false)
	meets("back, and all is known", false, true)
	meets("one of them is away again", false, false)
}

// A path to a host that vanished is proved anew, and who is cut off takes no packets.
func TestSetVanished(t *testing.T) {
	f := netip.MustParseAddrPort("10.77.0.10:6443")
	nodes := []Node{{ID: "a"}, {ID: "b"}, {ID: "c"}, {ID: "w", Worker: true}}
	for i := range nodes {
		nodes[i].Addrs = []netip.Addr{netip.AddrFrom4([4]byte{10, 77, 0, byte(11 + i)})}
	}
	p := New(Config{Self: "a", Nodes: nodes})
	p.Open()
	p.InForce(map[string]bool{"b": true, "c": true}, nil)
	p.Want([]netip.AddrPort{f})
	all := map[string]*pathState{}
	for _, id := range []string{"b", "c", "w"} {
		all[id] = p.paths.of(pathID{f, id})
		all[id].path, all[id].knowsUs = PathProved, true
	}
	check := func(vanished map[string]bool, changed, meets bool, b, c Path) {
		t.Helper()
		if got := p.SetVanished(vanished, len(vanished) == 2); got != changed {
			t.Errorf("%v: a path has changed is %v, want %v", vanished, got, changed)
		}
		if got := p.Meets(); got != meets {
			t.Errorf("%v: meets is %v, want %v", vanished, got, meets)
		}
		if p.Path(f, "b") != b || p.Path(f, "c") != c || p.Path(f, "w") != PathProved {
			t.Errorf("%v: the paths are %v and %v, want %v and %v; to the worker it is %v",
				vanished, p.Path(f, "b"), p.Path(f, "c"), b, c, p.Path(f, "w"))
		}
	}
	check(nil, false, false, PathProved, PathProved)
	check(map[string]bool{"b": true}, true, false, PathNoAnswer, PathProved)
	check(map[string]bool{"b": true}, false, false, PathNoAnswer, PathProved)
	check(map[string]bool{"b": true, "c": true}, true, true, PathNoAnswer, PathNoAnswer)
	check(map[string]bool{"b": true}, false, true, PathNoAnswer, PathNoAnswer)
	all["b"].path, all["b"].knowsUs = PathProved, true
	all["c"].path, all["c"].knowsUs = PathUnready, true
	check(nil, false, false, PathProved, PathUnready)
}
