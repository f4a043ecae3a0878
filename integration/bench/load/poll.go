package load

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// What a client says first: its request begins with it, and tells the server
// what the connection is for.
const (
	asks   = 'R' // each request gets one answer
	closes = 'C' // the same, and the server ends the connection behind it
	loads  = 'D' // the server sends without end
	sends  = 'U' // the client does
	gets   = 'G' // HTTP, from a client that sends each request as one packet
)

// Sizes of a request and of its answer: those of a small API call.
const (
	requestSize = 128
	answerSize  = 256
	bulkSize    = 256 << 10
)

// poller is an epoll instance that tells of sockets by their numbers.
type poller struct {
	ep     int
	events []unix.EpollEvent
}

func newPoller() (*poller, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	return &poller{ep, make([]unix.EpollEvent, 256)}, err
}

func (p *poller) add(fd int, events uint32) error {
	return unix.EpollCtl(p.ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}

func (p *poller) change(fd int, events uint32) error {
	return unix.EpollCtl(p.ep, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}

func (p *poller) wait(ms int) ([]unix.EpollEvent, error) {
	n, err := unix.EpollWait(p.ep, p.events, ms)
	if err == unix.EINTR {
		return nil, nil
	}
	return p.events[:max(n, 0)], err
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

func socket() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open a socket: %w", err)
	}
	return fd, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
}

func reset(fd int) {
	unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	unix.Close(fd)
}
