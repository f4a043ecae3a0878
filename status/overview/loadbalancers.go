package overview

import (
	"fmt"
	"net/netip"

	"appliance/balancer"
	"appliance/status"
	"appliance/status/history"
	"appliance/status/report"
)

// A loadBalancer is one load balancer as the nodes of the group serve it.
type loadBalancer struct {
	Name      string
	Frontends []netip.AddrPort
	Scheduler balancer.Scheduler
	Check     string
	Plane     balancer.PlaneName
	Reason    string
	Refused   []balancer.Refusal
	Moving    balancer.PlaneName
	Error     string
	Repairs   int
	// Elsewhere are the nodes on which another plane serves, or none.
	Elsewhere []string
	Backends  []backend
	Charts    []chart
	Up        int
	// Queued counts the connections that wait for room at any backend, over all nodes; Queues reports whether any node's
	// data plane has a queue.
	Queued uint64
	Queues bool
	// Counted reports whether connections of any backend are counted, Partly that the data plane counts new ones only.
	Counted, Partly bool
	// NoBackend reports that the holder has no backend for it.
	NoBackend bool
	Level     level
	// Unproved are the nodes on which trials say that clients are not served, with the reason; the first is the holder,
	// if HolderUnproved is set. NotTried says why nobody knows for the holder.
	Unproved       []string
	HolderUnproved bool
	NotTried       string
}

func newLoadBalancer(self status.Snapshot, lb balancer.LoadBalancerStatus, reports []report.PeerReport,
	samples *history.Samples) loadBalancer {
	m := loadBalancer{
		Name: lb.Name, Frontends: lb.Frontends, Scheduler: lb.Scheduler, Check: lb.Check, Plane: lb.Plane,
		Reason: lb.Reason, Refused: lb.Refused, Moving: lb.Moving, Error: lb.Error, Repairs: lb.Repairs,
		Partly: status.CountsNewOnly(lb.Plane), NoBackend: withoutBackend(lb.Name, self, reports),
		Charts: charts(self, lb, reports, samples),
	}
	for i, r := range reports {
		s := &r.Report.Snapshot
		other := s.LoadBalancer(lb.Name)
		if other != nil {
			m.Queues = m.Queues || status.Dials(other.Plane)
			m.Queued += other.Queued
		}
		switch {
		case i == 0 || s.Role == "witness":
		case other == nil:
			m.Elsewhere = append(m.Elsewhere, "not known on "+s.ID)
		case other.Plane != lb.Plane && other.Plane == "":
			m.Elsewhere = append(m.Elsewhere, "not served on "+s.ID)
		case other.Plane != lb.Plane:
			m.Elsewhere = append(m.Elsewhere, fmt.Sprintf("%s on %s", other.Plane, s.ID))
		}
	}
	m.proofs(self, reports)
	for _, be := range lb.Backends {
		b := newBackend(lb.Name, be, reports)
		if status.TakesConnections(be) {
			m.Up++
		}
		m.Counted = m.Counted || b.Counted
		m.Backends = append(m.Backends, b)
	}
	switch {
	case m.NoBackend || m.Plane == "" || m.HolderUnproved:
		m.Level = bad
	case len(m.Unproved) > 0 || m.Error != "" || m.Up < len(m.Backends) || len(m.Elsewhere) > 0:
		m.Level = warn
	default:
		m.Level = good
	}
	return m
}

// proofs takes what trials say of each node. Where no node holds, this one counts as the holder: a worker has no other.
func (m *loadBalancer) proofs(self status.Snapshot, reports []report.PeerReport) {
	holder := self.ID
	for _, r := range reports {
		if r.Report.Snapshot.Group.Holding {
			holder = r.Report.Snapshot.ID
		}
	}
	for _, r := range reports {
		s := &r.Report.Snapshot
		lb := s.LoadBalancer(m.Name)
		if lb == nil || lb.Proof == nil {
			continue
		}
		holds := s.ID == holder
		switch text := s.ID + ": " + lb.Proof.Reason; {
		case lb.Proof.State == balancer.Unproved && holds:
			m.Unproved, m.HolderUnproved = append([]string{text}, m.Unproved...), true
		case lb.Proof.State == balancer.Unproved:
			m.Unproved = append(m.Unproved, text)
		case lb.Proof.State == balancer.NotTried && holds:
			m.NotTried = lb.Proof.Reason
		}
	}
}

// withoutBackend looks at the holder's report, or at this node's if the holder sent none: only what the holder has
// counts for clients.
func withoutBackend(name string, self status.Snapshot, reports []report.PeerReport) bool {
	asked := self
	for _, r := range reports {
		if r.Report.Snapshot.Group.Holding {
			asked = r.Report.Snapshot
		}
	}
	lb := asked.LoadBalancer(name)
	if lb == nil {
		return false
	}
	for _, be := range lb.Backends {
		if status.TakesConnections(be) || be.State == balancer.Draining {
			return false
		}
	}
	return true
}

func (m *loadBalancer) problems() (all []problem) {
	note := func(bad bool, format string, args ...any) {
		all = append(all, problem{Bad: bad, Text: fmt.Sprintf(format, args...)})
	}
	switch {
	case m.NoBackend:
		note(true, "%s has no healthy backend; its clients are refused", m.Name)
	case m.Plane == "" && m.Error == "":
		note(true, "%s is not served here", m.Name)
	case m.Plane == "":
		note(true, "%s is not served here: %s", m.Name, m.Error)
	case m.Error != "":
		note(false, "%s: %s", m.Name, m.Error)
	}
	for i, why := range m.Unproved {
		note(m.HolderUnproved && i == 0, "clients of %s are not served by %s", m.Name, why)
	}
	waiting := m.Queued
	for _, b := range m.Backends {
		waiting += b.Traffic.Queued
	}
	if waiting > 0 {
		note(false, "%s has %d connections in its queue: its backends have as many as maxconn allows", m.Name, waiting)
	}
	for _, b := range m.Backends {
		all = append(all, b.problems(m.Name)...)
	}
	return all
}

// charts are the last 15 minutes of a load balancer: the connections that each node gave it, and how long its backends
// took to answer a check.
func charts(self status.Snapshot, lb balancer.LoadBalancerStatus, reports []report.PeerReport,
	samples *history.Samples) []chart {
	var out []chart
	// In steps of the samples: between them the picture stays the same.
	now := self.Time.Truncate(history.Interval)
	var names []string
	var histories []history.History
	for _, r := range reports {
		if h, ok := loadHistory(r, lb.Name); ok {
			names, histories = append(names, r.Report.Snapshot.ID), append(histories, h)
		}
	}
	if len(histories) > 0 {
		out = append(out, plot(now, "New connections per second, by node", "", names, histories,
			func(p history.Point) float64 { return float64(p.New) }))
	}
	names, histories = nil, nil
	for _, be := range lb.Backends {
		h := samples.Of(balancer.Target{LoadBalancer: lb.Name, Backend: be.Address})
		names, histories = append(names, be.Name), append(histories, h)
	}
	return append(out, plot(now, "Check latency, by backend", " ms", names, histories,
		func(p history.Point) float64 { return float64(p.Latency) }))
}

// loadHistory reads the load of a report, in this node's time; false if nothing was counted.
func loadHistory(r report.PeerReport, lb string) (h history.History, counted bool) {
	values := r.Report.Load[lb]
	for i := range min(len(values), len(r.Report.Ages)) {
		counted = counted || values[i] >= 0
		h.Points = append(h.Points, history.Point{At: r.At.UnixMilli() - r.Report.Ages[i], New: values[i]})
	}
	return h, counted
}
