package standstill

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// slack is the shortest standstill that is looked for. A lease is waited out for half of that longer than it lasts.
const slack = time.Millisecond

// An OtherClock goes on while the machine stands still, or is set forward later.
type OtherClock struct {
	Name string
	// Read returns false if the clock cannot be read now.
	Read func() (time.Duration, bool)
	// Apart says that its rate is another than that of the machine's own clock, by up to maxDrift. The time of day is
	// not: the kernel corrects the rate of all its clocks together.
	Apart bool
}

// maxDrift is by what part clocks of different hosts may differ: that of package lease.
const maxDrift = 100

// Sources are what there is to look at on this machine.
type Sources struct {
	Clocks []OtherClock
	// Marker, if set, is a number of the hypervisor's that changes when the machine stood still.
	Marker func() uint64
	// Listen, if set, tells until ctx ends each time that it hears of a standstill.
	Listen func(ctx context.Context, heard func(why string)) error
	// Close, if set, gives back what the others need.
	Close func()
}

// A Watch remembers what was seen at the last look.
type Watch struct {
	own     func() time.Duration
	sources Sources
	// Stood, if set, is called by the Look that finds a standstill. Until it has returned no other Look returns.
	Stood func()

	mu     sync.Mutex
	seen   []seen // of each clock
	marker uint64
	told   string // why the machine stood still, from elsewhere
}

// seen is how far ahead a clock was of the machine's own at most.
type seen struct {
	known bool
	ahead time.Duration
	at    time.Duration // by the machine's own
}

// New returns a watch over own, the clock of the leases.
func New(own func() time.Duration, sources Sources) *Watch {
	w := &Watch{own: own, sources: sources, seen: make([]seen, len(sources.Clocks))}
	if sources.Marker != nil {
		w.marker = sources.Marker()
	}
	w.Look()
	return w
}

// Look says why the machine must have stood still since the last look, or "".
func (w *Watch) Look() (why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if why = w.look(); why != "" && w.Stood != nil {
		w.Stood()
	}
	return why
}

// look is Look. The caller holds mu.
func (w *Watch) look() (why string) {
	why, w.told = w.told, ""
	if w.sources.Marker != nil {
		if m := w.sources.Marker(); m != w.marker {
			w.marker, why = m, "the hypervisor's vmclock says so"
		}
	}
	for i, c := range w.sources.Clocks {
		if lost := w.compare(&w.seen[i], c); lost > 0 {
			why = fmt.Sprintf("%s is %v ahead of the clock here", c.Name, lost.Round(time.Millisecond/10))
		}
	}
	return why
}

// compare is by how much c has got ahead since the last look, if that is more than a clock does by itself. The caller
// holds mu.
func (w *Watch) compare(s *seen, c OtherClock) (lost time.Duration) {
	before := w.own()
	t, ok := c.Read()
	after := w.own()
	if !ok {
		return 0
	}
	least, most := t-after, t-before // this thread may have been late in between
	if s.known {
		may := slack
		if c.Apart {
			may += (after - s.at) / maxDrift
		}
		if lost = least - s.ahead; lost <= may {
			lost = 0
		}
	}
	if !s.known || lost > 0 || after-before < slack/2 {
		*s = seen{true, most, before}
	}
	return lost
}

// Listen has the next Look tell what is heard until ctx ends, and calls found each time.
func (w *Watch) Listen(ctx context.Context, found func()) error {
	w.mu.Lock()
	listen := w.sources.Listen
	w.mu.Unlock()
	if listen == nil {
		return nil
	}
	return listen(ctx, func(why string) {
		w.mu.Lock()
		w.told = why
		w.mu.Unlock()
		found()
	})
}

// Close gives back what the sources need.
func (w *Watch) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sources.Close != nil {
		w.sources.Close()
	}
	w.sources = Sources{}
}
