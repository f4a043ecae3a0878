package history

import (
	"context"
	"slices"
	"sync"
	"time"

	"appliance/balancer"
	"appliance/status"
	"appliance/status/figures"
)

const (
	// Interval is the time between two samples and Span the time that is kept: 180 points of 5 s are 15 minutes, about
	// what a person who was called wants to look back.
	Interval = 5 * time.Second
	Span     = 15 * time.Minute
	Points   = int(Span / Interval)
)

// A Point is one backend at one moment. It is small, because there may be a thousand backends with 180 points each.
type Point struct {
	At int64 // Unix time in ms
	// Counted reports whether the data plane counts at all.
	Counted bool
	Open    float32
	// Rates are per second since the previous point.
	New, Failed, In, Out float32
	// Latency of the last check, in ms; negative while the backend is down.
	Latency float32
}

// A History is the points of one backend, the oldest first.
type History struct {
	Points []Point
	// Peak is the most open connections of any point.
	Peak uint64

	last balancer.Traffic // the counters behind the newest point
}

// Samples keep what the load balancers did lately.
type Samples struct {
	mu   sync.Mutex
	past map[balancer.Target]*History
	// times are the times of all samples, as in Point.At.
	times []int64
}

// New returns empty Samples.
func New() *Samples { return &Samples{past: make(map[balancer.Target]*History)} }

// Run takes a sample every Interval until ctx ends.
func (s *Samples) Run(ctx context.Context, snapshot func() status.Snapshot) error {
	tick := time.NewTicker(Interval)
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

// Add takes a sample of a snapshot. It forgets backends that are not in it.
func (s *Samples) Add(snap status.Snapshot) {
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
	s.times = s.times[max(0, len(s.times)-Points):]
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
			p.rates(h.last, *be.Traffic, time.Duration(p.At-h.Points[n-1].At)*time.Millisecond)
		}
		h.last = *be.Traffic
		h.Peak = max(h.Peak, be.Traffic.Open)
	}
	if n := len(h.Points); n >= Points {
		// Shifted, not re-sliced, so that the memory is used again.
		copy(h.Points, h.Points[n-Points+1:])
		h.Points = h.Points[:Points-1]
	}
	h.Points = append(h.Points, p)
}

// rates fills in what happened between two samples.
func (p *Point) rates(then, now balancer.Traffic, span time.Duration) {
	rate := func(then, now uint64) float32 { return float32(figures.Rate(then, now, span)) }
	p.New = rate(then.Total, now.Total)
	p.Failed = rate(then.Failed, now.Failed)
	p.In = rate(then.In, now.In)
	p.Out = rate(then.Out, now.Out)
}

// Times returns when the samples were taken in Unix milliseconds, the oldest first.
func (s *Samples) Times() []int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.times)
}

// View calls f with the history of one backend, if there is any, without copying it.
func (s *Samples) View(t balancer.Target, f func(h *History)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.past[t]; h != nil {
		f(h)
	}
}

// Of returns a copy of the history of one backend.
func (s *Samples) Of(t balancer.Target) History {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.past[t]
	if h == nil {
		return History{}
	}
	return History{Points: append([]Point(nil), h.Points...), Peak: h.Peak}
}
