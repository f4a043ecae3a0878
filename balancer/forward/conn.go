package forward

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"appliance/balancer/rawtcp"
)

// state is how far a connection has come.
type state uint8

const (
	inspecting state = iota // the client's first bytes decide
	waiting                 // for a backend with room
	dialing
	relaying
)

// conn is a client's connection together with the backend's. It belongs to one loop.
type conn struct {
	loop    *loop
	service *service
	target  *target  // since relaying
	opening *opening // until relaying

	client, server end
	up, down       flow

	source  netip.AddrPort // the client, or who a PROXY header says it is
	wakeAt  int64          // the timer that counts; 0 if there is none
	clientT int64          // when something moved to or from the client
	serverT int64
	turn    int64 // when its turn to dial came
	// For the log: when it was accepted and when the backend took it; how many dials there were; and the bytes from the
	// client and to it.
	accepted, taken int64
	in, out         uint64
	dials           int32

	id    uint32
	slot  int32
	state state
	// queuedMore says that it is among the loop's more.
	queuedMore bool
}

// end is one socket of a connection, with what epoll has reported about it.
type end struct {
	fd                 int
	serial             uint32
	slot               int32 // of the connection
	readable, writable bool
	// watched says that epoll reports what happens to it, and watchedRoom that this includes new room for writes.
	watched, watchedRoom bool
	fin                  bool // the peer has sent its FIN; there may be bytes before it
	broken               bool // reset, or timed out
	// plain sockets have only the options that they inherit from their listener.
	// wrote says that one write has gone out.
	plain, wrote bool
}

// beforeWrite sets the options before the second write. The first write leaves at
// once anyway, since Nagle's algorithm only holds bytes that follow unacknowledged ones
// (RFC 9293, section 3.7.4), and many connections have only one write.
func (e *end) beforeWrite() {
	if e.plain && e.wrote {
		e.setOptionsOnce()
	}
	e.wrote = true
}

// setOptionsOnce sets the socket's options. Short connections end before that and save
// the system calls.
func (e *end) setOptionsOnce() {
	if e.plain {
		e.plain = false
		setOptions(e.fd)
	}
}

func (e *end) noteEvents(events uint32) {
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
	// awaitsProxy says that the client must begin with a PROXY header.
	awaitsProxy bool
	deadline    int64 // of inspecting or waiting

	waiter *waiter // while waiting
	// timedOut says that the last dial that failed was not answered in time.
	timedOut bool
	short    bool // the last dial failed for lack of something on this host
	extra    int  // files of dials beyond the first
	dials    int
	tried    []*target
	live     []attempt
	slowAt   int64 // when the newest dial counts as slow; 0 if it already does
	retryAt  int64 // when failed backends are tried again; 0 if they are not
}

// attempt is a dial that is under way.
type attempt struct {
	end
	target *target
	since  int64
}

// adopt makes a connection of a client's socket, which the service and the forwarder
// have counted.
func (l *loop) adopt(s *service, fd int, source netip.AddrPort) {
	c := l.newConn()
	c.service, c.source = s, source
	c.client = end{fd: fd, serial: l.next(), slot: c.slot, writable: true}
	c.clientT = l.now
	c.accepted = l.now
	tb := s.table.Load()
	c.opening.table = tb
	h := &tb.options
	c.opening.awaitsProxy = contains(h.AcceptProxyFrom, source.Addr())
	if !c.opening.awaitsProxy && tb.filters && !h.Admits(source.Addr()) {
		c.abort(endDenied)
		return
	}
	if c.opening.awaitsProxy || h.RequireTLS > 0 {
		c.state = inspecting
		c.opening.deadline = l.now + int64(inspectTime(h))
		c.arm()
		c.watchClient() // epoll reports at once what is there already
		return
	}
	// The dial reads what is there already, and epoll does not report it again.
	id := c.id
	if c.connect(); c.id == id {
		c.watchClient()
	}
}

// watchClient makes epoll report what happens to the client. It reports new room only once a write has found none:
// before that there is room all the time, and an event that says so is a turn of the loop for nothing.
func (c *conn) watchClient() {
	if c.loop.watch(&c.client, readEvents) != 0 {
		c.abort(endShort)
	}
}

func contains(ps []netip.Prefix, a netip.Addr) bool {
	return len(ps) > 0 && slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a.WithZone("")) })
}

// newConn is a connection in a slot, with an opening.
func (l *loop) newConn() *conn {
	var c *conn
	if n := len(l.freeConns); n > 0 {
		c, l.freeConns = l.freeConns[n-1], l.freeConns[:n-1]
		*c = conn{opening: c.opening}
	} else {
		c = new(conn)
	}
	if c.opening == nil {
		c.opening = l.newOpening()
	}
	if n := len(l.freeSlots); n > 0 {
		c.slot, l.freeSlots = l.freeSlots[n-1], l.freeSlots[:n-1]
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

// freeOpening gives back what is not needed once there is a backend.
func (c *conn) freeOpening() {
	o := c.opening
	c.opening = nil
	clear(o.tried)
	clear(o.live)
	c.loop.f.files.free(int64(o.extra))
	*o = opening{tried: o.tried[:0], live: o.live[:0]}
	if len(c.loop.openings) < maxSpare {
		c.loop.openings = append(c.loop.openings, o)
	}
}

// maxSpare is how many structures of each kind a loop keeps for reuse.
const maxSpare = 256

// release gives back everything that the connection has except its sockets.
func (c *conn) release() {
	l, s := c.loop, c.service
	if c.opening != nil {
		if c.opening.waiter != nil {
			s.queue.remove(c.opening.waiter)
		}
		for _, a := range c.opening.live {
			rawtcp.Reset(a.fd)
			s.release(a.target)
		}
		c.freeOpening()
	}
	if c.target != nil {
		s.release(c.target)
	}
	c.up.release(l.f.pools)
	c.down.release(l.f.pools)
	l.conns[c.slot] = nil
	l.freeSlots = append(l.freeSlots, c.slot)
	if len(l.freeConns) < maxSpare {
		l.freeConns = append(l.freeConns, c)
	}
	c.id = 0
	l.open.Add(-1)
	l.f.files.free(perClient)
	s.countOut()
	l.f.conns.Done()
}

// abort ends the connection by resetting its open sockets.
func (c *conn) abort(why *ending) {
	c.ended(why)
	rawtcp.Reset(c.client.fd)
	if c.state == relaying {
		rawtcp.Reset(c.server.fd)
	}
	c.release()
}

// finish closes both sides after both have sent their last bytes.
func (c *conn) finish() {
	c.ended(endDone)
	rawtcp.Close(c.client.fd)
	rawtcp.Close(c.server.fd)
	c.release()
}

// event handles what epoll reports about the socket with that serial number.
func (c *conn) event(serial, events uint32) {
	switch {
	case serial == c.client.serial:
		c.client.noteEvents(events)
	case c.state == relaying && serial == c.server.serial:
		c.server.noteEvents(events)
	case c.state == dialing:
		c.answer(serial, events)
		return
	default:
		return // the socket is closed already
	}
	switch c.state {
	case inspecting:
		c.inspect()
	case waiting, dialing:
		if c.client.broken { // the client no longer waits
			c.abort(endLeft[c.state])
		}
	case relaying:
		c.pump()
	}
}

// pump moves what can be moved in both directions.
func (c *conn) pump() {
	l := c.loop
	up := c.up.move(l, &c.client, &c.server, c.down.done)
	if up.n > 0 {
		c.target.in.Add(uint64(up.n))
		c.in += uint64(up.n)
	}
	if up.failed {
		c.abort(c.broke(endClientReset))
		return
	}
	down := c.down.move(l, &c.server, &c.client, c.up.done)
	if down.n > 0 {
		c.target.out.Add(uint64(down.n))
		c.out += uint64(down.n)
	}
	switch {
	case c.up.done && c.down.done:
		c.finish()
		return
	case down.failed || c.client.broken || c.server.broken:
		c.abort(c.broke(endServerReset))
		return
	}
	// A side that only reads is active too: its acknowledgements make room.
	if up.n > 0 || down.n > 0 {
		c.clientT, c.serverT = l.now, l.now
	}
	if (up.more || down.more) && !c.queuedMore {
		c.queuedMore = true
		l.more = append(l.more, ref{c.slot, c.id})
	}
}

// broke is the ending of a connection of which a side is broken; usual where neither is known to be.
func (c *conn) broke(usual *ending) *ending {
	switch {
	case c.client.broken:
		return endClientReset
	case c.server.broken:
		return endServerReset
	}
	return usual
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
			sooner(a.since + c.opening.table.dialTimeout)
		}
	case relaying:
		sooner(c.idleDeadline())
	}
	if at == 0 {
		return
	}
	// A timer that fires too early arms the right one.
	if at = tick(at); c.wakeAt == 0 || at < c.wakeAt {
		c.wakeAt = at
		c.loop.setTimer(timer{at, ref{c.slot, c.id}})
	}
}

// idleDeadline is when the connection has been idle for too long; 0 if there is no
// limit. The limits are the current ones of the service.
func (c *conn) idleDeadline() (at int64) {
	h := &c.service.table.Load().options
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

// onTimer is called by the timer.
func (c *conn) onTimer() {
	now := c.loop.now
	switch c.state {
	case inspecting, waiting:
		if now >= c.opening.deadline {
			why := endSilent
			if c.state == waiting {
				why = endQueueTimeout
			}
			c.abort(why)
			return
		}
	case dialing:
		if !c.dialDue(now) {
			return
		}
	case relaying:
		if at := c.idleDeadline(); at != 0 && now >= at {
			why := endServerTimeout
			if h := &c.service.table.Load().options; h.ClientTimeout > 0 && c.clientT+int64(h.ClientTimeout) <= now {
				why = endClientTimeout
			}
			c.abort(why)
			return
		}
	}
	c.arm()
}
