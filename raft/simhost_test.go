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

	// The rest is guarded by net.mu.
	up      bool
	proc    *simProc
	inbox   []simPacket
	fsync   time.Duration // the longest that a write takes
	ported  int
	changed time.Time // when the host or its process last came, went, or went on after a pause
}

// clock is the host's CLOCK_BOOTTIME.
func (h *simHost) clock() time.Duration {
	return time.Hour + time.Duration(float64(time.Since(h.born))*h.rate)
}

// simProc is one process: what the code under test gets for its host.
type simProc struct {
	host *simHost
	dir  string
	born time.Time
	news chan struct{} // something has come into the inbox

	until atomic.Int64 // it is paused until then
	dead  atomic.Bool  // what it does from now on reaches nobody
	write sync.Mutex   // a crash comes between two transactions

	listener *simListener // guarded by net.mu
	group    atomic.Pointer[Group]
	may      atomic.Pointer[func() bool]
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
	d.p.gate()
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
	d.p.gate()
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
