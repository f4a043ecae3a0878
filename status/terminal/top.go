package terminal

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"appliance/balancer"
	"appliance/status"
	"appliance/status/figures"
)

// Event writes an event as one line.
func Event(w io.Writer, e status.Event, colour bool) error {
	what := e.String()
	if e.Bad {
		what = painter(colour).bad(what)
	}
	_, err := fmt.Fprintf(w, "%s  %-8s %s\n", e.Time.Local().Format("2006-01-02 15:04:05.000"), e.Kind, what)
	return err
}

// Top writes what the load balancers did between two snapshots, the busiest backend first. If before is zero, there are
// no rates yet.
func Top(w io.Writer, before, now status.Snapshot, colour bool) error {
	p := painter(colour)
	var b strings.Builder
	holder := now.Holder
	if holder == "" {
		holder = p.bad("nobody")
	}
	fmt.Fprintf(&b, "%s  %s  holder: %s, term %d\n", now.ID, now.Time.Local().Format("15:04:05"), holder, now.Term)
	for _, why := range now.NotReadyTexts() {
		fmt.Fprintf(&b, "not ready: %s\n", p.bad(why))
	}
	var lines []topLine
	for _, lb := range now.LoadBalancers {
		for _, be := range lb.Backends {
			lines = append(lines, newTopLine(p, before, now, lb, be))
		}
	}
	slices.SortStableFunc(lines, func(x, y topLine) int {
		return cmp.Or(cmp.Compare(y.rate, x.rate), cmp.Compare(y.openNow, x.openNow))
	})
	rows := [][]string{
		{"LOAD BALANCER", "BACKEND", "STATE", "CHECK", "OPEN", "QUEUE", "NEW", "TOTAL", "FAILED", "IN", "OUT"},
	}
	for _, l := range lines {
		rows = append(rows, []string{
			l.loadBalancer, l.backend, l.state, l.check, l.open, l.queue, l.newRate, l.total, l.failed, l.in, l.out,
		})
	}
	table(&b, rows)
	_, err := io.WriteString(w, b.String())
	return err
}

// A topLine is one backend in the table of Top.
type topLine struct {
	loadBalancer, backend, state, check          string
	open, queue, newRate, total, failed, in, out string
	rate                                         float64 // of new connections per second
	openNow                                      uint64
}

func newTopLine(p painter, before, now status.Snapshot, lb balancer.LoadBalancerStatus,
	be balancer.BackendStatus) topLine {
	l := topLine{
		loadBalancer: lb.Name, backend: be.Name, state: p.state(be), check: latency(be),
		open: "-", queue: "-", newRate: "-", total: "-", failed: "-", in: "-", out: "-",
	}
	t := be.Traffic
	if t == nil {
		return l
	}
	newOnly := status.CountsNewOnly(lb.Plane)
	l.openNow, l.total = t.Open, fmt.Sprint(t.Total)
	if !newOnly {
		l.open = fmt.Sprint(t.Open)
	}
	if status.Dials(lb.Plane) {
		l.queue, l.failed = fmt.Sprint(t.Queued), fmt.Sprint(t.Failed)
	}
	then := before.Backend(balancer.Target{LoadBalancer: lb.Name, Backend: be.Address})
	if then == nil || then.Traffic == nil {
		return l
	}
	rate := func(then, count uint64) float64 { return figures.Rate(then, count, now.Time.Sub(before.Time)) }
	l.rate = rate(then.Traffic.Total, t.Total)
	l.newRate = figures.Number(l.rate) + "/s"
	if !newOnly {
		l.in = figures.Bytes(uint64(rate(then.Traffic.In, t.In))) + "/s"
		l.out = figures.Bytes(uint64(rate(then.Traffic.Out, t.Out))) + "/s"
	}
	return l
}
