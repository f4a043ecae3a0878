package status

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"appliance/balancer"
)

// lbModel is one load balancer as the nodes of the group serve it.
type lbModel struct {
	Name      string
	Frontends []netip.AddrPort
	Scheduler balancer.Scheduler
	Plane     balancer.PlaneName
	Reason    string
	Refused   []balancer.Refusal
	Moving    balancer.PlaneName
	Error     string
	Repairs   int
	// Elsewhere are the nodes on which another plane serves, or none.
	Elsewhere []string
	Backends  []backendModel
	Charts    []chart
	Up        int
	// Queued wait for room at any backend, over the nodes; Queues is whether they
	// can. Partly is that the data plane counts new connections only.
	Queued         uint64
	Queues, Partly bool
	// Counted is whether any of its backends is.
	Counted bool
	// Hurt is whether the holder has no backend for it.
	Hurt  bool
	Level string
}

type backendModel struct {
	Name    string
	Address netip.AddrPort
	Weight  int
	State   balancer.BackendState
	Since   time.Time
	Reason  string
	Backup  bool
	Order   string // of the operator
	Checked time.Time
	Latency float64
	// Counted is whether any node's data plane counts, Partly that it counts new
	// connections only.
	Counted, Partly bool
	// Traffic is the sum over the nodes, and Peak that of the most that each
	// had at once.
	Traffic balancer.Traffic
	Peak    uint64
	// New, In and Out are per second, over the nodes.
	New, In, Out float64
	// Differs are nodes whose own checks say something else.
	Differs []string
	// Passed is why data planes pass it over, and on which nodes.
	Passed []passedOver
	// Queues is whether a node's data plane has a queue and slow starts.
	Queues bool
	Level  string
	// NameIsAddress spares the reader to read it twice.
	NameIsAddress bool
}

// passedOver is why some nodes' data planes give a backend no new connections.
type passedOver struct {
	why   string
	nodes []string
}

func (p passedOver) String() string {
	return fmt.Sprintf("no new connections from %s: %s", strings.Join(p.nodes, ", "), p.why)
}

// passOver notes one node more.
func passOver(all []passedOver, node, why string) []passedOver {
	for i := range all {
		if all[i].why == why {
			all[i].nodes = append(all[i].nodes, node)
			return all
		}
	}
	return append(all, passedOver{why, []string{node}})
}

func newLB(s Snapshot, lb balancer.LoadBalancerStatus, reports []neighbour, samples *Samples) lbModel {
	m := lbModel{
		Name: lb.Name, Frontends: lb.Frontends, Scheduler: lb.Scheduler, Plane: lb.Plane, Reason: lb.Reason,
		Refused: lb.Refused, Moving: lb.Moving, Error: lb.Error, Repairs: lb.Repairs,
	}
	m.Partly = partial(lb.Plane)
	for _, r := range reports {
		if other := find(r.Report.Snapshot, lb.Name); other != nil {
			m.Queues = m.Queues || dials(other.Plane)
			m.Queued += other.Queued
		}
	}
	for _, r := range reports[1:] {
		switch other := find(r.Report.Snapshot, lb.Name); {
		case r.Report.Snapshot.Role == "witness":
		case other == nil:
			m.Elsewhere = append(m.Elsewhere, "not known on "+r.Report.Snapshot.ID)
		case other.Plane != lb.Plane && other.Plane == "":
			m.Elsewhere = append(m.Elsewhere, "not served on "+r.Report.Snapshot.ID)
		case other.Plane != lb.Plane:
			m.Elsewhere = append(m.Elsewhere, fmt.Sprintf("%s on %s", other.Plane, r.Report.Snapshot.ID))
		}
	}
	for _, be := range lb.Backends {
		b := newBackend(lb.Name, be, reports)
		if serves(be) {
			m.Up++
		}
		m.Counted = m.Counted || b.Counted
		m.Backends = append(m.Backends, b)
	}
	m.Hurt = hurt(lb.Name, s, reports)
	switch {
	case m.Hurt || m.Plane == "":
		m.Level = "bad"
	case m.Error != "" || m.Up < len(m.Backends) || len(m.Elsewhere) > 0:
		m.Level = "warn"
	default:
		m.Level = "good"
	}
	m.Charts = charts(s, lb, reports, samples)
	return m
}

// partial is whether a data plane counts new connections and nothing else.
func partial(p balancer.PlaneName) bool { return p == balancer.NFTables || p == balancer.Direct }

// dials is whether a data plane opens the connections with backends itself, and
// so knows which fail, which wait for room, and who starts slowly.
func dials(p balancer.PlaneName) bool { return p == balancer.UserSpace }

// serves is whether new connections may go to a backend.
func serves(be balancer.BackendStatus) bool { return be.State == balancer.Up && be.PassedOver == "" }

func find(s Snapshot, name string) *balancer.LoadBalancerStatus {
	for i := range s.LoadBalancers {
		if s.LoadBalancers[i].Name == name {
			return &s.LoadBalancers[i]
		}
	}
	return nil
}

// hurt asks the holder, and this node where the holder has not spoken: only
// what the holder has counts for clients.
func hurt(name string, self Snapshot, reports []neighbour) bool {
	asked := self
	for _, r := range reports {
		if r.Report.Snapshot.Group.Holding {
			asked = r.Report.Snapshot
		}
	}
	lb := find(asked, name)
	if lb == nil {
		return false
	}
	for _, be := range lb.Backends {
		if serves(be) || be.State == balancer.Draining {
			return false
		}
	}
	return true
}

func newBackend(lb string, be balancer.BackendStatus, reports []neighbour) backendModel {
	m := backendModel{
		Name: be.Name, Address: be.Address, Weight: be.Weight, State: be.State, Since: be.Since, Reason: be.Reason,
		Backup: be.Backup, Order: be.Override,
		Latency: be.LatencyMS, NameIsAddress: be.Name == be.Address.String(),
	}
	if be.LastCheck != nil {
		m.Checked = *be.LastCheck
	}
	for i, r := range reports {
		other := findBackend(&r.Report.Snapshot, lb, be.Address)
		if other == nil {
			continue
		}
		if i > 0 && other.State != be.State {
			m.Differs = append(m.Differs, fmt.Sprintf("%s on %s: %s", other.State, r.Report.Snapshot.ID, other.Reason))
		}
		plane := find(r.Report.Snapshot, lb).Plane
		if other.PassedOver != "" {
			m.Passed = passOver(m.Passed, r.Report.Snapshot.ID, other.PassedOver)
		}
		if other.Traffic == nil {
			continue
		}
		m.Counted, m.Queues = true, m.Queues || dials(plane)
		m.Partly = partial(plane)
		m.Traffic = m.Traffic.Add(*other.Traffic)
		m.Peak += max(r.Report.Peak[lb][be.Address.String()], other.Traffic.Open)
		if r.base == nil {
			continue
		}
		if then := findBackend(&r.base.Snapshot, lb, be.Address); then != nil && then.Traffic != nil {
			span := r.Report.Snapshot.Time.Sub(r.base.Snapshot.Time)
			m.New += perSecond(then.Traffic.Total, other.Traffic.Total, span)
			m.In += perSecond(then.Traffic.In, other.Traffic.In, span)
			m.Out += perSecond(then.Traffic.Out, other.Traffic.Out, span)
		}
	}
	switch m.State {
	case balancer.Up:
		m.Level = "good"
	case balancer.Down:
		m.Level = "bad"
	default:
		m.Level = "warn"
	}
	if m.Level == "good" && len(m.Differs)+len(m.Passed) > 0 {
		m.Level = "warn"
	}
	return m
}

func findBackend(s *Snapshot, lb string, at netip.AddrPort) *balancer.BackendStatus {
	for i := range s.LoadBalancers {
		if s.LoadBalancers[i].Name != lb {
			continue
		}
		for k := range s.LoadBalancers[i].Backends {
			if s.LoadBalancers[i].Backends[k].Address == at {
				return &s.LoadBalancers[i].Backends[k]
			}
		}
	}
	return nil
}

// perSecond is the rate of a counter; one that has gone back was begun anew.
func perSecond(then, now uint64, span time.Duration) float64 {
	if now < then || span <= 0 {
		return 0
	}
	return float64(now-then) / span.Seconds()
}

func (m *lbModel) problems() []problem {
	var all []problem
	switch {
	case m.Hurt:
		all = append(all, problem{Bad: true, Text: fmt.Sprintf("%s has no healthy backend; its clients are refused", m.Name)})
	case m.Plane == "":
		all = append(all, problem{Bad: true, Text: strings.TrimSuffix(fmt.Sprintf("%s is not served here: %s", m.Name, m.Error), ": ")})
	case m.Error != "":
		all = append(all, problem{Text: fmt.Sprintf("%s: %s", m.Name, m.Error)})
	}
	waiting := m.Queued
	for _, b := range m.Backends {
		waiting += b.Traffic.Queued
	}
	if waiting > 0 {
		all = append(all, problem{Text: fmt.Sprintf("%s has %d connections in its queue: its backends have as many as maxconn allows", m.Name, waiting)})
	}
	for _, b := range m.Backends {
		if b.State == balancer.Down {
			all = append(all, problem{Text: fmt.Sprintf("%s / %s is down: %s", m.Name, b.Name, b.Reason),
				of: m.Name, all: "are down: " + b.Reason})
		}
		for _, p := range b.Passed {
			all = append(all, problem{Text: fmt.Sprintf("%s / %s gets %s", m.Name, b.Name, p), of: m.Name, all: "get " + p.String()})
		}
		for _, d := range b.Differs {
			if b.State != balancer.Down {
				all = append(all, problem{Text: fmt.Sprintf("%s / %s is %s", m.Name, b.Name, d)})
			}
		}
	}
	return all
}

// charts are the last 15 minutes of a load balancer: who gets connections, node
// by node, and how long its backends take to answer a check.
func charts(s Snapshot, lb balancer.LoadBalancerStatus, reports []neighbour, samples *Samples) []chart {
	var out []chart
	// Moved on in the steps of the samples: between them the picture is the same.
	now := s.Time.Truncate(sampleEvery)
	var names []string
	var histories []History
	for _, r := range reports {
		if h, ok := loadHistory(r, lb.Name); ok {
			names, histories = append(names, r.Report.Snapshot.ID), append(histories, h)
		}
	}
	if len(histories) > 0 {
		out = append(out, plot(now, "New connections per second, by node", "", names, histories, func(p Point) float64 { return float64(p.New) }))
	}
	names, histories = nil, nil
	for _, be := range lb.Backends {
		h := samples.Of(balancer.Target{LoadBalancer: lb.Name, Backend: be.Address})
		names, histories = append(names, be.Name), append(histories, h)
	}
	return append(out, plot(now, "Check latency, by backend", " ms", names, histories, func(p Point) float64 { return float64(p.Latency) }))
}

// loadHistory undoes load, in this node's time.
func loadHistory(r neighbour, lb string) (History, bool) {
	var h History
	any := false
	values := r.Report.Load[lb]
	for i := range min(len(values), len(r.Report.Ages)) {
		any = any || values[i] >= 0
		h.Points = append(h.Points, Point{At: r.At.UnixMilli() - r.Report.Ages[i], New: values[i]})
	}
	return h, any
}
