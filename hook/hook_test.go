package hook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// recorder is a receiver that records what it gets.
type recorder struct {
	mu     sync.Mutex
	events []string
	takes  time.Duration
	err    error
}

func (r *recorder) do(ctx context.Context, n Notice) error {
	select {
	case <-time.After(r.takes):
	case <-ctx.Done():
		return ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, n.Name+n.Backend)
	return r.err
}

func (r *recorder) got() string {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.events, " ")
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

func run(t *testing.T, test func(d *Dispatcher, stop func(), log *text)) {
	synctest.Test(t, func(t *testing.T) {
		var log text
		d := New(slog.New(slog.NewTextHandler(&log, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx) }()
		stopped := false
		stop := func() {
			if cancel(); !stopped {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
			stopped = true
		}
		test(d, stop, &log)
		stop()
	})
}

func TestDeliveredInOrder(t *testing.T) {
	run(t, func(d *Dispatcher, _ func(), _ *text) {
		fast, slow := &recorder{}, &recorder{takes: time.Second}
		d.Set([]Receiver{
			{Name: "fast", On: []string{Holder, Released}, Timeout: time.Minute, Do: fast.do},
			{Name: "slow", On: []string{Holder, BackendDown}, Timeout: time.Minute, Do: slow.do},
		})
		for _, n := range []Notice{
			{Name: Holder}, {Name: BackendDown, Backend: "1"}, {Name: Released}, {Name: Holder},
		} {
			d.Send(n)
		}
		if got := fast.got(); got != "holder released holder" {
			t.Error(got)
		}
		time.Sleep(5 * time.Second)
		if got := slow.got(); got != "holder backend-down1 holder" {
			t.Error(got)
		}
		// What waited for a receiver that is gone is still delivered.
		d.Send(Notice{Name: Holder})
		d.Send(Notice{Name: BackendDown, Backend: "2"})
		d.Set(nil)
		d.Send(Notice{Name: Holder})
		time.Sleep(5 * time.Second)
		if got := slow.got(); got != "holder backend-down1 holder holder backend-down2" {
			t.Error(got)
		}
	})
}

// A receiver that hangs delays no other, and its queue is bounded.
func TestSendNeverWaits(t *testing.T) {
	run(t, func(d *Dispatcher, _ func(), log *text) {
		hangs, other := &recorder{takes: time.Hour}, &recorder{}
		d.Set([]Receiver{
			{Name: "hangs", On: []string{BackendUp}, Timeout: time.Second, Do: hangs.do},
			{Name: "other", On: []string{BackendUp}, Timeout: time.Second, Do: other.do},
		})
		synctest.Wait()
		began := time.Now()
		for i := range 1000 {
			d.Send(Notice{Name: BackendUp, Backend: fmt.Sprint(i)})
			synctest.Wait()
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("waited %v for receivers", took)
		}
		if n := len(strings.Fields(other.got())); n != 1000 {
			t.Errorf("the other receiver got %d", n)
		}
		if _, _, dropped := d.Counts(); dropped != 1000-1-queueLength {
			t.Errorf("dropped %d", dropped)
		}
		time.Sleep(3 * time.Second)
		if _, failed, _ := d.Counts(); failed < 2 || failed > 4 {
			t.Errorf("failed %d times in 3 s", failed)
		}
		if n := strings.Count(log.String(), "too slow"); n != 1 {
			t.Errorf("logged %d times", n)
		}
	})
}

// The notice that this node has stopped is delivered after the end.
func TestFinalNotice(t *testing.T) {
	run(t, func(d *Dispatcher, stop func(), _ *text) {
		slow, hangs := &recorder{takes: time.Second}, &recorder{takes: time.Hour}
		d.Set([]Receiver{
			{Name: "slow", On: []string{Released}, Timeout: time.Minute, Do: slow.do},
			{Name: "hangs", On: []string{Released}, Timeout: time.Minute, Do: hangs.do},
		})
		synctest.Wait()
		d.Send(Notice{Name: Released})
		began := time.Now()
		stop()
		if took := time.Since(began); took != finalWithin || slow.got() != "released" {
			t.Errorf("%q after %v", slow.got(), took)
		}
	})
}

func TestFailureIsLogged(t *testing.T) {
	run(t, func(d *Dispatcher, _ func(), log *text) {
		bad := &recorder{err: errors.New("exit status 1")}
		d.Set([]Receiver{{Name: "bad", On: []string{Holder}, Timeout: time.Second, Do: bad.do}})
		d.Send(Notice{Name: Holder})
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
	n := Notice{
		Name: BackendDown, Time: time.Unix(0, 0).UTC(), Node: "p1",
		LoadBalancer: "api", Backend: "cp1", Reason: "refuses",
	}
	if err := Webhook(s.URL+"/")(t.Context(), n); err != nil {
		t.Error(err)
	}
	want := `POST / {"event":"backend-down","time":"1970-01-01T00:00:00Z","node":"p1",` +
		`"loadBalancer":"api","backend":"cp1","reason":"refuses"}`
	if got := asked(); len(got) != 1 || got[0] != want {
		t.Errorf("posted %q", got)
	}
	for _, path := range []string{"/elsewhere", "/broken"} {
		if err := Webhook(s.URL+path)(t.Context(), n); err == nil {
			t.Errorf("%s is taken", path)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-seen
		cancel()
	}()
	if err := Webhook(s.URL+"/hangs")(ctx, n); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if got := asked(); len(got) != 4 {
		t.Errorf("%d requests, so a redirect was followed: %q", len(got), got)
	}
}

// ending is a context that breaks whoever asks for it in Run, once it is broken.
type ending struct {
	context.Context
	broken atomic.Bool
}

func (e *ending) Done() <-chan struct{} {
	at, _, _, _ := runtime.Caller(1)
	if e.broken.Load() && strings.HasSuffix(runtime.FuncForPC(at).Name(), ".Run") {
		panic("broken")
	}
	return e.Context.Done()
}

// A fault in Run ends the process: it does not wait for the deliverers, which go on.
func TestAPanicIsNotHidden(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner, cancel := context.WithCancel(t.Context())
		defer cancel()
		ctx := &ending{Context: inner}
		d := New(nil)
		d.Set([]Receiver{{Name: "a", Timeout: time.Second, Do: new(recorder).do}})
		panicked := make(chan any, 1)
		go func() {
			defer func() { panicked <- recover() }()
			d.Run(ctx)
		}()
		synctest.Wait()
		ctx.broken.Store(true)
		d.wake <- struct{}{}
		synctest.Wait()
		select {
		case why := <-panicked:
			if why == nil {
				t.Error("it did not panic")
			}
		default:
			t.Error("the panic waits for a deliverer to end")
		}
	})
}
