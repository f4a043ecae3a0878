package raft

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	hraft "github.com/hashicorp/raft"

	"appliance/raft/standstill"
	"appliance/raft/store"
)

// simHost is a machine. Its processes come and go, its address and its clock stay.
type simHost struct {
	net  *simNet
	id   string
	at   netip.AddrPort
	rate float64 // of its clock
	born time.Time
	news chan struct{} // something has come into the inbox

	stops   sync.Mutex
	stopped time.Duration // how long its clock has stood still, to the end of the present stop
	stopEnd time.Time

	// The rest is guarded by net.mu.
	up      bool
	proc    *simProc
	inbox   []simPacket
	fsync   time.Duration // the longest that a write takes
	ported  int
	changed time.Time // when the host or its process last came, went, or went on after a pause
}

// clock is the host's CLOCK_BOOTTIME for the code under test.
func (p *simProc) clock() time.Duration {
	p.yield(beforeClock)
	now := p.host.clock()
	if p.may.Load() != nil && p.judged.Load() == 0 {
		p.call() // what was granted to it until now counts
	}
	p.yield(afterClock)
	return now
}

// clock is the host's CLOCK_BOOTTIME.
func (h *simHost) clock() time.Duration {
	h.stops.Lock()
	defer h.stops.Unlock()
	passed := time.Since(h.born) - h.stopped + max(0, time.Until(h.stopEnd))
	return time.Hour + time.Duration(float64(passed)*h.rate)
}

// stood is how long the machine has stood still in all.
func (h *simHost) stood() time.Duration {
	h.stops.Lock()
	defer h.stops.Unlock()
	return h.stopped
}

// pause has a hypervisor stop the machine and its clock.
func (h *simHost) pause(d time.Duration) {
	h.stops.Lock()
	defer h.stops.Unlock()
	if time.Now().Before(h.stopEnd) || h.proc == nil {
		return
	}
	h.stopped, h.stopEnd = h.stopped+d, time.Now().Add(d)
	h.proc.until.Store(h.stopEnd.UnixNano())
}

func (h *simHost) isPaused() bool {
	h.stops.Lock()
	defer h.stops.Unlock()
	return time.Now().Before(h.stopEnd)
}

// sources show that the machine was paused: the hypervisor's own clock.
func (h *simHost) sources() standstill.Sources {
	return standstill.Sources{Clocks: []standstill.OtherClock{{Name: "the host's clock", Apart: true,
		Read: func() (time.Duration, bool) { return time.Since(h.born), true }}}}
}

// simProc is one process: what the code under test gets for its host.
type simProc struct {
	host *simHost
	dir  string
	born time.Time

	until  atomic.Int64 // it is paused until then
	late   atomic.Int64 // one of its threads is
	armed  atomic.Int64 // the place where the next thread stands still, + 1; for armedFor
	judged atomic.Int32 // somebody outside of it asks what it may do
	dead   atomic.Bool  // what it does from now on reaches nobody
	write  sync.Mutex   // a crash comes between two transactions

	listener *simListener // guarded by net.mu
	group    atomic.Pointer[Group]
	may      atomic.Pointer[func() bool]
	call     func()        // the judge
	armedFor time.Duration // guarded by net.mu
	cancel   context.CancelFunc
	over     chan struct{} // closed when Run and Lead have returned
}

// gate is where a paused process stops. A thread that is between two gates goes on up to the next one, as if the
// pause had come later for it; what it sends leaves after the pause.
func (p *simProc) gate() {
	for {
		d := time.Until(time.Unix(0, p.until.Load()))
		if d <= 0 {
			return
		}
		time.Sleep(d)
	}
}

// now is the time at which what the process sends at this moment leaves.
func (p *simProc) now() time.Time {
	now, until := time.Now(), time.Unix(0, p.until.Load())
	if until.After(now) {
		return until
	}
	return now
}

// kill ends the process as its kernel does: streams end, the port refuses.
func (h *simHost) kill() *simProc {
	h.net.mu.Lock()
	p := h.proc
	h.proc, h.inbox, h.changed = nil, nil, time.Now()
	p.dead.Store(true)
	p.until.Store(0)
	for c := range h.net.conns {
		if c.proc == p {
			c.close(time.Now().Add(time.Duration(h.net.rnd.Int64N(int64(2*ms)))), nil)
		}
	}
	l := p.listener
	h.net.mu.Unlock()
	if l != nil {
		l.Close()
	}
	return p
}

// powerOff ends the host: nobody is told.
func (h *simHost) powerOff() *simProc {
	h.net.mu.Lock()
	p := h.proc
	h.up, h.proc, h.inbox, h.changed = false, nil, nil, time.Now()
	p.dead.Store(true)
	p.until.Store(0)
	for c := range h.net.conns {
		if c.proc == p {
			c.close(time.Now(), func(other *simConn) {
				// Keep-alive finds out: peerport's keepAlive.
				other.end(time.Now().Add(5*time.Second), syscall.ETIMEDOUT)
			})
		}
	}
	l := p.listener
	h.net.mu.Unlock()
	if l != nil {
		l.Close()
	}
	return p
}

// powerOn has the kernel run again, which knows nothing of old streams.
func (h *simHost) powerOn() {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if h.up {
		return
	}
	h.up, h.changed = true, time.Now()
	for c := range h.net.conns {
		if c.from == h.id && c.other.closed {
			c.end(time.Now().Add(time.Duration(h.net.rnd.Int64N(int64(2*time.Second)))), syscall.ECONNRESET)
		}
	}
}

// simDisk is the database of one process on a disk that takes its time. A crash loses the writes that have not
// returned, or has them done.
type simDisk struct {
	store.Disk
	p *simProc
}

func (d simDisk) do(write func() error) error {
	d.p.yield(beforeWrite)
	n := d.p.host.net
	n.mu.Lock()
	takes := time.Duration(n.rnd.Int64N(int64(d.p.host.fsync) + 1))
	after := time.Duration(n.rnd.Int64N(int64(takes) + 1))
	n.mu.Unlock()
	time.Sleep(takes - after)
	d.p.write.Lock()
	err := write()
	d.p.write.Unlock()
	time.Sleep(after)
	d.p.yield(afterWrite)
	return err
}

func (d simDisk) StoreLogs(logs []*hraft.Log) error {
	return d.do(func() error { return d.Disk.StoreLogs(logs) })
}

func (d simDisk) DeleteRange(first, last uint64) error {
	return d.do(func() error { return d.Disk.DeleteRange(first, last) })
}

func (d simDisk) Set(key, value []byte) error {
	return d.do(func() error { return d.Disk.Set(key, value) })
}

// copyTo copies the data directory as a crash would leave it.
func (p *simProc) copyTo(dir string) error {
	p.write.Lock()
	defer p.write.Unlock()
	if err := os.CopyFS(dir, os.DirFS(p.dir)); !errors.Is(err, fs.ErrNotExist) { // it may not have made it yet
		return err
	}
	return nil
}
