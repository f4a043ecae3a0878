package forward

import (
	"errors"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"appliance/balancer"
)

// defaultRetries is how many dials follow the first that failed, haproxy's
// number.
const defaultRetries = 3

// A dial that has not ended after slowAfter, or slowFactor times what is usual
// for that backend, is raced by one to another backend. A hanging server then
// costs a client tens of milliseconds once, and most clients nothing.
const (
	slowAfter  = 60 * time.Millisecond
	slowFactor = 4
)

// retryPause is the time until a backend that failed is dialed again for the
// same client, where there is no other: one that is just restarting is there
// a moment later.
const retryPause = 100 * time.Millisecond

// defaultConnectTimeout is for services that name none.
const defaultConnectTimeout = time.Second

// errSlow is reported for a dial that was raced.
var errSlow = balancer.ErrSlow

// A Reporter is told of each dial that failed. It must not block.
type Reporter func(t balancer.Target, err error)

// connect finds a backend for a client that may have one.
func (c *conn) connect() {
	c.state = dialing
	c.advance()
}

// advance starts the next dial. A connection for which nothing is left to try
// or to wait for is reset.
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
	case o.dials > 0 && o.dials < o.table.tries:
		clear(o.tried)
		o.tried = o.tried[:0]
		o.retryAt = c.loop.now + int64(retryPause)
		c.arm()
	default:
		c.abort()
	}
}

// dial begins one to t, which has counted the connection, and reports whether
// it is under way.
func (c *conn) dial(t *target) bool {
	o, l := c.opening, c.loop
	o.dials++
	o.tried = append(o.tried, t)
	o.retryAt = 0
	fd, errno := sysSocket(t.family)
	if errno != 0 {
		c.failed(t, errno)
		return false
	}
	// A client that has spoken already spares the backend a packet: the last
	// of the handshake and the first bytes leave together.
	if c.up.held == nil {
		if n, errno := sysRead(c.client.fd, l.buf[:smallSize]); errno == 0 && n > 0 {
			c.up.hold(l.f.pools, l.buf[:n])
		}
	}
	if c.up.held != nil {
		// The kernel waits with the acknowledgement for our first bytes
		// (TCP_QUICKACK in tcp(7)).
		sysOption(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0)
	}
	errno = sysConnect(fd, t.sockaddr)
	serial := l.next()
	if errno == 0 || errno == unix.EINPROGRESS {
		errno = l.watch(fd, c.slot, serial)
	}
	if errno != 0 {
		sysClose(fd)
		c.failed(t, errno)
		return false
	}
	o.live = append(o.live, attempt{fd, serial, t, l.now})
	o.slowAt = l.now + max(int64(slowAfter), slowFactor*t.usual.Load())
	c.arm()
	return true
}

// answer is what a dial has come to.
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
	err := socketError(a.fd)
	if err == nil {
		err = unix.ECONNRESET // it was there for a moment
	}
	sysClose(a.fd)
	c.failed(a.target, err)
	c.advance()
}

// failed records a dial that did not succeed.
func (c *conn) failed(t *target, err error) {
	f := c.loop.f
	t.failed.Add(1)
	c.service.release(t)
	if ours(err) {
		f.shortage.tell(f.log, "a backend cannot be dialed", err)
		return
	}
	t.avoid(c.loop.now)
	f.report(t.id, err)
}

// established makes the dial the connection's and gives up the others.
func (c *conn) established(a attempt, events uint32) {
	l, o := c.loop, c.opening
	for _, other := range o.live {
		sysReset(other.fd)
		c.service.release(other.target)
	}
	o.live = o.live[:0]
	t, tb, to := a.target, o.table, o.to
	c.target, c.state = t, relaying
	c.server = end{fd: a.fd, serial: a.serial, writable: true, plain: true}
	l.settleLater()
	c.server.note(events)
	c.opened()
	c.clientT, c.serverT = l.now, l.now
	t.total.Add(1)
	if h := c.up.held; h != nil {
		t.in.Add(uint64(h.to))
	}
	t.answered(time.Duration(nanotime() - a.since))
	if t.gone.Load() { // it left while we dialed
		c.abort()
		return
	}
	if tb.sticky != nil {
		tb.sticky.put(c.source.Addr(), t.id.Backend, l.now)
	}
	if v := tb.handling.SendProxy; v != "" {
		header, err := proxyHeader(v, c.source, to, c.client.fd, c.service.frontend)
		if err != nil || !c.up.lead(l.f.pools, header) {
			c.abort()
			return
		}
	}
	c.arm()
	c.pump()
}

// dialDue looks at what has taken too long. It reports whether the connection
// is still there and dialing.
func (c *conn) dialDue(now int64) bool {
	o := c.opening
	next := false
	if o.retryAt != 0 && now >= o.retryAt {
		o.retryAt, next = 0, true
	}
	for i := 0; i < len(o.live); {
		a := o.live[i]
		if now < a.since+o.table.patience {
			i++
			continue
		}
		o.live = slices.Delete(o.live, i, i+1)
		sysReset(a.fd)
		c.failed(a.target, os.ErrDeadlineExceeded)
		next = true
	}
	if o.slowAt != 0 && now >= o.slowAt {
		o.slowAt = 0
		if n := len(o.live); n > 0 {
			t := o.live[n-1].target
			t.avoid(now)
			c.loop.f.report(t.id, errSlow)
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

// ours reports whether a dial failed for want of something on this host, so
// that the backend is not to blame.
func ours(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.EADDRNOTAVAIL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
