package track

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Condition is one thing to probe again and again, such as an uplink or a disk.
type Condition struct {
	Name string
	// Identity tells apart conditions of one name: one whose Identity and numbers are unchanged goes on.
	Identity string
	// Probe looks once; nil means that the condition is met.
	Probe func(ctx context.Context) error
	// Inter is the time between the starts of two probes, give or take a tenth. Timeout bounds one probe.
	Inter, Timeout time.Duration
	// Rise successes or Fall failures in a row change the state. The first probe of all decides alone.
	Rise, Fall int
	// Weight is what a failed condition takes off the node's priority as holder; zero bars the node from holding.
	Weight int
}

// A Verdict says what the conditions mean for this node as holder. The zero Verdict has no objection.
type Verdict struct {
	// Barred is why the node should not hold while another one can; empty if it may.
	Barred string
	// Lowered is taken off the node's priority.
	Lowered int
}

// Status is what is known of one condition.
type Status struct {
	Name   string    `json:"name"`
	OK     bool      `json:"ok"`
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since"`
	// Checked is when the last probe that ended had begun; null before.
	Checked *time.Time `json:"checked"`
	Weight  int        `json:"weight,omitempty"`
}

// Config is what a Tracker needs.
type Config struct {
	// Changed is called with each new verdict, one call at a time. It must not block.
	Changed func(Verdict)
	// Inconclusive, if set, says of a probe's error that it comes from this host's own lack of something. Such a
	// probe changes nothing.
	Inconclusive func(error) bool
	Log          *slog.Logger // nil means slog.Default()
}

// A Tracker probes its conditions, each in a goroutine of its own, for which Run waits.
type Tracker struct {
	cfg   Config
	loops sync.WaitGroup
	wake  chan struct{} // wanted has changed

	mu      sync.Mutex
	wanted  []Condition
	tracked map[string]*tracked
	verdict Verdict
}

// tracked is a condition and its state. Tracker.mu guards it.
type tracked struct {
	Condition
	stop      context.CancelFunc
	status    Status
	good, bad int // probes in a row
}

// New makes a Tracker without conditions.
func New(cfg Config) *Tracker {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Tracker{cfg: cfg, wake: make(chan struct{}, 1), tracked: make(map[string]*tracked)}
}

// Set replaces the conditions, whose names differ. Those that are unchanged go on.
func (t *Tracker) Set(conditions []Condition) {
	t.mu.Lock()
	t.wanted = slices.Clone(conditions)
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// Run probes until ctx ends.
func (t *Tracker) Run(ctx context.Context) error {
	for {
		t.adopt(ctx)
		select {
		case <-ctx.Done():
			t.loops.Wait()
			return nil
		case <-t.wake:
		}
	}
}

// adopt starts and stops loops so that exactly the wanted conditions are probed. One that changes keeps its state.
func (t *Tracker) adopt(ctx context.Context) {
	t.mu.Lock()
	want := make(map[string]bool)
	for _, c := range t.wanted {
		want[c.Name] = true
		old := t.tracked[c.Name]
		if old != nil && same(old.Condition, c) {
			continue
		}
		status := Status{Name: c.Name, OK: true, Reason: "not asked yet", Since: time.Now()}
		next := &tracked{Condition: c, status: status}
		if old != nil {
			old.stop()
			next.status = old.status
		}
		next.status.Weight = c.Weight
		var loop context.Context
		loop, next.stop = context.WithCancel(ctx)
		t.tracked[c.Name] = next
		t.loops.Go(func() { t.probe(loop, next) })
	}
	for name, c := range t.tracked {
		if !want[name] {
			c.stop()
			delete(t.tracked, name)
		}
	}
	t.report()
	t.mu.Unlock()
}

func same(a, b Condition) bool {
	a.Probe, b.Probe = nil, nil
	return reflect.DeepEqual(a, b)
}

// probe probes one condition until ctx ends.
func (t *Tracker) probe(ctx context.Context, c *tracked) {
	for {
		began := time.Now()
		once, cancel := context.WithTimeout(ctx, c.Timeout)
		err := c.Probe(once)
		if err != nil && once.Err() != nil && errors.Is(err, once.Err()) {
			err = fmt.Errorf("no answer within %s", c.Timeout)
		}
		cancel()
		if ctx.Err() != nil {
			return // the probe was cut short, so it says nothing
		}
		if err == nil || t.cfg.Inconclusive == nil || !t.cfg.Inconclusive(err) {
			t.observe(c, began, err)
		}
		// Spread, so that many nodes do not probe in step.
		pause := time.Duration(float64(c.Inter) * (0.9 + 0.2*rand.Float64()))
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(began.Add(pause))):
		}
	}
}

func (t *Tracker) observe(c *tracked, began time.Time, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tracked[c.Name] != c {
		return // it was replaced meanwhile
	}
	first := c.status.Checked == nil
	c.status.Checked = &began
	was := c.status.OK
	if err == nil {
		c.good, c.bad = c.good+1, 0
		c.status.OK = was || first || c.good >= c.Rise
	} else {
		c.good, c.bad = 0, c.bad+1
		c.status.OK = was && !first && c.bad < c.Fall
	}
	switch {
	case err == nil && c.status.OK:
		c.status.Reason = ""
	case err != nil && !c.status.OK:
		c.status.Reason = err.Error()
	}
	if c.status.OK == was {
		return
	}
	c.status.Since = time.Now()
	if c.status.OK {
		t.cfg.Log.Info("track succeeds again", "track", c.Name)
	} else {
		t.cfg.Log.Warn("track fails", "track", c.Name, "reason", err, "effect", c.effect())
	}
	t.report()
}

func (c Condition) effect() string {
	if c.Weight == 0 {
		return "this node does not hold while another can"
	}
	return fmt.Sprintf("this node's priority as holder is lower by %d", c.Weight)
}

// report hands on the verdict if it has changed. Its caller holds mu, so that verdicts come in order.
func (t *Tracker) report() {
	var v Verdict
	var barred []string
	for _, c := range t.tracked {
		switch {
		case c.status.OK:
		case c.Weight == 0:
			barred = append(barred, c.Name)
		default:
			v.Lowered += c.Weight
		}
	}
	if slices.Sort(barred); len(barred) > 0 {
		v.Barred = "failed tracks: " + strings.Join(barred, ", ")
	}
	if v != t.verdict {
		t.verdict = v
		t.cfg.Changed(v)
	}
}

// Status is what is known of each condition, by name.
func (t *Tracker) Status() []Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]Status, 0, len(t.tracked))
	for _, c := range t.tracked {
		all = append(all, c.status)
	}
	slices.SortFunc(all, func(a, b Status) int { return cmp.Compare(a.Name, b.Name) })
	return all
}
