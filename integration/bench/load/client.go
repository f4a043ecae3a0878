package load

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// A Job is what a client does.
type Job struct {
	// To are the addresses to connect to, in turns.
	To []netip.AddrPort
	// Kind is conn (connect, ask once, close), rps (ask over kept
	// connections), down or up (bulk), or idle (connect and be silent).
	Kind string
	// Conns are open at a time.
	Conns int
	// Warm is not counted, For is.
	Warm, For time.Duration
}

// A Measurement is what has come of a Job.
type Measurement struct {
	Count, Errors uint64
	Bytes         uint64
	Took          time.Duration
	// Of the latencies, in µs.
	P50, P99, P999 float64
}

// Run does the job, by one epoll loop.
func (j Job) Run() (Measurement, error) {
	w := &worker{job: j, conns: make(map[int]*session), buf: make([]byte, bulkSize)}
	err := w.run()
	return Measurement{
		Count: w.count, Errors: w.errors, Bytes: w.bytes, Took: j.For,
		P50: w.took.at(0.5), P99: w.took.at(0.99), P999: w.took.at(0.999),
	}, err
}

type worker struct {
	job    Job
	p      *poller
	conns  map[int]*session
	next   int
	buf    []byte
	counts bool // warm

	count, errors, bytes uint64
	took                 histogram
}

type session struct {
	began time.Time
	up    bool
	left  int // of the answer
}

func (w *worker) run() (err error) {
	if w.p, err = newPoller(); err != nil {
		return err
	}
	defer unix.Close(w.p.ep)
	for range w.job.Conns {
		if err := w.open(); err != nil {
			return err
		}
	}
	start := time.Now().Add(w.job.Warm)
	end := start.Add(w.job.For)
	for {
		events, err := w.p.wait(10)
		if err != nil {
			return err
		}
		now := time.Now()
		if !w.counts && now.After(start) {
			w.counts = true
		}
		if now.After(end) {
			break
		}
		for _, ev := range events {
			fd := int(ev.Fd)
			if c := w.conns[fd]; c != nil {
				if err := w.handle(fd, c, ev.Events); err != nil {
					return err
				}
			}
		}
	}
	for fd := range w.conns {
		reset(fd)
	}
	return nil
}

// open begins a connection.
func (w *worker) open() error {
	fd, err := socket()
	if err != nil {
		return err
	}
	to := w.job.To[w.next%len(w.job.To)]
	w.next++
	c := &session{began: time.Now()}
	if err := unix.Connect(fd, sockaddr(to)); err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return fmt.Errorf("connect to %s: %w", to, err)
	}
	w.conns[fd] = c
	return w.p.add(fd, unix.EPOLLOUT)
}

func (w *worker) handle(fd int, c *session, events uint32) error {
	if !c.up {
		if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
			return w.failed(fd)
		}
		c.up = true
		kind := map[string]byte{"conn": closes, "rps": asks, "down": loads, "up": sends, "idle": asks}[w.job.Kind]
		for i := range requestSize {
			w.buf[i] = kind
		}
		c.left = answerSize
		if _, err := unix.Write(fd, w.buf[:requestSize]); err != nil {
			return w.failed(fd)
		}
		if kind == sends {
			return nil
		}
		return w.p.change(fd, unix.EPOLLIN)
	}
	if w.job.Kind == "up" {
		n, err := unix.Write(fd, w.buf)
		if err == unix.EAGAIN {
			return nil
		}
		if err != nil {
			return w.failed(fd)
		}
		w.add(uint64(n))
		return nil
	}
	n, err := unix.Read(fd, w.buf)
	switch {
	case err == unix.EAGAIN:
		return nil
	case err != nil:
		return w.failed(fd)
	case n == 0 && w.job.Kind == "conn" && c.left == 0:
		return w.again(fd, c)
	case n == 0:
		return w.failed(fd)
	case w.job.Kind == "down":
		w.add(uint64(n))
		return nil
	}
	if c.left -= n; c.left > 0 {
		return nil
	}
	switch w.job.Kind {
	case "rps":
		w.done(c)
		c.began, c.left = time.Now(), answerSize
		for i := range requestSize {
			w.buf[i] = asks
		}
		if _, err := unix.Write(fd, w.buf[:requestSize]); err != nil {
			return w.failed(fd)
		}
	case "idle":
		w.done(c)
	}
	return nil
}

// again counts a connection that has ended well, and opens the next.
func (w *worker) again(fd int, c *session) error {
	w.done(c)
	delete(w.conns, fd)
	unix.Close(fd)
	return w.open()
}

func (w *worker) failed(fd int) error {
	if w.counts {
		w.errors++
	}
	delete(w.conns, fd)
	reset(fd)
	if w.errors > 10_000 {
		return errors.New("more than 10,000 connections failed")
	}
	return w.open()
}

func (w *worker) add(n uint64) {
	if w.counts {
		w.bytes += n
	}
}

func (w *worker) done(c *session) {
	if w.counts || w.job.Kind == "idle" {
		w.count++
		w.took.add(time.Since(c.began))
	}
}

// histogram has 16 buckets for each power of two of nanoseconds: within 5 %.
type histogram [64 * 16]uint64

func (h *histogram) add(d time.Duration) {
	n := uint64(max(d, 16))
	shift := bits.Len64(n) - 5
	h[shift*16+int(n>>shift)&15]++
}

// at is the latency below which that part lies, in µs.
func (h *histogram) at(part float64) float64 {
	var sum, upTo uint64
	for _, n := range h {
		sum += n
	}
	for i, n := range h {
		if upTo += n; n > 0 && float64(upTo) >= part*float64(sum) {
			return float64(uint64(16+i%16)<<(i/16)) / 1000
		}
	}
	return 0
}
