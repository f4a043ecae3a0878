package overview

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"appliance/balancer"
	"appliance/status"
	"appliance/status/figures"
	"appliance/status/report"
)

// A backend is one backend as the nodes of the group see it.
type backend struct {
	Name     string
	Address  netip.AddrPort
	Weight   int
	State    balancer.BackendState
	Since    time.Time
	Reason   string
	Backup   bool
	Override string // by the operator
	Disabled bool   // by the configuration or an order
	Checked  time.Time
	Latency  float64
	Check    string // its own; empty: that of the load balancer
	// Counted reports whether any node's data plane counts, Partly that it counts new connections only.
	Counted, Partly bool
	// Traffic is the sum over the nodes, Peak the sum of each node's most open connections at once.
	Traffic balancer.Traffic
	Peak    uint64
	// New, In and Out are per second, over the nodes.
	New, In, Out float64
	// Differs are the nodes whose own checks say something else.
	Differs []string
	// Passed says why data planes pass it over, and on which nodes.
	Passed []passedOver
	// Queues reports whether a node's data plane has a queue and slow starts.
	Queues bool
	Level  level
	// NameIsAddress spares the reader the same text twice.
	NameIsAddress bool
}

// A passedOver says why some nodes' data planes give a backend no new connections.
type passedOver struct {
	why   string
	nodes []string
}

func (p passedOver) String() string {
	return fmt.Sprintf("no new connections from %s: %s", strings.Join(p.nodes, ", "), p.why)
}

// passOver adds one node.
func passOver(all []passedOver, node, why string) []passedOver {
	for i := range all {
		if all[i].why == why {
			all[i].nodes = append(all[i].nodes, node)
			return all
		}
	}
	return append(all, passedOver{why, []string{node}})
}

func newBackend(lb string, be balancer.BackendStatus, reports []report.PeerReport) backend {
	target := balancer.Target{LoadBalancer: lb, Backend: be.Address}
	m := backend{
		Name: be.Name, Address: be.Address, Weight: be.Weight, State: be.State, Since: be.Since, Reason: be.Reason,
		Backup: be.Backup, Override: be.Override, Disabled: be.Disabled,
		Latency: be.LatencyMS, Check: be.Check, NameIsAddress: !be.Address.IsValid() || be.Name == be.Address.String(),
	}
	if be.LastCheck != nil {
		m.Checked = *be.LastCheck
	}
	for i, r := range reports {
		s := &r.Report.Snapshot
		other := s.Backend(target)
		if other == nil {
			continue
		}
		if i > 0 && other.State != be.State {
			m.Differs = append(m.Differs, fmt.Sprintf("%s on %s: %s", other.State, s.ID, other.Reason))
		}
		plane := s.LoadBalancer(lb).Plane
		if other.PassedOver != "" {
			m.Passed = passOver(m.Passed, s.ID, other.PassedOver)
		}
		if other.Traffic == nil {
			continue
		}
		m.Counted, m.Queues = true, m.Queues || status.Dials(plane)
		m.Partly = status.CountsNewOnly(plane)
		m.Traffic = m.Traffic.Add(*other.Traffic)
		m.Peak += max(r.Report.Peak[lb][be.Address.String()], other.Traffic.Open)
		if r.Earlier == nil {
			continue
		}
		if then := r.Earlier.Snapshot.Backend(target); then != nil && then.Traffic != nil {
			span := s.Time.Sub(r.Earlier.Snapshot.Time)
			m.New += figures.Rate(then.Traffic.Total, other.Traffic.Total, span)
			m.In += figures.Rate(then.Traffic.In, other.Traffic.In, span)
			m.Out += figures.Rate(then.Traffic.Out, other.Traffic.Out, span)
		}
	}
	switch m.State {
	case balancer.Up:
		m.Level = good
	case balancer.Down:
		m.Level = bad
		if be.Disabled { // somebody wants that
			m.Level = warn
		}
	default:
		m.Level = warn
	}
	if m.Level == good && len(m.Differs)+len(m.Passed) > 0 {
		m.Level = warn
	}
	return m
}

func (b *backend) problems(lb string) (all []problem) {
	if b.State == balancer.Down && !b.Disabled {
		all = append(all, problem{
			Text:         fmt.Sprintf("%s / %s is down: %s", lb, b.Name, b.Reason),
			loadBalancer: lb, together: "are down: " + b.Reason,
		})
	}
	for _, p := range b.Passed {
		all = append(all, problem{
			Text:         fmt.Sprintf("%s / %s gets %s", lb, b.Name, p),
			loadBalancer: lb, together: "get " + p.String(),
		})
	}
	for _, d := range b.Differs {
		if b.State != balancer.Down {
			all = append(all, problem{Text: fmt.Sprintf("%s / %s is %s", lb, b.Name, d)})
		}
	}
	return all
}
