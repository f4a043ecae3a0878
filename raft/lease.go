package raft

import (
	"sync"
	"time"
)

// Why no two peers may answer at once
//
// A holder answers while its lease runs. The argument below uses three facts
// only: a peer votes at most once per term (on disk), a peer that has seen a
// term never acknowledges an older one, and clocks of different hosts run at
// the same rate within drift. It uses neither synchronized clocks nor
// hashicorp/raft's habit of refusing votes while a leader is known; that habit
// has exceptions (TimeoutNow, a restarted follower, a leader forgotten when a
// higher term was refused), and VerifyLeader does not prove what a lease needs
// either: it counts responses to heartbeats that were sent before it was
// called, and responses of non-voters.
//
//  1. Grant. Whenever an AppendEntries or RequestVote of term T reaches a
//     voter, the voter notes sender, T and the time of arrival in its ledger
//     before raft sees the message (transport.go). The sender notes the time
//     t0 before it sends, and counts the voter at t0 if the response is a
//     success in term T. So t0 <= arrival.
//     A leader's probe (detector.go) grants as well. It does not pass through
//     raft, so the voter looks at raft's term itself, after it has made the
//     entry, and acknowledges the probe only if the term is T at that
//     moment. The sender knows by the number that is echoed which t0 belongs to it.
//  2. Lease. The leader X of T may answer until (the latest moment that a
//     majority of voters, itself included, has been counted at) + term of lease.
//     Messages go through raft's main loop one by one, the fast path for
//     heartbeats is off: with it a heartbeat can be acknowledged in the old
//     term while a vote for the new one is being written to disk.
//  3. Waiting out. The new leader Y of T' > T asks the voters for their
//     ledgers (clear.go). A reply counts only if its voter has reached T'; so
//     it will acknowledge nothing older again that is not in its ledger yet:
//     it reads its term before its ledger, and whoever has seen an older term
//     before that had made the entry still earlier. As soon as a majority has
//     replied, that majority shares a voter with every majority that any
//     older lease rests on, so every older lease that may still run is in the
//     ledgers, with the time that has passed since. Y waits until the youngest
//     entry is older than the lease, times drift. If nothing replies, Y waits
//     a whole lease from the moment of its election: its voters had reached T'
//     by then, and they too share a voter with every older majority. (A voter
//     that still is about to acknowledge a probe of an older term has seen that
//     term, and so noted the arrival, before it voted.)
//  4. Proof of silence. An entry of X need not be waited out if X itself has
//     replied from T' (then may() is false for its older terms for ever), or
//     if X's process is dead, or has said that it never answers again (watch.go).
//  5. A voter that restarted has lost its ledger: it says how long its process
//     has lived, and that counts like an entry of an unknown leader. The old
//     process is gone when the new one starts, the database's lock says so.
//  6. Membership changes by one voter at a time, and only a leader that has
//     waited out older leases changes it (duty.go), so majorities of
//     neighbouring configurations share a voter. Who is removed so has no lease
//     left: the leader that removed it has waited out every older one, and its
//     own it gives up before it is removed itself. Therefore its id may go to
//     another machine, which votes only when it has the log, and so a later term.
//
// Usually nothing is waited for: after a silence that the detector acts on, or
// a heartbeat timeout, the ledgers' entries are older than the lease, because the lease is shorter than both; after
// a hand-over the old holder replies; after a kill its death is proved.
//
// Why every lease has the same term
//
// Steps 2 and 3 need that a new leader waits for as long as an older lease may
// run. The term of lease comes from group.heartbeat, which is in a file on each
// host. So a grant is only between peers that have the same, and both look:
// a voter takes no AppendEntries, no request for a vote and (by withholding
// its key, datagram.go) no probe of a peer, and a leader counts no answer and a candidate
// no vote of a peer, that has not told this process, in a hello, the heartbeat that
// this process has (heartbeat.go).
//
// That suffices although either may have restarted with another heartbeat
// since it told. Of the two processes at the moment of a grant one is the
// younger. What it was told after its own beginning came from the process that the
// other still is, because that one is older. So their heartbeats are the same.
//
// Then let X's lease rest on a majority of voters. All of them have X's term
// of lease, and of those who elected Y, and those whose accounts Y counts, all have Y's. Some
// voter is in both majorities. If it is one process, X and Y have the same term of lease.
// If it has restarted in between, its former process granted before this one
// began; and this one waits for the longer of both heartbeats (the former is on disk)
// before it takes part, so what was granted before is over.
//
// Therefore the heartbeat of a running group may be changed on one peer after the
// other. Those with the old value go on until they are no majority any more; then those
// with the new one elect. A peer of a version that tells no heartbeat is
// taken for one that has the same, as it was before.
//
// The gap between may() and the packet on the wire cannot be closed by a
// program: a process that is frozen exactly between the two sends one packet
// when it thaws. May must be asked immediately before each send; the new
// holder's repeated announcements repair what one late packet did.

// driftNum over driftDen is what a wait is stretched by: 1 % covers clocks
// that are 20 times worse than the 500 ppm that NTP can correct.
const driftNum, driftDen = 101, 100

// lease is the leader's side: when did each voter last grant.
type lease struct {
	self string
	now  clock
	span time.Duration
	// same says that a peer's leases have this term too; nil: all have.
	same func(peer string) bool

	mu     sync.Mutex
	term   uint64
	grants map[string]time.Duration // voter → t0 of its latest grant in term
	clear  uint64                   // the term for which older leases are over
}

func newLease(self string, span time.Duration, now clock) *lease {
	return &lease{self: self, now: now, span: span, grants: make(map[string]time.Duration)}
}

// grant counts voter at t0, the moment before the message was sent.
func (l *lease) grant(voter string, term uint64, t0 time.Duration) {
	if l.same != nil && !l.same(voter) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if term < l.term {
		return
	}
	if term > l.term {
		l.term = term
		clear(l.grants)
	}
	if old, ok := l.grants[voter]; !ok || t0 > old {
		l.grants[voter] = t0
	}
}

// cleared says that no older lease runs any more.
func (l *lease) cleared(term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clear = max(l.clear, term)
}

// left is how long the lease of term still runs, given who votes now.
// It is zero or less if it does not.
func (l *lease) left(term uint64, voters []string) time.Duration {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.clear != term {
		return 0
	}
	return l.span - (now - l.quorumAt(term, voters, now))
}

// quorumAt is the latest moment at which a majority of voters had granted.
// The caller holds mu. Majorities have 1 to 4 members: sorting by insertion
// into a small array keeps may free of allocations.
func (l *lease) quorumAt(term uint64, voters []string, now time.Duration) time.Duration {
	var buf [9]time.Duration
	at := buf[:0]
	self := false
	for _, v := range voters {
		t := now - l.span // never granted
		if g, ok := l.grants[v]; ok && l.term == term {
			t = g
		}
		if v == l.self {
			self, t = true, now
		}
		i := len(at)
		at = append(at, t)
		for ; i > 0 && at[i-1] < t; i-- {
			at[i] = at[i-1]
		}
		at[i] = t
	}
	if !self {
		return now - l.span // removed from the group: no lease
	}
	return at[len(voters)/2]
}

// granted is how long ago voter granted last in term.
func (l *lease) granted(term uint64, voter string) (ago time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t, ok := l.grants[voter]
	return l.now() - t, ok && l.term == term
}

// isCleared says whether older leases are over for term.
func (l *lease) isCleared(term uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.clear == term
}
