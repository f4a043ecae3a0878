package overview

import (
	"slices"
	"strconv"
	"time"

	"appliance/status"
	"appliance/status/history"
	"appliance/status/report"
)

// An Overview is the group as the page shows it: every node's own view side by side, with their disagreements marked.
type Overview struct {
	Now     time.Time
	Self    string
	Version string
	Holder  string
	// Since is when the holder's tenure started, by the holder's own report.
	Since   time.Time
	Term    uint64
	Verdict verdict

	Addresses     []address
	Nodes         []node
	Workers       []status.WorkerView // that follow this node
	WorkersTotal  int
	Routers       []routerSession
	LoadBalancers []loadBalancer
	Tenures       []tenure
	Events        []event
}

// staleAfter is how old a report may be before the page says so.
const staleAfter = 3 * report.Interval

// fresh reports whether the latest report still holds. A dead node does not withdraw its last report, but a question
// without an answer does, and so does a newer term.
func fresh(p report.PeerReport, self status.Snapshot) bool {
	return p.Report != nil && p.Err == nil && self.Time.Sub(p.At) < staleAfter &&
		(!p.Report.Snapshot.Group.Holding || p.Report.Snapshot.Term >= self.Term)
}

// New is a pure function of the reports of this node and its peers and of this node's samples.
func New(self report.PeerReport, peers map[string]report.PeerReport, samples *history.Samples) Overview {
	s := self.Report.Snapshot
	o := Overview{Now: s.Time, Self: s.ID, Version: s.Version, Term: s.Term}
	reports := []report.PeerReport{self}
	for _, p := range s.Group.Peers {
		if one, ok := peers[p.ID]; ok && !p.Self && fresh(one, s) {
			reports = append(reports, one)
		}
	}
	o.Holder, o.Since = holder(s, reports)
	for _, p := range s.Group.Peers {
		o.Nodes = append(o.Nodes, newNode(p, o.Holder, self, peers))
	}
	if len(o.Nodes) == 0 { // a worker, or a group of one that lists nobody
		alone := status.PeerView{ID: s.ID, Self: true, Role: s.Role, Connected: true}
		o.Nodes = append(o.Nodes, newNode(alone, o.Holder, self, nil))
	}
	for _, v := range s.VIPs {
		o.Addresses = append(o.Addresses, newAddress(v, s.Time, reports))
	}
	for _, lb := range s.LoadBalancers {
		o.LoadBalancers = append(o.LoadBalancers, newLoadBalancer(s, lb, reports, samples))
	}
	o.Workers, o.WorkersTotal = s.Group.Workers, s.Group.WorkersTotal
	o.Routers = routerSessions(reports)
	o.Tenures = tenures(self, reports)
	o.Events = events(reports)
	o.Verdict = o.judge(s, reports)
	return o
}

// HideVersions removes all versions, which would tell an attacker which vulnerabilities there are.
func (o *Overview) HideVersions() {
	o.Version = ""
	for i := range o.Nodes {
		o.Nodes[i].Version = ""
	}
	o.Workers = slices.Clone(o.Workers)
	for i := range o.Workers {
		o.Workers[i].Version = ""
	}
}

// holder is the node that says it holds, or else the one that this node believes to hold.
func holder(s status.Snapshot, reports []report.PeerReport) (string, time.Time) {
	for _, r := range reports {
		if g := r.Report.Snapshot.Group; g.Holding {
			return r.Report.Snapshot.ID, g.Since
		}
	}
	return s.Holder, time.Time{}
}

// Ready counts the nodes that could serve.
func (o Overview) Ready() (n int) {
	for _, one := range o.Nodes {
		if one.Unreachable == "" && len(one.NotReady) == 0 {
			n++
		}
	}
	return n
}

// Up counts the backends that are up.
func (o Overview) Up() (n int) {
	for _, lb := range o.LoadBalancers {
		n += lb.Up
	}
	return n
}

// Backends counts the backends of all load balancers.
func (o Overview) Backends() (n int) {
	for _, lb := range o.LoadBalancers {
		n += len(lb.Backends)
	}
	return n
}

// Open is the number of open connections, as far as data planes count them.
func (o Overview) Open() string {
	n := uint64(0)
	for _, lb := range o.LoadBalancers {
		for _, be := range lb.Backends {
			n += be.Traffic.Open
		}
	}
	if some, _ := o.counted(); !some {
		return "not counted"
	}
	return strconv.FormatUint(n, 10)
}

// OpenPartly reports whether only some data planes count open connections.
func (o Overview) OpenPartly() bool {
	some, all := o.counted()
	return some && !all
}

func (o Overview) counted() (some, all bool) {
	all = true
	for _, lb := range o.LoadBalancers {
		for _, be := range lb.Backends {
			is := be.Counted && !be.Partly
			some, all = some || is, all && is
		}
	}
	return some, all
}
