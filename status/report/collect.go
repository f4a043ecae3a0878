package report

import (
	"context"
	"sync"
	"time"
)

const (
	// Interval is the time between two questions to one peer while somebody looks.
	Interval = 2 * time.Second
	// timeout bounds one question: a peer that takes longer has trouble worth showing.
	timeout = 2 * time.Second
	// rateSpan is the least time between two reports that make a rate.
	rateSpan = 4 * time.Second
)

// A PeerReport is what is known of a node from its own reports; this node has one too.
type PeerReport struct {
	ID string
	// Report is the latest one, nil if there was none; At is when it came.
	Report *Report
	At     time.Time
	// Earlier is a report from some seconds before, for rates; nil if there was none.
	Earlier *Report
	// Err is why the latest question has no answer.
	Err error

	asked  time.Time
	asking bool
}

// Take makes r the latest report.
func (p *PeerReport) Take(r Report, at time.Time) {
	if p.Earlier == nil || p.Report != nil && p.Report.Snapshot.Time.Sub(p.Earlier.Snapshot.Time) >= rateSpan {
		p.Earlier = p.Report
	}
	p.Report, p.At = &r, at
}

// A Collector asks the peers for their reports, each on its own so that a dead one does not hold up the others.
type Collector struct {
	fetch   func(ctx context.Context, id string) ([]byte, error)
	changed func()

	asking sync.WaitGroup
	mu     sync.Mutex
	peers  map[string]*PeerReport
}

// NewCollector returns a Collector that gets a packed report by fetch and calls changed after each answer.
func NewCollector(fetch func(ctx context.Context, id string) ([]byte, error), changed func()) *Collector {
	return &Collector{fetch: fetch, changed: changed}
}

// Ask asks the peers in ids that were not asked within Interval, or all of them if it is urgent, and forgets all
// others. It does not wait for the answers.
func (c *Collector) Ask(ctx context.Context, ids []string, urgent bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := make(map[string]*PeerReport, len(ids))
	for _, id := range ids {
		known[id] = c.peers[id]
		if known[id] == nil {
			known[id] = &PeerReport{ID: id}
		}
	}
	c.peers = known
	for _, p := range known {
		if p.asking || !urgent && time.Since(p.asked) < Interval {
			continue
		}
		p.asking, p.asked = true, time.Now()
		c.asking.Go(func() { c.askOne(ctx, p.ID) })
	}
}

func (c *Collector) askOne(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	data, err := c.fetch(ctx, id)
	var r Report
	if err == nil {
		r, err = Unpack(data)
	}
	c.mu.Lock()
	if p := c.peers[id]; p != nil {
		p.asking, p.Err = false, err
		if err == nil {
			p.Take(r, time.Now())
		}
	}
	c.mu.Unlock()
	c.changed()
}

// Wait waits until no question is open.
func (c *Collector) Wait() { c.asking.Wait() }

// Pending reports whether an answer is still to come.
func (c *Collector) Pending() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.peers {
		if p.asking {
			return true
		}
	}
	return false
}

// All returns copies of what is known, by id. What they point to never changes.
func (c *Collector) All() map[string]PeerReport {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[string]PeerReport, len(c.peers))
	for id, p := range c.peers {
		out[id] = *p
	}
	return out
}
