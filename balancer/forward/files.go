package forward

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"appliance/balancer"
	"appliance/balancer/rawtcp"
)

// fileBudget bounds how many files the clients' connections may hold: the rest of the
// process, such as the group and the checks, must always be able to open some.
type fileBudget struct {
	most int64 // 0: no limit
	held atomic.Int64
}

// claim counts n more files, unless there would be too many.
func (f *fileBudget) claim(n int64) bool {
	if now := f.held.Add(n); f.most > 0 && now > f.most {
		f.held.Add(-n)
		return false
	}
	return true
}

func (f *fileBudget) free(n int64) { f.held.Add(-n) }

// perClient is what a connection has: the client's socket and the backend's.
const perClient = 2

const (
	// patience is how long clients wait in the kernel's queue for want of files. Those
	// that wait when it has passed are refused, so that they can try elsewhere.
	patience = 3 * time.Second
	// maxRefused bounds the clients that are refused in one turn.
	maxRefused = 256
)

// starve handles clients for which no files are left.
func (a *acceptor) starve() {
	s, now := a.service, a.loop.now
	s.f.shortages.Note("accept", unix.EMFILE)
	if s.starvedSince.CompareAndSwap(0, now) || now-s.starvedSince.Load() < int64(patience) {
		a.backOff()
		return
	}
	var from unix.RawSockaddrAny
	for range maxRefused {
		fd, errno := sysAccept(s.listener, &from)
		if errno != 0 {
			break
		}
		s.f.shortages.Refuse("accept", balancer.ShortOf(unix.EMFILE))
		rawtcp.Reset(fd)
	}
	a.backOff()
}

// settleFiles gives back the files of dials that have ended. A race of several dials
// holds one more for each dial beyond the first.
func (c *conn) settleFiles() {
	o := c.opening
	if extra := max(0, len(o.live)-1); o.extra > extra {
		c.loop.f.files.free(int64(o.extra - extra))
		o.extra = extra
	}
}
