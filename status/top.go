package status

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"appliance/balancer"
)

// EventText writes e as a line for a person at a terminal.
func EventText(w io.Writer, e Event, colour bool) error {
	p := painter(colour)
	what := e.String()
	if e.Bad {
		what = p.bad(what)
	}
	_, err := fmt.Fprintf(w, "%s  %-8s %s\n", e.Time.Local().Format("2006-01-02 15:04:05.000"), e.Kind, what)
	return err
}

// Top writes what the load balancers did between two snapshots, the busiest
// first. With a zero before there are no rates yet.
func Top(w io.Writer, before, now Snapshot, colour bool) error {
	p := painter(colour)
	var b strings.Builder
	span := now.Time.Sub(before.Time)
	holder := cmp.Or(now.Holder, "nobody")
	if now.Holder == "" {
		holder = p.bad(holder)
	}
	fmt.Fprintf(&b, "%s  %s  holder: %s, term %d\n", now.ID, now.Time.Local().Format("15:04:05"), holder, now.Term)
	for _, why := range now.NotReady {
		fmt.Fprintf(&b, "not ready: %s\n", p.bad(why))
	}
	type line struct {
		cells []string
		rate  float64
		open  uint64
	}
	lines := []line{}
	for _, lb := range now.LoadBalancers {
		for _, be := range lb.Backends {
			l := line{cells: []string{lb.Name, be.Name, p.state(be), check(be), "-", "-", "-", "-", "-", "-", "-"}}
			if t := be.Traffic; t != nil {
				l.open = t.Open
				l.cells[7] = fmt.Sprint(t.Total)
				if !partial(lb.Plane) {
					l.cells[4] = fmt.Sprint(t.Open)
				}
				if dials(lb.Plane) {
					l.cells[5], l.cells[8] = fmt.Sprint(t.Queued), fmt.Sprint(t.Failed)
				}
				then := trafficOf(before, lb.Name, be.Address)
				if then != nil {
					l.rate = perSecond(then.Total, t.Total, span)
					l.cells[6] = number(l.rate) + "/s"
				}
				if then != nil && !partial(lb.Plane) {
					l.cells[9] = amount(uint64(perSecond(then.In, t.In, span))) + "/s"
					l.cells[10] = amount(uint64(perSecond(then.Out, t.Out, span))) + "/s"
				}
			}
			lines = append(lines, l)
		}
	}
	slices.SortStableFunc(lines, func(x, y line) int {
		return cmp.Or(cmp.Compare(y.rate, x.rate), cmp.Compare(y.open, x.open))
	})
	rows := [][]string{{"LOAD BALANCER", "BACKEND", "STATE", "CHECK", "OPEN", "QUEUE", "NEW", "TOTAL", "FAILED", "IN", "OUT"}}
	for _, l := range lines {
		rows = append(rows, l.cells)
	}
	table(&b, rows)
	_, err := io.WriteString(w, b.String())
	return err
}

func (p painter) state(be balancer.BackendStatus) string {
	switch word := string(be.State); {
	case be.PassedOver != "":
		return p.bad("passed over")
	case be.State == balancer.Up:
		return p.good(word)
	case be.State == balancer.Down:
		return p.bad(word)
	default:
		return word
	}
}

func check(be balancer.BackendStatus) string {
	if be.LastCheck == nil {
		return "-"
	}
	return fmt.Sprintf("%.1fms", be.LatencyMS)
}

func trafficOf(s Snapshot, lb string, at netip.AddrPort) *balancer.Traffic {
	if be := findBackend(&s, lb, at); be != nil && s.Time != (time.Time{}) {
		return be.Traffic
	}
	return nil
}
