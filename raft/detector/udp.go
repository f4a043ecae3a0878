package detector

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Packets sends datagrams to the UDP ports of others, receives theirs, and keeps the time between.
type Packets interface {
	// ReadNow reads a datagram that has arrived; it does not wait for one.
	ReadNow(b []byte) (int, error)
	Write(b []byte, to netip.AddrPort) error
	// Wait returns at the given time and says so; earlier when ctx has ended and the port has been closed, or, if
	// datagrams is set, when there is one to read.
	Wait(ctx context.Context, at time.Time, datagrams bool) (due bool)
	Close()
}

// udp is Packets over a real socket. Who sent a datagram is in the datagram.
//
// Its system calls never wait, so the runtime is not told of them (RawSyscall), and its pause is a file that the
// runtime's poller waits for, not a timer of the runtime. Otherwise each look would wake a second thread, the
// runtime's monitor, which then looks every 20 µs whether somebody waits in a system call, and once more at each
// timer: that was most of what an idle process cost. The runtime's poller does not know the socket either, only an epoll
// of socket and timer: it would wake for each datagram, whether somebody waits for it or not.
type udp struct {
	mu     sync.Mutex // held while a file descriptor is used
	closed bool
	socket int
	timer  int
	inet6  bool // what the kernel takes for addresses
	hears  bool // the epoll says when there is a datagram
	zones  map[string]uint32
	events *os.File // the epoll
	wakes  syscall.RawConn
}

// Listen opens the UDP port at bind.
func Listen(bind netip.AddrPort) (_ Packets, err error) {
	u := &udp{socket: -1, timer: -1, zones: make(map[string]uint32)}
	defer func() {
		if err != nil {
			u.Close()
		}
	}()
	if err := u.bind(bind); err != nil {
		return nil, err
	}
	domain, err := unix.GetsockoptInt(u.socket, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return nil, os.NewSyscallError("getsockopt", err)
	}
	u.inet6 = domain == unix.AF_INET6
	if u.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(ep, true); err != nil { // only such a file goes to the runtime's poller
		unix.Close(ep)
		return nil, os.NewSyscallError("fcntl", err)
	}
	u.events = os.NewFile(uintptr(ep), "epoll")
	if u.wakes, err = u.events.SyscallConn(); err != nil {
		return nil, err
	}
	err = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, u.timer, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(u.timer)})
	if err == nil {
		err = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, u.socket, &unix.EpollEvent{Fd: int32(u.socket)})
	}
	return u, os.NewSyscallError("epoll_ctl", err)
}

// bind opens the socket as package net does, and takes it out of the runtime's poller.
func (u *udp) bind(at netip.AddrPort) error {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var dup error
	err = raw.Control(func(fd uintptr) {
		u.socket, dup = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	})
	return errors.Join(err, os.NewSyscallError("fcntl", dup))
}

// ReadNow asks the kernel, and not the runtime's poller, which would wait.
func (u *udp) ReadNow(b []byte) (n int, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return 0, net.ErrClosed
	}
	got, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(u.socket), uintptr(unsafe.Pointer(unsafe.SliceData(b))),
		uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(got), nil
}

// Write gives up when the socket's buffer is full of datagrams for hosts that are gone: the hosts that are
// there must not wait for them.
func (u *udp) Write(b []byte, to netip.AddrPort) error {
	at, size, err := u.sockaddr(to)
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return net.ErrClosed
	}
	_, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(u.socket), uintptr(unsafe.Pointer(unsafe.SliceData(b))),
		uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, uintptr(unsafe.Pointer(&at)), size)
	if e != 0 {
		return e
	}
	return nil
}

// sockaddr is to as the kernel takes it, with its size.
func (u *udp) sockaddr(to netip.AddrPort) (at unix.RawSockaddrInet6, size uintptr, err error) {
	addr := to.Addr().Unmap()
	var port [2]byte
	binary.BigEndian.PutUint16(port[:], to.Port())
	if u.inet6 {
		at = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: binary.NativeEndian.Uint16(port[:]), Addr: addr.As16()}
		if zone := addr.Zone(); zone != "" {
			at.Scope_id, err = u.zone(zone)
		}
		return at, unix.SizeofSockaddrInet6, err
	}
	if !addr.Is4() {
		return at, 0, unix.EAFNOSUPPORT
	}
	*(*unix.RawSockaddrInet4)(unsafe.Pointer(&at)) = unix.RawSockaddrInet4{
		Family: unix.AF_INET, Port: binary.NativeEndian.Uint16(port[:]), Addr: addr.As4(),
	}
	return at, unix.SizeofSockaddrInet4, nil
}

// zone is the index of the interface that a link-local address is on.
func (u *udp) zone(name string) (uint32, error) {
	if index, ok := u.zones[name]; ok {
		return index, nil
	}
	i, err := net.InterfaceByName(name)
	if err != nil {
		return 0, err
	}
	u.zones[name] = uint32(i.Index)
	return u.zones[name], nil
}

// Wait sets the timer, and waits until the epoll has something.
func (u *udp) Wait(ctx context.Context, at time.Time, datagrams bool) (due bool) {
	err := u.arm(at, datagrams)
	if err == nil {
		err = u.wakes.Read(func(ep uintptr) bool {
			var ready [2]unix.EpollEvent
			n, _, e := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, ep, uintptr(unsafe.Pointer(&ready)), uintptr(len(ready)), 0, 0, 0)
			if e != 0 {
				return false
			}
			for _, r := range ready[:n] {
				due = due || int(r.Fd) == u.timer
			}
			return n > 0
		})
	}
	if err == nil {
		return due
	}
	select { // no timer: the runtime's own will do
	case <-ctx.Done():
	case <-time.After(time.Until(at)):
	}
	return true
}

// arm sets the timer, and whether datagrams wake too.
func (u *udp) arm(at time.Time, datagrams bool) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return net.ErrClosed
	}
	if datagrams != u.hears {
		e := unix.EpollEvent{Fd: int32(u.socket)}
		if datagrams {
			e.Events = unix.EPOLLIN
		}
		err := u.control(func(ep int) error { return unix.EpollCtl(ep, unix.EPOLL_CTL_MOD, u.socket, &e) })
		if err != nil {
			return err
		}
		u.hears = datagrams
	}
	// Setting it forgets that it has fired before.
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(max(time.Until(at), 1)))}
	_, _, e := unix.RawSyscall6(unix.SYS_TIMERFD_SETTIME, uintptr(u.timer), 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

// control hands the epoll to f.
func (u *udp) control(f func(ep int) error) (err error) {
	if e := u.wakes.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil {
		return e
	}
	return err
}

func (u *udp) Close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return
	}
	u.closed = true
	if u.events != nil {
		u.events.Close()
	}
	for _, fd := range []int{u.socket, u.timer} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}
