package history_test

import (
	"testing"
	"time"

	"appliance/balancer"
	"appliance/status/history"
	"appliance/status/statustest"
)

func TestSamples(t *testing.T) {
	s := history.New()
	c := statustest.New(t, time.Now(), 1, 2)
	snap := c.Snapshots["n2"]
	target := balancer.Target{LoadBalancer: "kube-apiserver", Backend: snap.LoadBalancers[0].Backends[0].Address}
	add := func(total, open uint64) {
		snap.Time = snap.Time.Add(history.Interval)
		lb := snap.LoadBalancers[0]
		lb.Backends = append([]balancer.BackendStatus(nil), lb.Backends...)
		lb.Backends[0].Traffic = &balancer.Traffic{Total: total, Open: open}
		snap.LoadBalancers = []balancer.LoadBalancerStatus{lb}
		s.Add(snap)
	}
	add(100, 1)
	add(150, 9)
	add(10, 2) // reset
	h := s.Of(target)
	if len(h.Points) != 3 || h.Points[1].New != 10 || h.Points[2].New != 0 || h.Peak != 9 {
		t.Errorf("%+v", h)
	}
	for i := range 2 * history.Points {
		add(uint64(10+5*i), 1)
	}
	if h = s.Of(target); len(h.Points) != history.Points || h.Points[0].New != 1 {
		t.Errorf("%d points, %+v", len(h.Points), h.Points[0])
	}
	// A backend that is down has a gap in its latency, not a zero.
	down := s.Of(balancer.Target{LoadBalancer: "kube-apiserver", Backend: snap.LoadBalancers[0].Backends[1].Address})
	if down.Points[0].Latency >= 0 {
		t.Errorf("%+v", down.Points[0])
	}
	snap.LoadBalancers = nil
	s.Add(snap)
	if h = s.Of(target); len(h.Points) != 0 {
		t.Error("what is gone is remembered")
	}
}
