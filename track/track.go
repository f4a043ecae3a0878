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

// A Track is one thing to ask again and again.
type Track struct {
	Name string
	// Is tells two tracks of one name apart: a track whose Is and numbers are
	// unchanged goes on. Probe asks once; nil is yes.
	Is    string
	Probe func(ctx context.Context) error
	// Inter is the time between the starts of two probes, Timeout bounds one.
	Inter, Timeout time.Duration
	// So many successes or failures in a row change what is believed. The
	// first of all decides alone.
	Rise, Fall int
	// Weight is what a failed track takes off the node's claim to hold; zero
	// bars it from holding.
	Weight int
}

// A Claim is what the tracks say about this node as holder.
type Claim struct {
	// Barred is why it should not hold while another can; empty if it may.
	Barred string
	// Lowered is how much less it is wanted than its priority says.
	Lowered int
}

// Status is what is known of one track.
type Status struct {
	Name   string    `json:"name"`
	OK     bool      `json:"ok"`
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since"`
	// Checked is null until a probe has ended.
	Checked *time.Time `json:"checked"`
	Weight  int        `json:"weight,omitempty"`
}

// Config is what a Tracker needs.
type Config struct {
	// Changed is called with each new claim, one call at a time. It must not
	// block.
	Changed func(Claim)
	Log     *slog.Logger // nil means slog.Default()
}

// A Tracker asks its tracks, each in a goroutine of its own, which Run waits for.
type Tracker struct {
	cfg   Config
	loops sync.WaitGroup
	wake  chan struct{} // the tracks are others

	mu     sync.Mutex
	wanted []Track
	asked  map[string]*asked
	claim  Claim
}

// asked is a track and what is known of it. Guarded by Tracker.mu.
type asked struct {
	track     Track
	stop      context.CancelFunc
	status    Status
	good, bad int
}

// New makes a Tracker without tracks.
func New(cfg Config) *Tracker {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Tracker{cfg: cfg, wake: make(chan struct{}, 1), asked: make(map[string]*asked)}
}

// Set replaces the tracks; their names differ. Those that are unchanged go on.
func (t *Tracker) Set(tracks []Track) {
	t.mu.Lock()
	t.wanted = slices.Clone(tracks)
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// Run asks until ctx ends.
func (t *Tracker) Run(ctx context.Context) error {
	defer t.loops.Wait()
	for {
		t.adopt(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-t.wake:
		}
	}
}

// adopt starts and stops loops so that exactly the wanted tracks are asked. One
// that changes keeps what is believed of it.
func (t *Tracker) adopt(ctx context.Context) {
	t.mu.Lock()
	want := make(map[string]bool)
	for _, track := range t.wanted {
		want[track.Name] = true
		old := t.asked[track.Name]
		if old != nil && same(old.track, track) {
			continue
		}
		next := &asked{track: track, status: Status{Name: track.Name, OK: true, Reason: "not asked yet", Since: time.Now()}}
		if old != nil {
			old.stop()
			next.status = old.status
		}
		next.status.Weight = track.Weight
		var loop context.Context
		loop, next.stop = context.WithCancel(ctx)
		t.asked[track.Name] = next
		t.loops.Go(func() { t.ask(loop, next) })
	}
	for name, a := range t.asked {
		if !want[name] {
			a.stop()
			delete(t.asked, name)
		}
	}
	t.tell()
	t.mu.Unlock()
}

func same(a, b Track) bool {
	a.Probe, b.Probe = nil, nil
	return reflect.DeepEqual(a, b)
}

// ask probes one track until ctx ends.
func (t *Tracker) ask(ctx context.Context, a *asked) {
	for {
		began := time.Now()
		once, cancel := context.WithTimeout(ctx, a.track.Timeout)
		err := a.track.Probe(once)
		if err != nil && once.Err() != nil && errors.Is(err, once.Err()) {
			err = fmt.Errorf("no answer within %s", a.track.Timeout)
		}
		cancel()
		if ctx.Err() != nil {
			return // the probe was cut short, so it says nothing
		}
		t.observe(a, began, err)
		// Spread, so that the probes of many nodes do not beat in time.
		pause := time.Duration(float64(a.track.Inter) * (0.9 + 0.2*rand.Float64()))
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(began.Add(pause))):
		}
	}
}

func (t *Tracker) observe(a *asked, began time.Time, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.asked[a.track.Name] != a {
		return
	}
	first := a.status.Checked == nil
	a.status.Checked = &began
	was := a.status.OK
	if err == nil {
		a.good, a.bad = a.good+1, 0
		a.status.OK = was || first || a.good >= a.track.Rise
	} else {
		a.good, a.bad = 0, a.bad+1
		a.status.OK = was && !first && a.bad < a.track.Fall
	}
	switch {
	case err == nil && a.status.OK:
		a.status.Reason = ""
	case err != nil && !a.status.OK:
		a.status.Reason = err.Error()
	}
	if a.status.OK == was {
		return
	}
	a.status.Since = time.Now()
	if a.status.OK {
		t.cfg.Log.Info("track succeeds again", "track", a.track.Name)
	} else {
		t.cfg.Log.Warn("track fails", "track", a.track.Name, "reason", err, "effect", a.track.effect())
	}
	t.tell()
}

func (t Track) effect() string {
	if t.Weight == 0 {
		return "this node does not hold while another can"
	}
	return fmt.Sprintf("this node's claim to hold is lower by %d", t.Weight)
}

// tell hands on the claim if it is another one. Called with mu held, so that
// claims are told in order.
func (t *Tracker) tell() {
	var c Claim
	var barred []string
	for _, a := range t.asked {
		switch {
		case a.status.OK:
		case a.track.Weight == 0:
			barred = append(barred, a.track.Name)
		default:
			c.Lowered += a.track.Weight
		}
	}
	if slices.Sort(barred); len(barred) > 0 {
		c.Barred = "failed tracks: " + strings.Join(barred, ", ")
	}
	if c != t.claim {
		t.claim = c
		t.cfg.Changed(c)
	}
}

// Status is what is known of each track, by name.
func (t *Tracker) Status() []Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]Status, 0, len(t.asked))
	for _, a := range t.asked {
		all = append(all, a.status)
	}
	slices.SortFunc(all, func(a, b Status) int { return cmp.Compare(a.Name, b.Name) })
	return all
}
