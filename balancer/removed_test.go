package balancer

import (
	"testing"
	"time"
)

// A backend that is removed from the configuration keeps its open connections for a while,
// unless it is dead or comes back.
func TestRemoved(t *testing.T) {
	run(t, []LoadBalancer{lbOf("api", 4)}, func(b *bench) { b.s.set(addr(4), errRefused) }, func(b *bench) {
		set := func(n int) {
			t.Helper()
			if err := b.b.Set([]LoadBalancer{lbOf("api", n)}); err != nil {
				t.Fatal(err)
			}
		}
		set(1)
		if got := b.planes[Direct].serves(); got != "api[1|2,3]" {
			t.Errorf("two left: %s", got)
		}
		time.Sleep(10 * time.Minute)
		set(2) // one of them is back
		if got := b.planes[Direct].serves(); got != "api[1,2|3]" {
			t.Errorf("one is back: %s", got)
		}
		b.s.set(addr(2), errRefused)
		time.Sleep(10 * time.Second)
		if got := b.planes[Direct].serves(); got != "api[1|3]" {
			t.Errorf("and dies: %s", got)
		}
		time.Sleep(ConnLifetime)
		if got := b.planes[Direct].serves(); got != "api[1|]" {
			t.Errorf("later: %s", got)
		}
	})
}

// So does a backend that is removed while the load balancer moves to another plane.
func TestRemovedWhileMoving(t *testing.T) {
	run(t, []LoadBalancer{lbOf("api", 3)}, nil, func(b *bench) {
		b.planes[Direct].serves()
		b.planes[Direct].do(func() { b.planes[Direct].unusable = errRefused })
		if err := b.b.Set([]LoadBalancer{lbOf("api", 2)}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		if got := b.planes[IPVS].serves(); got != "api[1,2|3]" {
			t.Errorf("the new plane serves %s", got)
		}
	})
}

// A server without address is down, with the reason, and the others serve as if it were not there.
func TestMissing(t *testing.T) {
	lb := lbOf("api", 1)
	lb.Missing = []MissingBackend{{Name: "db.example.org:6443", Reason: "no such host"}}
	none := lbOf("none", 0)
	none.Missing = lb.Missing
	run(t, []LoadBalancer{lb, none}, nil, func(b *bench) {
		if got := b.planes[Direct].serves(); got != "api[1|] none[|]" {
			t.Errorf("serves %s", got)
		}
		for _, s := range b.b.Status().LoadBalancers {
			last := s.Backends[len(s.Backends)-1]
			if last.Name != "db.example.org:6443" || last.State != Down || last.Reason != "no such host" ||
				last.Address.IsValid() {
				t.Errorf("%s: %+v", s.Name, last)
			}
		}
	})
}
