package lease

import (
	"maps"
	"sync"
	"time"
)

// Grants is the voter's side of the lease: what this process may have granted to whom, and which processes it
// knows to be dead.
type Grants struct {
	now   Clock
	start time.Duration

	mu      sync.Mutex
	entries map[string]entry
	leader  string // to which this process grants in term, and to nobody else
	term    uint64
	dead    map[string]uint64 // peer → the last term that its dead process led
}

// maxEntries bounds what is remembered, because in insecure mode anybody can send any id. Further peers share
// the entry of nobody, who never proves silence.
const (
	maxEntries = 64
	nobody     = ""
)

type entry struct {
	term uint64
	at   time.Duration
}

// An Account is what a voter tells a new leader about its grants. It has ages instead of times: clocks of two
// hosts share their rate, not their zero.
type Account struct {
	// Term is what the peer has reached.
	Term uint64 `json:"term"`
	// Lived is the age of the process, which knows of nothing before that.
	Lived time.Duration `json:"lived"`
	// Lease is the length of the peer's own leases; 0 is from a version that does not tell.
	Lease   time.Duration `json:"lease,omitempty"`
	Granted []GrantAge    `json:"granted,omitempty"`
	// Answering says that an answer of an older term may still be under way: the reply does not prove silence.
	Answering bool              `json:"answering,omitempty"`
	Dead      map[string]uint64 `json:"dead,omitempty"`
}

// A GrantAge is one grant and the time that has passed since.
type GrantAge struct {
	To   string        `json:"to"`
	Term uint64        `json:"term"`
	Age  time.Duration `json:"age"`
}

// NewGrants returns the grants of a process that begins now.
func NewGrants(now Clock) *Grants {
	return &Grants{now: now, start: now(), entries: make(map[string]entry), dead: make(map[string]uint64)}
}

// Heard notes a message that may become a grant. It comes before raft sees the message, so that the entry is
// there whenever the grant is.
func (g *Grants) Heard(from string, term uint64) {
	now := g.now()
	g.mu.Lock()
	defer g.mu.Unlock()
	// Terms of one peer only grow; a late message of an older term must not hide behind a newer entry, nor a
	// newer term behind an older: keep the larger of both, which only makes the entry more cautious.
	e, known := g.entries[from]
	if !known && len(g.entries) >= maxEntries {
		from = nobody
		e = g.entries[from]
	}
	g.entries[from] = entry{term: max(e.term, term), at: max(e.at, now)}
}

// Follow says that this process may grant to leader in term: to one per term, the first that it is asked for.
// Raft has one leader per term as long as no disk forgets a vote; leases do not rely on that.
func (g *Grants) Follow(leader string, term uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if term > g.term {
		g.leader, g.term = leader, term
	}
	return term < g.term || leader == g.leader // raft itself refuses older terms
}

// Silenced notes that the process of peer that led term is dead or never answers again, and that with it
// every lease of that peer up to term is over.
func (g *Grants) Silenced(peer string, term uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dead[peer] = max(g.dead[peer], term)
}

// Sign is how long ago peer was heard, in which term, and the last term of it that is silenced.
func (g *Grants) Sign(peer string) (ago time.Duration, term, silenced uint64, heard bool) {
	now := g.now()
	g.mu.Lock()
	defer g.mu.Unlock()
	e, heard := g.entries[peer]
	return now - e.at, e.term, g.dead[peer], heard
}

// Account is what a new leader is told. The caller reads reached before it calls.
func (g *Grants) Account(reached uint64) Account {
	now := g.now()
	g.mu.Lock()
	defer g.mu.Unlock()
	a := Account{Term: reached, Lived: now - g.start}
	for to, e := range g.entries {
		a.Granted = append(a.Granted, GrantAge{To: to, Term: e.term, Age: now - e.at})
	}
	if len(g.dead) > 0 {
		a.Dead = maps.Clone(g.dead)
	}
	return a
}

// Aged is the account as it reads by later, if nothing has been added: what has been added since is of newer
// terms.
func (a Account) Aged(by time.Duration) Account {
	a.Lived += by
	granted := make([]GrantAge, len(a.Granted))
	for i, g := range a.Granted {
		g.Age += by
		granted[i] = g
	}
	a.Granted = granted
	return a
}

// Wait is how long the leader of term has to wait from now on until every older lease is over, given the
// accounts of peers, its own included. Enough is false if they are no majority of voters.
func Wait(
	self string, term uint64, span time.Duration, voters []string, accounts map[string]Account,
) (_ time.Duration, enough bool) {
	replied := 0
	dead := make(map[string]uint64)
	// The account of a peer whose leases have another length proves what it says of the dead and of itself,
	// and nothing about leases: it has granted other ones.
	counts := func(a Account) bool { return a.Term >= term && (a.Lease == 0 || a.Lease == span) }
	for _, v := range voters {
		if a, ok := accounts[v]; ok && counts(a) {
			replied++
		}
	}
	if replied < len(voters)/2+1 {
		return 0, false
	}
	for _, a := range accounts {
		for p, t := range a.Dead {
			dead[p] = max(dead[p], t)
		}
	}
	stretched := Stretch(span)
	var longest time.Duration
	for _, v := range voters {
		a, ok := accounts[v]
		if !ok || !counts(a) {
			continue
		}
		longest = max(longest, stretched-a.Lived)
		for _, g := range a.Granted {
			if g.To == self || g.Term <= dead[g.To] {
				continue
			}
			if x, ok := accounts[g.To]; ok && x.Term >= term && !x.Answering {
				continue // it has replied from this term: silent in older ones
			}
			longest = max(longest, stretched-g.Age)
		}
	}
	return longest, true
}
