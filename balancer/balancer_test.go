package balancer

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestServesHealthyBackendsAtOnce(t *testing.T) {
	run(t, []LoadBalancer{lbOf("api", 3)}, func(b *bench) {
		b.s.set(addr(2), errRefused)
	}, func(b *bench) {
		// Then the others remove what an earlier process may have left in them.
		if got := b.journal.take(); !strings.HasPrefix(got, "direct api[1,3|]") {
			b.Errorf("calls of the planes: %s", got)
		}
		if !b.ready() {
			b.Error("not ready")
		}
		began := time.Now()
		b.s.set(addr(3), errRefused)
		for b.journal.take() != "direct api[1|]" {
			b.b.Report(Target{"api", addr(3)}, errRefused)
			time.Sleep(time.Millisecond)
			if time.Since(began) > 3*time.Second {
				b.Fatal("a dead backend stays")
			}
		}
		if took := time.Since(began); took > 310*time.Millisecond {
			b.Errorf("a backend that real connections found dead was out after %v", took)
		}
		// Level: nothing has changed, but it is applied again and again.
		calls := b.planes[Direct].count()
		time.Sleep(20 * time.Second)
		if n := b.planes[Direct].count() - calls; n < 8 || n > 12 {
			b.Errorf("applied %d times in 20 s of no change, want about 10", n)
		}
		if got := b.planes[IPVS].count() + b.planes[UserSpace].count(); got != 2 {
			b.Errorf("planes that serve nothing were called %d times, want once each", got)
		}
	})
}

// Until each backend has been checked once, the balancer does not touch what the kernel
// still serves for an earlier process.
func TestWaitsForTheFirstChecks(t *testing.T) {
	run(t, []LoadBalancer{lbOf("api", 2)}, func(b *bench) {
		b.s.hang(addr(2), true)
	}, func(b *bench) {
		time.Sleep(900 * time.Millisecond)
		b.expect("")
		if b.ready() {
			b.Error("ready before the first Apply")
		}
		time.Sleep(200 * time.Millisecond) // the check's timeout of 1 s
		b.expect("direct api[1|]; ipvs ; userspace ")
		if !b.ready() {
			b.Error("not ready")
		}
	})
}

func TestWeightZeroAndDrainingKeepTheirConnections(t *testing.T) {
	lb := lbOf("api", 3)
	lb.Backends[1].Weight = 0
	run(t, []LoadBalancer{lb}, func(b *bench) {
		b.s.set(addr(3), ErrDraining)
	}, func(b *bench) {
		if got := b.planes[Direct].serves(); got != "api[1|2,3]" {
			b.Errorf("served %s", got)
		}
		for i, want := range []BackendState{Up, Draining, Draining} {
			if got := b.b.Status().LoadBalancers[0].Backends[i].State; got != want {
				b.Errorf("backend %d is %s, want %s", i+1, got, want)
			}
		}
	})
}

// A peer that vanished takes its backend out of rotation at once; its open
// connections are cut only when a check agrees.
func TestPeerDownDrainsUntilConfirmed(t *testing.T) {
	run(t, []LoadBalancer{lbOf("api", 2)}, nil, func(b *bench) {
		b.journal.take()
		time.Sleep(50 * time.Millisecond)
		b.s.hang(addr(2), true) // a dead host answers nothing
		b.b.PeerDown(addr(2).Addr())
		b.expect("direct api[1|2]")
		time.Sleep(5 * time.Second)
		b.expect("direct api[1|2]; direct api[1|]")
		b.s.hang(addr(2), false)
		b.b.PeerUp(addr(2).Addr())
		time.Sleep(2 * time.Second)
		if got := b.planes[Direct].serves(); got != "api[1,2|]" {
			b.Errorf("after the peer came back: %s", got)
		}
	})
}

// A lost host with a backend of many load balancers is one line in the log, and one event
// for each.
func TestVanishedHostIsOneLine(t *testing.T) {
	var lbs []LoadBalancer
	for i := range 12 {
		lbs = append(lbs, lbOf(fmt.Sprintf("lb%02d", i), 2, fmt.Sprintf("198.51.100.%d:6443", i+1)))
	}
	run(t, lbs, nil, func(b *bench) {
		time.Sleep(50 * time.Millisecond)
		b.events.take()
		b.s.hang(addr(2), true)
		b.b.PeerDown(addr(2).Addr())
		synctest.Wait()
		log := b.out.String()
		if n := strings.Count(log, "level=WARN"); n != 1 || !strings.Contains(log, "host=192.0.2.2 backends=12") ||
			!strings.Contains(log, "lb00, lb01, lb02") || !strings.Contains(log, "lb09, and 2 more") {
			b.Errorf("%d lines:\n%s", n, log)
		}
		if n := strings.Count(b.events.take(), "up>down"); n != len(lbs) {
			b.Errorf("%d events", n)
		}
	})
}

func TestSet(t *testing.T) {
	one, two := lbOf("api", 2), lbOf("etcd", 1)
	run(t, []LoadBalancer{one, two}, nil, func(b *bench) {
		if got := b.journal.take(); !strings.HasPrefix(got, "direct api[1,2|] etcd[1|]") {
			b.Errorf("calls of the planes: %s", got)
		}
		asked := b.s.asked(addr(1))
		more := lbOf("api", 3)
		if err := b.b.Set([]LoadBalancer{more}); err != nil {
			b.Fatal(err)
		}
		synctest.Wait()
		if got := b.planes[Direct].serves(); got != "api[1,2,3|]" {
			b.Errorf("served %s", got)
		}
		if b.s.asked(addr(1)) != asked {
			b.Error("an unchanged backend was checked again")
		}
		for got, want := b.events.take(), []string{"api  >changed", "etcd  >removed",
			"api cp3 unknown>up"}; len(want) > 0; want = want[1:] {
			if !strings.Contains(got, want[0]) {
				b.Errorf("events %s, want %s", got, want[0])
			}
		}
		bad := map[string][]LoadBalancer{
			"two of this name":      {one, one},
			"already a frontend of": {lbOf("a", 1, "198.51.100.1:1"), lbOf("b", 1, "198.51.100.1:1")},
			"listed twice":          {{Name: "x", Backends: []Backend{{Addr: addr(1)}, {Addr: addr(1)}}}},
			"negative":              {{Name: "x", Check: Check{Rise: -1}}},
		}
		for want, lbs := range bad {
			if err := b.b.Set(lbs); err == nil || !strings.Contains(err.Error(), want) {
				b.Errorf("set: %v, want %q", err, want)
			}
		}
		if got := b.planes[Direct].serves(); got != "api[1,2,3|]" {
			b.Errorf("a refused set changed what is served to %s", got)
		}
		if err := b.b.Set(nil); err != nil {
			b.Fatal(err)
		}
		synctest.Wait()
		if b.planes[Direct].serves() != "" || len(b.b.Status().LoadBalancers) != 0 {
			b.Error("an empty set leaves something")
		}
	})
}

// A plane that hangs does not delay the others.
func TestApplyThatHangs(t *testing.T) {
	one, two := lbOf("api", 1), lbOf("etcd", 1)
	two.Plane = UserSpace
	run(t, []LoadBalancer{one, two}, func(b *bench) {
		b.planes[Direct].hang = make(chan struct{})
	}, func(b *bench) {
		if got := b.planes[UserSpace].serves(); got != "etcd[1|]" {
			b.Errorf("the other plane serves %s", got)
		}
		if st := b.b.Status(); st.LoadBalancers[0].Plane != "" || b.ready() {
			b.Errorf("status %+v, ready %v", st.LoadBalancers[0], b.ready())
		}
		if err := b.b.Set([]LoadBalancer{one, lbOf("etcd", 2)}); err != nil {
			b.Fatal(err)
		}
		time.Sleep(applyTimeout + time.Second)
		st := b.b.Status().LoadBalancers[0]
		if !strings.Contains(st.Error, "deadline") || !b.ready() {
			b.Errorf("after its time is up: %+v, ready %v", st, b.ready())
		}
		close(b.planes[Direct].hang)
		time.Sleep(time.Second)
	})
}

func TestRepairsAreLoggedOncePerBurst(t *testing.T) {
	run(t, []LoadBalancer{lbOf("api", 1)}, nil, func(b *bench) {
		damage := func() {
			b.planes[Direct].do(func() { b.planes[Direct].repaired = 2 })
			time.Sleep(3 * time.Second)
		}
		for range 5 {
			damage()
		}
		if n := b.logged("repaired=2"); n != 1 {
			b.Errorf("a burst was logged %d times", n)
		}
		time.Sleep(2 * repairPause)
		if n := b.logged("repaired=8"); n != 1 {
			b.Errorf("its end was logged %d times", n)
		}
		damage()
		if n := b.logged("repaired=2"); n != 2 {
			b.Error("the next burst was not logged")
		}
		if st := b.b.Status(); st.LoadBalancers[0].Repairs != 12 || st.Planes[0].Repairs != 12 {
			b.Errorf("repairs %d and %d, want 12", st.LoadBalancers[0].Repairs, st.Planes[0].Repairs)
		}
	})
}

func TestStatusAsJSON(t *testing.T) {
	lb := lbOf("api", 2)
	run(t, []LoadBalancer{lb}, func(b *bench) {
		b.s.set(addr(2), errRefused)
		b.planes[Direct].unusable = errors.New("not one link")
	}, func(b *bench) {
		got, err := json.MarshalIndent(b.b.Status().LoadBalancers, "", " ")
		if err != nil {
			b.Fatal(err)
		}
		// Time begins at midnight in a bubble; each plane of this test counts
		// the same traffic.
		want := `[
 {
  "name": "api",
  "frontends": [
   "198.51.100.3:6443"
  ],
  "scheduler": "rr",
  "plane": "ipvs",
  "reason": "the first that works here",
  "refused": [
   {
    "plane": "direct",
    "reason": "not one link"
   }
  ],
  "repairs": 0,
  "queued": 3,
  "check": "tcp",
  "backends": [
   {
    "name": "cp1",
    "address": "192.0.2.1:6443",
    "weight": 1,
    "state": "up",
    "since": "2000-01-01T00:00:00Z",
    "reason": "the check succeeds",
    "lastCheck": "2000-01-01T00:00:00Z",
    "latencyMs": 0,
    "passedOver": "no path for ipvs",
    "traffic": {
     "open": 9,
     "total": 27,
     "failed": 3,
     "bytesIn": 300,
     "bytesOut": 6000,
     "queued": 6
    }
   },
   {
    "name": "cp2",
    "address": "192.0.2.2:6443",
    "weight": 1,
    "state": "down",
    "since": "2000-01-01T00:00:00Z",
    "reason": "connection refused",
    "lastCheck": "2000-01-01T00:00:00Z",
    "latencyMs": 0,
    "traffic": null
   }
  ]
 }
]`
		if string(got) != want {
			b.Errorf("status\n%s\nwant\n%s", got, want)
		}
	})
}
