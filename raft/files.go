package raft

import (
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// lowest is the lowest file number of what tells the peers of a death.
//
// The kernel closes the files of a process that has died in the reverse order of
// their numbers (task_work_run), and packet sockets take a grace period of RCU
// each, some 10 ms. The rest of the process opens those before it takes part
// in the group, so they have low numbers; the peer port and the connections to
// it are to be closed before them.
const lowest = 64

// filler keeps the free file numbers below lowest taken, so that what is opened
// has a higher one. If there are too few files, a death is noticed a little
// later, and that is all.
type filler struct {
	mu    sync.Mutex
	taken []int
}

// fill takes the numbers that are free now.
func (f *filler) fill() {
	f.mu.Lock()
	defer f.mu.Unlock()
	fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	for err == nil && fd < lowest {
		f.taken = append(f.taken, fd)
		fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	}
	if err == nil {
		unix.Close(fd)
	}
}

// lift gives a connection that has a low number, which something else has just
// given back, a higher one.
func (f *filler) lift(conn net.Conn) net.Conn {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return conn
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return conn
	}
	low := false
	if err := raw.Control(func(fd uintptr) { low = fd < lowest }); err != nil || !low {
		return conn
	}
	f.fill()
	file, err := tcp.File()
	if err != nil {
		return conn
	}
	defer file.Close()
	lifted, err := net.FileConn(file)
	if err != nil {
		return conn
	}
	tcp.Close()
	return lifted
}

// empty gives the numbers back.
func (f *filler) empty() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fd := range f.taken {
		unix.Close(fd)
	}
	f.taken = nil
}
