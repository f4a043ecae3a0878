package node

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"appliance/balancer"
	"appliance/raft"
)

func TestHasSuccessor(t *testing.T) {
	self := raft.PeerStatus{ID: "a", Self: true, Role: "voter"}
	for name, tt := range map[string]struct {
		peers []raft.PeerStatus
		want  bool
	}{
		"alone":              {[]raft.PeerStatus{self}, false},
		"with a witness":     {[]raft.PeerStatus{self, {ID: "w", Role: "witness", Witness: true}}, false},
		"with one who joins": {[]raft.PeerStatus{self, {ID: "b", Role: "nonvoter"}}, false},
		"with another":       {[]raft.PeerStatus{self, {ID: "b", Role: "voter"}}, true},
	} {
		if got := hasSuccessor(tt.peers); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

// TestLoneNodeStopsAtOnce: it has been holder, and there is nobody to hand over to.
func TestLoneNodeStopsAtOnce(t *testing.T) {
	group, err := raft.Open(
		raft.Config{ID: "a", DataDir: t.TempDir(), SingleNode: true, Addr: netip.MustParseAddrPort("127.0.0.1:10000")},
	)
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	synctest.Test(t, func(t *testing.T) {
		n := &node{group: group}
		now := time.Now()
		n.tenureEnded.Store(&now)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := n.lingerAfterTenure(ctx); err != nil || time.Since(now) > 0 {
			t.Errorf("%v after %v", err, time.Since(now))
		}
	})
}

func TestPreviousHolderKeeps(t *testing.T) {
	vip := netip.MustParseAddr("10.0.0.1")
	of := func(plane balancer.PlaneName, port uint16) balancer.LoadBalancerStatus {
		return balancer.LoadBalancerStatus{Plane: plane, Frontends: []netip.AddrPort{netip.AddrPortFrom(vip, port)}}
	}
	everywhere := balancer.LoadBalancerStatus{Plane: balancer.UserSpace,
		Frontends: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:5"), netip.MustParseAddrPort("[::]:5")}}
	lbs := []balancer.LoadBalancerStatus{
		of(balancer.UserSpace, 4),
		of(balancer.Direct, 1),
		of(balancer.IPVS, 2),
		of(balancer.NFTables, 3),
		everywhere,
	}
	now := time.Now()
	for name, tt := range map[string]struct {
		peer raft.PeerStatus
		want string // ports
	}{
		"lives":               {raft.PeerStatus{Connected: true}, "[2 3 4 5]"},
		"lives, and had died": {raft.PeerStatus{Connected: true, Died: 6}, "[2 3 4 5]"},
		"about to end":        {raft.PeerStatus{Since: now, Died: 7, Left: now}, "[2 3 4 5]"},
		"has ended": {
			raft.PeerStatus{Since: now.Add(-2 * time.Second), Died: 7, Left: now.Add(-2 * time.Second)}, "[2 3]",
		},
		"killed":                  {raft.PeerStatus{Since: now, Died: 7}, "[2 3]"},
		"killed, not noticed yet": {raft.PeerStatus{Connected: true, Died: 7}, "[2 3]"},
		"dead for long":           {raft.PeerStatus{Since: now.Add(-time.Minute), Died: 7}, "[]"},
		"host gone":               {raft.PeerStatus{Connected: true, Vanished: true}, "[]"},
		"is this node":            {raft.PeerStatus{Connected: true, Self: true}, "[]"},
	} {
		tt.peer.ID = "a"
		s := raft.Status{Peers: []raft.PeerStatus{{ID: "b"}, tt.peer}}
		ports := []uint16{}
		_, frontends := previousHolder{id: "a", term: 7}.keeps(s, lbs, map[netip.Addr]string{vip: "eth0"}, 30*time.Second)
		for _, f := range frontends {
			if f.Addr() != vip {
				t.Errorf("%s: frontend %v", name, f)
			}
			ports = append(ports, f.Port())
		}
		if got := fmt.Sprint(ports); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
	for ago, want := range map[time.Duration]int{time.Minute: 4, 2 * time.Hour: 0} {
		s := raft.Status{Holder: true, Since: now.Add(-ago), Peers: []raft.PeerStatus{{ID: "a", Connected: true}}}
		if _, frontends := (previousHolder{id: "a", term: 7}).keeps(s, lbs, map[netip.Addr]string{vip: "eth0"}, time.Minute); len(
			frontends,
		) != want {
			t.Errorf("after a tenure of %v: %v", ago, frontends)
		}
	}
	s := raft.Status{Peers: []raft.PeerStatus{{ID: "a", Connected: true}}}
	if _, frontends := (previousHolder{}).keeps(s, lbs, nil, time.Minute); frontends != nil {
		t.Errorf("nobody held before: %v", frontends)
	}
}

// A host that is silent for a moment still has its connections; one that stays silent has not.
func TestPreviousHolderIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		vip := netip.MustParseAddr("192.0.2.10")
		lbs := []balancer.LoadBalancerStatus{{Plane: balancer.UserSpace,
			Frontends: []netip.AddrPort{netip.AddrPortFrom(vip, 6443)}}}
		status := func(vanished bool) raft.Status {
			return raft.Status{ID: "b", Holder: true, Since: time.Now(), Term: 8, Peers: []raft.PeerStatus{
				{ID: "a", Connected: true, Vanished: vanished}, {ID: "b", Self: true}}}
		}
		keeps := func(f previousHolder, s raft.Status) bool {
			_, frontends := f.keeps(s, lbs, map[netip.Addr]string{vip: "eth0"}, time.Minute)
			return len(frontends) > 0
		}
		var f previousHolder
		f = f.follow(status(false), "a", time.Now())
		time.Sleep(silentFor / 2)
		f = f.follow(status(true), "b", time.Now())
		if f.id != "a" || !keeps(f, status(true)) {
			t.Errorf("%+v: given up although it was heard a moment ago", f)
		}
		time.Sleep(silentFor)
		f = f.follow(status(true), "b", time.Now())
		if keeps(f, status(true)) {
			t.Errorf("%+v: kept although it stays silent", f)
		}
		if f = f.follow(status(false), "b", time.Now()); !keeps(f, status(false)) {
			t.Errorf("%+v: given up although it is back", f)
		}
		// Of another holder nothing has been heard yet.
		if f = f.follow(status(true), "c", time.Now()); f.id != "c" || !f.heard.IsZero() {
			t.Errorf("%+v", f)
		}
	})
}
