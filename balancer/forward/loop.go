package forward

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// loop moves its own connections, on one thread, with one epoll instance. Nobody else
// touches them: others hand it functions by post.
type loop struct {
	f        *Forwarder
	ep, wake int // wake is an eventfd that post writes to

	// Owned by the goroutine that runs it.
	now       int64   // nanoseconds since epoch, read once in each round
	conns     []*conn // by slot, nil where free
	freeSlots []int32
	acceptors []*acceptor
	serial    uint32
	timers    timers
	sweepAt   int   // the number of timers at which those that are void are removed
	more      []ref // connections that could move more
	buf       []byte
	freeConns []*conn
	// openings are unused now.
	openings       []*opening
	yielded        int64
	stopped        bool
	lateOptionsDue bool // a timer will call setLateOptions

	open atomic.Int64 // connections; idlest compares it

	mu    sync.Mutex
	inbox []func()
}

// epoch is what times in the loops are counted from: differences of the monotonic clock
// fit into one word.
var epoch = time.Now()

func nanotime() int64 { return int64(time.Since(epoch)) }

// ref identifies a connection; slots are used again.
type ref struct {
	slot int32
	id   uint32
}

// In the data of an event, Fd is a slot or one of these. Pad is the serial number of the
// registration, so that an event of a socket that was closed in the same round is not
// taken for one of its successor.
const (
	slotWake     = -1
	slotAcceptor = -2 // and below: -2 minus the index of an acceptor
)

func newLoop(f *Forwarder) (*loop, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(ep)
		return nil, err
	}
	l := &loop{f: f, ep: ep, wake: wake, buf: make([]byte, bufferSize), now: nanotime()}
	if errno := sysWatch(ep, unix.EPOLL_CTL_ADD, wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: slotWake}); errno != 0 {
		l.close()
		return nil, errno
	}
	return l, nil
}

func (l *loop) close() {
	unix.Close(l.ep)
	unix.Close(l.wake)
}

// post makes the loop call fn soon.
func (l *loop) post(fn func()) {
	l.mu.Lock()
	l.inbox = append(l.inbox, fn)
	first := len(l.inbox) == 1
	l.mu.Unlock()
	if first {
		one := [8]byte{1}
		_, _ = unix.Write(l.wake, one[:]) // an error means that the loop is awake
	}
}

// A loop lets other goroutines run from time to time: the scheduler interrupts by a signal
// one that has run for 10 ms. It does so after yieldIdle once nothing waits for it, and
// after yieldBusy in any case.
const (
	yieldIdle = int64(6 * time.Millisecond)
	yieldBusy = int64(9 * time.Millisecond)
)

// interrupted is how long the start of a goroutine takes at least if the kernel ran
// another thread meanwhile.
const interrupted = int64(5 * time.Microsecond)

// yield lets other goroutines run, and the loop stays on its thread. The scheduler wakes
// an idle thread whenever one can run, unless such a thread is on its way already. If the
// kernel runs it at once, it takes the loop along to wherever it is, four times in ten on a
// busy host: often to the core of another loop, and all connections wait. So the thread is
// woken by a goroutine of no use, and the loop yields while it is on its way.
func (l *loop) yield(must bool) {
	began := nanotime()
	go func() {}()
	if !must && nanotime()-began > interrupted {
		return // that thread has been here and is gone
	}
	runtime.Gosched()
	l.yielded = nanotime()
}

// run serves until stopped is set.
func (l *loop) run() {
	events := make([]unix.EpollEvent, 256)
	for !l.stopped {
		for i := range l.wait(events) {
			l.handle(&events[i])
		}
		l.continueMore()
		l.expire()
	}
	l.close()
}

// wait returns when there are events, or timers are due, and says how many events.
func (l *loop) wait(events []unix.EpollEvent) int {
	n := 0
	var errno unix.Errno
	if ran := nanotime() - l.yielded; ran > yieldIdle {
		if n, errno = sysPoll(l.ep, events); n == 0 || ran > yieldBusy {
			l.yield(ran > yieldBusy)
		}
	}
	if n == 0 && errno == 0 {
		var err error
		if n, err = unix.EpollWait(l.ep, events, l.pollTimeout()); err != nil {
			n, errno = 0, err.(unix.Errno)
		}
	}
	if errno != 0 && errno != unix.EINTR {
		panic("forward: epoll_wait: " + errno.Error()) // can only be a bug here
	}
	l.now = nanotime()
	return n
}

func (l *loop) handle(ev *unix.EpollEvent) {
	switch {
	case ev.Fd >= 0:
		if c := l.conns[ev.Fd]; c != nil {
			c.event(uint32(ev.Pad), ev.Events)
		}
	case ev.Fd == slotWake:
		l.readInbox()
	default:
		if d := l.acceptors[slotAcceptor-ev.Fd]; d != nil && d.serial == uint32(ev.Pad) {
			d.accept()
		}
	}
}

func (l *loop) readInbox() {
	var count [8]byte
	sysRead(l.wake, count[:])
	l.mu.Lock()
	todo := l.inbox
	l.inbox = nil
	l.mu.Unlock()
	for _, fn := range todo {
		fn()
	}
}

// continueMore gives connections that stopped for the sake of others another turn.
func (l *loop) continueMore() {
	todo := l.more
	l.more = nil
	for _, r := range todo {
		if c := l.find(r); c != nil && c.state == relaying {
			c.queuedMore = false
			c.pump()
		}
	}
	if l.more == nil {
		l.more = todo[:0]
	}
}

// find is the connection that r identifies; nil if it has ended.
func (l *loop) find(r ref) *conn {
	if c := l.conns[r.slot]; c != nil && c.id == r.id {
		return c
	}
	return nil
}

// next is a new serial number. It is never 0.
func (l *loop) next() uint32 {
	l.serial++
	if l.serial == 0 {
		l.serial = 1
	}
	return l.serial
}

// What epoll reports of a socket, once per change.
const (
	readEvents = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET
	allEvents  = readEvents | unix.EPOLLOUT
)

// watch makes epoll report events of e.
func (l *loop) watch(e *end, events uint32) unix.Errno {
	op := unix.EPOLL_CTL_ADD
	if e.watched {
		op = unix.EPOLL_CTL_MOD
	}
	e.watched, e.watchedRoom = true, events == allEvents
	return sysWatch(l.ep, op, e.fd, &unix.EpollEvent{Events: events, Fd: e.slot, Pad: int32(e.serial)})
}

// full notes that e takes no more bytes, until epoll reports that it does.
func (l *loop) full(e *end) {
	e.writable = false
	if !e.watchedRoom && l.watch(e, allEvents) != 0 {
		e.broken = true // no memory, which no change of a registration needs today
	}
}

// tick is the first moment, from at on, at which timers expire. These moments are some
// 8 ms apart: most timers belong to connections that no longer need them, and a loop
// should not wake up for each.
func tick(at int64) int64 {
	const apart = 1 << 23 // ns
	return (at + apart - 1) &^ (apart - 1)
}

// timer is a moment at which something is due for a connection.
type timer struct {
	at int64
	ref
}

// timers are a heap by time. A timer whose connection has ended or has an earlier one is
// void: it is ignored at its time, or swept out before.
type timers []timer

func (h *timers) push(t timer) {
	q := append(*h, t)
	i := len(q) - 1
	for i > 0 {
		up := (i - 1) / 2
		if q[up].at <= t.at {
			break
		}
		q[i] = q[up]
		i = up
	}
	q[i] = t
	*h = q
}

func (h *timers) pop() timer {
	q := *h
	first, t := q[0], q[len(q)-1]
	q = q[:len(q)-1]
	i := 0
	for {
		down := 2*i + 1
		if down >= len(q) {
			break
		}
		if down+1 < len(q) && q[down+1].at < q[down].at {
			down++
		}
		if t.at <= q[down].at {
			break
		}
		q[i] = q[down]
		i = down
	}
	if len(q) > 0 {
		q[i] = t
	}
	*h = q
	return first
}

// minSweep is how many timers a loop has at least before it looks for void ones.
const minSweep = 1024

// setTimer adds a timer. Void timers never outnumber the others by much: a connection that
// has ended may have left one that is due in an hour.
func (l *loop) setTimer(t timer) {
	if len(l.timers) >= max(l.sweepAt, minSweep) {
		l.sweepTimers()
		l.sweepAt = 2 * len(l.timers)
	}
	l.timers.push(t)
}

// sweepTimers removes the void timers.
func (l *loop) sweepTimers() {
	old := l.timers
	kept := old[:0] // never ahead of what is read
	for _, t := range old {
		if t.slot >= 0 {
			if c := l.find(t.ref); c == nil || c.wakeAt != t.at {
				continue
			}
		}
		kept.push(t)
	}
	if cap(kept) > 4*max(len(kept), minSweep) {
		kept = append(make(timers, 0, 2*max(len(kept), minSweep)), kept...)
	}
	l.timers = kept
}

// pollTimeout is how long epoll may wait, in milliseconds.
func (l *loop) pollTimeout() int {
	switch {
	case len(l.more) > 0:
		return 0
	case len(l.timers) == 0:
		return -1
	}
	return int(max(0, min(l.timers[0].at-nanotime()+999_999, int64(time.Hour)))) / int(time.Millisecond)
}

// expire calls what is due.
func (l *loop) expire() {
	for len(l.timers) > 0 && l.timers[0].at <= l.now {
		t := l.timers.pop()
		if t.slot == slotWake {
			l.setLateOptions()
			continue
		}
		if t.slot <= slotAcceptor {
			if d := l.acceptors[slotAcceptor-t.slot]; d != nil && d.serial == t.id {
				d.resume()
			}
			continue
		}
		if c := l.find(t.ref); c != nil && c.wakeAt == t.at {
			c.wakeAt = 0
			c.onTimer()
		}
	}
}

// lateOptionsAge is the age at which a connection gets its options.
const lateOptionsAge = int64(time.Second)

// scheduleLateOptions makes the loop call setLateOptions when the youngest connections
// have reached lateOptionsAge.
func (l *loop) scheduleLateOptions() {
	if !l.lateOptionsDue {
		l.lateOptionsDue = true
		l.setTimer(timer{tick(l.now + lateOptionsAge), ref{slot: slotWake}})
	}
}

// setLateOptions gives older connections the options that detect a vanished peer.
func (l *loop) setLateOptions() {
	l.lateOptionsDue = false
	l.each(func(c *conn) {
		if c.state == relaying {
			c.server.setOptionsOnce()
		}
	})
}

// each calls fn with every connection that the loop has.
func (l *loop) each(fn func(*conn)) {
	for _, c := range l.conns {
		if c != nil {
			fn(c)
		}
	}
}
