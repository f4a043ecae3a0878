package status

import (
	"context"
	"sync"
	"time"
)

const (
	// askEvery is the time between two questions to one peer while somebody looks.
	askEvery = 2 * time.Second
	// askWithin bounds one question: whoever takes longer has trouble worth showing.
	askWithin = 2 * time.Second
	// rateSpan is the least time between two reports that make a rate.
	rateSpan = 4 * time.Second
)

// A neighbour is a node of the group as its own reports show it. This node is
// one of them.
type neighbour struct {
	ID string
	// Report is the latest one, nil if there was none; At is when it came.
	Report *Report
	At     time.Time
	// Err is why the newest question has no answer.
	Err error

	base   *Report // of some seconds before, for rates
	asked  time.Time
	asking bool
}

// neighbours are asked for their reports, each on its own so that one that is
// dead holds up nobody.
type neighbours struct {
	ask func(ctx context.Context, id string) ([]byte, error)
	// told is called after each answer.
	told func()

	wg sync.WaitGroup
	mu sync.Mutex
	by map[string]*neighbour
}

// fetch asks those of ids that were not asked lately; with urgency, all. It
// waits for nobody.
func (n *neighbours) fetch(ctx context.Context, ids []string, urgent bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	known := make(map[string]*neighbour, len(ids))
	for _, id := range ids {
		known[id] = n.by[id]
		if known[id] == nil {
			known[id] = &neighbour{ID: id}
		}
	}
	n.by = known
	for _, one := range known {
		if one.asking || !urgent && time.Since(one.asked) < askEvery {
			continue
		}
		one.asking, one.asked = true, time.Now()
		n.wg.Go(func() { n.question(ctx, one.ID) })
	}
}

func (n *neighbours) question(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	data, err := n.ask(ctx, id)
	var r Report
	if err == nil {
		r, err = Unpack(data)
	}
	n.mu.Lock()
	if one := n.by[id]; one != nil {
		one.asking, one.Err = false, err
		if err == nil {
			one.take(r, time.Now())
		}
	}
	n.mu.Unlock()
	n.told()
}

func (n *neighbour) take(r Report, at time.Time) {
	if n.base == nil || n.Report != nil && n.Report.Snapshot.Time.Sub(n.base.Snapshot.Time) >= rateSpan {
		n.base = n.Report
	}
	n.Report, n.At = &r, at
}

// busy is whether an answer is still to come.
func (n *neighbours) busy() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, one := range n.by {
		if one.asking {
			return true
		}
	}
	return false
}

// all returns copies; what they point to is never changed.
func (n *neighbours) all() map[string]neighbour {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make(map[string]neighbour, len(n.by))
	for id, one := range n.by {
		out[id] = *one
	}
	return out
}
