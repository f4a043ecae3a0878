package status

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"

	"appliance/balancer"
)

const (
	// toldEvents is how many events a node tells another: what a page shows.
	toldEvents = 60
	// maxReport bounds what another peer's report may unpack to. It is of a member
	// of the group, which may be broken all the same.
	maxReport = 16 << 20
)

// A Report is what one node tells another about itself, for the page that
// shows the whole group.
type Report struct {
	Snapshot Snapshot `json:"snapshot"`
	Events   []Event  `json:"events,omitempty"`
	// Load is new connections per second of each load balancer, a value for
	// every sample of the last 15 minutes, the oldest first; negative where
	// nothing was counted. Ages are how many ms ago the samples were taken:
	// clocks of two hosts share their rate, not their zero.
	Load map[string][]float32 `json:"load,omitempty"`
	Ages []int64              `json:"ages,omitempty"`
	// Peak is the most connections at once of each backend that had any, by
	// load balancer and address.
	Peak map[string]map[string]uint64 `json:"peak,omitempty"`
}

// MakeReport puts together what this node tells.
func MakeReport(s Snapshot, j *Journal, samples *Samples) Report {
	r := Report{Snapshot: s, Load: make(map[string][]float32), Peak: make(map[string]map[string]uint64)}
	events, _ := j.Since(0)
	r.Events = events[max(0, len(events)-toldEvents):]
	times := samples.Times()
	for _, t := range times {
		r.Ages = append(r.Ages, s.Time.UnixMilli()-t)
	}
	for _, lb := range s.LoadBalancers {
		r.Load[lb.Name] = load(times, lb, samples)
		for _, be := range lb.Backends {
			samples.each(balancer.Target{LoadBalancer: lb.Name, Backend: be.Address}, func(h *History) {
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
func load(times []int64, lb balancer.LoadBalancerStatus, samples *Samples) []float32 {
	at := make(map[int64]int, len(times))
	sum := make([]float32, len(times))
	for i, t := range times {
		at[t], sum[i] = i, -1
	}
	for _, be := range lb.Backends {
		samples.each(balancer.Target{LoadBalancer: lb.Name, Backend: be.Address}, func(h *History) {
			for _, p := range h.Points {
				if i, ok := at[p.At]; ok && p.Counted {
					sum[i] = max(sum[i], 0) + p.New
				}
			}
		})
	}
	return sum
}

// Pack makes a Report small: the group's channel has better things to do.
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
		return r, fmt.Errorf("a report that is none: %w", err)
	}
	limited := io.LimitReader(z, maxReport)
	if err := json.NewDecoder(limited).Decode(&r); err != nil {
		return r, fmt.Errorf("a report that is none: %w", err)
	}
	return r, nil
}
