package forward

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// bufferSize is the most bytes that one read takes. A stream that fills it twice in
	// a row is bulk, which splice moves with less work.
	bufferSize = 32 << 10
	bulkAfter  = 2
	// smallSize is enough for a ClientHello, and for most requests.
	smallSize = 2 << 10
	// pipeSize is requested from the kernel for a pipe; it may give less.
	pipeSize = 512 << 10
	// turnBytes is how much one direction moves before it is the turn of others.
	turnBytes = 1 << 20
)

// pools hold what connections borrow while they move bytes. An idle connection borrows
// nothing.
type pools struct {
	small   sync.Pool  // of *buffer of smallSize: a client's first bytes
	large   sync.Pool  // of *buffer of bufferSize
	pipes   chan *pipe // empty pipes, kept for reuse
	files   *fileBudget
	spliced atomic.Uint64
}

func newPools(f *fileBudget) *pools {
	return &pools{
		files: f,
		small: sync.Pool{New: func() any { return &buffer{buf: make([]byte, smallSize)} }},
		large: sync.Pool{New: func() any { return &buffer{buf: make([]byte, bufferSize)} }},
		pipes: make(chan *pipe, 64),
	}
}

// buffer holds bytes that were read and could not be written yet.
type buffer struct {
	from, to int
	buf      []byte
}

// hold is a buffer with b in it, and with room for as many bytes before b.
func (p *pools) hold(before int, b []byte) *buffer {
	pool := &p.small
	if before+len(b) > smallSize {
		pool = &p.large
	}
	h := pool.Get().(*buffer)
	h.from, h.to = before, before+copy(h.buf[before:], b)
	return h
}

// putBuffer takes h back.
func (p *pools) putBuffer(h *buffer) {
	if len(h.buf) == smallSize {
		p.small.Put(h)
		return
	}
	p.large.Put(h)
}

// pipe is a kernel pipe that splice goes through.
type pipe struct{ r, w int }

// pipe is an empty pipe, or nil if the process may open no more files.
func (p *pools) pipe() *pipe {
	select {
	case q := <-p.pipes:
		return q
	default:
	}
	var fds [2]int
	if !p.files.claim(int64(len(fds))) {
		return nil
	}
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		p.files.free(int64(len(fds)))
		return nil
	}
	// On an error the pipe stays at 64 KiB, which only costs more system calls.
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize)
	return &pipe{fds[0], fds[1]}
}

// put takes an empty pipe back.
func (p *pools) put(q *pipe) {
	select {
	case p.pipes <- q:
	default:
		p.closePipe(q)
	}
}

func (p *pools) closePipe(q *pipe) {
	unix.Close(q.r)
	unix.Close(q.w)
	p.files.free(2)
}

// close closes the unused pipes.
func (p *pools) close() {
	for {
		select {
		case q := <-p.pipes:
			p.closePipe(q)
		default:
			return
		}
	}
}

// flow is one direction of a connection.
type flow struct {
	held  *buffer // at most one of held and pipe has bytes in it
	pipe  *pipe
	piped int
	bulk  int16 // full reads in a row; far below zero while no pipe can be opened
	ended bool  // the source has sent its last byte
	done  bool  // and the destination has got the end
}

// moved is the outcome of one turn of a flow.
type moved struct {
	n      int
	more   bool // there is more to move, but it is the turn of others
	failed bool // one side was reset
}

// move moves what can be moved now. last says that the other direction is done, so that
// the end of this one is the end of the connection.
func (f *flow) move(l *loop, src, dst *end, last bool) (m moved) {
	if f.done {
		return m
	}
	for m.n < turnBytes {
		if f.held != nil || f.piped > 0 {
			if !dst.writable {
				return m
			}
			if !f.flush(l, dst) {
				m.failed, dst.broken = true, true
				return m
			}
			if !dst.writable {
				return m
			}
			continue
		}
		if f.ended {
			// If the whole connection ends, close saves the shutdown.
			m.failed = !last && sysShutdown(dst.fd) != 0
			dst.broken = dst.broken || m.failed
			f.done = true
			f.release(l.f.pools)
			return m
		}
		if !src.readable {
			f.releasePipe(l.f.pools)
			return m
		}
		var n int
		var errno unix.Errno
		if f.bulk >= bulkAfter {
			n, errno = f.splice(l, src, dst)
		} else {
			n, errno = f.copy(l, src, dst)
		}
		if errno != 0 {
			m.failed = true
			if n > 0 { // what was read could not be written
				dst.broken = true
			} else {
				src.broken = true
			}
			return m
		}
		m.n += n
	}
	m.more = true
	return m
}

// copy moves one buffer.
func (f *flow) copy(l *loop, src, dst *end) (int, unix.Errno) {
	n, errno := sysRead(src.fd, l.buf)
	switch {
	case errno == unix.EAGAIN:
		src.readable = false
		return 0, 0
	case errno != 0:
		return 0, errno
	case n == 0:
		f.ended = true
		return 0, 0
	}
	flags := 0
	switch {
	case n == len(l.buf):
		f.bulk++
	default:
		f.bulk = 0
		switch {
		case src.broken:
		case src.fin:
			// These were the last bytes. They leave in one packet with the FIN that
			// move sends after them.
			f.ended = true
			flags = unix.MSG_MORE
		default:
			src.readable = false // epoll reports what comes from now on (epoll(7), a short read)
		}
	}
	dst.beforeWrite()
	sent, errno := sysSend(dst.fd, l.buf[:n], flags)
	if errno == unix.EAGAIN {
		sent, errno = 0, 0
	}
	if errno != 0 {
		return n, errno
	}
	if sent < n {
		l.full(dst)
		f.hold(l.f.pools, l.buf[sent:n])
	}
	return n, 0
}

// hold keeps bytes for later. No bytes are held yet.
func (f *flow) hold(p *pools, b []byte) {
	f.held = p.hold(0, b)
}

// prepend makes b the next bytes to be written. It reports whether b fits.
func (f *flow) prepend(p *pools, b []byte) bool {
	var rest []byte
	old := f.held
	if old != nil {
		rest = old.buf[old.from:old.to]
	}
	if len(b)+len(rest) > bufferSize {
		return false
	}
	f.held = p.hold(len(b), rest)
	f.held.from = 0
	copy(f.held.buf, b)
	if old != nil {
		p.putBuffer(old)
	}
	return true
}

// splice moves what fits into a pipe without copying it through this process.
func (f *flow) splice(l *loop, src, dst *end) (int, unix.Errno) {
	if f.pipe == nil {
		if f.pipe = l.f.pools.pipe(); f.pipe == nil {
			f.bulk = -1000 // use the buffer for a while
			return 0, 0
		}
	}
	dst.beforeWrite()
	n, errno := sysSplice(src.fd, f.pipe.w, pipeSize)
	switch {
	case errno == unix.EAGAIN:
		src.readable = false
		return 0, 0
	case errno != 0:
		return 0, errno
	case n == 0:
		f.ended = true
		return 0, 0
	}
	if n < bufferSize { // no longer bulk
		f.bulk = 0
	}
	f.piped = n
	l.f.pools.spliced.Add(uint64(n))
	return n, 0
}

// flush writes what is held or in the pipe, as far as dst takes it. It reports whether
// dst is still open.
func (f *flow) flush(l *loop, dst *end) bool {
	for f.piped > 0 {
		n, errno := sysSplice(f.pipe.r, dst.fd, f.piped)
		if errno == unix.EAGAIN {
			l.full(dst)
			return true
		}
		if errno != 0 || n == 0 {
			return false
		}
		f.piped -= n
	}
	if h := f.held; h != nil {
		dst.beforeWrite()
		n, errno := sysSend(dst.fd, h.buf[h.from:h.to], 0)
		switch {
		case errno == unix.EAGAIN:
			l.full(dst)
			return true
		case errno != 0:
			return false
		}
		if h.from += n; h.from < h.to {
			l.full(dst)
			return true
		}
		f.held = nil
		l.f.pools.putBuffer(h)
	}
	return true
}

// releasePipe gives an empty pipe back.
func (f *flow) releasePipe(p *pools) {
	if f.pipe != nil && f.piped == 0 {
		p.put(f.pipe)
		f.pipe = nil
	}
}

// release gives back what the flow has borrowed. It closes a pipe that still has bytes.
func (f *flow) release(p *pools) {
	f.releasePipe(p)
	if f.pipe != nil {
		p.closePipe(f.pipe)
		f.pipe = nil
	}
	if f.held != nil {
		p.putBuffer(f.held)
		f.held = nil
	}
}
