package peerport

import (
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// lowest is the lowest file number for connections whose end tells other peers of this process's death.
//
// The kernel closes the files of a dead process in the reverse order of their numbers (task_work_run), and a
// packet socket takes a grace period of RCU, some 10 ms. The process opens packet sockets before it takes
// part in the group, so they have low numbers. The peer port and its connections get higher ones, to be
// closed before them.
const lowest = 64

// filler occupies the free file numbers below lowest, so that new files get higher ones. If there are too few
// files, a death is noticed a little later, and that is all.
type filler struct {
	mu    sync.Mutex
	taken []int
}

// fill occupies the numbers that are free now.
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

// lift gives a connection with a low number, which was freed just before, a higher one.
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
	if lifted.RemoteAddr() == nil { // somebody has reset it meanwhile, and the copy does not know who
		lifted.Close()
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
