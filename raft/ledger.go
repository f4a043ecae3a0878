package raft

import (
	"sync"
	"time"
)

// ledger is the voter's side of the lease: what this process may have granted
// to whom, and which processes it knows to be dead. See lease.go.
type ledger struct {
	now   clock
	start time.Duration

	mu      sync.Mutex
	entries map[string]entry
	dead    map[string]uint64 // peer → the last term that its dead process led
}

// maxEntries bounds the ledger, because in insecure mode anybody can send any
// id. What comes after that is entered for nobody, who never proves silence.
const (
	maxEntries = 64
	nobody     = ""
)

type entry struct {
	term uint64
	at   time.Duration
}

// account is a ledger as it is told to a new leader. Ages instead of times:
// clocks of two hosts share their rate, not their zero.
type account struct {
	// Term is what the peer has reached.
	Term uint64 `json:"term"`
	// Lived is the age of the process, before which it knows nothing.
	Lived time.Duration `json:"lived"`
	// Lease is the term of the peer's own leases; 0 is of a version that does not tell.
	Lease   time.Duration     `json:"lease,omitempty"`
	Granted []grantAge        `json:"granted,omitempty"`
	Dead    map[string]uint64 `json:"dead,omitempty"`
}

type grantAge struct {
	To   string        `json:"to"`
	Term uint64        `json:"term"`
	Age  time.Duration `json:"age"`
}

func newLedger(now clock) *ledger {
	return &ledger{now: now, start: now(), entries: make(map[string]entry), dead: make(map[string]uint64)}
}

// heard notes a message that may become a grant. It comes before raft sees
// the message, so that the entry is there whenever the grant is.
func (l *ledger) heard(from string, term uint64) {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	// Terms of one peer only grow; a late message of an older term must not
	// hide behind a newer entry, nor a newer term behind an older: keep the
	// larger of both, which only makes the entry more cautious.
	e, known := l.entries[from]
	if !known && len(l.entries) >= maxEntries {
		from = nobody
		e = l.entries[from]
	}
	l.entries[from] = entry{term: max(e.term, term), at: max(e.at, now)}
}

// proved notes that the process of peer that led term is dead, and with it
// every lease of that peer up to term.
func (l *ledger) proved(peer string, term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead[peer] = max(l.dead[peer], term)
}

// sign is how long ago peer was heard, in which term, and the last term that a
// process of it led which is known to be dead.
func (l *ledger) sign(peer string) (ago time.Duration, term, died uint64, heard bool) {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	e, heard := l.entries[peer]
	return now - e.at, e.term, l.dead[peer], heard
}

// account tells the ledger. The caller reads reached before it calls.
func (l *ledger) account(reached uint64) account {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	a := account{Term: reached, Lived: now - l.start}
	for to, e := range l.entries {
		a.Granted = append(a.Granted, grantAge{To: to, Term: e.term, Age: now - e.at})
	}
	if len(l.dead) > 0 {
		a.Dead = make(map[string]uint64, len(l.dead))
		for p, t := range l.dead {
			a.Dead[p] = t
		}
	}
	return a
}

// wait is how long the leader of term has to wait from now on, given the accounts of
// peers, its own included. enough is false if they are no majority of voters.
func wait(self string, term uint64, span time.Duration, voters []string, accounts map[string]account) (_ time.Duration, enough bool) {
	replied := 0
	dead := make(map[string]uint64)
	// An account of somebody with leases of another term proves what it says of
	// the dead and of itself, and nothing about leases: it has granted other ones.
	counts := func(a account) bool { return a.Term >= term && (a.Lease == 0 || a.Lease == span) }
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
	stretched := span * driftNum / driftDen
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
			if x, ok := accounts[g.To]; ok && x.Term >= term {
				continue // it has spoken from this term: silent in older ones
			}
			longest = max(longest, stretched-g.Age)
		}
	}
	return longest, true
}
