package terminal

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"appliance/balancer"
	"appliance/status"
	"appliance/status/figures"
)

// Text writes a snapshot, in colours if colour is set. With why it also says why each load balancer that is served has
// the data plane that it has; of the others it always does.
func Text(w io.Writer, s status.Snapshot, colour, why bool) error {
	t := &text{paint: painter(colour), why: why}
	t.node(s)
	if inGroup(s) {
		t.peers(s)
		t.workers(s)
	}
	if len(s.VIPs) > 0 {
		t.vips(s)
		t.announce(s)
	}
	if len(s.VIPs) > 0 && len(s.LoadBalancers) == 0 {
		t.line("\nnothing is balanced: the virtual addresses lead to the holder's own servers")
	}
	for _, lb := range s.LoadBalancers {
		t.loadBalancer(lb, s.Time)
	}
	_, err := io.WriteString(w, t.String())
	return err
}

// inGroup reports whether the node is in a group; a worker is not, and has no state in one.
func inGroup(s status.Snapshot) bool { return s.Group.State != "" }

// text is a snapshot as it is written.
type text struct {
	strings.Builder
	paint painter
	why   bool
}

func (t *text) line(format string, args ...any) { fmt.Fprintf(t, format+"\n", args...) }

func (t *text) node(s status.Snapshot) {
	holder := s.Holder
	switch {
	case holder == "":
		holder = t.paint.bad("nobody")
	case s.Group.Holding:
		holder = t.paint.good(holder + " (this node)")
	}
	role := strings.TrimSpace(s.Role + " " + s.Group.State)
	t.line("%s  %s, appliance %s, up %s", s.ID, role, s.Version, figures.Age(s.Time.Sub(s.Started)))
	if inGroup(s) {
		t.line("holder: %s%s, term %d", holder, since(s.Time, s.Group.Since), s.Term)
	}
	if beat, floor := s.Group.Heartbeat, s.Group.HeartbeatFloor; t.why && s.Group.Failover > 0 || beat > floor {
		stretched := ""
		if beat > floor {
			stretched = fmt.Sprintf("; the heartbeat is %s instead of %s, because peers are far apart", beat, floor)
		}
		t.line("a lost host has a successor after about %s%s", figures.Age(s.Group.Failover), stretched)
	}
	if s.Privileges != nil {
		t.line("may: %s", s.Privileges)
	}
	if s.Group.Reason != "" {
		t.line("group: %s", t.paint.bad(s.Group.Reason))
	}
	for _, why := range s.NotReadyTexts() {
		t.line("not ready: %s", t.paint.bad(why))
	}
	for _, short := range s.Shortages {
		if short.Active {
			t.line("%s", t.paint.bad(short.Words()))
		}
	}
	for _, d := range s.Differences {
		t.line("differs: %s", t.paint.bad(d.String()))
	}
	if trouble := s.Hooks.Trouble(); trouble != "" {
		t.line("%s", t.paint.bad(trouble))
	}
}

func (t *text) peers(s status.Snapshot) {
	rows := [][]string{{"PEER", "ADDRESS", "ROLE", "CONNECTED", "LAST CONTACT", "ROUND TRIP", ""}}
	for _, peer := range s.Group.Peers {
		connected := t.paint.bad("no")
		if peer.Connected {
			connected = "yes"
		}
		contact := figures.Age(peer.LastContact)
		if peer.Self {
			connected, contact = "this node", "-"
		}
		var labels []string
		switch {
		case peer.Holder:
			labels = append(labels, t.paint.good("holder"))
		case peer.Conflict != "":
			labels = append(labels, t.paint.bad(peer.Conflict))
		}
		if peer.Doubled != "" {
			labels = append(labels, t.paint.bad(peer.Doubled))
		}
		labels = append(labels, peer.Labels(s.Group.Peers)...)
		if peer.Unfit != "" {
			labels = append(labels, t.paint.bad("would rather not hold: "+peer.Unfit))
		}
		rows = append(rows, []string{
			peer.ID, peer.Address.String(), peer.Role, connected, contact, figures.Age(peer.RoundTrip),
			strings.Join(labels, ", "),
		})
	}
	table(&t.Builder, rows)
}

// workersShown is how many workers a screen shows.
const workersShown = 20

func (t *text) workers(s status.Snapshot) {
	if s.Group.WorkersTotal == 0 {
		return
	}
	rows := [][]string{{"WORKER", "ADDRESS", "FOLLOWS THIS NODE FOR", "VERSION"}}
	shown := s.Group.Workers[:min(len(s.Group.Workers), workersShown)]
	for _, w := range shown {
		rows = append(rows, []string{w.ID, w.Address.String(), figures.Age(s.Time.Sub(w.Since)), cmp.Or(w.Version, "-")})
	}
	table(&t.Builder, rows)
	if more := s.Group.WorkersTotal - len(shown); more > 0 {
		t.line("and %d more workers; --json lists up to %d", more, status.MaxWorkers)
	}
}

func (t *text) vips(s status.Snapshot) {
	rows := [][]string{{"VIP", "INTERFACE", "BOUND", "ANSWERS HERE", "SENT", "FOREIGN CLAIMS"}}
	for _, v := range s.VIPs {
		foreign := fmt.Sprint(v.ForeignClaims)
		if v.ForeignClaims > 0 {
			foreign = fmt.Sprintf("%d, last by %s%s", v.ForeignClaims, v.ForeignMAC, since(s.Time, v.ForeignAt))
			foreign = t.paint.bad(foreign)
		}
		device := v.Interface
		if !v.Carrier {
			device += " " + t.paint.bad("(no carrier)")
		}
		rows = append(rows, []string{
			v.Address.String(), device, yes(v.Bound), yes(v.Answering),
			fmt.Sprintf("%d answers, %d announcements", v.Answers, v.Announcements), foreign,
		})
	}
	table(&t.Builder, rows)
}

// announce writes what routers are told.
func (t *text) announce(s status.Snapshot) {
	if s.Announce == nil {
		return
	}
	rows := [][]string{{"ROUTED VIP", "STATE", "WHY"}}
	for _, a := range s.Announce.Addresses {
		state := a.State()
		if !a.Announced {
			state = t.paint.bad(state)
		}
		rows = append(rows, []string{a.Address.String(), state, a.Reason})
	}
	table(&t.Builder, rows)
	if len(s.Announce.Sessions) == 0 {
		return
	}
	rows = [][]string{{"ROUTER", "AS", "BGP", "FOR", "BFD", "IS TOLD", "WHY"}}
	for _, r := range s.Announce.Sessions {
		state, watched := r.State, "-"
		if !r.Established() {
			state = t.paint.bad(state)
		}
		if r.BFD != nil {
			if watched = r.BFD.State; r.BFD.Detection > 0 {
				watched += " (" + figures.Age(r.BFD.Detection) + ")"
			}
			if r.Established() && r.BFD.State != "up" {
				watched = t.paint.bad(watched)
			}
		}
		rows = append(rows, []string{
			r.Neighbour.String(), fmt.Sprint(r.AS), state, figures.Age(s.Time.Sub(r.Since)), watched, r.Tells(), r.Reason,
		})
	}
	table(&t.Builder, rows)
}

// directTotal says what TOTAL is worth with the data plane direct.
const directTotal = "TOTAL is this node's part: new connections at its own backend, and of its own clients; " +
	"the page has the sum of the peers"

// proof writes whether clients are served.
func (t *text) proof(p *balancer.ProofStatus, now time.Time) {
	if p == nil {
		return
	}
	switch p.State {
	case balancer.Proved:
		t.line("  proved to serve: %s connected %s ago", p.By, figures.Age(now.Sub(*p.Last)))
	case balancer.Unproved:
		t.line("  %s", t.paint.bad("clients are not served: "+p.Reason))
	default:
		t.line("  not proved to serve: %s", p.Reason)
	}
	if l := p.Local; l != nil && l.State == balancer.Unproved {
		t.line("  %s", t.paint.bad("clients on this node are not served: "+l.Reason))
	}
}

func (t *text) loadBalancer(lb balancer.LoadBalancerStatus, now time.Time) {
	frontends := make([]string, len(lb.Frontends))
	for i, f := range lb.Frontends {
		frontends[i] = f.String()
	}
	plane := cmp.Or(string(lb.Plane), t.paint.bad("not served"))
	t.line("\nload balancer %s on %s: %s, scheduler %s", lb.Name, strings.Join(frontends, ", "), plane, lb.Scheduler)
	if t.why || lb.Plane == "" || lb.Error != "" {
		if lb.Reason != "" {
			t.line("  %s", lb.Reason)
		}
		for _, r := range lb.Refused {
			t.line("  not %s: %s", r.Plane, r.Reason)
		}
	}
	if t.why {
		t.checks(lb)
	}
	if lb.Error != "" {
		t.line("  %s", t.paint.bad(lb.Error))
	}
	t.proof(lb.Proof, now)
	if lb.Queued > 0 {
		t.line("  %s", t.paint.bad(fmt.Sprintf("%d connections wait for room at any backend", lb.Queued)))
	}
	rows := [][]string{{"  BACKEND", "ADDRESS", "WEIGHT", "STATE", "FOR", "CHECK", "OPEN", "QUEUE", "TOTAL", "WHY"}}
	for _, be := range lb.Backends {
		open, total, queue, weight := "-", "-", "-", fmt.Sprint(be.Weight)
		if be.Traffic != nil {
			total = fmt.Sprint(be.Traffic.Total)
			if !status.CountsNewOnly(lb.Plane) {
				open = fmt.Sprint(be.Traffic.Open)
			}
			if status.Dials(lb.Plane) {
				queue = fmt.Sprint(be.Traffic.Queued)
			}
			if slow := be.Traffic.SlowStart; slow > 0 {
				weight += " (" + figures.Percent(slow) + ")"
			}
		}
		address, since := be.Address.String(), figures.Age(now.Sub(be.Since))
		if !be.Address.IsValid() { // a name without an address
			address, since = "-", "-"
		}
		rows = append(rows, []string{
			"  " + be.Name, address, weight, t.paint.state(be), since,
			latency(be), open, queue, total, cmp.Or(be.PassedOver, be.Reason),
		})
	}
	table(&t.Builder, rows)
	if lb.Plane == balancer.Direct {
		t.line("  %s", directTotal)
	}
}

// checks writes how the backends are checked.
func (t *text) checks(lb balancer.LoadBalancerStatus) {
	if lb.Check != "" { // a node of an earlier version does not say
		t.line("  check: %s", lb.Check)
	}
	for _, be := range lb.Backends {
		if be.Check != "" {
			t.line("  check of %s: %s", be.Name, be.Check)
		}
	}
}

// latency is the time that the last check of a backend took.
func latency(be balancer.BackendStatus) string {
	if be.LastCheck == nil {
		return "-"
	}
	return fmt.Sprintf("%.1fms", be.LatencyMS)
}

// since says how long something has been so; empty if it never was.
func since(now, t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return ", since " + figures.Age(now.Sub(t))
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
