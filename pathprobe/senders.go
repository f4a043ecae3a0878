package pathprobe

import (
	"crypto/rand"
	"net/netip"
	"time"
)

// A process identifies one run of an appliance: it draws it at its start.
type process [16]byte

const (
	// oldFor is how long after its last probe of the second form a node is known to send
	// it. Probes of the first form are not taken from it until then: they may be parts of
	// recordings. A node that goes back to an older version is passed over for so long.
	oldFor = time.Minute
	// oldLeaveEvery is how often a node's leave notice of the first form is believed. It
	// does not differ from its recording.
	oldLeaveEvery = 10 * time.Second
	// challengeEvery is how often a sender is challenged that is not known yet.
	challengeEvery = 200 * time.Millisecond
)

// A senderID is an address of a node on one of our links. A node counts its probes over
// all links, and what it sends on one of them overtakes the rest.
type senderID struct {
	link string
	addr netip.Addr
}

// A sighting is what is known of a sender. It has a process, once an answer to a
// challenge of ours has proved that the process is the node's last.
//
//	probe                                   is taken if
//	of the first form                       none of the second form has come for oldFor
//	of the known process                    its number is new
//	of another process, with our challenge  always: that is the known process from now on
//	of another process, asking              always: the answer is no secret
//	of another process, a leave notice      never: it may be of an earlier run
type sighting struct {
	process process
	before  process // the one that it has replaced, which does not come back
	proved  bool
	seen    window
	heard   time.Time // the last probe that was taken from the known process
	mac     [6]byte   // that the process has proved
	left    time.Time // the last leave notice of the first form

	challenge  nonce // zero: none
	challenged time.Time
}

// admit says whether a probe is taken. fresh says that it answers a challenge of ours.
func (s *sighting) admit(m probe, fresh bool, now time.Time) bool {
	switch {
	case !m.isSecondForm():
		if s.proved && now.Sub(s.heard) < oldFor {
			return false
		}
		if m.kind == kindLeave {
			if now.Sub(s.left) < oldLeaveEvery {
				return false
			}
			s.left = now
		}
		return true
	case s.proved && m.process == s.process:
		if !s.seen.take(m.number) {
			return false
		}
	case fresh && m.process != s.before:
		s.before, s.process, s.proved, s.seen = s.process, m.process, true, window{}
		s.seen.take(m.number)
	default:
		_, word := m.kind.asks()
		return word == 0 || m.kind == kindAskAgain
	}
	s.heard = now
	return true
}

// challengeNow draws a challenge, unless the last one is too young.
func (s *sighting) challengeNow(now time.Time) (n nonce, due bool) {
	if now.Sub(s.challenged) < challengeEvery {
		return n, false
	}
	rand.Read(s.challenge[:])
	s.challenged = now
	return s.challenge, true
}

// A window knows which of the last numbers have been seen: RFC 4303 section 3.4.3.
type window struct {
	last uint64
	seen uint64 // bit n: last - n
}

// take returns true if n is new. Numbers begin with 1.
func (w *window) take(n uint64) bool {
	const size = 64
	switch {
	case n > w.last:
		w.seen = w.seen<<min(n-w.last, size) | 1
		w.last = n
		return true
	case w.last-n >= size || w.seen>>(w.last-n)&1 == 1:
		return false
	}
	w.seen |= 1 << (w.last - n)
	return true
}

// admit says whether a probe that a link has brought is taken, and with which challenge
// its sender is to be asked who it is, if with any: it has another process or another
// MAC address than the known one. moved says that the sender has proved a MAC address
// that is new.
func (p *EthernetProber) admit(link string, m probe, mac [6]byte) (ok, moved bool, challenge nonce, due bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	id := senderID{link, m.from}
	s := p.senders[id]
	if s == nil {
		if _, known := NodeAt(p.nodes, m.from); !known {
			return true, false, nonce{}, false // it changes nothing; it gets an answer
		}
		s = &sighting{}
		p.senders[id] = s
	}
	fresh := p.isFresh(m, s)
	if !s.admit(m, fresh, now) {
		return false, false, nonce{}, false
	}
	if !m.isSecondForm() {
		return true, false, nonce{}, false
	}
	if fresh {
		moved = s.mac != mac
		s.mac = mac
	} else if s.mac != mac || s.process != m.process {
		challenge, due = s.challengeNow(now)
	}
	return true, moved, challenge, due
}

// isFresh says that a probe answers one of ours. Called with mu held.
func (p *EthernetProber) isFresh(m probe, s *sighting) bool {
	kind, word := m.kind.asks()
	if word == 0 || m.kind == kindAskAgain || m.nonce == (nonce{}) {
		return false
	}
	if m.nonce == s.challenge {
		return true
	}
	node, ok := NodeAt(p.nodes, m.from)
	if !ok {
		return false
	}
	if c := p.workers.calls[node.ID]; c != nil && c.nonce == m.nonce {
		return true
	}
	path := p.paths.states[pathID{m.frontend, node.ID}]
	return path != nil && path.nonces[kind] == m.nonce
}

// isKnown says that a probe is of the known process of its sender. Everything in such a probe is signed, the MAC
// addresses too, so nobody else has sent it. A sender of the first form is never known.
func (p *EthernetProber) isKnown(link string, m probe) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.senders[senderID{link, m.from}]
	return s != nil && s.proved && m.process == s.process
}

// forgetMAC has the sender challenged again.
func (p *EthernetProber) forgetMAC(link string, addr netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.senders[senderID{link, addr}]; s != nil {
		s.mac = [6]byte{}
	}
}
