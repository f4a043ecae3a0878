package proving

import (
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/raft"
	"appliance/status"
)

func TestCompare(t *testing.T) {
	here := map[string]string{"vips": "192.0.2.10", "version": "v1", "loadBalancers.api.backends": "192.0.2.11:6443"}
	there := map[string]string{"vips": "192.0.2.99", "version": "v1"}
	want := []status.Difference{
		{Peer: "n2", Key: "loadBalancers.api.backends", Here: "192.0.2.11:6443"},
		{Peer: "n2", Key: "vips", Here: "192.0.2.10", There: "192.0.2.99"},
	}
	if got := compare("n2", here, there); !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := compare("n2", here, nil); got != nil {
		t.Errorf("an older version says nothing, and differs in %v", got)
	}
}

func TestLacks(t *testing.T) {
	of := func(frontends string) map[string]string { return map[string]string{FrontendsKey: frontends} }
	for _, tt := range []struct {
		name   string
		here   string
		others map[string]map[string]string
		want   string
	}{
		{"all alike", "a:1", map[string]map[string]string{"n2": of("a:1"), "n3": of("a:1")}, ""},
		{"two of three have it", "b:1", map[string]map[string]string{"n2": of("a:1"), "n3": of("a:1")},
			"a:1, which n2 and n3 serve"},
		{"one of three has it", "a:1", map[string]map[string]string{"n2": of("b:1"), "n3": of("a:1")}, ""},
		{"nobody knows who of two is right", "a:1", map[string]map[string]string{"n2": of("b:1")}, ""},
		{"this node has more", "a:1 a:2", map[string]map[string]string{"n2": of("a:1"), "n3": of("a:1")}, ""},
	} {
		got := lacks(of(tt.here), tt.others)
		if tt.want == "" && got != "" || !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// A difference is logged once, and makes a node unfit only when it lasts.
func TestLearn(t *testing.T) {
	var log strings.Builder
	var events []status.Event
	trials := New(Config{
		Serves: func() map[string]string { return map[string]string{FrontendsKey: "b:1"} },
		Note:   func(e status.Event) { events = append(events, e) },
		Log:    slog.New(slog.NewTextHandler(&log, nil)),
	})
	for range 3 {
		for _, peer := range []string{"n2", "n3"} {
			trials.learn(peer, map[string]string{FrontendsKey: "a:1"})
		}
	}
	if n := strings.Count(log.String(), "do not serve the same"); n != 2 || len(events) != 2 {
		t.Errorf("%d lines and %d events for two peers:\n%s", n, len(events), log.String())
	}
	if len(trials.Differences()) != 2 || trials.Outvoted() != "" {
		t.Errorf("%v, outvoted at once: %q", trials.Differences(), trials.Outvoted())
	}
	trials.lacking = trials.lacking.Add(-outvotedFor - time.Second)
	if !strings.Contains(trials.Outvoted(), "a:1, which n2 and n3 serve") {
		t.Errorf("%q", trials.Outvoted())
	}
	trials.forget(map[string]bool{"n2": true})
	if len(trials.Differences()) != 1 {
		t.Errorf("who left is compared still: %v", trials.Differences())
	}
}

// Nobody is asked whom the lists keep out.
func TestKeptOut(t *testing.T) {
	lb := balancer.LoadBalancer{Name: "api", ConnOptions: balancer.ConnOptions{
		Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/28")},
		Deny:  []netip.Prefix{netip.MustParsePrefix("192.0.2.12/32")},
	}}
	trials := New(Config{LoadBalancers: func() []balancer.LoadBalancer { return []balancer.LoadBalancer{lb} }})
	c := candidate{LoadBalancerStatus: balancer.LoadBalancerStatus{Name: "api"}}
	for at, out := range map[string]bool{"192.0.2.11:10000": false, "192.0.2.12:10000": true, "192.0.2.20:10000": true} {
		if why := trials.keptOut(c, raft.PeerStatus{ID: "n2", Addr: netip.MustParseAddrPort(at)}); (why != "") != out {
			t.Errorf("%s: %q", at, why)
		}
	}
}
