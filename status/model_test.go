package status

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"appliance/balancer"
)

// view is the model as n1 has it, after change.
func view(t *testing.T, change func(c *cast, others map[string]neighbour)) model {
	t.Helper()
	now := time.Now()
	c := newCast(t, now, 2, 3)
	for id := range c.snaps { // nobody waits
		c.edit(id, func(s *Snapshot) {
			s.LoadBalancers[1].Queued, s.LoadBalancers[1].Backends[0].Traffic.Queued = 0, 0
		})
	}
	others := map[string]neighbour{}
	for _, id := range []string{"n2", "n3"} {
		others[id] = neighbour{ID: id, At: now}
	}
	if change != nil {
		change(c, others)
	}
	for id, one := range others {
		if one.Err == nil && one.Report == nil {
			r := MakeReport(c.snaps[id], c.logs[id], c.past[id])
			one.Report = &r
			others[id] = one
		}
	}
	r := MakeReport(c.snaps["n1"], c.logs["n1"], c.past["n1"])
	return newModel(neighbour{ID: "n1", Report: &r, At: now}, others, c.past["n1"])
}

// edit changes a node's snapshot.
func (c *cast) edit(id string, f func(s *Snapshot)) {
	s := c.snaps[id]
	f(&s)
	c.snaps[id] = s
}

func TestVerdict(t *testing.T) {
	mend := func(c *cast) { // the one backend that is down in a cast
		for id := range c.snaps {
			c.edit(id, func(s *Snapshot) { s.LoadBalancers[0].Backends[2].State = balancer.Up })
		}
	}
	for name, tt := range map[string]struct {
		change func(c *cast, others map[string]neighbour)
		level  string
		say    string
	}{
		"well":              {func(c *cast, _ map[string]neighbour) { mend(c) }, "good", "All is well: n2 answers for the virtual addresses"},
		"a backend is down": {nil, "warn", "Clients are served, with one thing to look at: kube-apiserver / 10.77.0.13:6443 is down: connection refused"},
		"a peer is gone": {func(c *cast, o map[string]neighbour) {
			mend(c)
			o["n3"] = neighbour{ID: "n3", Err: errors.New("refused")}
		}, "warn", "one thing to look at: n3 does not answer n1"},
		"nobody holds": {func(c *cast, o map[string]neighbour) {
			o["n2"] = neighbour{ID: "n2", Err: errors.New("refused")}
			for _, id := range []string{"n1", "n3"} {
				c.edit(id, func(s *Snapshot) { s.Holder = "" })
			}
		}, "bad", "Trouble: nobody answers for the virtual addresses"},
		"two hold": {func(c *cast, _ map[string]neighbour) {
			c.edit("n3", func(s *Snapshot) { s.Group.Holding, s.Holder = true, "n3" })
		}, "bad", "n2 and n3 say at once that they hold"},
		"a peer disagrees": {func(c *cast, _ map[string]neighbour) {
			c.edit("n3", func(s *Snapshot) { s.Holder = "n1" })
		}, "bad", "n3 says that n1 holds"},
		"the holder has no backend": {func(c *cast, _ map[string]neighbour) {
			c.edit("n2", func(s *Snapshot) {
				for i := range s.LoadBalancers[0].Backends {
					s.LoadBalancers[0].Backends[i].State = balancer.Down
				}
			})
		}, "bad", "kube-apiserver has no healthy backend; its clients are refused"},
		"only this node has no backend": {func(c *cast, _ map[string]neighbour) {
			c.edit("n1", func(s *Snapshot) {
				for i := range s.LoadBalancers[0].Backends {
					s.LoadBalancers[0].Backends[i].State = balancer.Down
				}
			})
		}, "warn", "Clients are served, with 3 things to look at"},
		"a stranger claims": {func(c *cast, _ map[string]neighbour) {
			mend(c)
			c.edit("n2", func(s *Snapshot) {
				s.VIPs[0].ForeignClaims, s.VIPs[0].ForeignMAC, s.VIPs[0].ForeignAt = 1, "02:bad", s.Time.Add(-time.Minute)
			})
		}, "bad", "another machine (02:bad) has claimed 10.77.0.10"},
		"a backend is down elsewhere": {func(c *cast, _ map[string]neighbour) {
			mend(c)
			c.edit("n3", func(s *Snapshot) { s.LoadBalancers[1].Backends[0].State = balancer.Down })
		}, "warn", "ingress / 10.77.1.11:6444 is down on n3"},
		"a backend is passed over": {func(c *cast, _ map[string]neighbour) {
			mend(c)
			c.edit("n2", func(s *Snapshot) { s.LoadBalancers[1].Backends[0].PassedOver = "no path to n1" })
		}, "warn", "ingress / 10.77.1.11:6444 gets no new connections from n2: no path to n1"},
		"a host with a backend of each is down": {func(c *cast, _ map[string]neighbour) {
			mend(c)
			c.edit("n1", func(s *Snapshot) {
				for i := range s.LoadBalancers {
					for k := range 2 {
						be := &s.LoadBalancers[i].Backends[k]
						be.State, be.Reason = balancer.Down, "gone"
					}
				}
			})
		}, "warn", "4 backends (of ingress, kube-apiserver) are down: gone"},
		"all backends are passed over": {func(c *cast, _ map[string]neighbour) {
			mend(c)
			c.edit("n2", func(s *Snapshot) {
				for i := range s.LoadBalancers[1].Backends {
					s.LoadBalancers[1].Backends[i].PassedOver = "no path"
				}
			})
		}, "bad", "ingress has no healthy backend; its clients are refused"},
		"clients wait": {func(c *cast, _ map[string]neighbour) {
			mend(c)
			c.edit("n1", func(s *Snapshot) { s.LoadBalancers[1].Queued = 2 })
			c.edit("n2", func(s *Snapshot) { s.LoadBalancers[1].Backends[0].Traffic.Queued = 4 })
		}, "warn", "ingress has 6 connections in its queue"},
		"a node is unfit": {func(c *cast, _ map[string]neighbour) {
			mend(c)
			c.edit("n1", func(s *Snapshot) { s.Group.Peers[2].Unfit = "track uplink: exit code 1" })
		}, "warn", "n3 would rather not hold: track uplink: exit code 1"},
		"a node is not ready": {func(c *cast, _ map[string]neighbour) {
			mend(c)
			c.edit("n3", func(s *Snapshot) { s.NotReady = []string{"eth0 has no carrier"} })
		}, "warn", "n3: eth0 has no carrier"},
		"the dead holder's last word": {func(c *cast, o map[string]neighbour) {
			mend(c)
			r := MakeReport(c.snaps["n2"], c.logs["n2"], c.past["n2"])
			o["n2"] = neighbour{ID: "n2", Report: &r, At: c.at}
			for _, id := range []string{"n1", "n3"} {
				c.edit(id, func(s *Snapshot) { s.Term, s.Holder = 5, "n3" })
			}
			c.edit("n3", func(s *Snapshot) { s.Group.Holding = true })
		}, "good", "All is well: n3 answers for the virtual addresses"},
	} {
		t.Run(name, func(t *testing.T) {
			m := view(t, tt.change)
			all := m.Verdict.Headline
			for _, p := range m.Verdict.Problems {
				all += "\n" + p.Text
			}
			if m.Verdict.Level != tt.level || !strings.Contains(all, tt.say) {
				t.Errorf("%s: %s", m.Verdict.Level, all)
			}
		})
	}
}

// What the new holder measured itself is better than what others saw.
func TestTenures(t *testing.T) {
	m := view(t, func(c *cast, _ map[string]neighbour) {
		for _, id := range []string{"n1", "n2"} {
			took := map[string]time.Duration{"n1": 90 * time.Millisecond, "n2": 12 * time.Millisecond}[id]
			c.logs[id].Add(Event{Kind: OfHolder, What: "holds", Subject: "n2", From: "n1", To: "n2", Term: 9, Took: took, Reason: "by " + id, Time: c.at.Add(-time.Second)})
		}
	})
	last := m.Tenures[0]
	if last.Holder != "n2" || last.Took != 12*time.Millisecond || last.Cause != "by n2" || !last.ByNewOwner || !last.Until.IsZero() {
		t.Errorf("the last tenure is %+v", last)
	}
	before := m.Tenures[1]
	if want := 90*time.Minute - time.Second; before.Lasted.Round(time.Second) != want || before.Took != 14*time.Millisecond {
		t.Errorf("the one before lasted %s, want %s: %+v", before.Lasted, want, before)
	}
}

// What all nodes saw is told once.
func TestEventsOfAllNodes(t *testing.T) {
	m := view(t, nil)
	found := false
	for _, e := range m.Events {
		if e.Kind == OfHolder && e.Term == 4 {
			if found {
				t.Error("told twice")
			}
			found = strings.Join(e.Nodes, " ") == "n1 n2 n3"
		}
	}
	if !found {
		t.Errorf("the holder's event is missing, or not of all nodes: %+v", m.Events)
	}
	if e := m.Events[0]; e.Kind != OfBackend || strings.Join(e.Nodes, " ") != "n2" {
		t.Errorf("the newest is %+v", e)
	}
}

func TestReportSurvives(t *testing.T) {
	c := newCast(t, time.Now(), 50, 20)
	c.fill(1)
	data, err := c.report("n2")
	if err != nil {
		t.Fatal(err)
	}
	// It has to fit into one message of the group's channel, in base64.
	if len(data) > 512<<10 {
		t.Errorf("a report of 1000 backends takes %d bytes", len(data))
	}
	r, err := Unpack(data)
	if err != nil || r.Snapshot.ID != "n2" || len(r.Snapshot.LoadBalancers) != 50 || len(r.Events) == 0 || len(r.Load) != 50 || r.Peak["etcd"]["10.77.2.11:6445"] != 12 {
		t.Errorf("%v, %+v", err, r.Snapshot.ID)
	}
	for _, bad := range [][]byte{nil, []byte("x"), data[:len(data)/2], bytes.Repeat([]byte{0x1f, 0x8b}, 100)} {
		if _, err := Unpack(bad); err == nil {
			t.Errorf("%d bytes of something else are taken", len(bad))
		}
	}
}

func TestSamples(t *testing.T) {
	s := NewSamples()
	c := newCast(t, time.Now(), 1, 2)
	snap := c.snaps["n2"]
	target := balancer.Target{LoadBalancer: "kube-apiserver", Backend: snap.LoadBalancers[0].Backends[0].Address}
	add := func(total, open uint64) {
		snap.Time = snap.Time.Add(sampleEvery)
		lb := snap.LoadBalancers[0]
		lb.Backends = append([]balancer.BackendStatus(nil), lb.Backends...)
		lb.Backends[0].Traffic = &balancer.Traffic{Total: total, Open: open}
		snap.LoadBalancers = []balancer.LoadBalancerStatus{lb}
		s.Add(snap)
	}
	add(100, 1)
	add(150, 9)
	add(10, 2) // begun anew
	h := s.Of(target)
	if len(h.Points) != 3 || h.Points[1].New != 10 || h.Points[2].New != 0 || h.Peak != 9 {
		t.Errorf("%+v", h)
	}
	for i := range 2 * points {
		add(uint64(10+5*i), 1)
	}
	if h = s.Of(target); len(h.Points) != points || h.Points[0].New != 1 {
		t.Errorf("%d points, %+v", len(h.Points), h.Points[0])
	}
	// The one that is down has a gap in its latency, not a zero.
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

func TestTrace(t *testing.T) {
	now := time.UnixMilli(int64(chartSpan / time.Millisecond))
	at := func(fraction float64) int64 { return int64(fraction * float64(chartSpan.Milliseconds())) }
	value := func(p Point) float64 { return float64(p.Latency) }
	step := sampleEvery.Milliseconds()
	for name, tt := range map[string]struct {
		points []Point
		want   string
	}{
		"nothing": {nil, ""},
		"one":     {[]Point{{At: at(1), Latency: 5}}, "M600 40.0h1"},
		"two":     {[]Point{{At: at(.5), Latency: 0}, {At: at(.5) + step, Latency: 10}}, "M300 80.0h1L303 0.0"},
		"a gap":   {[]Point{{At: at(.5), Latency: 5}, {At: at(.5) + step, Latency: -1}, {At: at(.5) + 2*step, Latency: 5}}, "M300 40.0h1M307 40.0h1"},
		"a pause": {[]Point{{At: at(.25), Latency: 5}, {At: at(.5), Latency: 5}}, "M150 40.0h1M300 40.0h1"},
		"too old": {[]Point{{At: at(-1), Latency: 5}, {At: at(0), Latency: 5}}, "M0 40.0h1"},
	} {
		if got := trace(now, tt.points, 10, value); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

func TestNumbers(t *testing.T) {
	for v, want := range map[float64]string{0: "0", .004: "0.00", .25: "0.25", 1.25: "1.2", 12.4: "12", 9999: "9999", 25_000: "25k", 3e7: "30M", 2e10: "20G"} {
		if got := number(v); got != want {
			t.Errorf("number(%v) is %s, want %s", v, got, want)
		}
	}
	for v, want := range map[uint64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 999_499: "999 kB", 999_600: "1.0 MB", 31 << 30: "33 GB", 1 << 63: "9.2 EB"} {
		if got := amount(v); got != want {
			t.Errorf("amount(%d) is %s, want %s", v, got, want)
		}
	}
	for v, want := range map[float64]float64{0: 1, 1: 1, 1.1: 2, 3: 5, 6: 10, 70: 100, .03: .05} {
		if got := nice(v); got != want {
			t.Errorf("nice(%v) is %v, want %v", v, got, want)
		}
	}
}

func TestTop(t *testing.T) {
	c := newCast(t, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), 1, 2)
	before, now := c.snaps["n1"], c.snaps["n1"]
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
	if !strings.Contains(lines[3], "10.77.0.12:6443") || !strings.Contains(lines[3], "25/s") || !strings.Contains(lines[3], "2.0 MB/s") {
		t.Errorf("the busiest is not first:\n%s", b.String())
	}
	if strings.Contains(b.String(), "\x1b") {
		t.Error("colours where none are wanted")
	}
	b.Reset()
	Top(&b, Snapshot{}, now, true)
	if !strings.Contains(b.String(), red) || strings.Contains(b.String(), "/s") {
		t.Errorf("without a past:\n%s", b.String())
	}
}
