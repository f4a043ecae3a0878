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
)

// refusals is a plane with refusals watched, and what they report.
func (w *world) refusals(again Again) (p balancer.Plane, reports <-chan balancer.Target) {
	w.t.Helper()
	told := make(chan balancer.Target, 100)
	r := NewRefusals(func(t balancer.Target) { told <- t }, nil)
	p = r.Watch(w.newNAT(), again)
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
	return p, told
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

// A backend whose server is gone is reported by the first client, and no client
// fails by it, wherever the backend and the client are.
func TestRefusedClientGetsToAnotherBackend(t *testing.T) {
	w := newWorld(t)
	p, reports := w.refusals(AgainByNAT)
	w.backends[1].serve("b2", ":6443")
	for _, dead := range []*machine{w.backends[0], w.node} {
		for _, f := range families() {
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

// Where there is no other backend, or a plane cannot have it, the client is refused.
func TestRefusedClientWithoutAnotherBackend(t *testing.T) {
	w := newWorld(t)
	for _, again := range []Again{AgainByNAT, Refused} {
		p, reports := w.refusals(again)
		for _, f := range families() {
			s := w.service(f, w.backends[0])
			if again == Refused {
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

// What this node asks of a backend itself, as checks do, is nobody's refusal.
func TestRefusedCheckIsNotReported(t *testing.T) {
	w := newWorld(t)
	p, reports := w.refusals(AgainByNAT)
	for _, f := range families() {
		w.serveBy(p, w.service(f, w.backends[0], w.backends[1]))
		to := w.service(f, w.backends[0]).Backends[0].Addr
		for _, c := range []*machine{w.node, w.client} {
			if _, err := c.dial(to); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s: got %v, want a refusal", c.name, err)
			}
		}
	}
	// The first that is reported is the first of a client.
	s := w.service(ipv4(), w.backends[2])
	w.serveBy(p, s)
	if _, err := w.client.dial(s.Frontend); err == nil {
		t.Error("somebody listens")
	}
	awaitReport(t, reports, balancer.Target{LoadBalancer: "api", Backend: s.Backends[0].Addr})
}

// A backend that goes on refusing is told again, less and less often.
func TestRefusalsAreToldAgain(t *testing.T) {
	w := newWorld(t)
	p, reports := w.refusals(Refused)
	s := w.service(ipv4(), w.backends[0])
	w.serveBy(p, s)
	var told []time.Time
	for end := time.Now().Add(patience); len(told) < 3; {
		if time.Now().After(end) {
			t.Fatalf("told %d times in %v", len(told), patience)
		}
		if _, err := w.client.dial(s.Frontend); err == nil {
			t.Fatal("somebody listens")
		}
		select {
		case <-reports:
			told = append(told, time.Now())
		case <-time.After(20 * time.Millisecond):
		}
	}
	if first, second := told[1].Sub(told[0]), told[2].Sub(told[1]); first < shyLeast/2 || second < shyLeast*3/2 {
		t.Errorf("told again after %v and after %v", first, second)
	}
}

// What was used up before anybody listened is told all the same.
func TestRefusalsBeforeRun(t *testing.T) {
	w := newWorld(t)
	told := make(chan balancer.Target, 100)
	r := NewRefusals(func(t balancer.Target) { told <- t }, nil)
	s := w.service(ipv4(), w.backends[0])
	w.serveBy(r.Watch(w.newNAT(), Refused), s)
	if _, err := w.client.dial(s.Frontend); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, want a refusal", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go w.node.in(func() { done <- r.Run(ctx) })
	awaitReport(t, told, balancer.Target{LoadBalancer: "api", Backend: s.Backends[0].Addr})
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

// A table that the kernel does not take is said once, and harms nobody.
func TestRefusalsThatCannotBe(t *testing.T) {
	var text bytes.Buffer
	r := NewRefusals(nil, slog.New(slog.NewTextHandler(&text, nil)))
	for _, err := range []error{errors.New("no quota"), errors.New("no quota"), nil, nil} {
		r.say(err)
	}
	if got := text.String(); strings.Count(got, "no quota") != 1 || strings.Count(got, "\n") != 2 {
		t.Errorf("said\n%s", got)
	}
}
