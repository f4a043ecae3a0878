package status

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// maxStreams bounds the listeners of one admin port. Each is a goroutine, a
	// connection and a few kilobytes.
	maxStreams = 256
	// streamPatience is how long one write may take before a reader is cut.
	streamPatience = 10 * time.Second
	// streamIdle is the longest silence on a stream, below what proxies put up with.
	streamIdle = 15 * time.Second
)

// streams are the server-sent event streams of one server.
type streams struct {
	page    *Page
	journal *Journal
	epoch   string // tells the revisions of this life from those of earlier ones
	open    atomic.Int64
}

// An sse writes server-sent events to one listener. It keeps nothing: a slow
// reader gets what is newest when it is ready for more.
type sse struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

func (s *streams) begin(w http.ResponseWriter) (*sse, func(), bool) {
	if s.open.Add(1) > maxStreams {
		s.open.Add(-1)
		w.Header().Set("Retry-After", "10")
		http.Error(w, "too many listeners; close some pages", http.StatusServiceUnavailable)
		return nil, nil, false
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // nginx in front would collect
	return &sse{w, http.NewResponseController(w)}, func() { s.open.Add(-1) }, true
}

func (e *sse) event(name, id string, data []byte) error {
	if err := e.rc.SetWriteDeadline(time.Now().Add(streamPatience)); err != nil {
		return err
	}
	if id != "" {
		id = "id: " + id + "\n"
	}
	// JSON and RFC 3339 have no line breaks, which would end the data.
	_, err := fmt.Fprintf(e.w, "event: %s\n%sdata: %s\n\n", name, id, data)
	return err
}

// live streams the parts of the page that change.
func (s *streams) live(w http.ResponseWriter, r *http.Request) {
	out, end, ok := s.begin(w)
	if !ok {
		return
	}
	defer end()
	defer s.page.watch()()
	epoch, number, _ := strings.Cut(r.URL.Query().Get("revision"), ".")
	revision, err := strconv.ParseUint(number, 10, 64)
	if err != nil || epoch != s.epoch {
		out.event("layout", "", []byte("{}"))
		out.rc.Flush()
		return
	}
	for {
		parts, now, layout, changed := s.page.since(revision)
		if layout {
			out.event("layout", "", []byte("{}"))
			out.rc.Flush()
			return
		}
		for _, one := range parts {
			data, err := json.Marshal(map[string]string{"id": one.ID, "html": string(one.HTML)})
			if err == nil {
				err = out.event("part", "", data)
			}
			if err != nil {
				return
			}
		}
		revision = now
		if out.event("tick", "", []byte(time.Now().UTC().Format(time.RFC3339Nano))) != nil || out.rc.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		}
	}
}

// events streams the journal, from Last-Event-ID or ?since= on.
func (s *streams) events(w http.ResponseWriter, r *http.Request) {
	since, ok := position(w, r)
	if !ok {
		return
	}
	out, end, ok := s.begin(w)
	if !ok {
		return
	}
	defer end()
	for {
		events, changed := s.journal.Since(since)
		for _, e := range events {
			data, err := json.Marshal(e)
			if err == nil {
				err = out.event("event", strconv.FormatUint(e.Seq, 10), data)
			}
			if err != nil {
				return
			}
			since = e.Seq
		}
		if len(events) == 0 {
			if out.rc.SetWriteDeadline(time.Now().Add(streamPatience)) != nil {
				return
			}
			if _, err := fmt.Fprint(w, ": still here\n\n"); err != nil {
				return
			}
		}
		if out.rc.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		case <-time.After(streamIdle):
		}
	}
}

// list answers with the events that are remembered, as JSON.
func (s *streams) list(w http.ResponseWriter, r *http.Request) {
	since, ok := position(w, r)
	if !ok {
		return
	}
	events, _ := s.journal.Since(since)
	if events == nil {
		events = []Event{}
	}
	writeJSON(w, events)
}

func position(w http.ResponseWriter, r *http.Request) (uint64, bool) {
	value := r.Header.Get("Last-Event-ID")
	if value == "" {
		value = r.URL.Query().Get("since")
	}
	if value == "" {
		return 0, true
	}
	since, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		http.Error(w, "since is the number of an event, such as 17", http.StatusBadRequest)
		return 0, false
	}
	return since, true
}

// EventHandler serves the journal on the root-only socket: /events streams,
// /events.json lists.
func EventHandler(j *Journal) http.Handler {
	s := &streams{journal: j}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /events", s.events)
	mux.HandleFunc("GET /events.json", s.list)
	return mux
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	// An error here is a reader that went away.
	_ = json.NewEncoder(w).Encode(v)
}
