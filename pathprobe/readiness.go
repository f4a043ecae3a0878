package pathprobe

import (
	"maps"
	"net/netip"
	"time"
)

// meetingRounds is how many rounds a node that has just got the VIPs waits until
// the others know it, and it knows them. A node that is not known by then is down,
// or has no contact with the group.
const meetingRounds = 3

// A readiness is what this node tells others of itself. It is not safe for
// concurrent use.
//
//	state    begins with               its answer to a node that the rules know
//	closed   New                       not ready; unknown while there are no rules
//	cut off  most peers are silent     not ready, if there are rules
//	meeting  Open, or a first node,    not ready, if there are rules
//	         or most peers are heard
//	open     all met, or three rounds  ready; a worker only for what its rules serve
//
// Who has been alone, or cut off, meets the others as who has just begun: what was opened at others meanwhile is theirs,
// and the balancer here does not know their backends yet. Who has met others stays open when more come: it is these that
// have to meet.
//
// A node that is not in the rules is told that it is unknown. A peer that serves
// with another data plane has no rules, and its answer is ready as soon as it has
// the VIPs: there are no rules that could harm.
type readiness struct {
	opened    time.Time               // zero: closed
	alone     bool                    // when last looked at, there was nobody to meet
	cutOff    bool                    // most peers are silent
	met       map[netip.AddrPort]bool // open, until this node is cut off
	announced bool                    // the others know what this node says now
	known     map[string]bool
	handsTo   map[netip.AddrPort]map[string]bool
}

// inForce sets what the rules have, and says whether that is new.
func (r *readiness) inForce(known map[string]bool, handsTo map[netip.AddrPort]map[string]bool) bool {
	if (r.known == nil) == (known == nil) && maps.Equal(r.known, known) && maps.EqualFunc(r.handsTo, handsTo, maps.Equal) {
		return false
	}
	r.known, r.handsTo = known, handsTo
	return true
}

// setCutOff says whether most peers are silent, and whether that is new.
func (r *readiness) setCutOff(now bool) bool {
	if r.cutOff == now {
		return false
	}
	r.cutOff = now
	if now {
		r.met = nil
	} else if !r.opened.IsZero() {
		r.opened = time.Now()
	}
	return true
}

// meets says of a frontend that this node has the VIPs and rules, and that it and the others do not know each other
// yet. since is when the frontend came, alone that there are no others. hasMet is asked only until they do.
func (r *readiness) meets(frontend netip.AddrPort, since time.Time, patience time.Duration, alone bool,
	hasMet func() bool) bool {
	switch {
	case r.known == nil || r.opened.IsZero() || r.met[frontend]:
		return false
	case r.cutOff:
		return true
	case alone:
		r.alone = true
		return false
	case r.alone:
		r.alone, r.opened = false, time.Now()
	}
	if r.opened.After(since) {
		since = r.opened
	}
	if time.Since(since) <= patience && !hasMet() {
		return true
	}
	if r.met == nil {
		r.met = make(map[netip.AddrPort]bool)
	}
	r.met[frontend] = true
	return false
}

// answer is the word for a node that asks about a frontend. meets says that this node is meeting others; isWorker that
// it is a worker.
func (r *readiness) answer(node string, frontend netip.AddrPort, isWorker, meets bool) probeKind {
	rules, closed := r.known != nil, r.opened.IsZero()
	switch {
	case rules && !r.known[node], !rules && closed:
		return kindUnknown
	case closed:
		return kindNotReady
	}
	if meets {
		return kindNotReady
	}
	if isWorker && r.handsTo[frontend] == nil {
		return kindNotReady
	}
	return kindReady
}
