package nft

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/nft/ruleset"
)

// monitored is a plane with its backends monitored, and what the monitor reports.
func (w *world) monitored(retry Retry) (p balancer.Plane, reports <-chan balancer.Target) {
	w.t.Helper()
	reported := make(chan balancer.Target, 100)
	r := NewResetMonitor(func(t balancer.Target) { reported <- t }, nil, nil)
	p = r.Monitor(w.newNAT(), retry)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		w.node.in(func() {
			close(started)
			done <- r.Run(ctx)
		})
	}()
	<-started
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
		w.node.in(func() {
			if err := r.Close(); err != nil {
				w.t.Error(err)
			}
		})
	})
	return p, reported
}

func (w *world) serveBy(p balancer.Plane, services ...balancer.Service) {
	w.t.Helper()
	w.node.in(func() {
		if _, err := p.Apply(context.Background(), services); err != nil {
			w.t.Fatal(err)
		}
	})
}

func awaitReport(t *testing.T, reports <-chan balancer.Target, want balancer.Target) {
	t.Helper()
	select {
	case got := <-reports:
		if got != want {
			t.Errorf("reported %v, want %v", got, want)
		}
	case <-time.After(patience):
		t.Errorf("%v has not been reported", want)
	}
}

// The first client of a backend whose server is gone makes the monitor report it, and
// no client fails, wherever the backend and the client are.
func TestRefusedClientGetsToAnotherBackend(t *testing.T) {
	w := newWorld(t)
	p, reports := w.monitored(RetryByNAT)
	w.backends[1].serve("b2", ":6443")
	for _, dead := range []*machine{w.backends[0], w.node} {
		for _, f := range ruleset.Families() {
			for _, c := range w.clients() {
				s := w.service(f, dead, w.backends[1])
				w.serveBy(p) // a new quota
				w.serveBy(p, s)
				for range 4 { // in turns; the second attempt meets the other
					if got := c.ask(s.Frontend); got != "b2" {
						t.Errorf("%s was served by %s", c.name, got)
					}
				}
				awaitReport(t, reports, balancer.Target{LoadBalancer: "api", Backend: s.Backends[0].Addr})
				select {
				case got := <-reports:
					t.Errorf("reported %v again, at once", got)
				default:
				}
			}
		}
	}
}

// The client is refused where there is no other backend, or a plane cannot make it try
// again.
func TestRefusedClientWithoutAnotherBackend(t *testing.T) {
	w := newWorld(t)
	for _, again := range []Retry{RetryByNAT, NoRetry} {
		p, reports := w.monitored(again)
		for _, f := range ruleset.Families() {
			s := w.service(f, w.backends[0])
			if again == NoRetry {
				s = w.service(f, w.backends[0], w.backends[2])
			}
			for _, c := range w.clients() {
				w.serveBy(p)
				w.serveBy(p, s)
				if _, err := c.dial(s.Frontend); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%s: got %v, want a refusal", c.name, err)
				}
				select {
				case <-reports:
				case <-time.After(patience):
					t.Errorf("%s was refused, and it was not reported", c.name)
				}
			}
		}
		w.serveBy(p)
	}
}

// Connections of this node itself to a backend, as checks make them, are not reported.
func TestRefusedCheckIsNotReported(t *testing.T) {
	w := newWorld(t)
	p, reports := w.monitored(RetryByNAT)
	for _, f := range ruleset.Families() {
		w.serveBy(p, w.service(f, w.backends[0], w.backends[1]))
		to := w.service(f, w.backends[0]).Backends[0].Addr
		for _, c := range []*machine{w.node, w.client} {
			if _, err := c.dial(to); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s: got %v, want a refusal", c.name, err)
			}
		}
	}
	// The first report is for a client.
	s := w.service(ruleset.IPv4(), w.backends[2])
	w.serveBy(p, s)
	if _, err := w.client.dial(s.Frontend); err == nil {
		t.Error("somebody listens")
	}
	awaitReport(t, reports, balancer.Target{LoadBalancer: "api", Backend: s.Backends[0].Addr})
}

// A backend that goes on refusing is reported again, less and less often.
func TestRefusalsAreReportedAgain(t *testing.T) {
	w := newWorld(t)
	p, reports := w.monitored(NoRetry)
	s := w.service(ruleset.IPv4(), w.backends[0])
	w.serveBy(p, s)
	var reported []time.Time
	for end := time.Now().Add(patience); len(reported) < 3; {
		if time.Now().After(end) {
			t.Fatalf("reported %d times in %v", len(reported), patience)
		}
		if _, err := w.client.dial(s.Frontend); err == nil {
			t.Fatal("somebody listens")
		}
		select {
		case <-reports:
			reported = append(reported, time.Now())
		case <-time.After(20 * time.Millisecond):
		}
	}
	first, second := reported[1].Sub(reported[0]), reported[2].Sub(reported[1])
	if first < minWait/2 || second < minWait*3/2 {
		t.Errorf("reported again after %v and after %v", first, second)
	}
}

// A quota that was used up before Run is reported, too.
func TestRefusalsBeforeRun(t *testing.T) {
	w := newWorld(t)
	reported := make(chan balancer.Target, 100)
	r := NewResetMonitor(func(t balancer.Target) { reported <- t }, nil, nil)
	s := w.service(ruleset.IPv4(), w.backends[0])
	w.serveBy(r.Monitor(w.newNAT(), NoRetry), s)
	if _, err := w.client.dial(s.Frontend); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, want a refusal", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go w.node.in(func() { done <- r.Run(ctx) })
	awaitReport(t, reported, balancer.Target{LoadBalancer: "api", Backend: s.Backends[0].Addr})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	w.node.in(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A table that the kernel does not take is logged once, and nothing else fails.
func TestResetRulesThatTheKernelRejects(t *testing.T) {
	var text bytes.Buffer
	r := NewResetMonitor(nil, slog.New(slog.NewTextHandler(&text, nil)), nil)
	for _, err := range []error{errors.New("no quota"), errors.New("no quota"), nil, nil} {
		r.logProblem(err)
	}
	if got := text.String(); strings.Count(got, "no quota") != 1 || strings.Count(got, "\n") != 2 {
		t.Errorf("said\n%s", got)
	}
}
