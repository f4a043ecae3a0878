package status

import (
	"context"
	"slices"
	"sync"
	"time"

	"appliance/balancer"
)

const (
	// sampleEvery and chartSpan make the charts: 180 points of 5 s are 15 minutes,
	// about what a person wants to look back when called.
	sampleEvery = 5 * time.Second
	chartSpan   = 15 * time.Minute
	points      = int(chartSpan / sampleEvery)
)

// A Point is one backend at one moment. It is small, because there may be a
// thousand backends with 180 of them each.
type Point struct {
	At int64 // Unix time in ms
	// Counted is whether the data plane counts at all.
	Counted bool
	Open    float32
	// Rates are per second since the point before.
	New, Failed, In, Out float32
	// Latency of the last check, in ms; negative while the backend is down.
	Latency float32
}

// A History is the points of one backend, the oldest first.
type History struct {
	Points []Point
	// Peak is the most connections at once that any point saw.
	Peak uint64

	last balancer.Traffic // what the newest point was made of
}

// Samples remember what the load balancers did lately, for charts and rates.
type Samples struct {
	mu   sync.Mutex
	past map[balancer.Target]*History
	// times are those of all points, as Point.At.
	times []int64
}

// NewSamples returns Samples that remember nothing yet.
func NewSamples() *Samples { return &Samples{past: make(map[balancer.Target]*History)} }

// Run takes a sample every few seconds until ctx ends.
func (s *Samples) Run(ctx context.Context, snapshot func() Snapshot) error {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		s.Add(snapshot())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Add takes a sample of a snapshot. Backends that are not in it are forgotten.
func (s *Samples) Add(snap Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := make(map[balancer.Target]bool)
	for _, lb := range snap.LoadBalancers {
		for _, be := range lb.Backends {
			t := balancer.Target{LoadBalancer: lb.Name, Backend: be.Address}
			seen[t] = true
			h := s.past[t]
			if h == nil {
				h = &History{}
				s.past[t] = h
			}
			h.add(snap.Time, be)
		}
	}
	s.times = append(s.times, snap.Time.UnixMilli())
	s.times = s.times[max(0, len(s.times)-points):]
	for t := range s.past {
		if !seen[t] {
			delete(s.past, t)
		}
	}
}

func (h *History) add(at time.Time, be balancer.BackendStatus) {
	p := Point{At: at.UnixMilli(), Latency: float32(be.LatencyMS)}
	if be.State == balancer.Down || be.LastCheck == nil {
		p.Latency = -1
	}
	if be.Traffic != nil {
		p.Counted, p.Open = true, float32(be.Traffic.Open)
		if n := len(h.Points); n > 0 && h.Points[n-1].Counted {
			p.rates(h.last, *be.Traffic, float64(p.At-h.Points[n-1].At)/1000)
		}
		h.last = *be.Traffic
		h.Peak = max(h.Peak, be.Traffic.Open)
	}
	if n := len(h.Points); n >= points {
		// Shifted, not re-sliced, so that the memory stays where it is.
		copy(h.Points, h.Points[n-points+1:])
		h.Points = h.Points[:points-1]
	}
	h.Points = append(h.Points, p)
}

// rates fills in what happened in span seconds. A counter that has gone back was
// begun anew: another data plane, another life.
func (p *Point) rates(then, now balancer.Traffic, span float64) {
	rate := func(then, now uint64) float32 {
		if now < then || span <= 0 {
			return 0
		}
		return float32(float64(now-then) / span)
	}
	p.New = rate(then.Total, now.Total)
	p.Failed = rate(then.Failed, now.Failed)
	p.In = rate(then.In, now.In)
	p.Out = rate(then.Out, now.Out)
}

// Times are when the samples were taken, the oldest first.
func (s *Samples) Times() []int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.times)
}

// each shows f what is remembered of one backend, without copying it.
func (s *Samples) each(t balancer.Target, f func(h *History)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.past[t]; h != nil {
		f(h)
	}
}

// Of returns a copy of what is remembered of one backend.
func (s *Samples) Of(t balancer.Target) History {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.past[t]
	if h == nil {
		return History{}
	}
	return History{Points: append([]Point(nil), h.Points...), Peak: h.Peak}
}
