package hook

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// What can happen.
const (
	Holder      = "holder"       // this node has begun to answer for the VIPs
	Released    = "released"     // it has stopped
	BackendUp   = "backend-up"   // a backend gets connections again
	BackendDown = "backend-down" // it does not any more
)

// An Event is something that has happened.
type Event struct {
	Name string    `json:"event"`
	Time time.Time `json:"time"`
	Node string    `json:"node"`
	// Of backend-up and backend-down.
	LoadBalancer string `json:"loadBalancer,omitempty"`
	Backend      string `json:"backend,omitempty"`
	Reason       string `json:"reason,omitempty"`
}

// Env is e as environment variables of a program.
func (e Event) Env() []string {
	return []string{
		"APPLIANCE_EVENT=" + e.Name, "APPLIANCE_TIME=" + e.Time.UTC().Format(time.RFC3339Nano), "APPLIANCE_NODE=" + e.Node,
		"APPLIANCE_LOAD_BALANCER=" + e.LoadBalancer, "APPLIANCE_BACKEND=" + e.Backend, "APPLIANCE_REASON=" + e.Reason,
	}
}

// A Hook is somebody to tell.
type Hook struct {
	// Name stands in the log.
	Name string
	// On are the names of the events that it wants.
	On      []string
	Timeout time.Duration
	// Do tells it of one event. It ends when ctx does.
	Do func(ctx context.Context, e Event) error
}

const (
	// queueLength is how many events may wait for one hook. Half a minute of a
	// link that flaps is some dozens.
	queueLength = 100
	// lastWords is how long hooks may take after the end, for the event that
	// says that this node has stopped.
	lastWords = 5 * time.Second
)

// Hooks tells each hook of its events, in their order and one at a time. Nobody
// who has an event waits: what does not fit into a hook's queue is dropped and
// counted.
type Hooks struct {
	log     *slog.Logger
	wake    chan struct{}
	workers sync.WaitGroup

	told, failed, dropped atomic.Uint64

	mu     sync.Mutex
	queues []*queue
	fresh  []*queue // not served yet
}

// queue is the way to one hook.
type queue struct {
	hook    Hook
	events  chan Event
	closed  chan struct{} // the hook is no longer wanted
	dropped uint64        // since the last line in the log; guarded by Hooks.mu
}

// New makes Hooks without hooks; a nil log means slog.Default().
func New(log *slog.Logger) *Hooks {
	if log == nil {
		log = slog.Default()
	}
	return &Hooks{log: log, wake: make(chan struct{}, 1)}
}

// Set replaces the hooks. What waits for the old ones is still told.
func (h *Hooks) Set(hooks []Hook) {
	h.mu.Lock()
	for _, q := range h.queues {
		close(q.closed)
	}
	h.queues = nil
	for _, hook := range hooks {
		q := &queue{hook: hook, events: make(chan Event, queueLength), closed: make(chan struct{})}
		h.queues, h.fresh = append(h.queues, q), append(h.fresh, q)
	}
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// Tell has the hooks told of e soon. It never waits.
func (h *Hooks) Tell(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, q := range h.queues {
		if !slices.Contains(q.hook.On, e.Name) {
			continue
		}
		select {
		case q.events <- e:
			if q.dropped > 0 {
				h.log.Warn("hook is told of events again", "hook", q.hook.Name, "dropped", q.dropped)
				q.dropped = 0
			}
		default:
			h.dropped.Add(1)
			if q.dropped++; q.dropped == 1 {
				h.log.Warn("hook is too slow, and is not told of every event; make it faster, or its timeout shorter", "hook", q.hook.Name)
			}
		}
	}
}

// Counts are how many times hooks were told, failed, and not told.
func (h *Hooks) Counts() (told, failed, dropped uint64) {
	return h.told.Load(), h.failed.Load(), h.dropped.Load()
}

// Run tells until ctx ends, and a little longer of what has happened before.
func (h *Hooks) Run(ctx context.Context) error {
	defer h.workers.Wait()
	after, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer context.AfterFunc(ctx, func() { time.AfterFunc(lastWords, cancel) })()
	for {
		h.mu.Lock()
		fresh := h.fresh
		h.fresh = nil
		h.mu.Unlock()
		for _, q := range fresh {
			h.workers.Go(func() { h.serve(ctx, after, q) })
		}
		select {
		case <-ctx.Done():
			h.workers.Wait()
			cancel()
			return nil
		case <-h.wake:
		}
	}
}

// serve tells one hook. After ctx or the hook's time it only empties the queue.
func (h *Hooks) serve(ctx, after context.Context, q *queue) {
	for {
		select {
		case e := <-q.events:
			h.do(after, q.hook, e)
			continue
		default:
		}
		select {
		case e := <-q.events:
			h.do(after, q.hook, e)
		case <-ctx.Done():
			if len(q.events) == 0 {
				return
			}
		case <-q.closed:
			if len(q.events) == 0 {
				return
			}
		}
	}
}

func (h *Hooks) do(ctx context.Context, hook Hook, e Event) {
	if ctx.Err() != nil {
		h.dropped.Add(1)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, hook.Timeout)
	defer cancel()
	if err := hook.Do(ctx, e); err != nil {
		h.failed.Add(1)
		h.log.Warn("hook failed", "hook", hook.Name, "event", e.Name, "error", err)
		return
	}
	h.told.Add(1)
	h.log.Debug("hook was told", "hook", hook.Name, "event", e.Name)
}

// Webhook posts events as JSON to url. Any answer but a success is an error;
// redirects are not followed, because a request that says what happens here is
// not for whoever somebody else names.
func Webhook(url string) func(ctx context.Context, e Event) error {
	client := &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		// Events are rare: a connection that is kept would mostly be dead.
		Transport: &http.Transport{DisableKeepAlives: true, Proxy: http.ProxyFromEnvironment},
	}
	return func(ctx context.Context, e Event) error {
		body, err := json.Marshal(e)
		if err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("User-Agent", "appliance")
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if _, err := io.CopyN(io.Discard, resp.Body, 64<<10); err != nil && err != io.EOF {
			return fmt.Errorf("answer: %w", err)
		}
		if resp.StatusCode >= 300 {
			return fmt.Errorf("answered %s; give a URL that takes POST", resp.Status)
		}
		return nil
	}
}
