package web

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"appliance/status"
	"appliance/status/journal"
)

const (
	// maxStreams bounds the streams of one admin port. Each takes a goroutine, a connection and a few kilobytes.
	maxStreams = 256
	// writeTimeout is how long one write may take before the reader is cut off.
	writeTimeout = 10 * time.Second
	// keepAlive is the longest silence on a stream, below what proxies tolerate.
	keepAlive = 15 * time.Second
)

// streams serves the server-sent event streams of one listener.
type streams struct {
	page    *Page
	journal *journal.Journal
	epoch   string // tells the revisions of this run from those of earlier runs
	open    atomic.Int64
	// operates means that the page leads to its orders.
	operates bool
}

// An sse writes server-sent events to one reader. It has no queue: a slow reader gets what is newest when it is ready.
type sse struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

func (s *streams) begin(w http.ResponseWriter) (*sse, func(), bool) {
	if s.open.Add(1) > maxStreams {
		s.open.Add(-1)
		w.Header().Set("Retry-After", "10")
		http.Error(w, "too many streams; close some pages", http.StatusServiceUnavailable)
		return nil, nil, false
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // an nginx in front would buffer
	return &sse{w, http.NewResponseController(w)}, func() { s.open.Add(-1) }, true
}

func (e *sse) event(name, id string, data []byte) error {
	if err := e.rc.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	if id != "" {
		id = "id: " + id + "\n"
	}
	// JSON and RFC 3339 times have no line breaks, which would end the data.
	_, err := fmt.Fprintf(e.w, "event: %s\n%sdata: %s\n\n", name, id, data)
	return err
}

// servePage answers with the whole page.
func (s *streams) servePage(w http.ResponseWriter, r *http.Request, base string) {
	now, err := s.page.current(r.Context())
	if err != nil {
		return // the reader went away
	}
	s.page.write(w, http.StatusOK, "layout.html", struct {
		Title, Node, Revision, Version string
		Now                            time.Time
		Root                           string // the relative path to /
		Parts                          []pagePart
		Operates                       bool
	}{
		Title: "appliance on " + now.node, Node: now.node, Version: now.version, Now: now.at, Parts: now.parts,
		Revision: s.epoch + "." + strconv.FormatUint(now.revision, 10),
		Root:     strings.Repeat("../", strings.Count(base, "/")-1),
		Operates: s.operates,
	})
}

// live streams the parts of the page that change.
func (s *streams) live(w http.ResponseWriter, r *http.Request) {
	out, end, ok := s.begin(w)
	if !ok {
		return
	}
	defer end()
	defer s.page.view()()
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
		clock := []byte(time.Now().UTC().Format(time.RFC3339Nano))
		if out.event("tick", "", clock) != nil || out.rc.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		}
	}
}

// events streams the journal from Last-Event-ID or ?since= on.
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
			if out.rc.SetWriteDeadline(time.Now().Add(writeTimeout)) != nil {
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
		case <-time.After(keepAlive):
		}
	}
}

// list answers with the events in memory as JSON.
func (s *streams) list(w http.ResponseWriter, r *http.Request) {
	since, ok := position(w, r)
	if !ok {
		return
	}
	events, _ := s.journal.Since(since)
	if events == nil {
		events = []status.Event{}
	}
	writeJSON(w, events)
}

// position is the number of the event after which a reader wants more.
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
		http.Error(w, "since must be the number of an event, such as 17", http.StatusBadRequest)
		return 0, false
	}
	return since, true
}

// EventHandler serves the journal on the root-only socket: /events streams it, /events.json lists it.
func EventHandler(j *journal.Journal) http.Handler {
	s := &streams{journal: j}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /events", s.events)
	mux.HandleFunc("GET /events.json", s.list)
	return mux
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	// An error here means that the reader went away.
	_ = json.NewEncoder(w).Encode(v)
}
