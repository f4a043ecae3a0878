package hook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// ear is a hook that writes down what it is told.
type ear struct {
	mu    sync.Mutex
	heard []string
	takes time.Duration
	err   error
}

func (e *ear) do(ctx context.Context, ev Event) error {
	select {
	case <-time.After(e.takes):
	case <-ctx.Done():
		return ctx.Err()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.heard = append(e.heard, ev.Name+ev.Backend)
	return e.err
}

func (e *ear) got() string {
	synctest.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(e.heard, " ")
}

// text is a log that may be read while it is written.
type text struct {
	mu sync.Mutex
	b  strings.Builder
}

func (t *text) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.Write(p)
}

func (t *text) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.String()
}

func run(t *testing.T, test func(h *Hooks, stop func(), log *text)) {
	synctest.Test(t, func(t *testing.T) {
		var log text
		h := New(slog.New(slog.NewTextHandler(&log, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- h.Run(ctx) }()
		stopped := false
		stop := func() {
			if cancel(); !stopped {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
			stopped = true
		}
		test(h, stop, &log)
		stop()
	})
}

func TestToldInOrder(t *testing.T) {
	run(t, func(h *Hooks, _ func(), _ *text) {
		fast, slow := &ear{}, &ear{takes: time.Second}
		h.Set([]Hook{
			{Name: "fast", On: []string{Holder, Released}, Timeout: time.Minute, Do: fast.do},
			{Name: "slow", On: []string{Holder, BackendDown}, Timeout: time.Minute, Do: slow.do},
		})
		for _, e := range []Event{{Name: Holder}, {Name: BackendDown, Backend: "1"}, {Name: Released}, {Name: Holder}} {
			h.Tell(e)
		}
		if got := fast.got(); got != "holder released holder" {
			t.Error(got)
		}
		time.Sleep(5 * time.Second)
		if got := slow.got(); got != "holder backend-down1 holder" {
			t.Error(got)
		}
		// Those that waited for a hook that is gone are still told.
		h.Tell(Event{Name: Holder})
		h.Tell(Event{Name: BackendDown, Backend: "2"})
		h.Set(nil)
		h.Tell(Event{Name: Holder})
		time.Sleep(5 * time.Second)
		if got := slow.got(); got != "holder backend-down1 holder holder backend-down2" {
			t.Error(got)
		}
	})
}

// A hook that hangs holds up nobody, and its queue does not grow for ever.
func TestNeverInTheWay(t *testing.T) {
	run(t, func(h *Hooks, _ func(), log *text) {
		hangs, other := &ear{takes: time.Hour}, &ear{}
		h.Set([]Hook{
			{Name: "hangs", On: []string{BackendUp}, Timeout: time.Second, Do: hangs.do},
			{Name: "other", On: []string{BackendUp}, Timeout: time.Second, Do: other.do},
		})
		synctest.Wait()
		began := time.Now()
		for i := range 1000 {
			h.Tell(Event{Name: BackendUp, Backend: fmt.Sprint(i)})
			synctest.Wait()
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("waited %v for hooks", took)
		}
		if n := len(strings.Fields(other.got())); n != 1000 {
			t.Errorf("the other hook was told %d times", n)
		}
		if _, _, dropped := h.Counts(); dropped != 1000-1-queueLength {
			t.Errorf("dropped %d", dropped)
		}
		time.Sleep(3 * time.Second)
		if _, failed, _ := h.Counts(); failed < 2 || failed > 4 {
			t.Errorf("failed %d times in 3 s", failed)
		}
		if n := strings.Count(log.String(), "too slow"); n != 1 {
			t.Errorf("logged %d times", n)
		}
	})
}

// The last event is the one that says that the end has come.
func TestLastWords(t *testing.T) {
	run(t, func(h *Hooks, stop func(), _ *text) {
		slow, hangs := &ear{takes: time.Second}, &ear{takes: time.Hour}
		h.Set([]Hook{
			{Name: "slow", On: []string{Released}, Timeout: time.Minute, Do: slow.do},
			{Name: "hangs", On: []string{Released}, Timeout: time.Minute, Do: hangs.do},
		})
		synctest.Wait()
		h.Tell(Event{Name: Released})
		began := time.Now()
		stop()
		if took := time.Since(began); took != lastWords || slow.got() != "released" {
			t.Errorf("%q after %v", slow.got(), took)
		}
	})
}

func TestFailureIsLogged(t *testing.T) {
	run(t, func(h *Hooks, _ func(), log *text) {
		bad := &ear{err: errors.New("exit status 1")}
		h.Set([]Hook{{Name: "bad", On: []string{Holder}, Timeout: time.Second, Do: bad.do}})
		h.Tell(Event{Name: Holder})
		if bad.got(); !strings.Contains(log.String(), "exit status 1") {
			t.Error(log.String())
		}
	})
}

func TestWebhook(t *testing.T) {
	var mu sync.Mutex
	var got []string
	asked := func() []string {
		mu.Lock()
		defer mu.Unlock()
		return got
	}
	seen := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		got = append(got, r.Method+" "+r.URL.Path+" "+string(body))
		mu.Unlock()
		switch r.URL.Path {
		case "/elsewhere":
			http.Redirect(w, r, "/", http.StatusTemporaryRedirect)
		case "/broken":
			http.Error(w, "no", http.StatusInternalServerError)
		case "/hangs":
			close(seen)
			<-r.Context().Done()
		}
	}))
	defer s.Close()
	e := Event{Name: BackendDown, Time: time.Unix(0, 0).UTC(), Node: "p1", LoadBalancer: "api", Backend: "cp1", Reason: "refuses"}
	if err := Webhook(s.URL+"/")(t.Context(), e); err != nil {
		t.Error(err)
	}
	want := `POST / {"event":"backend-down","time":"1970-01-01T00:00:00Z","node":"p1","loadBalancer":"api","backend":"cp1","reason":"refuses"}`
	if got := asked(); len(got) != 1 || got[0] != want {
		t.Errorf("posted %q", got)
	}
	for _, path := range []string{"/elsewhere", "/broken"} {
		if err := Webhook(s.URL+path)(t.Context(), e); err == nil {
			t.Errorf("%s is taken", path)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-seen
		cancel()
	}()
	if err := Webhook(s.URL+"/hangs")(ctx, e); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if got := asked(); len(got) != 4 {
		t.Errorf("%d requests, so a redirect was followed: %q", len(got), got)
	}
}
