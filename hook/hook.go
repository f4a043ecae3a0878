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

// The events.
const (
	Holder      = "holder"       // this node has begun to answer for the VIPs
	Released    = "released"     // it has stopped that
	Fault       = "fault"        // this node cannot hold as it is, or nobody can; Reason says why
	Recovered   = "recovered"    // the fault is over
	Stopped     = "stopped"      // this node was told to stop; after released, if it held
	BackendUp   = "backend-up"   // a backend gets connections again
	BackendDown = "backend-down" // it does not any more
)

// A Notice is one event, as receivers get it.
type Notice struct {
	Name string    `json:"event"` // one of the constants above
	Time time.Time `json:"time"`
	Node string    `json:"node"`
	// LoadBalancer and Backend are empty but for backend-up and backend-down, Reason but for these and fault.
	LoadBalancer string `json:"loadBalancer,omitempty"`
	Backend      string `json:"backend,omitempty"`
	Reason       string `json:"reason,omitempty"`
}

// Env is n as environment variables of a program.
func (n Notice) Env() []string {
	return []string{
		"APPLIANCE_EVENT=" + n.Name,
		"APPLIANCE_TIME=" + n.Time.UTC().Format(time.RFC3339Nano),
		"APPLIANCE_NODE=" + n.Node,
		"APPLIANCE_LOAD_BALANCER=" + n.LoadBalancer,
		"APPLIANCE_BACKEND=" + n.Backend,
		"APPLIANCE_REASON=" + n.Reason,
	}
}

// A Receiver is a program or URL that gets notices.
type Receiver struct {
	// Name stands in the log.
	Name string
	// On lists the names of the events that it wants.
	On      []string
	Timeout time.Duration
	// Do delivers one notice. It returns when ctx ends.
	Do func(ctx context.Context, n Notice) error
}

const (
	// queueLength is how many notices may wait for one receiver. A link that flaps for half a minute makes some dozens.
	queueLength = 100
	// finalWithin is how long receivers may take after Run's context has ended, for the notice that this node has
	// stopped.
	finalWithin = 5 * time.Second
)

// A Dispatcher delivers notices to each receiver in order and one at a time. Who sends one never waits: what does not
// fit into a receiver's queue is dropped and counted.
type Dispatcher struct {
	log     *slog.Logger
	wake    chan struct{} // fresh has changed
	workers sync.WaitGroup

	delivered, failed, dropped atomic.Uint64

	mu     sync.Mutex
	queues []*queue
	fresh  []*queue // not served yet
}

// A queue leads to one receiver.
type queue struct {
	receiver Receiver
	notices  chan Notice
	closed   chan struct{} // the receiver is no longer wanted
	dropped  uint64        // since the last line in the log; Dispatcher.mu guards it
}

// New makes a Dispatcher without receivers; a nil log means slog.Default().
func New(log *slog.Logger) *Dispatcher {
	if log == nil {
		log = slog.Default()
	}
	return &Dispatcher{log: log, wake: make(chan struct{}, 1)}
}

// Set replaces the receivers. Notices that wait for the old ones are still delivered.
func (d *Dispatcher) Set(receivers []Receiver) {
	d.mu.Lock()
	for _, q := range d.queues {
		close(q.closed)
	}
	d.queues = nil
	for _, r := range receivers {
		q := &queue{receiver: r, notices: make(chan Notice, queueLength), closed: make(chan struct{})}
		d.queues, d.fresh = append(d.queues, q), append(d.fresh, q)
	}
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Send queues n for every receiver that wants it. It never waits.
func (d *Dispatcher) Send(n Notice) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, q := range d.queues {
		if !slices.Contains(q.receiver.On, n.Name) {
			continue
		}
		select {
		case q.notices <- n:
			if q.dropped > 0 {
				d.log.Warn("hook gets events again", "hook", q.receiver.Name, "dropped", q.dropped)
				q.dropped = 0
			}
		default:
			d.dropped.Add(1)
			if q.dropped++; q.dropped == 1 {
				d.log.Warn("hook is too slow and misses events; make it faster, or its timeout shorter",
					"hook", q.receiver.Name)
			}
		}
	}
}

// Counts are how many notices were delivered, failed and dropped, of all receivers.
func (d *Dispatcher) Counts() (delivered, failed, dropped uint64) {
	return d.delivered.Load(), d.failed.Load(), d.dropped.Load()
}

// Run delivers until ctx ends, and for finalWithin more what was sent before.
func (d *Dispatcher) Run(ctx context.Context) error {
	after, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer context.AfterFunc(ctx, func() { time.AfterFunc(finalWithin, cancel) })()
	for {
		d.mu.Lock()
		fresh := d.fresh
		d.fresh = nil
		d.mu.Unlock()
		for _, q := range fresh {
			d.workers.Go(func() { d.serve(ctx, after, q) })
		}
		select {
		case <-ctx.Done():
			d.workers.Wait()
			cancel()
			return nil
		case <-d.wake:
		}
	}
}

// serve delivers to one receiver. Once ctx has ended or the receiver is no longer wanted, it only empties the queue.
func (d *Dispatcher) serve(ctx, after context.Context, q *queue) {
	for {
		select {
		case n := <-q.notices:
			d.deliver(after, q.receiver, n)
			continue
		default:
		}
		select {
		case n := <-q.notices:
			d.deliver(after, q.receiver, n)
		case <-ctx.Done():
			if len(q.notices) == 0 {
				return
			}
		case <-q.closed:
			if len(q.notices) == 0 {
				return
			}
		}
	}
}

func (d *Dispatcher) deliver(ctx context.Context, r Receiver, n Notice) {
	if ctx.Err() != nil {
		d.dropped.Add(1)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	if err := r.Do(ctx, n); err != nil {
		d.failed.Add(1)
		d.log.Warn("hook failed", "hook", r.Name, "event", n.Name, "error", err)
		return
	}
	d.delivered.Add(1)
	d.log.Debug("hook succeeded", "hook", r.Name, "event", n.Name)
}

// Webhook posts notices as JSON to url. Every answer but a success (2xx) is an error. It follows no redirects: what
// happens here is not for a host that somebody else names.
func Webhook(url string) func(ctx context.Context, n Notice) error {
	client := &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		// Events are rare: a connection that is kept open would mostly be dead.
		Transport: &http.Transport{DisableKeepAlives: true, Proxy: http.ProxyFromEnvironment},
	}
	return func(ctx context.Context, n Notice) error {
		body, err := json.Marshal(n)
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
