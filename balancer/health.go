package balancer

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// A State says whether a backend may get connections.
type State string

// Only Up gets new connections. Draining keeps its open ones, Unknown has not
// been checked yet.
const (
	Unknown  State = "unknown"
	Up       State = "up"
	Down     State = "down"
	Draining State = "draining"
)

// Health is what is known of a backend, and since when.
type Health struct {
	State  State
	Reason string
	// Since is the time of the last change of State.
	Since time.Time
	// Checked is the start of the last check that ended, Latency its length.
	Checked time.Time
	Latency time.Duration
	// Remedy is the line of configuration that would fit a server that lives
	// but does not speak what the check does.
	Remedy string
}

// ErrDraining is what a Checker wraps when the server answers but asks for no
// more new connections, as an apiserver does while it shuts down.
var ErrDraining = errors.New("the server is draining")

// ErrSlow is what a plane reports of a dial that takes unusually long: a reason
// to check, and no failure.
var ErrSlow = errors.New("the dial takes unusually long")

// result is the outcome of one check.
type result struct {
	started time.Time
	took    time.Duration
	err     error
}

// record is a Health with the counts that its next change depends on.
type record struct {
	Health
	good, bad int
	// vanished is when the backend's peer was reported lost. Checks that
	// started before it prove nothing.
	vanished time.Time
	// suspect: taken out of rotation on that report, or because clients and a
	// check alike were refused, which Fall checks have yet to confirm. Open
	// connections are kept until then: a dead appliance is not a dead server,
	// and one that restarts may keep what it has.
	suspect bool
	// refused is when a client's connection was refused last, if no check that
	// began later has succeeded.
	refused time.Time
	// failed counts the connections of clients that did not get through since
	// failedSince. barred is until when it gets no new ones for it.
	failed      int
	failedSince time.Time
	barred      time.Time
}

// after is the record that follows r when a check ended with res.
func (r record) after(c Check, res result) record {
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
		case r.State == Unknown || r.bad >= c.Fall:
			r.suspect = false
			r = r.become(Down, res.err.Error(), now)
		case !r.refused.IsZero() && r.State != Down && errors.Is(res.err, unix.ECONNREFUSED):
			// Two have seen it in two ways: no slow answer, and no lost packet.
			r.suspect = true
			r = r.become(Down, "refuses clients and the check", now)
		}
	}
	return r
}

// become changes the state, and keeps Since where there is no change.
func (r record) become(s State, reason string, now time.Time) record {
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

// connFailed is the record that follows r when a client's connection did not
// get through: after maxFails of them within span it is barred for span. What
// checks say of it is not touched, nor do they end it: they may come another
// way than clients do.
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

// shown is what r amounts to at now.
func (r record) shown(now time.Time) Health {
	h := r.Health
	if h.State == Up && now.Before(r.barred) {
		h.State, h.Reason = Draining, "connections of clients failed, so it gets no new ones for a while"
	}
	return h
}

// turning reports whether the state is about to change, so that the next check
// should come soon.
func (r record) turning() bool {
	return r.suspect || r.State != Down && r.bad > 0 || r.State != Up && r.good > 0
}

// or is v, or the fallback where v is zero.
func or[T int | time.Duration](v, fallback T) T {
	if v == 0 {
		return fallback
	}
	return v
}
