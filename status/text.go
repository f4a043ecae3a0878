package status

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"appliance/balancer"
)

// Text writes s for a person at a terminal, coloured if colour is set.
func Text(w io.Writer, s Snapshot, colour bool) error {
	p := painter(colour)
	var b strings.Builder

	holder := s.Holder
	switch {
	case holder == "":
		holder = p.bad("nobody")
	case s.Group.Holding:
		holder = p.good(holder + " (this node)")
	}
	// A worker is in no group, and has no state in it.
	grouped := s.Group.State != ""
	fmt.Fprintf(&b, "%s  %s, appliance %s, up %s\n", s.ID, strings.TrimSpace(s.Role+" "+s.Group.State), s.Version, age(s.Time.Sub(s.Started)))
	if grouped {
		fmt.Fprintf(&b, "holder: %s%s, term %d\n", holder, since(s.Time, s.Group.Since), s.Term)
	}
	if s.Group.Reason != "" {
		fmt.Fprintf(&b, "group: %s\n", p.bad(s.Group.Reason))
	}
	for _, why := range s.NotReady {
		fmt.Fprintf(&b, "not ready: %s\n", p.bad(why))
	}

	if words := s.Hooks.Words(); words != "" {
		fmt.Fprintf(&b, "%s\n", p.bad(words))
	}

	rows := [][]string{{"PEER", "ADDRESS", "ROLE", "CONNECTED", "LAST CONTACT", "ROUND TRIP", ""}}
	for _, peer := range s.Group.Peers {
		connected := p.bad("no")
		if peer.Connected {
			connected = "yes"
		}
		contact := age(peer.LastContact)
		if peer.Self {
			connected, contact = "this node", "-"
		}
		mark := p.bad(peer.Conflict)
		if peer.Holder {
			mark = p.good("holder")
		}
		if marks := strings.Join(peer.Marks(s.Group.Peers), ", "); marks != "" {
			mark = strings.TrimPrefix(mark+", "+marks, ", ")
		}
		if peer.Unfit != "" {
			mark = strings.TrimPrefix(mark+", "+p.bad("would rather not hold: "+peer.Unfit), ", ")
		}
		rows = append(rows, []string{peer.ID, peer.Address.String(), peer.Role, connected, contact, age(peer.RoundTrip), mark})
	}
	if grouped {
		table(&b, rows)
	}

	if len(s.VIPs) > 0 {
		rows = [][]string{{"VIP", "INTERFACE", "BOUND", "ANSWERS HERE", "SENT", "FOREIGN CLAIMS"}}
		for _, v := range s.VIPs {
			foreign := fmt.Sprint(v.ForeignClaims)
			if v.ForeignClaims > 0 {
				foreign = p.bad(fmt.Sprintf("%d, last by %s%s", v.ForeignClaims, v.ForeignMAC, since(s.Time, v.ForeignAt)))
			}
			device := v.Interface
			if !v.Carrier {
				device += " " + p.bad("(no carrier)")
			}
			rows = append(rows, []string{
				v.Address.String(), device, yes(v.Bound), yes(v.Answering),
				fmt.Sprintf("%d answers, %d announcements", v.Answers, v.Announcements), foreign,
			})
		}
		table(&b, rows)
	}

	for _, lb := range s.LoadBalancers {
		addrs := make([]string, len(lb.Frontends))
		for i, f := range lb.Frontends {
			addrs[i] = f.String()
		}
		fmt.Fprintf(&b, "\nload balancer %s on %s: %s, scheduler %s\n", lb.Name, strings.Join(addrs, ", "), cmp.Or(string(lb.Plane), p.bad("not served")), lb.Scheduler)
		if lb.Reason != "" {
			fmt.Fprintf(&b, "  %s\n", lb.Reason)
		}
		for _, r := range lb.Refused {
			fmt.Fprintf(&b, "  not %s: %s\n", r.Plane, r.Reason)
		}
		if lb.Error != "" {
			fmt.Fprintf(&b, "  %s\n", p.bad(lb.Error))
		}
		if lb.Queued > 0 {
			fmt.Fprintf(&b, "  %s\n", p.bad(fmt.Sprintf("%d connections wait for room at any backend", lb.Queued)))
		}
		rows = [][]string{{"  BACKEND", "ADDRESS", "WEIGHT", "STATE", "FOR", "CHECK", "OPEN", "QUEUE", "TOTAL", "WHY"}}
		for _, be := range lb.Backends {
			why := cmp.Or(be.PassedOver, be.Reason)
			check, open, total, queue, weight := "-", "-", "-", "-", fmt.Sprint(be.Weight)
			if be.LastCheck != nil {
				check = fmt.Sprintf("%.1fms", be.LatencyMS)
			}
			if be.Traffic != nil {
				total = fmt.Sprint(be.Traffic.Total)
				if !partial(lb.Plane) {
					open = fmt.Sprint(be.Traffic.Open)
				}
				if dials(lb.Plane) {
					queue = fmt.Sprint(be.Traffic.Queued)
				}
				if slow := be.Traffic.SlowStart; slow > 0 {
					weight += " (" + percent(slow) + ")"
				}
			}
			rows = append(rows, []string{
				"  " + be.Name, be.Address.String(), weight, p.state(be), age(s.Time.Sub(be.Since)),
				check, open, queue, total, why,
			})
		}
		table(&b, rows)
		if lb.Plane == balancer.Direct {
			b.WriteString("  " + directCounts + "\n")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// directCounts says what a number is worth.
const directCounts = "TOTAL is this node's part: new connections at its own backend, and of its own clients; the page has the sum of the peers"

// percent of a whole.
func percent(part float64) string { return fmt.Sprintf("%.0f%%", 100*part) }

// painter colours words where the reader is a terminal.
type painter bool

const (
	red   = "\x1b[31m"
	green = "\x1b[32m"
	plain = "\x1b[0m"
)

func (p painter) good(s string) string { return p.paint(green, s) }
func (p painter) bad(s string) string  { return p.paint(red, s) }

func (p painter) paint(colour, s string) string {
	if !p || s == "" {
		return s
	}
	return colour + s + plain
}

// table writes rows in straight columns, two spaces apart. text/tabwriter would
// count the bytes of colour codes as width.
func table(b *strings.Builder, rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], width(cell))
		}
	}
	b.WriteByte('\n')
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString(cell)
			line.WriteString(strings.Repeat(" ", widths[i]-width(cell)+2))
		}
		b.WriteString(strings.TrimRight(line.String(), " "))
		b.WriteByte('\n')
	}
}

// width is how many columns a terminal needs for s.
func width(s string) int {
	for _, code := range []string{red, green, plain} {
		s = strings.ReplaceAll(s, code, "")
	}
	return utf8.RuneCountInString(s)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// age prints a duration to the precision that a person wants.
func age(d time.Duration) string {
	switch {
	case d <= 0:
		return "-"
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(100 * time.Microsecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	case d < 48*time.Hour:
		d = d.Round(time.Second)
		if d >= time.Hour {
			return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
		}
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	default:
		return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
	}
}

// since says for how long something has been so; empty where it never was.
func since(now, t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return ", since " + age(now.Sub(t))
}
