package announcing

import "time"

// catchUpWithin bounds how long a node that comes back looks at the servers first. With the default checks it takes a
// second or two; a server that is gone for good must not keep the node away.
const catchUpWithin = 5 * time.Second

// inForceWithin is how long data planes may take to put in force what checks have found: ten times what they take on a
// busy machine.
const inForceWithin = 500 * time.Millisecond

// An absence says whether a node is cut off from the peers and from all routers, or was just. What it knows of servers
// is out of date then: it would hand packets of open connections to others than the other nodes do.
type absence struct {
	away bool
	from time.Time // when it was cut off
	back time.Time // when it heard from somebody again; zero: not yet
	seen time.Time // since when all servers take connections; zero: they do not
}

// step is what becomes of the absence at now. caughtUp is asked of a node that comes back: whether all servers take
// connections from here that have changed since a time. Those that did not before are no reason to wait.
func (b absence) step(now time.Time, cutOff bool, caughtUp func(since time.Time) bool) absence {
	switch {
	case cutOff && b.away && b.back.IsZero():
		return b
	case cutOff:
		return absence{away: true, from: now}
	case !b.away:
		return b
	case b.back.IsZero():
		b.back = now
	}
	switch {
	case !caughtUp(b.from.Add(-catchUpWithin)): // checks and peers may have noticed earlier
		b.seen = time.Time{}
	case b.seen.IsZero():
		b.seen = now
	}
	if now.Sub(b.back) >= catchUpWithin || !b.seen.IsZero() && now.Sub(b.seen) >= inForceWithin {
		return absence{}
	}
	return b
}

// why says why nothing is announced, or "".
func (b absence) why() string {
	switch {
	case !b.away:
		return ""
	case b.back.IsZero():
		return "this node reaches no router and no peer"
	}
	return "this node has just come, and looks at the servers first"
}
