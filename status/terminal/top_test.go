package terminal

import (
	"strings"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/status"
	"appliance/status/statustest"
)

func TestTop(t *testing.T) {
	c := statustest.New(t, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), 1, 2)
	before, now := c.Snapshots["n1"], c.Snapshots["n1"]
	now.Time = now.Time.Add(2 * time.Second)
	lb := now.LoadBalancers[0]
	lb.Backends = append([]balancer.BackendStatus(nil), lb.Backends...)
	busy := *lb.Backends[1].Traffic
	busy.Total, busy.In = busy.Total+50, busy.In+4_000_000
	lb.Backends[1].Traffic = &busy
	now.LoadBalancers = []balancer.LoadBalancerStatus{lb}
	var b strings.Builder
	if err := Top(&b, before, now, false); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(b.String(), "\n")
	if !strings.Contains(lines[3], "10.77.0.12:6443") || !strings.Contains(lines[3], "25/s") ||
		!strings.Contains(lines[3], "2.0 MB/s") {
		t.Errorf("the busiest is not first:\n%s", b.String())
	}
	if strings.Contains(b.String(), "\x1b") {
		t.Error("colours where none are wanted")
	}
	b.Reset()
	Top(&b, status.Snapshot{}, now, true)
	if !strings.Contains(b.String(), red) || strings.Contains(b.String(), "/s") {
		t.Errorf("without a past:\n%s", b.String())
	}
}
