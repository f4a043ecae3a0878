package balancer

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// A BackendState says whether a backend may get connections.
type BackendState string

// Only Up gets new connections. Draining keeps its open ones. Unknown has not been
// checked yet.
const (
	Unknown  BackendState = "unknown"
	Up       BackendState = "up"
	Down     BackendState = "down"
	Draining BackendState = "draining"
)

// Health is what is known of a backend, and since when.
type Health struct {
	State  BackendState
	Reason string
	// Since is the time of the last change of State.
	Since time.Time
	// Checked is the start of the last check that ended, Latency its duration.
	Checked time.Time
	Latency time.Duration
	// Remedy is the line of configuration that fits a server that is alive but
	// does not speak what the check expects.
	Remedy string
}

// ErrDraining is what a Checker wraps when the server answers but wants no more
// new connections, as an apiserver does while it shuts down.
var ErrDraining = errors.New("the server is draining")

// ErrSlow is what a plane reports of a dial that takes unusually long: a reason to
// check, not a failure.
var ErrSlow = errors.New("the dial takes unusually long")

// result is the outcome of one check.
type result struct {
	started time.Time
	took    time.Duration
	err     error
}

// record is a Health with what its next change depends on.
type record struct {
	Health
	good, bad int
	// vanished is when the backend's peer was reported lost. A check that started
	// earlier proves nothing.
	vanished time.Time
	// suspect is a backend that was taken out of rotation on that report,
	// because it refused both a client and a check, or while this node was cut off.
	// Fall checks have yet to confirm it. Until then open connections are kept: a dead appliance is not a dead
	// server, and a server that restarts may keep its connections.
	suspect bool
	// refused is when a client's connection was last refused. A check that starts
	// later and succeeds clears it.
	refused time.Time
	// failed counts the failed connections of clients since failedSince. barred is
	// until when the backend gets no new ones because of them.
	failed      int
	failedSince time.Time
	barred      time.Time
}

// after is the record that follows r after a check with the result res. While this node is cut off, a failed check may be
// its own fault, and confirms nothing.
func (r record) after(c Check, res result, cutOff bool) record {
	if res.started.Before(r.vanished) {
		return r
	}
	r.Checked, r.Latency, r.Remedy = res.started, res.took, ""
	if m := (*Mismatch)(nil); errors.As(res.err, &m) {
		r.Remedy = m.Write
	}
	now := res.started.Add(res.took)
	switch {
	case res.err == nil:
		r.good, r.bad = r.good+1, 0
		if res.started.After(r.refused) {
			r.refused = time.Time{}
		}
		if r.State == Unknown || r.suspect || r.State != Up && r.good >= c.Rise {
			r.suspect = false
			r = r.become(Up, "the check succeeds", now)
		}
	case errors.Is(res.err, ErrDraining):
		r.good, r.bad, r.suspect = 0, 0, false
		r = r.become(Draining, res.err.Error(), now)
	default:
		r.good, r.bad = 0, r.bad+1
		switch {
		case cutOff && r.bad >= c.Fall && (r.State == Up || r.State == Draining || r.suspect):
			r.bad, r.suspect = 0, true
			r = r.become(Down, "this node is cut off: "+res.err.Error(), now)
		case r.State == Unknown || r.bad >= c.Fall:
			r.suspect = false
			r = r.become(Down, res.err.Error(), now)
		case !r.refused.IsZero() && r.State != Down && errors.Is(res.err, unix.ECONNREFUSED):
			// A client and a check agree: it is no slow answer and no lost packet.
			r.suspect = true
			r = r.become(Down, "refuses clients and the check", now)
		}
	}
	return r
}

// become changes the state. Since stays where the state is the same.
func (r record) become(s BackendState, reason string, now time.Time) record {
	if r.State != s {
		r.Since = now
	}
	r.State, r.Reason = s, reason
	return r
}

// lost is the record that follows r when the backend's peer vanished.
func (r record) lost(now time.Time) record {
	if r.State == Down && !r.suspect {
		r.vanished, r.good = now, 0
		return r
	}
	r.vanished, r.good, r.bad, r.suspect = now, 0, 0, true
	return r.become(Down, "its peer vanished from the group; a check decides", now)
}

// connFailed is the record that follows r when a client's connection failed: after
// maxFails failures within span the backend is barred for span. Checks neither
// cause nor end that, since they may take another path than clients do.
func (r record) connFailed(maxFails int, span time.Duration, now time.Time) record {
	if maxFails == 0 || now.Before(r.barred) {
		return r
	}
	if now.Sub(r.failedSince) >= span {
		r.failed, r.failedSince = 0, now
	}
	r.failed++
	if r.failed >= maxFails {
		r.failed, r.barred = 0, now.Add(span)
	}
	return r
}

// effective is the health that counts at now.
func (r record) effective(now time.Time) Health {
	h := r.Health
	if h.State == Up && now.Before(r.barred) {
		h.State, h.Reason = Draining, "connections of clients failed, so it gets no new ones for a while"
	}
	return h
}

// changing reports whether the state may be about to change, so that the next
// check should come soon.
func (r record) changing() bool {
	return r.suspect || r.State != Down && r.bad > 0 || r.State != Up && r.good > 0
}
