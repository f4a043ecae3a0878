package overview

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"appliance/status"
	"appliance/status/figures"
	"appliance/status/report"
)

// A level is how well something is; the page has a colour for each.
type level string

const (
	good level = "good"
	warn level = "warn"
	bad  level = "bad"
)

// A verdict answers the first question: are clients served?
type verdict struct {
	Level    level
	Headline string
	Problems []problem
}

// A problem is one thing to look at; Bad means that clients are affected.
type problem struct {
	Bad  bool
	Text string
	// loadBalancer has the backend that a problem is about; together is what to say of several backends with the same
	// problem. Both are empty for other problems.
	loadBalancer, together string
}

// joined is problems with those of many backends that have one cause as one: a host that is gone has a backend of every
// load balancer.
func joined(problems []problem) []problem {
	const mostAlone, mostNames = 2, 5
	names := make(map[string][]string)
	for _, p := range problems {
		if p.together != "" {
			names[p.together] = append(names[p.together], p.loadBalancer)
		}
	}
	var out []problem
	for _, p := range problems {
		of, pending := names[p.together]
		switch {
		case p.together == "" || pending && len(of) <= mostAlone:
			out = append(out, p)
		case pending:
			n := len(of)
			slices.Sort(of)
			of = slices.Compact(of)
			if more := len(of) - mostNames; more > 0 {
				of = append(of[:mostNames], fmt.Sprintf("%d more", more))
			}
			text := fmt.Sprintf("%d backends (of %s) %s", n, strings.Join(of, ", "), p.together)
			out = append(out, problem{Text: text})
			delete(names, p.together)
		}
	}
	return out
}

// judge says what a person who was woken up has to know first.
func (o *Overview) judge(s status.Snapshot, reports []report.PeerReport) verdict {
	var problems []problem
	note := func(bad bool, format string, args ...any) {
		problems = append(problems, problem{Bad: bad, Text: fmt.Sprintf(format, args...)})
	}
	switch {
	case o.Holder != "" || s.Role == "worker":
	case o.onLink() || len(o.Addresses) == 0:
		note(true, "nobody answers for the virtual addresses, as far as %s knows", o.Self)
	default: // whether clients are served is said of each address
		note(false, "nobody holds, as far as %s knows", o.Self)
	}
	if all := holding(reports); len(all) > 1 {
		note(true, "%s say at once that they hold; reports are up to %s apart, look again",
			strings.Join(all, " and "), figures.Age(report.Interval))
	}
	if s.Group.SlowDisk != "" {
		note(false, "%s", s.Group.SlowDisk)
	}
	for _, r := range reports {
		for _, short := range r.Report.Snapshot.Shortages {
			if short.Active {
				note(short.Refused > 0, "%s is %s", r.Report.Snapshot.ID, short.Words())
			}
		}
	}
	for _, n := range o.Nodes {
		problems = append(problems, o.nodeProblems(n)...)
	}
	for _, a := range o.Addresses {
		if within(o.Now, a.ForeignAt, claimIsTold) {
			note(within(o.Now, a.ForeignAt, claimIsBad), "another machine (%s) has claimed %s", a.ForeignMAC, a.Address)
		}
		if a.By != "" && !slices.ContainsFunc(a.Nodes, func(n addressNode) bool { return n.Announced }) {
			note(true, "no node tells routers of %s; %s", a.Address, a.untold())
		}
	}
	problems = append(problems, sessionProblems(o.Routers)...)
	for _, r := range reports {
		for _, d := range r.Report.Snapshot.Differences {
			if r.Report.Snapshot.ID == o.Self { // the others say the same the other way round
				note(false, "%s and %s do not serve the same: %s", o.Self, d.Peer, d)
			}
		}
	}
	var ofLoadBalancers []problem
	for _, lb := range o.LoadBalancers {
		ofLoadBalancers = append(ofLoadBalancers, lb.problems()...)
	}
	problems = append(problems, joined(ofLoadBalancers)...)
	slices.SortStableFunc(problems, func(a, b problem) int {
		switch {
		case a.Bad == b.Bad:
			return 0
		case a.Bad:
			return -1
		}
		return 1
	})
	return o.sum(problems)
}

// holding are the nodes that say in the newest term that they hold.
func holding(reports []report.PeerReport) (ids []string) {
	newest := uint64(0)
	for _, r := range reports {
		newest = max(newest, r.Report.Snapshot.Term)
	}
	for _, r := range reports {
		if s := &r.Report.Snapshot; s.Group.Holding && s.Term == newest {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

func (o *Overview) nodeProblems(n node) (all []problem) {
	note := func(bad bool, format string, args ...any) {
		all = append(all, problem{Bad: bad, Text: fmt.Sprintf(format, args...)})
	}
	switch {
	case n.Conflict != "":
		note(false, "%s cannot belong to this group: %s", n.ID, n.Conflict)
	case n.Doubled != "":
		note(false, "%s", n.Doubled)
	case n.Unreachable != "" && n.Level == bad:
		note(false, "%s does not answer %s", n.ID, o.Self)
	case n.Disagrees:
		note(true, "%s says that %s holds", n.ID, cmp.Or(n.SaysHolder, "nobody"))
	}
	if n.Unreachable == "" {
		// That a node without an answer is not reached by others is no news.
		unreached := slices.DeleteFunc(slices.Clone(n.Unreached), func(id string) bool {
			return slices.ContainsFunc(o.Nodes, func(other node) bool { return other.ID == id && other.Unreachable != "" })
		})
		if len(unreached) > 0 {
			note(false, "%s does not reach %s", n.ID, strings.Join(unreached, ", "))
		}
		if n.Unfit != "" && len(n.NotReady) == 0 { // otherwise the reasons below say it
			note(false, "%s would rather not hold: %s", n.ID, n.Unfit)
		}
	}
	for _, why := range n.NotReady {
		if !why.OfLoadBalancer() { // the load balancers' own problems are those of the group
			note(n.Holder, "%s: %s", n.ID, why)
		}
	}
	return all
}

// sum makes the headline of problems, of which the bad ones come first.
func (o *Overview) sum(problems []problem) verdict {
	notTried := slices.IndexFunc(o.LoadBalancers, func(lb loadBalancer) bool { return lb.NotTried != "" })
	switch {
	case len(problems) == 0 && o.Holder == "" && notTried >= 0:
		lb := o.LoadBalancers[notTried]
		return verdict{Level: good, Headline: "Served on this node only, and " + lb.Name + " is not proved: " + lb.NotTried}
	case len(problems) == 0 && notTried >= 0:
		lb := o.LoadBalancers[notTried]
		return verdict{Level: good, Headline: o.serving() + "; that " + lb.Name + " is served is not proved: " + lb.NotTried}
	case len(problems) == 0 && o.Holder == "": // a worker
		return verdict{Level: good, Headline: "All is well: served on this node only"}
	case len(problems) == 0:
		return verdict{Level: good, Headline: "All is well: " + o.serving()}
	case problems[0].Bad:
		return verdict{Level: bad, Headline: "Trouble: " + problems[0].Text, Problems: problems[1:]}
	case len(problems) == 1:
		return verdict{Level: warn, Headline: "Clients are served, with one thing to look at: " + problems[0].Text}
	}
	headline := fmt.Sprintf("Clients are served, with %d things to look at", len(problems))
	return verdict{Level: warn, Headline: headline, Problems: problems}
}
