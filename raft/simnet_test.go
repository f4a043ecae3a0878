package raft

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// simNet is a network of hosts in virtual time: streams as TCP has them, and datagrams. Nothing in it waits for real
// I/O, and no write waits at all, so that the code under test never holds a lock while time has to pass.
type simNet struct {
	mu    sync.Mutex
	rnd   *rand.Rand
	hosts map[netip.Addr]*simHost
	cuts  map[[2]string]bool
	// turned is when a direction was last cut or healed.
	turned map[[2]string]time.Time
	conns  map[*simConn]bool

	base, spread time.Duration // of a packet's way
	loss, copies float64       // of packets

	pauses  atomic.Int64  // how often threads and processes stand still, in thousandths of oneIn
	longest time.Duration // that they do
	say     func(format string, args ...any)
}

func newSimNet(rnd *rand.Rand) *simNet {
	return &simNet{rnd: rnd, hosts: make(map[netip.Addr]*simHost), cuts: make(map[[2]string]bool),
		turned: make(map[[2]string]time.Time), conns: make(map[*simConn]bool)}
}

func (n *simNet) isCut(from, to string) bool { return n.cuts[[2]string{from, to}] }

// set cuts or heals one direction.
func (n *simNet) set(from, to string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	way := [2]string{from, to}
	if from == to || n.cuts[way] == cut {
		return
	}
	n.cuts[way], n.turned[way] = cut, time.Now()
	for c := range n.conns {
		c.poke()
		if c.from != from || c.proc.host.id != to {
			continue
		}
		switch {
		case cut:
			c.silent = time.Now()
		case time.Since(c.silent) > 6*time.Second: // peerport's keepAlive has given up
			c.end(time.Now(), syscall.ETIMEDOUT)
			c.other.end(time.Now(), syscall.ETIMEDOUT)
		}
	}
}

func (n *simNet) heal() {
	n.mu.Lock()
	ways := make([][2]string, 0, len(n.cuts))
	for way, cut := range n.cuts {
		if cut {
			ways = append(ways, way)
		}
	}
	n.mu.Unlock()
	for _, way := range ways {
		n.set(way[0], way[1], false)
	}
}

// way is how long one packet takes. The caller holds mu.
func (n *simNet) way() time.Duration {
	d := n.base + time.Duration(n.rnd.Int64N(int64(n.spread)+1))
	if n.rnd.Float64() < 0.01 {
		d += time.Duration(n.rnd.Int64N(int64(20*n.spread) + 1)) // it waited in some queue, and is overtaken
	}
	return d
}

// wayTCP is the same for a segment, which is sent again if it is lost.
func (n *simNet) wayTCP() time.Duration {
	d := n.way()
	for rto := 200 * ms; n.rnd.Float64() < n.loss && rto < 2*time.Second; rto *= 2 {
		d += rto
	}
	return d
}

// A segment is bytes on their way, or how the stream ends.
type segment struct {
	at    time.Time
	b     []byte
	err   error
	stuck bool // its direction was cut when it was due
}

// simConn is one end of a stream. The lock is the network's.
type simConn struct {
	net           *simNet
	proc          *simProc
	local, remote net.TCPAddr
	from          string // who is at the other end
	other         *simConn

	in         []segment
	wake       chan struct{}
	read, sent time.Time // deadlines
	silent     time.Time // since when nothing comes through, in either direction
	closed     bool
	abort      bool
	ended      error
}

func (c *simConn) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// push appends to what arrives here. The caller holds mu.
func (c *simConn) push(s segment) {
	if len(c.in) > 0 {
		last := c.in[len(c.in)-1]
		if last.err != nil {
			return
		}
		if s.at.Before(last.at) {
			s.at = last.at
		}
	}
	c.in = append(c.in, s)
	c.poke()
}

// end has the stream end here at the time at, or earlier if it does so already. The caller holds mu.
func (c *simConn) end(at time.Time, err error) {
	if i := len(c.in) - 1; i >= 0 && c.in[i].err != nil {
		if at.Before(c.in[i].at) {
			c.in[i].at, c.in[i].err = at, err
			c.poke()
		}
		return
	}
	c.push(segment{at: at, err: err})
}

func (c *simConn) Read(b []byte) (int, error) {
	var timer *time.Timer
	for {
		c.proc.gate()
		n, wait, err := c.take(b)
		if n > 0 || err != nil || len(b) == 0 {
			c.proc.yield(afterReceive)
			return n, err
		}
		if timer == nil {
			timer = time.NewTimer(wait)
			defer timer.Stop()
		} else {
			timer.Reset(wait)
		}
		select {
		case <-c.wake:
		case <-timer.C:
		}
	}
}

// take reads what has arrived, or says how long to wait.
func (c *simConn) take(b []byte) (n int, wait time.Duration, err error) {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	now := time.Now()
	switch {
	case c.closed:
		return 0, 0, net.ErrClosed
	case !c.read.IsZero() && !now.Before(c.read):
		return 0, 0, os.ErrDeadlineExceeded
	case c.ended != nil:
		return 0, 0, c.ended
	}
	wait = time.Hour
	if len(c.in) > 0 {
		s := &c.in[0]
		cut := c.net.isCut(c.from, c.proc.host.id)
		switch {
		case cut:
			s.stuck = s.stuck || !now.Before(s.at)
			wait = max(s.at.Sub(now), 0)
			if s.stuck {
				wait = time.Hour
			}
		case s.stuck:
			s.stuck = false
			s.at = now.Add(time.Duration(c.net.rnd.Int64N(int64(400 * ms)))) // until it is sent again
			wait = s.at.Sub(now)
		case now.Before(s.at):
			wait = s.at.Sub(now)
		case s.err != nil:
			c.ended = s.err
			return 0, 0, s.err
		default:
			n = copy(b, s.b)
			if s.b = s.b[n:]; len(s.b) == 0 {
				c.in = c.in[1:]
			}
			return n, 0, nil
		}
	}
	if !c.read.IsZero() {
		wait = min(wait, c.read.Sub(now))
	}
	return 0, wait, nil
}

func (c *simConn) Write(b []byte) (int, error) {
	c.proc.yield(beforeSend)
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	now := time.Now()
	switch {
	case c.closed || c.proc.dead.Load():
		return 0, net.ErrClosed
	case !c.sent.IsZero() && !now.Before(c.sent):
		return 0, os.ErrDeadlineExceeded
	case c.ended != nil && c.ended != io.EOF:
		return 0, syscall.EPIPE
	}
	at := c.proc.now().Add(c.net.wayTCP())
	switch {
	case !c.other.closed:
		c.other.push(segment{at: at, b: slices.Clone(b)})
	case c.other.proc.host.up:
		c.end(at.Add(c.net.wayTCP()), syscall.ECONNRESET)
	}
	return len(b), nil
}

func (c *simConn) Close() error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	c.close(c.proc.now(), nil)
	return nil
}

// close ends this end, and tells the other unless lost. The caller holds mu.
func (c *simConn) close(at time.Time, silently func(other *simConn)) {
	if c.closed {
		return
	}
	c.closed = true
	c.poke()
	delete(c.net.conns, c)
	if silently != nil {
		silently(c.other)
		return
	}
	end := io.EOF
	if c.abort || len(c.in) > 0 && c.in[0].err == nil && !time.Now().Before(c.in[0].at) {
		end = syscall.ECONNRESET // RFC 1122, section 4.2.2.13: data is lost
	}
	if !c.other.closed {
		c.other.end(at.Add(c.net.wayTCP()), end)
	}
}

// Wire is what the kernel knows of the way.
func (c *simConn) Wire() time.Duration { return 2 * c.net.base }

func (c *simConn) SetLinger(int) error  { c.set(func() { c.abort = true }); return nil }
func (c *simConn) LocalAddr() net.Addr  { return &c.local }
func (c *simConn) RemoteAddr() net.Addr { return &c.remote }
func (c *simConn) set(f func()) {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	f()
	c.poke()
}
func (c *simConn) SetDeadline(t time.Time) error      { c.set(func() { c.read, c.sent = t, t }); return nil }
func (c *simConn) SetReadDeadline(t time.Time) error  { c.set(func() { c.read = t }); return nil }
func (c *simConn) SetWriteDeadline(t time.Time) error { c.set(func() { c.sent = t }); return nil }

type simListener struct {
	proc  *simProc
	queue chan *simConn
	done  chan struct{}
	once  sync.Once
}

func (p *simProc) listen(netip.AddrPort) (net.Listener, error) {
	n := p.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	p.listener = &simListener{proc: p, queue: make(chan *simConn, 64), done: make(chan struct{})}
	return p.listener, nil
}

func (l *simListener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, net.ErrClosed
	case c := <-l.queue:
		l.proc.yield(afterReceive)
		return c, nil
	}
}

func (l *simListener) Close() error {
	l.once.Do(func() {
		close(l.done)
		n := l.proc.host.net
		n.mu.Lock()
		defer n.mu.Unlock()
		for {
			select {
			case c := <-l.queue:
				c.abort = true
				c.close(time.Now(), nil)
				continue
			default:
			}
			break
		}
		l.proc.listener = nil
	})
	return nil
}

func (l *simListener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.proc.host.at) }

// dial connects as a kernel does: what is lost is sent again after a second.
func (p *simProc) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	p.yield(beforeDial)
	defer p.yield(afterDial)
	n := p.host.net
	for {
		wait, c, err := p.connect(to)
		if err == nil && wait > 0 {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(wait):
			}
			if c, err = p.arrive(to); c == nil && err == nil {
				continue
			}
		}
		if err == nil && ctx.Err() != nil {
			n.mu.Lock()
			c.close(time.Now(), nil)
			n.mu.Unlock()
			err = ctx.Err()
		}
		if err != nil {
			return nil, err
		}
		return c, nil
	}
}

// connect sends a SYN, and says how long the handshake takes.
func (p *simProc) connect(to netip.AddrPort) (time.Duration, *simConn, error) {
	n := p.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.hosts[to.Addr()]
	switch {
	case p.dead.Load() || h == nil:
		return 0, nil, syscall.ENETUNREACH
	case !h.up || n.isCut(p.host.id, h.id) || n.isCut(h.id, p.host.id) || n.rnd.Float64() < n.loss:
		return time.Second, nil, nil
	}
	return n.way() + n.way(), nil, nil
}

// arrive is the end of a handshake; neither a connection nor an error means that a packet was lost.
func (p *simProc) arrive(to netip.AddrPort) (*simConn, error) {
	n := p.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.hosts[to.Addr()]
	switch {
	case p.dead.Load():
		return nil, syscall.ENETUNREACH
	case !h.up || n.isCut(p.host.id, h.id) || n.isCut(h.id, p.host.id):
		return nil, nil
	case h.proc == nil || h.proc.listener == nil:
		return nil, fmt.Errorf("dial %s: %w", to, syscall.ECONNREFUSED)
	}
	p.host.ported++
	here := net.TCPAddr{IP: p.host.at.Addr().AsSlice(), Port: 32768 + p.host.ported%28000}
	there := *net.TCPAddrFromAddrPort(to)
	a := &simConn{net: n, proc: p, local: here, remote: there, from: h.id, wake: make(chan struct{}, 1)}
	b := &simConn{net: n, proc: h.proc, local: there, remote: here, from: p.host.id, wake: make(chan struct{}, 1),
		other: a}
	a.other = b
	select {
	case h.proc.listener.queue <- b:
		n.conns[a], n.conns[b] = true, true
		return a, nil
	default:
		return nil, nil
	}
}

type simPacket struct {
	at time.Time
	b  []byte
}

// packets is the host's UDP socket.
func (p *simProc) packets() *simPackets { return &simPackets{p} }

type simPackets struct{ p *simProc }

// Wait waits by the bubble's clock.
func (s *simPackets) Wait(ctx context.Context, at time.Time, datagrams bool) (due bool) {
	for {
		until := at
		if datagrams {
			until = s.next(at)
		}
		if !until.After(time.Now()) {
			return !at.After(time.Now())
		}
		timer := time.NewTimer(time.Until(until))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-s.p.host.news:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return true
		}
	}
}

// next is when the first datagram is there to be read, at the latest at.
func (s *simPackets) next(at time.Time) time.Time {
	h := s.p.host
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if h.proc == s.p {
		for _, m := range h.inbox {
			if m.at.Before(at) {
				at = m.at
			}
		}
	}
	return at
}

func (s *simPackets) ReadNow(b []byte) (int, error) {
	s.p.gate()
	h := s.p.host
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	now := time.Now()
	first := -1
	for i, m := range h.inbox {
		if !now.Before(m.at) && (first < 0 || m.at.Before(h.inbox[first].at)) {
			first = i
		}
	}
	if first < 0 || h.proc != s.p {
		return 0, syscall.EAGAIN
	}
	m := h.inbox[first]
	h.inbox = slices.Delete(h.inbox, first, first+1)
	return copy(b, m.b), nil
}

func (s *simPackets) Write(b []byte, to netip.AddrPort) error {
	s.p.yield(beforeSend)
	n := s.p.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.hosts[to.Addr()]
	if h == nil || !h.up || s.p.dead.Load() || n.isCut(s.p.host.id, h.id) || n.rnd.Float64() < n.loss ||
		len(h.inbox) > 500 {
		return nil
	}
	h.inbox = append(h.inbox, simPacket{s.p.now().Add(n.way()), slices.Clone(b)})
	if n.rnd.Float64() < n.copies {
		h.inbox = append(h.inbox, simPacket{s.p.now().Add(n.way()), slices.Clone(b)})
	}
	select {
	case h.news <- struct{}{}:
	default:
	}
	return nil
}

func (s *simPackets) Close() {}

// simKernels asks the kernels of other hosts, which answer whatever their processes do.
type simKernels struct {
	p        *simProc
	answered []simEcho // guarded by net.mu
}

type simEcho struct {
	at   time.Time
	from netip.Addr
	n    uint16
}

func (k *simKernels) Ask(to netip.Addr, n uint16) {
	net := k.p.host.net
	net.mu.Lock()
	defer net.mu.Unlock()
	h := net.hosts[to]
	if h == nil || k.p.dead.Load() || net.isCut(k.p.host.id, h.id) || net.rnd.Float64() < net.loss {
		return
	}
	there := net.way()
	time.AfterFunc(there, func() {
		net.mu.Lock()
		defer net.mu.Unlock()
		if h.up && !h.isPaused() && !net.isCut(h.id, k.p.host.id) {
			k.answered = append(k.answered, simEcho{time.Now().Add(net.way()), to, n})
		}
	})
}

func (k *simKernels) Answered() (from netip.Addr, n uint16, ok bool) {
	net := k.p.host.net
	net.mu.Lock()
	defer net.mu.Unlock()
	i := slices.IndexFunc(k.answered, func(e simEcho) bool { return !time.Now().Before(e.at) })
	if i < 0 {
		return netip.Addr{}, 0, false
	}
	e := k.answered[i]
	k.answered = slices.Delete(k.answered, i, i+1)
	return e.from, e.n, true
}

func (k *simKernels) Close() {}
