package proving

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"appliance/balancer"
	"appliance/pathprobe"
	"appliance/proof"
	"appliance/raft"
	"appliance/status"
)

// A node that clients come to is tried more often than one that they would come to next, and both as often as said.
func TestPaceOfTrials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		var active atomic.Bool
		trials := New(Config{
			Self:          "n1",
			LoadBalancers: func() []balancer.LoadBalancer { return nil },
			Health:        func() []balancer.LoadBalancerStatus { return nil },
			Serves:        func() map[string]string { return nil },
			Active:        active.Load,
			Peers: func() []raft.PeerStatus {
				return []raft.PeerStatus{{ID: "n1", Self: true}, {ID: "n2", Connected: true}, {ID: "n3", Connected: true}}
			},
			Ask: func(context.Context, string, []byte) ([]byte, error) {
				asked.Add(1)
				return []byte("{}"), nil
			},
			Log: slog.New(slog.DiscardHandler),
		})
		go trials.Run(t.Context())
		for _, c := range []struct {
			active    bool
			low, high int64
		}{{false, 45, 56}, {true, 180, 223}, {false, 45, 56}} {
			active.Store(c.active)
			asked.Store(0)
			time.Sleep(10 * time.Minute)
			if n := asked.Load(); n < c.low || n > c.high {
				t.Errorf("active %v: %d questions in ten minutes, want %d to %d", c.active, n, c.low, c.high)
			}
		}
		asked.Store(0)
		trials.Activated()
		time.Sleep(time.Second)
		if asked.Load() == 0 {
			t.Error("a new holder is not tried at once")
		}
	})
}

// A service is one load balancer of data plane direct, and what a node's trials of it find.
type service struct {
	*Trials
	result     atomic.Value // proof.Result
	where      atomic.Value // string: why the server does not take connections to it; "-" while there is none
	asked      chan time.Time
	events     chan status.Event
	reconsider chan time.Time
}

func serve(t *testing.T, plane balancer.PlaneName) *service {
	s := &service{asked: make(chan time.Time, 1000), events: make(chan status.Event, 100),
		reconsider: make(chan time.Time, 1000)}
	s.result.Store(proof.Served)
	s.where.Store("")
	vip, own := netip.MustParseAddrPort("10.0.0.10:6443"), netip.MustParseAddrPort("127.0.0.1:6443")
	lb := balancer.LoadBalancer{Name: "api", Frontends: []netip.AddrPort{vip}, Backends: []balancer.Backend{{Addr: own}}}
	state := balancer.LoadBalancerStatus{Name: "api", Plane: plane, Frontends: lb.Frontends,
		Backends: []balancer.BackendStatus{{Address: own, State: balancer.Up}}}
	found := func(trials []proof.Trial) (all []proof.TrialResult) {
		for _, one := range trials {
			f := proof.TrialResult{Frontend: one.Frontend, Result: s.result.Load().(proof.Result), Of: 1}
			if f.Result != proof.Served {
				f.Failed = 1
			}
			all = append(all, f)
		}
		return all
	}
	s.Trials = New(Config{
		Self: "n1", VIPs: []netip.Addr{vip.Addr()},
		LoadBalancers: func() []balancer.LoadBalancer { return []balancer.LoadBalancer{lb} },
		Nodes:         func() []pathprobe.Node { return nil },
		Health:        func() []balancer.LoadBalancerStatus { return []balancer.LoadBalancerStatus{state} },
		HealthOf:      func(string) (balancer.LoadBalancerStatus, bool) { return state, true },
		ServedBy:      func(string) balancer.PlaneName { return plane },
		Settled:       func(string, time.Time) bool { return true },
		Reconsider:    func() { s.reconsider <- time.Now() },
		Active:        func() bool { return true },
		Path:          func(netip.AddrPort, string) pathprobe.Path { return pathprobe.PathNoAnswer },
		Peers: func() []raft.PeerStatus {
			return []raft.PeerStatus{{ID: "n1", Self: true}, {ID: "n2", Connected: true}, {ID: "n3", Connected: true}}
		},
		Ask: func(_ context.Context, _ string, data []byte) ([]byte, error) {
			s.asked <- time.Now()
			var q question
			if err := json.Unmarshal(data, &q); err != nil {
				return nil, err
			}
			a := questionAnswer{Findings: found(q.Trials)}
			if s.result.Load() == proof.Silent {
				time.Sleep(900 * time.Millisecond) // as long as a handshake waits
			}
			return json.Marshal(a)
		},
		Here: func(_ context.Context, trials []proof.Trial) ([]proof.TrialResult, error) { return found(trials), nil },
		Listening: func(netip.AddrPort, netip.Addr) (bool, string, error) {
			why := s.where.Load().(string)
			if why == "-" {
				return false, "", nil
			}
			return why == "", why, nil
		},
		Note: func(e status.Event) { s.events <- e },
		Log:  slog.New(slog.DiscardHandler),
	})
	go s.Run(t.Context())
	return s
}

// next is how long after a time the next of a channel comes, and drain forgets what has come.
func next[T any](t *testing.T, c <-chan T, since time.Time) time.Duration {
	t.Helper()
	select {
	case <-c:
		return time.Since(since)
	case <-time.After(time.Minute):
		t.Fatal("nothing comes for a minute")
		return 0
	}
}

func drain[T any](c <-chan T) {
	for len(c) > 0 {
		<-c
	}
}

// Rules that others change are tried at once, even right after a trial, and those that change all the time every three
// seconds. When they are in clients' way, that is known two seconds later, and for clients on this node a second after
// that.
func TestDisturbed(t *testing.T) {
	for _, result := range []proof.Result{proof.Silent, proof.Refused} {
		synctest.Test(t, func(t *testing.T) {
			s := serve(t, balancer.Direct)
			time.Sleep(time.Minute)
			drain(s.asked)
			next(t, s.asked, time.Now()) // a trial has just been
			time.Sleep(50 * time.Millisecond)
			s.result.Store(result)
			began := time.Now()
			s.Disturbed()
			if after := next(t, s.asked, began); after > 200*time.Millisecond {
				t.Errorf("%s: tried %v after a change", result, after)
			}
			if after := next(t, s.events, began); after > 2*time.Second {
				t.Errorf("%s: known %v after a change", result, after)
			}
			time.Sleep(time.Until(began.Add(3 * time.Second)))
			if local := s.Of(s.cfg.Health()[0]).Local; local.State != balancer.Unproved {
				t.Errorf("%s: of clients here, %+v is known after three seconds", result, local)
			}
			s.result.Store(proof.Served)
			time.Sleep(2 * time.Minute)
			drain(s.asked)
			for range 600 {
				s.Disturbed()
				time.Sleep(100 * time.Millisecond)
			}
			// The first, by two nodes, and every three seconds, beside those of every three seconds at most.
			if n := len(s.asked); n < 20 || n > 2+20+20 {
				t.Errorf("%d questions in a minute of changes", n)
			}
		})
	}
}

// A server that begins to listen elsewhere, or ends that, is seen within two seconds. While none listens, nothing is
// news.
func TestServerListensElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, balancer.Direct)
		lb := s.cfg.LoadBalancers()[0]
		time.Sleep(time.Minute + lookEvery/2)
		// It ends that before the next look, but after the balancer has asked.
		s.where.Store("the node's address only")
		if s.Unproved(lb, balancer.Direct) == "" {
			t.Error("the balancer is not told")
		}
		s.where.Store("")
		drain(s.reconsider)
		next(t, s.reconsider, time.Now())
		for _, where := range []string{"the node's address only", ""} {
			s.where.Store("-")
			time.Sleep(10 * time.Second)
			drain(s.reconsider)
			time.Sleep(10 * time.Second)
			if len(s.reconsider) > 0 {
				t.Error("that no server listens is taken for news")
			}
			if why := s.Unproved(lb, balancer.Direct); (why != "") == (where != "") {
				t.Errorf("while no server listens: %q", why)
			}
			drain(s.events)
			began := time.Now()
			s.where.Store(where)
			s.result.Store(map[bool]proof.Result{true: proof.Silent, false: proof.Served}[where != ""])
			if after := next(t, s.reconsider, began); after > lookEvery+time.Second { // a trial may be on its way
				t.Errorf("%q was seen after %v", where, after)
			}
			next(t, s.events, began)
			if why := s.Unproved(lb, balancer.Direct); why != where {
				t.Errorf("unproved because of %q, want %q", why, where)
			}
			// Where the file forces direct, that is the reason too, whatever comes back.
			if shown := s.Of(s.cfg.Health()[0]); !strings.HasSuffix(shown.Reason, where) {
				t.Errorf("shown as %+v, want %q", shown, where)
			}
		}
	})
}

// Each node has one question at a time, and does not wait for those of others.
func TestQuestionsOfSeveral(t *testing.T) {
	s := New(Config{Peers: func() []raft.PeerStatus {
		return []raft.PeerStatus{{ID: "n1", Self: true}, {ID: "n2", Connected: true}, {ID: "n3", Connected: true}}
	}})
	s.answering["n2"] = true
	for node, busy := range map[string]bool{"n2": true, "n3": false} {
		_, err := s.tryNode(t.Context(), question{Node: node})
		if (err != nil) != busy {
			t.Errorf("to %s: %v", node, err)
		}
	}
	if s.answering["n3"] || !s.answering["n2"] {
		t.Errorf("being answered: %v", s.answering)
	}
}

// A node with addresses on several links asks from the one on the link of the frontend.
func TestOwnAddress(t *testing.T) {
	of := func(list ...string) (addrs []netip.Addr) {
		for _, a := range list {
			addrs = append(addrs, netip.MustParseAddr(a))
		}
		return addrs
	}
	trials := New(Config{Peers: func() []raft.PeerStatus {
		return []raft.PeerStatus{{ID: "n2", Addr: netip.MustParseAddrPort("192.0.2.12:10000")}, {
			ID: "n1", Self: true, Addr: netip.MustParseAddrPort("192.0.2.11:10000"),
			OnLink: of("192.0.2.11", "198.51.100.11", "2001:db8::11"),
		}}
	}})
	for _, tt := range []struct {
		is4    bool
		onLink []netip.Addr
		want   string
	}{
		{true, of("fe80::1", "192.0.2.7", "192.0.2.11"), "192.0.2.11"},
		{true, of("198.51.100.7", "198.51.100.11", "2001:db8::11"), "198.51.100.11"},
		{true, of("203.0.113.11"), "192.0.2.11"},
		{false, of("198.51.100.11", "2001:db8::11"), "2001:db8::11"},
	} {
		if got, ok := trials.ownAddress(tt.is4, tt.onLink); !ok || got.String() != tt.want {
			t.Errorf("IPv4: %v, on %v: %v, %v; want %s", tt.is4, tt.onLink, got, ok, tt.want)
		}
	}
}
