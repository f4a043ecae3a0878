package forward

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// state is how far a connection has come.
type state uint8

const (
	inspecting state = iota // the client's first bytes decide
	waiting                 // for a backend with room
	dialing
	relaying
)

// conn is a client's connection together with the backend's. It belongs to
// one loop.
type conn struct {
	loop    *loop
	service *service
	target  *target  // since relaying
	opening *opening // until relaying

	client, server end
	up, down       flow

	source  netip.AddrPort // whom it is from
	wakeAt  int64          // the timer that counts, 0 if none
	clientT int64          // when something moved to or from the client
	serverT int64
	id      uint32
	slot    int32
	state   state
	// queuedMore: it is among the loop's more.
	queuedMore bool
}

// end is one socket of a connection, with what epoll has said of it.
type end struct {
	fd                 int
	serial             uint32
	readable, writable bool
	fin                bool // the peer's half has ended; there may be bytes to read before
	broken             bool // reset, or timed out
	// plain sockets have no options yet, but for those that listeners hand
	// on; wrote: one write has gone out.
	plain, wrote bool
}

// prompt comes before a write. The first one leaves at once anyway, since
// Nagle's algorithm only holds what follows bytes on their way (RFC 9293,
// section 3.7.4), and many connections have but one.
func (e *end) prompt() {
	if e.plain && e.wrote {
		e.settle()
	}
	e.wrote = true
}

// settle sets the socket's options, for which short connections have no time.
func (e *end) settle() {
	if e.plain {
		e.plain = false
		setOptions(e.fd)
	}
}

func (e *end) note(events uint32) {
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		e.readable = true
	}
	if events&unix.EPOLLOUT != 0 {
		e.writable = true
	}
	if events&unix.EPOLLRDHUP != 0 {
		e.fin = true
	}
	if events&unix.EPOLLERR != 0 {
		e.broken = true
	}
}

// opening is what a connection needs until it has a backend.
type opening struct {
	table *table
	to    netip.AddrPort // where the client went, for a PROXY header
	// speaks: the client is to begin with a PROXY header.
	speaks   bool
	deadline int64 // of inspecting or waiting

	ticket  *ticket // while waiting
	dials   int
	tried   []*target
	live    []attempt
	slowAt  int64 // when the youngest dial counts as slow, 0 if it has
	retryAt int64 // when those that failed are tried again, 0 if not
}

// attempt is a dial under way.
type attempt struct {
	fd     int
	serial uint32
	target *target
	since  int64
}

// take makes a connection of a client's socket. It counts among the service's
// and the forwarder's.
func (l *loop) take(s *service, fd int, source netip.AddrPort) {
	c := l.newConn()
	c.service, c.source = s, source
	c.client = end{fd: fd, serial: l.next(), writable: true}
	c.clientT = l.now
	if l.watch(fd, c.slot, c.client.serial) != 0 {
		c.abort()
		return
	}
	tb := s.table.Load()
	c.opening.table = tb
	h := &tb.handling
	c.opening.speaks = contains(h.AcceptProxyFrom, source.Addr())
	if !c.opening.speaks && tb.choosy && !h.Admits(source.Addr()) {
		c.abort()
		return
	}
	if c.opening.speaks || h.RequireTLS > 0 {
		c.state = inspecting
		c.opening.deadline = l.now + int64(inspectTime(h))
		c.arm()
		return // epoll tells at once if there is something already
	}
	c.connect()
}

func contains(ps []netip.Prefix, a netip.Addr) bool {
	return len(ps) > 0 && slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a.WithZone("")) })
}

// newConn is one in a slot, with an opening.
func (l *loop) newConn() *conn {
	var c *conn
	if n := len(l.spare); n > 0 {
		c, l.spare = l.spare[n-1], l.spare[:n-1]
		*c = conn{opening: c.opening}
	} else {
		c = new(conn)
	}
	if c.opening == nil {
		c.opening = l.newOpening()
	}
	if n := len(l.free); n > 0 {
		c.slot, l.free = l.free[n-1], l.free[:n-1]
	} else {
		c.slot = int32(len(l.conns))
		l.conns = append(l.conns, nil)
	}
	l.conns[c.slot] = c
	c.loop, c.id = l, l.next()
	return c
}

func (l *loop) newOpening() *opening {
	if n := len(l.openings); n > 0 {
		o := l.openings[n-1]
		l.openings = l.openings[:n-1]
		return o
	}
	return new(opening)
}

// opened gives back what is not needed once there is a backend.
func (c *conn) opened() {
	o := c.opening
	c.opening = nil
	clear(o.tried)
	clear(o.live)
	*o = opening{tried: o.tried[:0], live: o.live[:0]}
	if len(c.loop.openings) < maxSpare {
		c.loop.openings = append(c.loop.openings, o)
	}
}

// maxSpare is how many structures of each kind a loop keeps to be used again.
const maxSpare = 256

// forget gives back all that the connection has but its sockets.
func (c *conn) forget() {
	l, s := c.loop, c.service
	if c.opening != nil {
		if c.opening.ticket != nil {
			s.queue.leave(c.opening.ticket)
		}
		for _, a := range c.opening.live {
			sysReset(a.fd)
			s.release(a.target)
		}
		c.opened()
	}
	if c.target != nil {
		s.release(c.target)
	}
	c.up.drop(l.f.pools)
	c.down.drop(l.f.pools)
	l.conns[c.slot] = nil
	l.free = append(l.free, c.slot)
	if len(l.spare) < maxSpare {
		l.spare = append(l.spare, c)
	}
	c.id = 0
	l.open.Add(-1)
	s.left()
	l.f.conns.Done()
}

// abort ends the connection by a reset of what is open of it.
func (c *conn) abort() {
	sysReset(c.client.fd)
	if c.state == relaying {
		sysReset(c.server.fd)
	}
	c.forget()
}

// finish closes both sides, each of which has said its last word.
func (c *conn) finish() {
	sysClose(c.client.fd)
	sysClose(c.server.fd)
	c.forget()
}

// event takes what epoll says of the socket with that serial number.
func (c *conn) event(serial, events uint32) {
	switch {
	case serial == c.client.serial:
		c.client.note(events)
	case c.state == relaying && serial == c.server.serial:
		c.server.note(events)
	case c.state == dialing:
		c.answer(serial, events)
		return
	default:
		return // of a file that is closed
	}
	switch c.state {
	case inspecting:
		c.inspect()
	case waiting, dialing:
		if c.client.broken { // nobody waits for the backend any more
			c.abort()
		}
	case relaying:
		c.pump()
	}
}

// pump moves what can be moved, both ways.
func (c *conn) pump() {
	l := c.loop
	up := c.up.move(l, &c.client, &c.server, c.down.done)
	if up.n > 0 {
		c.target.in.Add(uint64(up.n))
	}
	if up.failed {
		c.abort()
		return
	}
	down := c.down.move(l, &c.server, &c.client, c.up.done)
	if down.n > 0 {
		c.target.out.Add(uint64(down.n))
	}
	switch {
	case c.up.done && c.down.done:
		c.finish()
		return
	case down.failed || c.client.broken || c.server.broken:
		c.abort()
		return
	}
	// A reader takes part by its acknowledgements, which make room.
	if up.n > 0 || down.n > 0 {
		c.clientT, c.serverT = l.now, l.now
	}
	if (up.more || down.more) && !c.queuedMore {
		c.queuedMore = true
		l.more = append(l.more, ref{c.slot, c.id})
	}
}

// arm sets the timer to the next moment at which something is due.
func (c *conn) arm() {
	var at int64
	sooner := func(t int64) {
		if t != 0 && (at == 0 || t < at) {
			at = t
		}
	}
	switch c.state {
	case inspecting, waiting:
		sooner(c.opening.deadline)
	case dialing:
		sooner(c.opening.slowAt)
		sooner(c.opening.retryAt)
		for _, a := range c.opening.live {
			sooner(a.since + c.opening.table.patience)
		}
	case relaying:
		sooner(c.idleSince())
	}
	if at == 0 {
		return
	}
	// A timer that comes too soon arms the right one.
	if at = tick(at); c.wakeAt == 0 || at < c.wakeAt {
		c.wakeAt = at
		c.loop.timers.push(timer{at, ref{c.slot, c.id}})
	}
}

// idleSince is when the connection will have been idle for too long, 0 if
// there is no such time. The limits are those of the service now.
func (c *conn) idleSince() (at int64) {
	h := &c.service.table.Load().handling
	if h.ClientTimeout > 0 {
		at = c.clientT + int64(h.ClientTimeout)
	}
	if h.ServerTimeout > 0 {
		if s := c.serverT + int64(h.ServerTimeout); at == 0 || s < at {
			at = s
		}
	}
	return at
}

// due is called by the timer.
func (c *conn) due() {
	now := c.loop.now
	switch c.state {
	case inspecting, waiting:
		if now >= c.opening.deadline {
			c.abort()
			return
		}
	case dialing:
		if !c.dialDue(now) {
			return
		}
	case relaying:
		if at := c.idleSince(); at != 0 && now >= at {
			c.abort()
			return
		}
	}
	c.arm()
}
