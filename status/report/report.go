package report

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"

	"appliance/balancer"
	"appliance/status"
	"appliance/status/history"
	"appliance/status/journal"
)

const (
	// sentEvents is how many events a node sends to another: what a page shows.
	sentEvents = 60
	// maxReport bounds what a peer's report may unpack to. The peer is a member of the group, but it may be broken.
	maxReport = 16 << 20
)

// A Report is what one node tells another about itself, for the page that shows the whole group.
type Report struct {
	Snapshot status.Snapshot `json:"snapshot"`
	// NotReady are the reasons of the snapshot as data; in the snapshot's JSON they are texts.
	NotReady []reason       `json:"notReady,omitempty"`
	Events   []status.Event `json:"events,omitempty"`
	// Load is new connections per second of each load balancer, one value for every sample of the last 15 minutes, the
	// oldest first; negative where nothing was counted. Ages are how many ms ago the samples were taken: the clocks of
	// two hosts share their rate, not their zero.
	Load map[string][]float32 `json:"load,omitempty"`
	Ages []int64              `json:"ages,omitempty"`
	// Peak is the most open connections at once of each backend that had any, by load balancer and address.
	Peak map[string]map[string]uint64 `json:"peak,omitempty"`
}

// A reason is a status.NotReady whose JSON form has fields instead of a text.
type reason status.NotReady

// Make collects what this node tells about itself.
func Make(s status.Snapshot, j *journal.Journal, samples *history.Samples) Report {
	r := Report{Snapshot: s, Load: make(map[string][]float32), Peak: make(map[string]map[string]uint64)}
	for _, one := range s.NotReady {
		r.NotReady = append(r.NotReady, reason(one))
	}
	events, _ := j.Since(0)
	r.Events = events[max(0, len(events)-sentEvents):]
	times := samples.Times()
	for _, t := range times {
		r.Ages = append(r.Ages, s.Time.UnixMilli()-t)
	}
	for _, lb := range s.LoadBalancers {
		r.Load[lb.Name] = load(times, lb, samples)
		for _, be := range lb.Backends {
			samples.View(balancer.Target{LoadBalancer: lb.Name, Backend: be.Address}, func(h *history.History) {
				if h.Peak == 0 {
					return
				}
				if r.Peak[lb.Name] == nil {
					r.Peak[lb.Name] = make(map[string]uint64)
				}
				r.Peak[lb.Name][be.Address.String()] = h.Peak
			})
		}
	}
	return r
}

// load sums the new connections of a load balancer's backends per sample.
func load(times []int64, lb balancer.LoadBalancerStatus, samples *history.Samples) []float32 {
	at := make(map[int64]int, len(times))
	sum := make([]float32, len(times))
	for i, t := range times {
		at[t], sum[i] = i, -1
	}
	for _, be := range lb.Backends {
		samples.View(balancer.Target{LoadBalancer: lb.Name, Backend: be.Address}, func(h *history.History) {
			for _, p := range h.Points {
				if i, ok := at[p.At]; ok && p.Counted {
					sum[i] = max(sum[i], 0) + p.New
				}
			}
		})
	}
	return sum
}

// Pack encodes and compresses a report, to leave the group's channel to the group.
func (r Report) Pack() ([]byte, error) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if err := json.NewEncoder(w).Encode(r); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Unpack undoes Pack.
func Unpack(data []byte) (Report, error) {
	var r Report
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return r, fmt.Errorf("unpack the report: %w", err)
	}
	limited := io.LimitReader(z, maxReport)
	if err := json.NewDecoder(limited).Decode(&r); err != nil {
		return r, fmt.Errorf("decode the report: %w", err)
	}
	if len(r.NotReady) == len(r.Snapshot.NotReady) { // older nodes send the texts only
		for i, one := range r.NotReady {
			r.Snapshot.NotReady[i] = status.NotReady(one)
		}
	}
	return r, nil
}
