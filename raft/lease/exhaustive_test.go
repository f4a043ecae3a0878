package lease

import (
	"fmt"
	"hash/maphash"
	"testing"
	"time"
)

// The exhaustive model visits every state of a small world that can be reached by any interleaving: three
// voters, two terms, clocks that tick together, a lease of one tick or two. Peer 0 leads term 1 at first; any
// peer may stand for term 2 at any moment. A message is lost, overtaken or held back for as long as one likes;
// what reaches a voter is noted, and handled in a later step, so that everything else may come between. A
// bounded number of processes restarts, and of disks is put back to where they were at the beginning.
//
// What it leaves out: clocks of different rates, changes of members, and more than the given number of messages
// under way at once. [TestModelNeverTwo] has the first, at random.

const peers = 3

type world struct {
	p                  [peers]voter
	x                  [peers][peers]exchange // from, to
	restarts, restores uint8                  // still allowed
}

type voter struct {
	term, votedIn uint8
	votedFor      uint8
	leads, out    bool // out: older leases are waited out
	votes         uint8
	elected       uint8        // ticks ago
	granted       [peers]uint8 // by whom, ticks since t0
	account       [peers]told

	// the voter's side
	lived        uint8
	entries      [peers]uint8 // by sender, ticks since the entry; the terms in them matter only with proofs of death
	leader, seen uint8        // Grants.Follow
}

type told struct {
	have        bool
	term, lived uint8
	entries     [peers]uint8
}

// exchange is a message and its answer: sent, noted by the receiver, answered.
type exchange struct {
	kind, step, term uint8
	age              uint8 // since t0
	told             told  // an account's term is read when it is noted, and its grants when it is answered
}

const (
	sent, reached, answered = 1, 2, 3

	vote, beat, probe, ask = 1, 2, 3, 4
)

// flaws are breaches of the argument that the model has to notice.
type flaws struct {
	lateT0, lateEntry, grantsFirst, noWait, noLived, twoLeaders bool
}

// move is a step of the world.
type move struct {
	what       string
	i, j       int // from, to
	kind, step uint8
}

type explorer struct {
	flaws
	span     uint8 // in ticks
	inFlight int
	all      bool // also peer 2 stands
	seed     maphash.Seed
	seen     map[uint64]struct{} // hashes of states: of 10 million, two share one by a chance of 3 in a million
	asked    map[accounts]bool
	most     int
	nodes    []node
	at       int
	failed   string
	held     int
}

func (e *explorer) stretchedSpan() (span, tick time.Duration) {
	return time.Duration(e.span) * 100, 101 // Stretch(span) is e.span ticks
}

func (e *explorer) majority(w *world, i int) bool {
	n := 0
	for j := range peers {
		if j == i || w.p[i].granted[j] < e.span {
			n++
		}
	}
	return n > peers/2
}

func (e *explorer) may(w *world, i int) bool {
	return w.p[i].leads && w.p[i].out && e.majority(w, i)
}

func (e *explorer) forget(p *voter) {
	p.leads, p.out, p.votes, p.elected = false, false, 0, 0
	for j := range peers {
		p.granted[j], p.account[j] = e.span, told{}
	}
}

func (e *explorer) reach(p *voter, term uint8) {
	if term > p.term {
		p.term = term
		e.forget(p)
	}
}

func (e *explorer) start() world {
	var w world
	for i := range peers {
		p := &w.p[i]
		p.term, p.votedIn, p.votedFor, p.lived, p.seen, p.leader = 1, 1, 0, e.span, 1, 0
		e.forget(p)
		for j := range peers {
			p.entries[j] = e.span
		}
	}
	w.p[0].leads, w.p[0].out, w.p[0].elected = true, true, e.span
	return w
}

// node is a state and how it came about.
type node struct {
	world
	from int // index of the state before
	depth
	how move
}

type depth int

// visit adds w to the states to go on from, if it is new.
func (e *explorer) visit(w world, how move) {
	e.tidy(&w)
	hash := maphash.Comparable(e.seed, w)
	if _, known := e.seen[hash]; !known {
		e.seen[hash] = struct{}{}
		e.nodes = append(e.nodes, node{w, e.at, e.nodes[e.at].depth + 1, how})
	}
}

// run visits one state after the other, those that need fewer steps first.
func (e *explorer) run(w world) {
	e.nodes = []node{{world: w}}
	for e.at = 0; e.at < len(e.nodes) && e.at < e.most && e.failed == ""; e.at++ {
		e.goOn(e.nodes[e.at].world)
	}
}

// goOn looks at w and takes every next step.
func (e *explorer) goOn(w world) {
	n := 0
	for i := range peers {
		if e.may(&w, i) {
			n++
		}
	}
	if e.held += n; n > 1 {
		for at := e.at; at > 0; at = e.nodes[at].from {
			e.failed = fmt.Sprint(e.nodes[at].how, e.failed)
		}
		return
	}
	e.visit(e.tick(w), move{what: "tick"})
	under := 0
	for i := range peers {
		for j := range peers {
			if w.x[i][j].step != 0 {
				under++
			}
		}
	}
	for i := range peers {
		e.visitPeer(w, i)
		for j := range peers {
			if i == j {
				continue
			}
			if x := w.x[i][j]; x.step != 0 {
				lost := w
				lost.x[i][j] = exchange{}
				e.visit(lost, move{"lost", i, j, x.kind, x.step})
				e.visit(e.proceed(w, i, j), move{"proceed", i, j, x.kind, x.step})
			} else if under < e.inFlight {
				for kind := uint8(vote); kind <= ask; kind++ {
					p := &w.p[i]
					if kind == vote && (p.leads || p.votes == 0) || kind != vote && !p.leads || kind == ask && p.out {
						continue
					}
					next := w
					next.x[i][j] = exchange{kind: kind, step: sent, term: p.term}
					e.visit(next, move{"send", i, j, kind, 0})
				}
			}
		}
	}
}

func (e *explorer) visitPeer(w world, i int) {
	if w.p[i].term < 2 && (i < 2 || e.all) { // as long as nothing has happened to a disk, 2 is like 1
		next := w
		p := &next.p[i]
		e.reach(p, 2)
		p.votedIn, p.votedFor, p.votes = 2, uint8(i), 1<<i
		e.visit(next, move{"stands", i, i, 0, 0})
	}
	if p := &w.p[i]; p.leads && !p.out && (e.noWait || p.elected >= e.span || e.waited(&w, i)) {
		next := w
		next.p[i].out = true
		for j := range peers {
			next.p[i].account[j] = told{}
		}
		e.visit(next, move{"has waited", i, i, 0, 0})
	}
	if w.restarts > 0 {
		next := e.restart(w, i)
		next.restarts--
		e.visit(next, move{"restarts", i, i, 0, 0})
	}
	if w.restores > 0 {
		next := e.restart(w, i)
		next.restores--
		next.p[i].term, next.p[i].votedIn, next.p[i].votedFor = 1, 1, 0
		e.visit(next, move{"restored", i, i, 0, 0})
	}
}

func (e *explorer) restart(w world, i int) world {
	p := &w.p[i]
	e.forget(p)
	p.lived, p.leader, p.seen = 0, 0, 0
	for j := range peers {
		p.entries[j] = e.span
		w.x[i][j] = exchange{}
		if w.x[j][i].step == reached {
			w.x[j][i] = exchange{}
		}
	}
	return w
}

// accounts are what Wait is asked about.
type accounts struct {
	i           int
	term, lived uint8
	entries     [peers]uint8
	told        [peers]told
}

// waited is what Group.waitOutLeases asks.
func (e *explorer) waited(w *world, i int) bool {
	p := &w.p[i]
	key := accounts{i, p.term, p.lived, p.entries, p.account}
	over, known := e.asked[key]
	if !known {
		over = e.wait(w, i)
		e.asked[key] = over
	}
	return over
}

// wait asks the real Wait.
func (e *explorer) wait(w *world, i int) bool {
	span, tick := e.stretchedSpan()
	account := func(t told) Account {
		a := Account{Term: uint64(t.term), Lived: time.Duration(t.lived) * tick}
		for to, n := range t.entries {
			a.Granted = append(a.Granted, GrantAge{fmt.Sprint(to), 1, time.Duration(n) * tick})
		}
		return a
	}
	p := &w.p[i]
	accounts := map[string]Account{fmt.Sprint(i): account(told{term: p.term, lived: p.lived, entries: p.entries})}
	for j, t := range p.account {
		if t.have {
			if e.noLived {
				t.lived = e.span
			}
			accounts[fmt.Sprint(j)] = account(t)
		}
	}
	left, enough := Wait(fmt.Sprint(i), uint64(p.term), span, []string{"0", "1", "2"}, accounts)
	return enough && left <= 0
}

func (e *explorer) tick(w world) world {
	older := func(n *uint8) { *n = min(*n+1, e.span) }
	for i := range peers {
		p := &w.p[i]
		older(&p.lived)
		if p.leads {
			older(&p.elected)
		}
		for j := range peers {
			older(&p.granted[j])
			older(&p.entries[j])
			if p.account[j].have {
				older(&p.account[j].lived)
				for k := range peers {
					older(&p.account[j].entries[k])
				}
			}
			if w.x[i][j].step != 0 {
				older(&w.x[i][j].age)
			}
		}
	}
	return w
}

// proceed takes the next step of the exchange that i has begun with j.
func (e *explorer) proceed(w world, i, j int) world {
	x, v, p := &w.x[i][j], &w.p[j], &w.p[i]
	switch x.step {
	case sent:
		x.step = reached
		switch x.kind {
		case ask:
			x.told = told{have: true, term: v.term}
			if e.grantsFirst {
				x.told.lived, x.told.entries = v.lived, v.entries
			}
		case beat, probe:
			if x.term > v.seen {
				v.seen, v.leader = x.term, uint8(i)
			}
			if x.term == v.seen && v.leader != uint8(i) && !e.twoLeaders {
				*x = exchange{}
				return w
			}
			fallthrough
		default:
			if !e.lateEntry {
				v.entries[i] = 0
			}
		}
	case reached:
		x.step = answered
		ok := true
		switch x.kind {
		case ask:
			if e.grantsFirst {
				x.told.term = v.term
			} else {
				x.told.lived, x.told.entries = v.lived, v.entries
			}
		case probe:
			ok = v.term == x.term
		case beat:
			e.reach(v, x.term)
			ok = v.term == x.term
		case vote:
			e.reach(v, x.term)
			ok = v.term == x.term && (v.votedIn < x.term || v.votedFor == uint8(i))
			if ok {
				v.votedIn, v.votedFor = x.term, uint8(i)
			}
		}
		if !ok {
			*x = exchange{}
		}
	case answered:
		if e.lateEntry && x.kind != ask {
			v.entries[i] = 0
		}
		age := x.age
		if e.lateT0 {
			age = 0
		}
		if x.term == p.term {
			switch x.kind {
			case ask:
				if p.leads && !p.out && !p.account[j].have {
					p.account[j] = x.told
				}
			case vote:
				p.granted[j] = min(p.granted[j], age)
				if !p.leads {
					p.leads, p.elected = true, 0 // with its own vote, that is a majority
				}
			default:
				p.granted[j] = min(p.granted[j], age)
			}
		}
		*x = exchange{}
	}
	return w
}

// tidy makes states equal that differ in what nobody will read.
func (e *explorer) tidy(w *world) {
	for i := range peers {
		p := &w.p[i]
		p.entries[i] = e.span
		if p.out {
			p.elected, p.account = e.span, [peers]told{}
		}
		if p.leads {
			p.votes = 0
		}
		for j := range peers {
			switch x := &w.x[i][j]; {
			case x.step == answered && x.term != p.term, x.step == answered && x.kind == ask && p.out:
				*x = exchange{}
			case x.kind == ask:
				x.age = 0
			}
		}
	}
}

func explore(f flaws, span uint8, inFlight, most int, restarts, restores uint8) *explorer {
	e := &explorer{flaws: f, span: span, inFlight: inFlight, most: most, seed: maphash.MakeSeed(),
		seen: make(map[uint64]struct{}), asked: make(map[accounts]bool)}
	w := e.start()
	w.restarts, w.restores = restarts, restores
	e.all = restores > 0
	e.run(w)
	return e
}

// TestExhaustively: never two, in every state that can be reached in so many steps.
func TestExhaustively(t *testing.T) {
	most := 300_000
	if testing.Short() {
		most = 50_000
	}
	for _, tt := range []struct{ restarts, restores uint8 }{{0, 0}, {1, 0}, {0, 1}} {
		e := explore(flaws{}, 1, 2, most, tt.restarts, tt.restores)
		if e.failed != "" {
			t.Errorf("%+v: two may answer after %s", tt, e.failed)
		}
		t.Logf("%+v: %d states, all that %d steps lead to, %d of them with a holder", tt, e.at,
			e.nodes[min(e.at, len(e.nodes)-1)].depth-1, e.held)
		if e.held == 0 {
			t.Error("nobody ever answered: this shows nothing")
		}
	}
}

// TestExhaustivelyNoticed: the model notices breaches of the argument.
func TestExhaustivelyNoticed(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds; run without -short")
	}
	for name, f := range map[string]flaws{
		"t0 after the call": {lateT0: true}, "no waiting out": {noWait: true},
		"the entry after raft": {lateEntry: true},
	} {
		e := explore(f, 1, 2, 500_000, 0, 0)
		if e.failed == "" {
			t.Errorf("%s: not noticed in %d states", name, e.at)
		}
		t.Logf("%s: %d states, %s", name, e.at, e.failed)
	}
}
