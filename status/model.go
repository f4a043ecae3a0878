package status

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// model is the group as the page shows it: every node's own view side by side,
// with what they do not agree on marked.
type model struct {
	Now     time.Time
	Self    string
	Version string
	Holder  string
	// Since is when the holder's tenure began, by its own word.
	Since   time.Time
	Term    uint64
	Verdict verdict

	Addresses     []addressModel
	Nodes         []nodeModel
	LoadBalancers []lbModel
	Tenures       []tenureModel
	Events        []eventModel
}

// verdict answers what is asked first: is anybody hurt?
type verdict struct {
	// Level is good, warn or bad.
	Level    string
	Headline string
	Problems []problem
}

type problem struct {
	Bad  bool
	Text string
	// of is the load balancer of a backend's problem, and all what is said of
	// several backends together.
	of, all string
}

// gathered is problems with those of many backends that have one cause as one: a
// host that is gone has a backend of every load balancer.
func gathered(problems []problem) []problem {
	const most = 2 // that are told one by one
	same := make(map[string][]string)
	for _, p := range problems {
		if p.all != "" {
			same[p.all] = append(same[p.all], p.of)
		}
	}
	var out []problem
	for _, p := range problems {
		names, told := same[p.all]
		switch {
		case p.all == "" || told && len(names) <= most:
			out = append(out, p)
		case told:
			n := len(names)
			slices.Sort(names)
			names = slices.Compact(names)
			if more := len(names) - 5; more > 0 {
				names = append(names[:5], fmt.Sprintf("%d more", more))
			}
			out = append(out, problem{Text: fmt.Sprintf("%d backends (of %s) %s", n, strings.Join(names, ", "), p.all)})
			delete(same, p.all)
		}
	}
	return out
}

type addressModel struct {
	Address   netip.Addr
	Interface string
	// Answering are the nodes that answer now: one, or there is trouble.
	Answering                       []string
	MAC                             string
	Answers, Announcements, Repairs uint64
	ForeignClaims                   uint64
	ForeignMAC                      string
	ForeignAt                       time.Time
	Nodes                           []addressNode
	Level                           string
}

type addressNode struct {
	ID, Interface, MAC string
	Bound, Answering   bool
	Carrier            bool
}

type nodeModel struct {
	ID      string
	Self    bool
	Address netip.AddrPort
	Role    string
	State   string
	Version string
	Holder  bool
	// SaysHolder is who holds by this node's word; Odd marks that others say
	// otherwise.
	SaysHolder string
	Odd        bool
	Term       uint64
	NotReady   []string
	Started    time.Time
	RoundTrip  time.Duration
	Contact    time.Duration
	// Unreachable says why there is no report, Seen when the last one came.
	Unreachable string
	Seen        time.Time
	Since       time.Time // of Connected
	Connected   bool
	Conflict    string
	Marks       []string
	// Unfit is why it would rather not hold, Hooks what its hooks did not do.
	Unfit, Hooks string
	// Deaf are the peers that this node does not reach.
	Deaf  []string
	Level string
	// Word is the state in one word, for those who do not see colours.
	Word string
}

type eventModel struct {
	Event
	Nodes []string
}

type tenureModel struct {
	Holder     string
	From       time.Time
	Until      time.Time // zero while it lasts
	Lasted     time.Duration
	Cause      string
	Took       time.Duration
	Term       uint64
	ByNewOwner bool // Took is the new holder's own measure
}

// stale is how old a report may be before the page says so.
const stale = 3 * askEvery

// fresh is whether the latest report still holds. The dead do not withdraw what
// they said last: a question without an answer does, and a newer term does.
func (n neighbour) fresh(s Snapshot) bool {
	return n.Report != nil && n.Err == nil && s.Time.Sub(n.At) < stale &&
		(!n.Report.Snapshot.Group.Holding || n.Report.Snapshot.Term >= s.Term)
}

// newModel is a pure function of what is known.
func newModel(self neighbour, others map[string]neighbour, samples *Samples) model {
	s := self.Report.Snapshot
	m := model{Now: s.Time, Self: s.ID, Version: s.Version, Term: s.Term}
	reports := []neighbour{self}
	for _, p := range s.Group.Peers {
		if one, ok := others[p.ID]; ok && !p.Self && one.fresh(s) {
			reports = append(reports, one)
		}
	}
	m.Holder, m.Since = holder(s, reports)
	for _, p := range s.Group.Peers {
		m.Nodes = append(m.Nodes, m.node(p, self, others))
	}
	if len(m.Nodes) == 0 { // a worker, or a group of one that lists nobody
		m.Nodes = append(m.Nodes, m.node(Peer{ID: s.ID, Self: true, Role: s.Role, Connected: true}, self, nil))
	}
	m.Addresses = addresses(s, reports)
	for _, lb := range s.LoadBalancers {
		m.LoadBalancers = append(m.LoadBalancers, newLB(s, lb, reports, samples))
	}
	m.Tenures = tenures(self, reports)
	m.Events = events(reports)
	m.Verdict = m.judge(s, reports)
	return m
}

func (m *model) hideVersions() {
	m.Version = ""
	for i := range m.Nodes {
		m.Nodes[i].Version = ""
	}
}

// holder is who says that it holds, else whom this node believes to.
func holder(s Snapshot, reports []neighbour) (string, time.Time) {
	for _, r := range reports {
		if g := r.Report.Snapshot.Group; g.Holding {
			return r.Report.Snapshot.ID, g.Since
		}
	}
	return s.Holder, time.Time{}
}

func (m *model) node(p Peer, self neighbour, others map[string]neighbour) nodeModel {
	n := nodeModel{
		ID: p.ID, Self: p.Self, Address: p.Address, Role: p.Role, Version: p.Version, Holder: p.ID == m.Holder,
		RoundTrip: p.RoundTrip, Contact: p.LastContact, Connected: p.Connected, Since: p.ConnectedSince, Conflict: p.Conflict, Marks: p.Marks(self.Report.Snapshot.Group.Peers), Unfit: p.Unfit,
	}
	one := self
	if !p.Self {
		one = others[p.ID]
	}
	n.Seen = one.At
	if !p.Self && !one.fresh(self.Report.Snapshot) {
		n.Level, n.Word, n.Unreachable = "bad", "no answer", "it does not answer"
		if one.Err != nil {
			n.Unreachable = one.Err.Error()
		}
		if p.Connected && one.Err == nil {
			n.Level, n.Word, n.Unreachable = "warn", "asked", "it has not answered yet"
		}
		return n
	}
	r := one.Report.Snapshot
	n.State, n.SaysHolder, n.Term, n.NotReady, n.Started = r.Group.State, r.Holder, r.Term, r.NotReady, r.Started
	n.Version = cmp.Or(r.Version, n.Version)
	n.Hooks = r.Hooks.Words()
	n.Odd = r.Holder != m.Holder
	for _, q := range r.Group.Peers {
		if !q.Self && !q.Connected {
			n.Deaf = append(n.Deaf, q.ID)
		}
	}
	switch {
	case n.Odd || n.Conflict != "":
		n.Level, n.Word = "bad", "disagrees"
	case len(n.NotReady) > 0:
		n.Level, n.Word = "warn", "not ready"
	case len(n.Deaf) > 0:
		n.Level, n.Word = "warn", "misses peers"
	case n.Unfit != "":
		n.Level, n.Word = "warn", "unfit"
	default:
		n.Level, n.Word = "good", "ready"
	}
	return n
}

func addresses(s Snapshot, reports []neighbour) []addressModel {
	var all []addressModel
	for _, v := range s.VIPs {
		a := addressModel{Address: v.Address, Interface: v.Interface}
		for _, r := range reports {
			for _, w := range r.Report.Snapshot.VIPs {
				if w.Address != v.Address {
					continue
				}
				id := r.Report.Snapshot.ID
				// The lease decides who may answer; a tenure that is being
				// wound up is none.
				answering := w.Answering && r.Report.Snapshot.Group.Holding
				a.Nodes = append(a.Nodes, addressNode{ID: id, Interface: w.Interface, MAC: w.MAC, Bound: w.Bound, Answering: answering, Carrier: w.Carrier})
				if answering {
					a.Answering = append(a.Answering, id)
					a.MAC, a.Interface = w.MAC, w.Interface
				}
				a.Answers += w.Answers
				a.Announcements += w.Announcements
				a.Repairs += w.Repairs
				a.ForeignClaims += w.ForeignClaims
				if w.ForeignAt.After(a.ForeignAt) {
					a.ForeignAt, a.ForeignMAC = w.ForeignAt, w.ForeignMAC
				}
			}
		}
		slices.SortFunc(a.Nodes, func(x, y addressNode) int { return cmp.Compare(x.ID, y.ID) })
		switch {
		case len(a.Answering) != 1 || recent(s.Time, a.ForeignAt, 5*time.Minute):
			a.Level = "bad"
		default:
			a.Level = "good"
		}
		all = append(all, a)
	}
	return all
}

func recent(now, t time.Time, within time.Duration) bool {
	return !t.IsZero() && now.Sub(t) < within
}

// judge says what a person who was woken up has to know first.
func (m *model) judge(s Snapshot, reports []neighbour) verdict {
	var v verdict
	note := func(bad bool, format string, args ...any) {
		v.Problems = append(v.Problems, problem{Bad: bad, Text: fmt.Sprintf(format, args...)})
	}
	if m.Holder == "" && s.Role != "worker" {
		note(true, "nobody answers for the virtual addresses, as far as %s knows", m.Self)
	}
	var holding []string
	newest := s.Term
	for _, r := range reports {
		newest = max(newest, r.Report.Snapshot.Term)
	}
	for _, r := range reports {
		if r.Report.Snapshot.Group.Holding && r.Report.Snapshot.Term == newest {
			holding = append(holding, r.Report.Snapshot.ID)
		}
	}
	if len(holding) > 1 {
		note(true, "%s say at once that they hold; reports are up to %s apart, look again", strings.Join(holding, " and "), age(askEvery))
	}
	for _, n := range m.Nodes {
		switch {
		case n.Conflict != "":
			note(false, "%s cannot be of this group: %s", n.ID, n.Conflict)
		case n.Unreachable != "" && n.Level == "bad":
			note(false, "%s does not answer %s", n.ID, m.Self)
		case n.Odd:
			note(true, "%s says that %s holds", n.ID, cmp.Or(n.SaysHolder, "nobody"))
		}
		if len(n.Deaf) > 0 && n.Unreachable == "" {
			gone := slices.DeleteFunc(slices.Clone(n.Deaf), func(id string) bool {
				return slices.ContainsFunc(m.Nodes, func(o nodeModel) bool { return o.ID == id && o.Unreachable != "" })
			})
			if len(gone) > 0 {
				note(false, "%s does not reach %s", n.ID, strings.Join(gone, ", "))
			}
		}
		if n.Unfit != "" && n.Unreachable == "" && len(n.NotReady) == 0 { // else it is said below
			note(false, "%s would rather not hold: %s", n.ID, n.Unfit)
		}
		for _, why := range n.NotReady {
			if !strings.HasPrefix(why, "load balancer ") { // said below, for the group
				note(n.Holder, "%s: %s", n.ID, why)
			}
		}
	}
	for _, a := range m.Addresses {
		if recent(m.Now, a.ForeignAt, time.Hour) {
			note(recent(m.Now, a.ForeignAt, 5*time.Minute), "another machine (%s) has claimed %s", a.ForeignMAC, a.Address)
		}
	}
	var all []problem
	for _, lb := range m.LoadBalancers {
		all = append(all, lb.problems()...)
	}
	v.Problems = append(v.Problems, gathered(all)...)
	slices.SortStableFunc(v.Problems, func(a, b problem) int {
		switch {
		case a.Bad == b.Bad:
			return 0
		case a.Bad:
			return -1
		}
		return 1
	})
	v.say(m)
	return v
}

func (v *verdict) say(m *model) {
	bad := 0
	for _, p := range v.Problems {
		if p.Bad {
			bad++
		}
	}
	served := m.Holder + " answers for the virtual addresses"
	if m.Holder == "" {
		served = "served on this node only" // a worker
	}
	switch {
	case bad > 0:
		v.Level, v.Headline = "bad", "Trouble: "+v.Problems[0].Text
		v.Problems = v.Problems[1:]
	case len(v.Problems) == 1:
		v.Level, v.Headline = "warn", "Clients are served, with one thing to look at: "+v.Problems[0].Text
		v.Problems = nil
	case len(v.Problems) > 1:
		v.Level, v.Headline = "warn", fmt.Sprintf("Clients are served, with %d things to look at", len(v.Problems))
	default:
		v.Level, v.Headline = "good", "All is well: "+served
	}
}

// shownEvents is how many events of the whole group the page shows.
const shownEvents = 100

// events are those of all nodes, the newest first. What several nodes saw of
// one thing is one line.
func events(reports []neighbour) []eventModel {
	var all []Event
	for _, r := range reports {
		all = append(all, r.Report.Events...)
	}
	slices.SortStableFunc(all, func(a, b Event) int { return b.Time.Compare(a.Time) })
	var out []eventModel
	for _, e := range all {
		same := -1
		for i := len(out) - 1; i >= 0 && out[i].Time.Sub(e.Time) < 3*time.Second; i-- {
			o := out[i]
			if o.Kind == e.Kind && o.What == e.What && o.Subject == e.Subject && !slices.Contains(o.Nodes, e.Node) {
				same = i
				break
			}
		}
		if same >= 0 {
			out[same].Nodes = append(out[same].Nodes, e.Node)
			continue
		}
		if len(out) == shownEvents {
			break
		}
		out = append(out, eventModel{Event: e, Nodes: []string{e.Node}})
	}
	for i := range out {
		slices.Sort(out[i].Nodes)
	}
	return out
}

// shownTenures is how many holders the page looks back.
const shownTenures = 12

// tenures is who held, the newest first, as this node saw it, with the new
// holders' own measures where they are known.
func tenures(self neighbour, reports []neighbour) []tenureModel {
	var out []tenureModel
	until := time.Time{}
	events := self.Report.Events
	for i := len(events) - 1; i >= 0 && len(out) < shownTenures; i-- {
		e := events[i]
		if e.Kind != OfHolder {
			continue
		}
		t := tenureModel{Holder: e.To, From: e.Time, Until: until, Cause: e.Reason, Took: e.Took, Term: e.Term}
		if !until.IsZero() {
			t.Lasted = until.Sub(e.Time)
		}
		for _, r := range reports {
			if r.Report.Snapshot.ID != e.To {
				continue
			}
			for _, own := range r.Report.Events {
				if own.Kind == OfHolder && own.To == e.To && own.Term == e.Term {
					t.Took, t.Cause, t.ByNewOwner = own.Took, own.Reason, true
				}
			}
		}
		if why := ownWords(reports, e); why != "" {
			t.Cause = why
		}
		until = e.Time
		out = append(out, t)
	}
	return out
}

// ownWords is how the old holder itself explains that it holds no more.
func ownWords(reports []neighbour, e Event) string {
	for _, r := range reports {
		if r.Report.Snapshot.ID != e.From || e.From == e.To {
			continue
		}
		for _, own := range r.Report.Events {
			if gap := own.Time.Sub(e.Time); own.Kind == OfTenure && gap.Abs() < 2*time.Second && own.Term < e.Term {
				return e.From + ": " + own.Reason
			}
		}
	}
	return ""
}

// Ready counts the nodes that would serve, Up the backends of Backends, Open the
// connections: for the template.
func (m model) Ready() (n int) {
	for _, one := range m.Nodes {
		if one.Unreachable == "" && len(one.NotReady) == 0 {
			n++
		}
	}
	return n
}

func (m model) Up() (n int) {
	for _, lb := range m.LoadBalancers {
		n += lb.Up
	}
	return n
}

func (m model) Backends() (n int) {
	for _, lb := range m.LoadBalancers {
		n += len(lb.Backends)
	}
	return n
}

// Open is how many connections are open, where that is counted.
func (m model) Open() string {
	n := uint64(0)
	for _, lb := range m.LoadBalancers {
		for _, be := range lb.Backends {
			n += be.Traffic.Open
		}
	}
	if some, _ := m.counted(); !some {
		return "not counted"
	}
	return strconv.FormatUint(n, 10)
}

// OpenPartly is whether not every data plane counts what is open.
func (m model) OpenPartly() bool {
	some, all := m.counted()
	return some && !all
}

func (m model) counted() (some, all bool) {
	all = true
	for _, lb := range m.LoadBalancers {
		for _, be := range lb.Backends {
			is := be.Counted && !be.Partly
			some, all = some || is, all && is
		}
	}
	return some, all
}
