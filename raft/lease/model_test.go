package lease

import (
	"math/rand/v2"
	"time"
)

// model is the smallest world in which the argument of this package has to hold. It has Raft's terms and
// votes, and none of the library's caution about known leaders: anybody may stand for election.
type model struct {
	rnd   *rand.Rand
	now   time.Duration // true time
	ids   []string
	procs map[string]*proc
	net   []packet
	cut   map[[2]string]time.Duration // direction → until when
	short int
}

const modelSpan = 100 * ms

// proc is one process of a peer; term and vote survive it.
type proc struct {
	m      *model
	id     string
	rate   float64 // of its clock
	skew   time.Duration
	term   uint64
	voted  string
	leads  bool
	votes  map[string]bool
	frozen bool

	lease    *Lease
	grants   *Grants
	begun    []begun // what other goroutines than raft's are in the middle of
	latest   time.Duration
	accounts map[string]modelAccount
}

// begun is an exchange between its two steps: a probe that is in the grants and whose term is still to be
// looked at, or an account of which the term has been read and the grants have not. Raft goes on in between,
// or the process is frozen.
type begun struct {
	packet
	reached uint64
}

type modelAccount struct {
	Account
	at time.Duration
}

type packet struct {
	due      time.Duration
	from, to string
	kind     string // vote, voted, beat, beaten, probe, granted, ask, told
	term     uint64
	t0       time.Duration // the sender's clock when the exchange began
	account  Account
	owner    *proc // the process that it belongs to; another one drops replies
}

func newModel(rnd *rand.Rand, n int) *model {
	m := &model{rnd: rnd, procs: make(map[string]*proc), cut: make(map[[2]string]time.Duration)}
	for i := range n {
		m.ids = append(m.ids, string(rune('a'+i)))
	}
	for _, id := range m.ids {
		m.boot(id, 0, "")
	}
	return m
}

func (m *model) boot(id string, term uint64, voted string) {
	p := &proc{m: m, id: id, term: term, voted: voted,
		rate: 1 + (m.rnd.Float64()-0.5)/200, // a quarter of a percent off at most
		skew: time.Duration(m.rnd.IntN(1e9))}
	p.lease = New(id, modelSpan, p.clock, nil)
	p.grants = NewGrants(p.clock)
	m.procs[id] = p
}

func (p *proc) clock() time.Duration {
	return p.skew + time.Duration(float64(p.m.now)*p.rate)
}

// may is what a process that runs would answer now. A frozen one does not ask.
func (p *proc) may(voters []string) bool {
	return !p.frozen && p.leads && p.lease.Left(p.term, voters) > 0
}

func (m *model) send(p packet) {
	switch r := m.rnd.IntN(100); {
	case r < 5 || m.now < m.cut[[2]string{p.from, p.to}]:
		return // lost
	case r < 10:
		p.due = m.now + time.Duration(m.rnd.IntN(400))*ms // stuck in a retransmission
	default:
		p.due = m.now + time.Duration(m.rnd.IntN(3000))*time.Microsecond
	}
	m.net = append(m.net, p)
}

func (m *model) others(id string, f func(string)) {
	for _, o := range m.ids {
		if o != id {
			f(o)
		}
	}
}

func (m *model) step() {
	m.now += time.Duration(m.rnd.IntN(1500)) * time.Microsecond
	id := m.ids[m.rnd.IntN(len(m.ids))]
	p := m.procs[id]
	switch r := m.rnd.IntN(1000); {
	case r < 3: // killed and started again, at once: the proof of death goes to another
		if p.leads {
			m.others(id, func(o string) {
				if m.rnd.IntN(2) == 0 {
					m.procs[o].grants.Silenced(id, p.term)
				}
			})
		}
		m.boot(id, p.term, p.voted)
	case r < 6:
		p.frozen = true
	case r < 30:
		p.frozen = false
	case r < 36: // cut off, in one direction or both, from one peer or both
		until := m.now + time.Duration(m.rnd.IntN(1000))*ms
		m.others(id, func(o string) {
			for _, way := range [][2]string{{id, o}, {o, id}} {
				if m.rnd.IntN(2) > 0 {
					m.cut[way] = until
				}
			}
		})
	case r < 45 && !p.frozen:
		p.stand()
	case r < 400 && !p.frozen && p.leads:
		m.others(id, func(o string) {
			kind := []string{"beat", "probe", "probe"}[m.rnd.IntN(3)]
			m.send(packet{from: id, to: o, kind: kind, term: p.term, t0: p.clock(), owner: p})
			if p.lease.waitedOut != p.term {
				m.send(packet{from: id, to: o, kind: "ask", term: p.term, owner: p})
			}
		})
	}
	m.deliver()
	for _, id := range m.ids {
		m.procs[id].goOn()
		m.procs[id].waitOut()
	}
}

// begin notes the first step; the second comes soon, or after a while.
func (p *proc) begin(b begun) {
	b.due = p.m.now + time.Duration(p.m.rnd.IntN(2000))*time.Microsecond
	if p.m.rnd.IntN(8) == 0 {
		b.due += time.Duration(p.m.rnd.IntN(60)) * ms
	}
	p.begun = append(p.begun, b)
}

// goOn is what the goroutines other than raft's do next.
func (p *proc) goOn() {
	if p.frozen {
		return
	}
	later := p.begun[:0]
	for _, b := range p.begun {
		if p.m.now < b.due {
			later = append(later, b)
			continue
		}
		back := packet{from: p.id, to: b.from, term: b.term, t0: b.t0, owner: b.owner}
		switch {
		case b.kind == "ask":
			back.kind, back.account = "told", p.grants.Account(b.reached)
			p.m.send(back)
		case p.term == b.term:
			back.kind = "granted"
			p.m.send(back)
		}
	}
	p.begun = later
}

func (m *model) deliver() {
	kept := m.net[:0]
	var due []packet
	for _, k := range m.net {
		// A process that is busy, or has just thawed, takes its time.
		if k.due <= m.now && !m.procs[k.to].frozen && m.rnd.IntN(3) > 0 {
			due = append(due, k)
		} else {
			kept = append(kept, k)
		}
	}
	m.net = kept
	m.rnd.Shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
	for _, k := range due {
		m.procs[k.to].receive(k)
	}
}

func (p *proc) reach(term uint64) {
	if term > p.term {
		p.term, p.voted, p.leads = term, "", false
	}
}

func (p *proc) stand() {
	p.reach(p.term + 1)
	p.voted = p.id
	p.votes = map[string]bool{p.id: true}
	p.m.others(p.id, func(o string) {
		p.m.send(packet{from: p.id, to: o, kind: "vote", term: p.term, t0: p.clock(), owner: p})
	})
}

func (p *proc) receive(k packet) {
	back := packet{from: p.id, to: k.from, term: k.term, t0: k.t0, owner: k.owner}
	switch k.kind {
	case "vote", "beat":
		p.grants.Heard(k.from, k.term)
		p.reach(k.term)
		if k.term < p.term || (k.kind == "vote" && p.voted != "" && p.voted != k.from) {
			return
		}
		if k.kind == "vote" {
			p.voted = k.from
		}
		back.kind = map[string]string{"vote": "voted", "beat": "beaten"}[k.kind]
		p.m.send(back)
	case "probe":
		p.grants.Heard(k.from, k.term)
		p.begin(begun{packet: k})
	case "ask":
		p.begin(begun{packet: k, reached: p.term})
	}
	if k.owner != p || k.term != p.term {
		return // a reply to an earlier process or term
	}
	switch k.kind {
	case "voted":
		p.lease.Grant(k.from, k.term, k.t0)
		p.votes[k.from] = true
		if !p.leads && len(p.votes) > len(p.m.ids)/2 {
			p.leads, p.latest = true, p.clock()+Stretch(modelSpan)
			p.accounts = make(map[string]modelAccount)
		}
	case "beaten", "granted":
		p.lease.Grant(k.from, k.term, k.t0)
	case "told":
		if _, told := p.accounts[k.from]; p.leads && !told { // Group.waitOutLeases asks once
			p.accounts[k.from] = modelAccount{k.account, p.clock()}
		}
	}
}

// waitOut is Group.waitOutLeases without the waiting.
func (p *proc) waitOut() {
	if p.frozen || !p.leads || p.lease.waitedOut == p.term {
		return
	}
	at := p.clock()
	aged := map[string]Account{p.id: p.grants.Account(p.term)}
	for id, t := range p.accounts {
		aged[id] = t.Account.Aged(at - t.at)
	}
	left := p.latest - at
	if w, enough := Wait(p.id, p.term, modelSpan, p.m.ids, aged); enough && w <= 0 && left > 0 {
		left = 0
		p.m.short++
	}
	if left <= 0 {
		p.lease.Begin(p.term)
	}
}
