package forward

import (
	"errors"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"appliance/balancer"
	"appliance/balancer/rawtcp"
)

// A dial that takes longer than slowAfter, and than slowFactor times what is usual for
// that backend, is raced by a dial to another backend. A hanging server then costs one
// client tens of milliseconds, and most clients nothing.
const (
	slowAfter  = 60 * time.Millisecond
	slowFactor = 4
)

// retryPause is the time until a failed backend is dialed again for the same client,
// if there is no other one: a backend that restarts is back a moment later.
const retryPause = 100 * time.Millisecond

// A Reporter gets each dial that failed or was slow. It must not block.
type Reporter func(t balancer.Target, err error)

// connect finds a backend for a client that is allowed to have one.
func (c *conn) connect() {
	c.state = dialing
	c.turn = c.loop.now
	c.advance()
}

// advance starts the next dial. It resets the connection if there is nothing left to
// try or to wait for.
func (c *conn) advance() {
	o := c.opening
	for o.dials < o.table.tries {
		t, wait := o.table.pick(c.source.Addr(), o.tried, c.loop.now)
		if wait {
			if len(o.live) == 0 {
				c.wait(t)
			}
			return
		}
		if t == nil {
			break
		}
		if c.dial(t) {
			return
		}
	}
	switch {
	case len(o.live) > 0:
	case o.short && c.loop.now < c.turn+o.table.dialTimeout:
		c.retry() // what is short here may be there a moment later
	case o.dials > 0 && o.dials < o.table.tries:
		c.retry()
	default:
		c.abort(c.unconnected())
	}
}

// unconnected says why no backend has the connection.
func (c *conn) unconnected() *ending {
	switch o := c.opening; {
	case o.short:
		return endShort
	case o.timedOut:
		return endDialTimeout
	case c.dials == 0:
		return endNoBackend
	}
	return endUnconnected
}

// retry tries all backends again after a pause.
func (c *conn) retry() {
	o := c.opening
	o.short = false
	clear(o.tried)
	o.tried = o.tried[:0]
	o.retryAt = c.loop.now + int64(retryPause)
	c.arm()
}

// dial starts a dial to t, which has counted the connection, and reports whether it is
// under way.
func (c *conn) dial(t *target) bool {
	o, l := c.opening, c.loop
	if len(o.live) > 0 {
		if !l.f.files.claim(1) { // no race, then: the dial under way may still succeed
			c.service.release(t)
			c.arm()
			return true
		}
		o.extra++
	}
	o.dials++
	c.dials++
	o.tried = append(o.tried, t)
	o.retryAt = 0
	fd, errno := rawtcp.Socket(t.family)
	if errno != 0 {
		c.failed(t, errno)
		return false
	}
	// If the client has sent bytes already, the backend gets one packet less: they leave
	// together with the last ACK of the handshake.
	if c.up.held == nil {
		if n, errno := sysRead(c.client.fd, l.buf[:smallSize]); errno == 0 && n > 0 {
			c.up.hold(l.f.pools, l.buf[:n])
		}
	}
	if c.up.held != nil {
		// The kernel holds the ACK back until our first bytes (TCP_QUICKACK in tcp(7)).
		rawtcp.SetOption(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0)
	}
	errno = rawtcp.Connect(fd, t.sockaddr)
	server := end{fd: fd, serial: l.next(), slot: c.slot, writable: true, plain: true}
	if errno == 0 || errno == unix.EINPROGRESS {
		if errno = l.watch(&server, allEvents); errno == unix.ENOSPC {
			errno = unix.ENOMEM // fs.epoll.max_user_watches, see epoll_ctl(2)
		}
	}
	if errno != 0 {
		rawtcp.Close(fd)
		c.failed(t, errno)
		return false
	}
	o.live = append(o.live, attempt{server, t, l.now})
	o.slowAt = l.now + max(int64(slowAfter), slowFactor*t.usualDial.Load())
	c.arm()
	return true
}

// answer handles the outcome of a dial.
func (c *conn) answer(serial, events uint32) {
	o := c.opening
	i := slices.IndexFunc(o.live, func(a attempt) bool { return a.serial == serial })
	if i < 0 {
		return
	}
	a := o.live[i]
	if events&(unix.EPOLLERR|unix.EPOLLHUP) == 0 {
		if events&unix.EPOLLOUT != 0 {
			o.live = slices.Delete(o.live, i, i+1)
			c.established(a, events)
		}
		return
	}
	o.live = slices.Delete(o.live, i, i+1)
	err := rawtcp.Err(a.fd)
	if err == nil {
		err = unix.ECONNRESET // it was open for a moment
	}
	rawtcp.Close(a.fd)
	c.failed(a.target, err)
	c.advance()
}

// failed records a dial that did not succeed.
func (c *conn) failed(t *target, err error) {
	f, o := c.loop.f, c.opening
	c.settleFiles()
	c.service.release(t)
	if f.shortages.Note("dial", err) {
		o.short = true
		o.dials--
		return
	}
	o.short, o.timedOut = false, errors.Is(err, os.ErrDeadlineExceeded)
	t.failed.Add(1)
	t.avoid(c.loop.now)
	f.report(t.id, err)
}

// established gives the connection the socket of a dial, and resets the other dials.
func (c *conn) established(a attempt, events uint32) {
	l, o := c.loop, c.opening
	for _, other := range o.live {
		rawtcp.Reset(other.fd)
		c.service.release(other.target)
	}
	o.live = o.live[:0]
	t, tb, to := a.target, o.table, o.to
	c.target, c.state, c.taken = t, relaying, l.now
	c.server = a.end
	l.scheduleLateOptions()
	c.server.noteEvents(events)
	c.freeOpening()
	c.clientT, c.serverT = l.now, l.now
	t.total.Add(1)
	if h := c.up.held; h != nil {
		t.in.Add(uint64(h.to))
		c.in += uint64(h.to)
	}
	t.answered(time.Duration(nanotime() - a.since))
	if t.gone.Load() { // the backend was removed during the dial
		c.abort(endGone)
		return
	}
	if tb.persistence != nil {
		tb.persistence.put(c.source.Addr(), t.id.Backend, l.now)
	}
	if v := tb.proxies[t]; v != "" {
		header, err := proxyHeader(v, c.source, to, c.client.fd, c.service.frontend)
		if err != nil || !c.up.prepend(l.f.pools, header) {
			c.abort(endShort)
			return
		}
	}
	c.arm()
	c.pump()
}

// dialDue handles dials that took too long. It reports whether the connection still
// exists and is dialing.
func (c *conn) dialDue(now int64) bool {
	o := c.opening
	next := false
	if o.retryAt != 0 && now >= o.retryAt {
		o.retryAt, next = 0, true
	}
	for i := 0; i < len(o.live); {
		a := o.live[i]
		if now < a.since+o.table.dialTimeout {
			i++
			continue
		}
		o.live = slices.Delete(o.live, i, i+1)
		rawtcp.Reset(a.fd)
		c.failed(a.target, os.ErrDeadlineExceeded)
		next = true
	}
	if o.slowAt != 0 && now >= o.slowAt {
		o.slowAt = 0
		if n := len(o.live); n > 0 {
			t := o.live[n-1].target
			t.avoid(now)
			c.loop.f.report(t.id, balancer.ErrSlow)
			next = true
		}
	}
	if !next {
		return true
	}
	id := c.id
	c.advance()
	return c.id == id && c.state == dialing
}
