package track

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// world is a Tracker in a bubble, with probes that answer as the test says.
type world struct {
	*Tracker
	mu       sync.Mutex
	err      map[string]error
	probed   map[string]int
	verdicts []Verdict
	log      strings.Builder
}

func (w *world) set(name string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err[name] = err
}

func (w *world) count(name string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.probed[name]
}

func (w *world) track(name string, weight int) Condition {
	probe := func(ctx context.Context) error {
		w.mu.Lock()
		w.probed[name]++
		err := w.err[name]
		w.mu.Unlock()
		if err == errHangs {
			<-ctx.Done()
			return ctx.Err()
		}
		return err
	}
	return Condition{
		Name: name, Inter: time.Second, Timeout: time.Second, Rise: 2, Fall: 3, Weight: weight, Probe: probe,
	}
}

var (
	errHangs = errors.New("hangs")
	errNo    = errors.New("no route")
	errShort = errors.New("too many open files")
)

// last is the newest verdict, and how many there were.
func (w *world) last() string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.verdicts) == 0 {
		return "none"
	}
	return fmt.Sprintf("%d: %+v", len(w.verdicts), w.verdicts[len(w.verdicts)-1])
}

func run(t *testing.T, test func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{err: make(map[string]error), probed: make(map[string]int)}
		w.Tracker = New(Config{
			Inconclusive: func(err error) bool { return err == errShort },
			Log:          slog.New(slog.NewTextHandler(&w.log, nil)),
			Changed: func(v Verdict) {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.verdicts = append(w.verdicts, v)
			},
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		synctest.Wait()
		test(w)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// What this host is short of says nothing about a condition.
func TestInconclusive(t *testing.T) {
	run(t, func(w *world) {
		w.Set([]Condition{w.track("uplink", 0), w.track("disk", 0)})
		w.set("disk", errNo)
		time.Sleep(10 * time.Second)
		before := w.last()
		w.set("uplink", errShort)
		w.set("disk", errShort)
		time.Sleep(time.Minute)
		if got := w.last(); got != before || w.count("uplink") < 60 {
			t.Errorf("%s after %s, probed %d times", got, before, w.count("uplink"))
		}
	})
}

func TestVerdict(t *testing.T) {
	run(t, func(w *world) {
		w.set("uplink", errNo) // the first probe decides alone
		w.Set([]Condition{w.track("uplink", 0), w.track("load", 20), w.track("disk", 5)})
		if got := w.last(); got != "1: {Barred:failed tracks: uplink Lowered:0}" {
			t.Error(got)
		}
		w.set("uplink", nil)
		time.Sleep(3500 * time.Millisecond) // rise 2
		if got := w.last(); got != "2: {Barred: Lowered:0}" {
			t.Error(got)
		}
		w.set("load", errNo)
		time.Sleep(1500 * time.Millisecond) // one or two failures of three
		if got := w.last(); got != "2: {Barred: Lowered:0}" {
			t.Error(got)
		}
		time.Sleep(3 * time.Second)
		w.set("disk", errNo)
		time.Sleep(5 * time.Second)
		if got := w.last(); got != "4: {Barred: Lowered:25}" {
			t.Error(got)
		}
		if n := strings.Count(w.log.String(), "\n"); n != 4 {
			t.Errorf("%d lines for 4 changes:\n%s", n, w.log.String())
		}
		for _, s := range w.Status() {
			if s.OK != (s.Name == "uplink") || s.Checked == nil {
				t.Errorf("%+v", s)
			}
		}
		w.Set(nil)
		if got := w.last(); got != "5: {Barred: Lowered:0}" {
			t.Error(got)
		}
	})
}

// A probe that hangs ends with its timeout, and delays no other.
func TestHanging(t *testing.T) {
	run(t, func(w *world) {
		w.set("a", errHangs)
		w.Set([]Condition{w.track("a", 0), w.track("b", 0)})
		time.Sleep(900 * time.Millisecond)
		if got := w.last(); got != "none" || w.count("b") != 1 {
			t.Errorf("%s, b probed %d times", got, w.count("b"))
		}
		time.Sleep(10 * time.Second)
		if got := w.last(); got != "1: {Barred:failed tracks: a Lowered:0}" || w.count("b") < 9 {
			t.Errorf("%s, b probed %d times", got, w.count("b"))
		}
		if s := w.Status()[0]; s.Reason != "no answer within 1s" {
			t.Errorf("%+v", s)
		}
	})
}

// A reload probes unchanged conditions no sooner, and changed ones keep their state until they have been probed.
func TestSet(t *testing.T) {
	run(t, func(w *world) {
		w.set("b", errNo)
		w.Set([]Condition{w.track("a", 0), w.track("b", 0)})
		synctest.Wait()
		a, b := w.track("a", 0), w.track("b", 0)
		b.Identity = "another"
		w.Set([]Condition{a, b})
		synctest.Wait()
		if w.count("a") != 1 || w.count("b") != 2 {
			t.Errorf("probed %d and %d times, want 1 and 2", w.count("a"), w.count("b"))
		}
		if got := w.last(); got != "1: {Barred:failed tracks: b Lowered:0}" {
			t.Error(got)
		}
		time.Sleep(20 * time.Second)
		if n := w.count("b"); n > 25 {
			t.Errorf("b was probed %d times in 20 s: the old loop goes on", n)
		}
	})
}
