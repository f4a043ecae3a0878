package announcing

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"appliance/configs"
)

var vip = netip.MustParseAddr("198.51.100.10")

func TestJudge(t *testing.T) {
	unserved := map[netip.Addr]string{vip: "no backend"}
	all, holder := configs.AnnounceSettings{}, configs.AnnounceSettings{HolderOnly: true}
	standby := configs.AnnounceSettings{HolderOnly: true, Standby: true}
	careful := configs.AnnounceSettings{NeedsMajority: true}
	for name, tt := range map[string]struct {
		a        configs.AnnounceSettings
		v        SelfView
		stopping bool
		want     verdict // of why, a part
	}{
		"serves": {a: all},
		"unserved": {a: all, v: SelfView{Unserved: unserved},
			want: verdict{unable: true, why: "no backend"}},
		"unserved and stopping": {all, SelfView{Unserved: unserved}, true, verdict{unable: true, why: "no backend"}},
		"stopping":              {all, SelfView{}, true, verdict{leaves: true, why: "stops"}},
		"drained":               {a: all, v: SelfView{Drained: true}, want: verdict{leaves: true, why: "drained"}},
		"barred": {a: all, v: SelfView{Barred: "track x"},
			want: verdict{leaves: true, why: "track x"}},
		"minority": {a: all, v: SelfView{Minority: true}},
		"minority, careful": {a: careful, v: SelfView{Minority: true},
			want: verdict{leaves: true, why: "majority"}},
		"another holds":       {a: holder, want: verdict{leaves: true, why: "does not hold"}},
		"holds":               {a: holder, v: SelfView{Holding: true}},
		"holds though barred": {a: holder, v: SelfView{Holding: true, Barred: "track x"}},
		"holds, unserved": {a: holder, v: SelfView{Holding: true, Unserved: unserved},
			want: verdict{unable: true}},
		"stands by":           {a: standby, want: verdict{standby: true, why: "does not hold"}},
		"holds, others stand": {a: standby, v: SelfView{Holding: true}},
		"stands by, drained": {a: standby, v: SelfView{Drained: true},
			want: verdict{leaves: true, why: "drained"}},
		"stands by, barred": {a: standby, v: SelfView{Barred: "track x"},
			want: verdict{leaves: true, why: "track x"}},
		"stands by, unserved":            {a: standby, v: SelfView{Unserved: unserved}, want: verdict{unable: true}},
		"stands by, minority":            {a: standby, v: SelfView{Minority: true}, want: verdict{standby: true}},
		"does not hold, for all of them": {a: all, v: SelfView{Holding: false}},
	} {
		got := judge(tt.a, tt.v, RoutedVIP{Addr: vip, By: configs.ByBGP}, tt.stopping)
		if got.unable != tt.want.unable || got.leaves != tt.want.leaves || got.standby != tt.want.standby ||
			!strings.Contains(got.why, tt.want.why) {
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
		}
	}
}

// A node that stands by announces with a longer path, and less preference, than the holder; by kernel routes
// it cannot.
func TestStandby(t *testing.T) {
	a := configs.AnnounceSettings{HolderOnly: true, Standby: true}
	if v := judge(a, SelfView{}, RoutedVIP{Addr: vip, By: configs.ByRoutes}, false); !v.leaves || v.standby {
		t.Errorf("by routes: %+v", v)
	}
	start := time.Now()
	c, _ := account{}.step(start, judge(a, SelfView{}, RoutedVIP{Addr: vip, By: configs.ByBGP}, false), time.Second)
	if !c.announced || !c.standby || c.leaving {
		t.Fatalf("%+v, want it announced as a standby", c)
	}
	own := uint32(50)
	for name, tt := range map[string]struct {
		p           configs.PathSettings
		c           account
		prepend     int
		pref        uint32
		unpreferred bool
	}{
		"stands by":               {configs.PathSettings{}, c, 1, 99, false},
		"stands by, own settings": {configs.PathSettings{Prepend: 2, LocalPref: &own}, c, 3, 49, false},
		"holds, own settings": {configs.PathSettings{Prepend: 2, LocalPref: &own}, account{announced: true},
			2, 50, false},
		"holds, no preference set": {configs.PathSettings{}, account{announced: true}, 0, 0, true},
	} {
		p := pathOf(tt.p, tt.c)
		if p.Prepend != tt.prepend || (p.LocalPref == nil) != tt.unpreferred ||
			p.LocalPref != nil && *p.LocalPref != tt.pref {
			t.Errorf("%s: %+v", name, p)
		}
	}
	if own != 50 {
		t.Errorf("the settings have become %d", own)
	}
	// Who comes to hold is preferred at once, and who holds no more stands by at once: nothing is withdrawn.
	c, _ = c.step(start, verdict{}, time.Second)
	if !c.announced || c.standby {
		t.Errorf("the new holder: %+v", c)
	}
	c, next := c.step(start, verdict{standby: true, why: notHolding}, time.Second)
	if !c.announced || !c.standby || c.leaving || !next.IsZero() {
		t.Errorf("the old holder: %+v, %v", c, next)
	}
	if c, _ = c.step(start, verdict{unable: true}, time.Second); c.announced || c.standby {
		t.Errorf("who cannot serve: %+v", c)
	}
}

// A virtual address leaves slowly when the node is told to, and at once when it cannot serve; it comes back when it has
// been served for a while.
func TestAccount(t *testing.T) {
	const grace = time.Second
	start := time.Unix(1000, 0)
	leave, unable := verdict{leaves: true, why: "stops"}, verdict{unable: true, why: "no backend"}
	type look struct {
		at        time.Duration
		v         verdict
		announced bool
		leaving   bool
		next      time.Duration // since start; 0: none
	}
	for name, looks := range map[string][]look{
		"stop": {{0, verdict{}, true, false, 0}, {10 * time.Millisecond, leave, true, true, 1010 * time.Millisecond},
			{500 * time.Millisecond, leave, true, true, 1010 * time.Millisecond},
			{1010 * time.Millisecond, leave, false, false, 0}},
		"drained and back": {{0, verdict{}, true, false, 0}, {10, leave, true, true, 10 + grace},
			{20, verdict{}, true, false, 0}},
		"never announced": {{0, leave, false, false, 0}, {10, unable, false, false, 0}, {20, verdict{}, true, false, 0}},
		"unable":          {{0, verdict{}, true, false, 0}, {10, unable, false, false, 0}},
		"unable while it leaves": {{0, verdict{}, true, false, 0}, {10, leave, true, true, 10 + grace},
			{20, unable, false, false, 0}},
		"flaps": {{0, verdict{}, true, false, 0}, {10, unable, false, false, 0},
			{20, verdict{}, false, false, 10 + steadyFor}, {10 + steadyFor, verdict{}, true, false, 0}},
		"able again for a second": {{0, verdict{}, true, false, 0}, {10, unable, false, false, 0},
			{10 + 2*steadyFor, verdict{}, true, false, 0}},
	} {
		var c account
		for i, l := range looks {
			var next time.Time
			c, next = c.step(start.Add(l.at), l.v, grace)
			var want time.Time
			if l.next != 0 {
				want = start.Add(l.next)
			}
			if c.announced != l.announced || c.leaving != l.leaving || !next.Equal(want) {
				t.Errorf("%s, look %d: %+v, next %v, want %+v", name, i, c, next.Sub(start), l)
			}
		}
	}
	c, _ := account{announced: true}.step(start, leave, 0)
	if c.announced {
		t.Error("without grace it is still announced")
	}
}
