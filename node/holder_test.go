package node

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"appliance/arp"
	"appliance/balancer"
	"appliance/configs"
	"appliance/hook"
	"appliance/node/desired"
	"appliance/raft"
	"appliance/track"
)

// The group hears soon of a load balancer that loses its last backend, late of one that has one again, and once of one
// that flaps.
func TestDamped(t *testing.T) {
	var d damped
	now := time.Unix(0, 0)
	for i, step := range []struct {
		seconds int // of n, after the step before
		n, want int
	}{
		{0, 0, 0}, {5, 0, 0}, {1, 1, 0}, {1, 1, 0}, {1, 1, 1}, // 2 s
		{1, 0, 1}, {9, 0, 1}, {1, 0, 0}, // 10 s
		{1, 1, 0}, {1, 0, 0}, {1, 1, 0}, {1, 0, 0}, // flaps each second
		{1, 2, 0}, {2, 2, 2}, {1, 1, 2}, {5, 0, 2}, {5, 1, 2}, {9, 1, 2}, {1, 1, 1},
	} {
		now = now.Add(time.Duration(step.seconds) * time.Second)
		if got := d.look(now, step.n); got != step.want {
			t.Errorf("step %d: %d, want %d", i, got, step.want)
		}
	}
}

func TestUnserved(t *testing.T) {
	lb := func(states ...balancer.BackendState) (s balancer.LoadBalancerStatus) {
		for _, state := range states {
			s.Backends = append(s.Backends, balancer.BackendStatus{State: state})
		}
		return s
	}
	lbs := []balancer.LoadBalancerStatus{
		lb(balancer.Up, balancer.Down), lb(balancer.Down, balancer.Down),
		lb(balancer.Draining, balancer.Down), lb(balancer.Down, balancer.Unknown),
	}
	if n := unserved(lbs, func(balancer.LoadBalancerStatus) bool { return false }); n != 2 {
		t.Errorf("%d are unserved, want 2", n)
	}
}

func TestCut(t *testing.T) {
	a, b, c := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::1")
	got := cut([]arp.VIPStatus{{VIP: c}, {VIP: b, Carrier: true}, {VIP: a, Carrier: true, Fault: "is a port of a bridge"}})
	if !slices.Equal(got, []netip.Addr{a, c}) {
		t.Errorf("cut: %v", got)
	}
	peers := []raft.PeerStatus{{ID: "n1", Self: true, NoCarrier: got}, {ID: "n2", NoCarrier: got}, {ID: "n3"}}
	if off := noCarrier(peers); !reflect.DeepEqual(off, map[netip.Addr][]string{a: {"n2"}, c: {"n2"}}) {
		t.Errorf("cut off: %v", off)
	}
}

// A node that cannot write should not be handed to: the hand-over fails and costs answers.
func TestFitness(t *testing.T) {
	vip := []netip.Addr{netip.MustParseAddr("192.0.2.10")}
	for name, test := range map[string]struct {
		cut      []netip.Addr
		unserved int
		tracks   *track.Verdict
		fault    string
		trouble  string
		want     raft.Fitness
	}{
		"well": {want: raft.Fitness{}},
		"no carrier": {
			cut: vip, unserved: 2,
			want: raft.Fitness{NoCarrier: vip, Unserved: 2},
		},
		"unserved": {unserved: 2, want: raft.Fitness{Unserved: 2}},
		"tracks": {
			tracks: &track.Verdict{Barred: "eth1 is down", Lowered: 20},
			want:   raft.Fitness{Barred: "eth1 is down", Lowered: 20},
		},
		"deaf": {fault: "eth0 is down", trouble: "cannot write", want: raft.Fitness{Barred: "eth0 is down"}},
		"a full disk": {
			unserved: 1, trouble: "cannot write",
			want: raft.Fitness{Unserved: 1, Barred: "cannot write"},
		},
		"a full disk and a lower priority": {
			tracks: &track.Verdict{Lowered: 5}, trouble: "cannot write",
			want: raft.Fitness{Barred: "cannot write", Lowered: 5},
		},
		"both": {
			tracks: &track.Verdict{Barred: "eth1 is down"}, trouble: "cannot write",
			want: raft.Fitness{Barred: "eth1 is down"},
		},
	} {
		got := fitness(test.cut, test.unserved, test.tracks, test.fault, test.trouble)
		if !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
}

// A fault is what keeps this node from holding, and neither servers that are down nor a lowered priority.
func TestFaultOf(t *testing.T) {
	cut := []netip.Addr{netip.MustParseAddr("192.0.2.10")}
	for name, test := range map[string]struct {
		fit    raft.Fitness
		nobody bool
		want   string
	}{
		"well":            {},
		"servers down":    {fit: raft.Fitness{Unserved: 2}},
		"a lower rank":    {fit: raft.Fitness{Lowered: 10}},
		"a track":         {fit: raft.Fitness{Barred: "track disk fails", Unserved: 1}, want: "track disk fails"},
		"no carrier":      {fit: raft.Fitness{NoCarrier: cut}, want: "no carrier on the link of 192.0.2.10"},
		"nobody holds":    {nobody: true, want: nobodyHolds},
		"its own and all": {fit: raft.Fitness{Barred: "full disk"}, nobody: true, want: "full disk"},
	} {
		if got := faultOf(test.fit, test.nobody); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

// A holder at fault hands over before its fault is told, so that its hooks hear last what it is.
func TestFaultTold(t *testing.T) {
	begin := time.Now()
	for name, looks := range map[string][]struct {
		after        time.Duration
		fault, holds bool
		want         string
	}{
		"not the holder": {
			{0, true, false, hook.Fault}, {time.Second, true, false, ""}, {2 * time.Second, false, false, hook.Recovered},
			{3 * time.Second, false, false, ""}, {4 * time.Second, true, false, hook.Fault},
		},
		"hands over": {
			{0, false, true, ""}, {time.Second, true, true, ""}, {1100 * time.Millisecond, true, false, hook.Fault},
		},
		"nobody to hand over to": {
			{0, true, true, ""}, {handoverWithin - 1, true, true, ""}, {handoverWithin, true, true, hook.Fault},
			{3 * time.Second, true, true, ""}, {4 * time.Second, false, true, hook.Recovered},
		},
		"short": {{0, true, true, ""}, {time.Second, false, true, ""}, {9 * time.Second, true, true, ""}},
	} {
		var told faultTold
		for i, l := range looks {
			if got := told.look(begin.Add(l.after), l.fault, l.holds); got != l.want {
				t.Errorf("%s, look %d: %q, want %q", name, i, got, l.want)
			}
		}
	}
}

// The ports of a VIP that no load balancer is for are those of the host: routers may be told of it.
func TestBalances(t *testing.T) {
	one, other := netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("192.0.2.11")
	for _, tt := range []struct {
		lbs       []configs.LoadBalancerEntry
		one, both bool
	}{
		{nil, false, false},
		{[]configs.LoadBalancerEntry{{BindToVIP: true, VIPs: []netip.Addr{one}}}, true, false},
		{[]configs.LoadBalancerEntry{{BindToVIP: false}}, true, true},
	} {
		n := &node{}
		n.state.Store(&desired.State{Config: &configs.Config{LoadBalancers: tt.lbs}})
		if n.balances(one) != tt.one || n.balances(other) != tt.both {
			t.Errorf("%+v: %v and %v", tt.lbs, n.balances(one), n.balances(other))
		}
	}
}

func TestIsCutOff(t *testing.T) {
	all := configs.AnnounceSettings{}
	majority := configs.AnnounceSettings{NeedsMajority: true}
	holder := configs.AnnounceSettings{HolderOnly: true}
	standby := configs.AnnounceSettings{HolderOnly: true, Standby: true}
	for _, tt := range []struct {
		a             configs.AnnounceSettings
		routed        bool
		silent, peers int
		want          bool
	}{
		{all, false, 0, 0, false}, // there is no group yet
		{all, false, 0, 1, false},
		{all, false, 1, 3, false},
		{all, false, 2, 3, true},
		{all, false, 1, 2, true},
		{all, false, 2, 4, true},
		{all, false, 2, 5, false},
		{all, true, 2, 3, false},
		{standby, true, 2, 3, false},
		{majority, true, 2, 3, true},
		{holder, true, 2, 3, true},
	} {
		if got := isCutOff(tt.a, tt.routed, tt.silent, tt.peers); got != tt.want {
			t.Errorf("%+v, routed %v, %d of %d silent: %v, want %v", tt.a, tt.routed, tt.silent, tt.peers, got, tt.want)
		}
	}
}
