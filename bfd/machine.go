package bfd

import "time"

// slowTx is the least time between packets of a session that is not up (RFC 5880, section 6.8.3).
const slowTx = time.Second

// A machine is the state of a session (RFC 5880, section 6.8.1), without sockets and clocks.
type machine struct {
	interval time.Duration // what this side wants, in both directions
	mult     uint8
	local    uint32 // this side's discriminator

	state       Liveness
	diag        uint8
	remote      uint32
	remoteMinTx time.Duration
	remoteMinRx time.Duration
	remoteMult  uint8
	polling     bool // the router is to confirm a new interval (section 6.5)
	heard       time.Time
}

func newMachine(interval time.Duration, mult uint8, discriminator uint32) *machine {
	return &machine{
		interval: interval, mult: mult, local: discriminator, state: Down,
		remoteMinRx: time.Microsecond, // section 6.8.1
	}
}

// minTx is what this side says that it sends at most.
func (m *machine) minTx() time.Duration {
	if m.state == Up {
		return m.interval
	}
	return max(m.interval, slowTx)
}

// every is the time between two packets, before jitter; zero: the router wants none (section 6.8.7).
func (m *machine) every() time.Duration {
	if m.remoteMinRx == 0 {
		return 0
	}
	return max(m.minTx(), m.remoteMinRx)
}

// detection is how long the router may be silent (section 6.8.4).
func (m *machine) detection() time.Duration {
	return time.Duration(m.remoteMult) * max(m.interval, m.remoteMinTx)
}

// deadline is when the session is down if nothing is heard; zero: it is not watched.
func (m *machine) deadline() time.Time {
	if m.state != Init && m.state != Up {
		return time.Time{}
	}
	return m.heard.Add(m.detection())
}

// packet is what is sent now.
func (m *machine) packet(final bool) packet {
	return packet{
		diag: m.diag, state: m.state, poll: m.polling && !final, final: final, mult: m.mult,
		mine: m.local, yours: m.remote, minTx: m.minTx(), minRx: m.interval,
	}
}

// enter changes the state.
func (m *machine) enter(s Liveness, diag uint8) {
	m.state, m.diag = s, diag
	if s == Up {
		m.polling = true // the interval is shorter from now on
	} else {
		m.polling = false
	}
}

// receive takes a packet (section 6.8.6). lost is why a session that was up is not any more, or "".
func (m *machine) receive(p packet, now time.Time) (lost string) {
	m.remote, m.remoteMinTx, m.remoteMinRx, m.remoteMult, m.heard = p.mine, p.minTx, p.minRx, p.mult, now
	if p.final {
		m.polling = false
	}
	was := m.state
	switch {
	case p.state == AdminDown:
		if m.state != Down {
			m.enter(Down, diagNeighbourDown) // RFC 5882, section 3.2: that is no failure
		}
		return ""
	case m.state == Down && p.state == Down:
		m.enter(Init, diagNone)
	case m.state == Down && p.state == Init, m.state == Init && (p.state == Init || p.state == Up):
		m.enter(Up, diagNone)
	case m.state == Up && p.state == Down:
		m.enter(Down, diagNeighbourDown)
	}
	if was == Up && m.state == Down {
		return "the router says that it does not hear this node"
	}
	return ""
}

// expire takes the state down if the router has been silent for too long.
func (m *machine) expire(now time.Time) (lost string) {
	if d := m.deadline(); d.IsZero() || now.Before(d) {
		return ""
	}
	was := m.state
	m.enter(Down, diagExpired)
	m.remote, m.remoteMinRx = 0, time.Microsecond
	if was == Up {
		return "nothing was heard for " + m.detection().String()
	}
	return ""
}
