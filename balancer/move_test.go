package balancer

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestMoveServesBeforeTheOldPlaneStops(t *testing.T) {
	run(t, []LoadBalancer{lbOf("api", 1)}, func(b *bench) {
		b.planes[Direct].unusable = errors.New("the probe got lost: allow the address")
		b.planes[IPVS].unusable = errors.New("no ip_vs")
	}, func(b *bench) {
		b.expect("direct ; ipvs ; userspace api[1|]")
		st := b.b.Status().LoadBalancers[0]
		if st.Plane != UserSpace || len(st.Refused) != 2 || st.Refused[0].Reason != "the probe got lost: allow the address" {
			b.Errorf("status %+v", st)
		}
		b.planes[IPVS].do(func() { b.planes[IPVS].unusable = nil })
		b.planes[IPVS].do(func() { b.planes[IPVS].err = errors.New("no room") })
		b.b.Reconsider()
		time.Sleep(time.Minute)
		if got := b.journal.take(); strings.Contains(got, "userspace ;") || strings.HasSuffix(got, "userspace ") {
			b.Errorf("the old plane stopped before the new one served: %s", got)
		}
		st = b.b.Status().LoadBalancers[0]
		if st.Plane != UserSpace || st.Moving != IPVS || st.Error != "no room" {
			b.Errorf("status %+v", st)
		}
		if n := b.logged("no room"); n != 1 {
			b.Errorf("an error that stays was logged %d times", n)
		}
		b.planes[IPVS].do(func() { b.planes[IPVS].err = nil })
		time.Sleep(3 * time.Second)
		got := strings.Split(b.journal.take(), "; ")
		taken, left := slices.Index(got, "ipvs api[1|]"), slices.Index(got, "userspace ")
		if taken < 0 || left < taken {
			b.Errorf("calls %q: the new plane must serve before the old one stops", got)
		}
		if b.logged("serves again") != 1 {
			b.Error("the end of the error was not logged")
		}
		calls := b.planes[UserSpace].count()
		time.Sleep(20 * time.Second)
		if b.planes[UserSpace].count() != calls {
			b.Error("the plane that was left is still applied")
		}
		if st := b.b.Status().LoadBalancers[0]; st.Plane != IPVS || st.Moving != "" || st.Error != "" || st.Reason == "" {
			b.Errorf("status %+v", st)
		}
		if got := b.events.take(); !strings.HasSuffix(got, "api  userspace>ipvs") {
			b.Errorf("events %s", got)
		}
	})
}

// A plane that is better for a moment, or refuses once, moves no load balancer.
func TestFlappingPlaneMovesNothing(t *testing.T) {
	run(t, []LoadBalancer{lbOf("api", 1)}, nil, func(b *bench) {
		for range 20 {
			b.planes[Direct].do(func() { b.planes[Direct].unusable = errors.New("the probe got lost") })
			b.b.Reconsider()
			time.Sleep(time.Second)
			b.planes[Direct].do(func() { b.planes[Direct].unusable = nil })
			b.b.Reconsider()
			time.Sleep(time.Second)
		}
		if st := b.b.Status().LoadBalancers[0]; st.Plane != Direct || st.Moving != "" ||
			strings.Contains(b.journal.take(), "ipvs api") {
			b.Errorf("status %+v", st)
		}
		b.planes[Direct].do(func() { b.planes[Direct].unusable = errors.New("no path") })
		b.b.Reconsider()
		time.Sleep(moveDelay + time.Second) // nobody asks again
		if st := b.b.Status().LoadBalancers[0]; st.Plane != IPVS {
			b.Errorf("status %+v", st)
		}
		// A change by the operator takes effect at once.
		forced := lbOf("api", 1)
		forced.Plane = UserSpace
		if err := b.b.Set([]LoadBalancer{forced}); err != nil {
			b.Fatal(err)
		}
		synctest.Wait()
		if st := b.b.Status().LoadBalancers[0]; st.Plane != UserSpace {
			b.Errorf("status %+v", st)
		}
	})
}

// A load balancer that is about to move does so even if another one changes meanwhile.
func TestMoveOutlivesOtherChanges(t *testing.T) {
	run(t, []LoadBalancer{lbOf("api", 1)}, nil, func(b *bench) {
		b.planes[Direct].do(func() { b.planes[Direct].unusable = errors.New("no path") })
		b.b.Reconsider()
		time.Sleep(time.Second)
		if err := b.b.Set([]LoadBalancer{lbOf("api", 1), lbOf("web", 2, "198.51.100.9:443")}); err != nil {
			b.Fatal(err)
		}
		time.Sleep(moveDelay)
		if st := b.b.Status().LoadBalancers[0]; st.Plane != IPVS {
			b.Errorf("status %+v", st)
		}
	})
}

// A plane gets a changed load balancer only after it was asked about it.
func TestChangedLoadBalancerIsAskedFor(t *testing.T) {
	run(t, []LoadBalancer{lbOf("api", 1)}, nil, func(b *bench) {
		b.journal.take()
		b.planes[Direct].do(func() { b.planes[Direct].unusable = errors.New("another port") })
		if err := b.b.Set([]LoadBalancer{lbOf("api", 2, "198.51.100.9:443")}); err != nil {
			b.Fatal(err)
		}
		time.Sleep(time.Second)
		got := b.journal.take()
		if b.planes[IPVS].serves() != "api[1,2|]" || b.planes[Direct].serves() != "" ||
			strings.Contains(got, "direct api[1,2|]") {
			b.Errorf("calls of the planes: %s", got)
		}
	})
}

// A plane that fails to stop serving is called until it succeeds.
func TestOldPlaneIsToldUntilItLeaves(t *testing.T) {
	run(t, []LoadBalancer{lbOf("api", 1)}, nil, func(b *bench) {
		b.planes[Direct].do(func() { b.planes[Direct].err = errors.New("busy") })
		if err := b.b.Set(nil); err != nil {
			b.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		calls := b.planes[Direct].count()
		if calls < 5 {
			b.Errorf("called %d times", calls)
		}
		b.planes[Direct].do(func() { b.planes[Direct].err = nil })
		time.Sleep(10 * time.Second)
		if n := b.planes[Direct].count() - calls; n != 1 {
			b.Errorf("called %d more times, want once", n)
		}
		if b.planes[Direct].serves() != "" {
			b.Error("it still serves")
		}
	})
}

// A forced plane that stops being usable at run time goes on, and Status has the error: an
// old plane that may work is better than none.
func TestForcedPlane(t *testing.T) {
	lb := lbOf("api", 1)
	lb.Plane = IPVS
	run(t, []LoadBalancer{lb}, func(b *bench) {
		if err := b.b.Check(t.Context()); err != nil {
			b.Error(err)
		}
		b.planes[IPVS].unusable = errors.New("no ip_vs: modprobe ip_vs")
		if err := b.b.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "modprobe ip_vs") {
			b.Errorf("check: %v", err)
		}
	}, func(b *bench) {
		b.expect("")
		st := b.b.Status().LoadBalancers[0]
		if st.Plane != "" || !strings.Contains(st.Error, "modprobe ip_vs") || b.ready() {
			b.Errorf("status %+v, ready %v", st, b.ready())
		}
		b.planes[IPVS].do(func() { b.planes[IPVS].unusable = nil })
		time.Sleep(time.Minute) // it is looked for again without a word
		if st := b.b.Status().LoadBalancers[0]; st.Plane != IPVS || st.Error != "" || !b.ready() {
			b.Errorf("status %+v, ready %v", st, b.ready())
		}
		b.planes[IPVS].do(func() { b.planes[IPVS].unusable = errors.New("gone") })
		b.b.Reconsider()
		time.Sleep(time.Second)
		if st := b.b.Status().LoadBalancers[0]; st.Plane != IPVS || !strings.Contains(st.Error, "gone") {
			b.Errorf("status %+v", st)
		}
		if n := b.logged("modprobe ip_vs"); n != 1 {
			b.Errorf("logged %d times", n)
		}
	})
}
