package detector

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
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
	// Wait returns at the given time, or when ctx has ended and the port has been closed.
	Wait(ctx context.Context, at time.Time)
	Close()
}

// udp is Packets over a real socket. Who sent a datagram is in the datagram.
//
// Its system calls never wait, so the runtime is not told of them (RawSyscall), and its pause is a file that the
// runtime's poller waits for, not a timer of the runtime. Otherwise each tick would wake a second thread, the
// runtime's monitor, which then looks every 20 µs whether somebody waits in a system call, and once more at each
// timer: that was most of what an idle process cost.
type udp struct {
	*net.UDPConn
	raw   syscall.RawConn
	inet6 bool // what the kernel takes for addresses
	timer *os.File
	fires syscall.RawConn
}

// Listen opens the UDP port at bind.
func Listen(bind netip.AddrPort) (_ Packets, err error) {
	u := &udp{}
	if u.UDPConn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(bind)); err != nil {
		return nil, err
	}
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		u.UDPConn.Close()
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	u.timer = os.NewFile(uintptr(fd), "timerfd")
	if u.fires, err = u.timer.SyscallConn(); err == nil {
		u.raw, err = u.SyscallConn()
	}
	if err == nil {
		err = u.control(func(fd uintptr) error {
			domain, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
			u.inet6 = domain == unix.AF_INET6
			return err
		})
	}
	if err != nil {
		u.Close()
		return nil, err
	}
	return u, nil
}

// control hands the socket to f.
func (u *udp) control(f func(fd uintptr) error) (err error) {
	if e := u.raw.Control(func(fd uintptr) { err = f(fd) }); e != nil {
		return e
	}
	return err
}

// ReadNow asks the kernel, and not the runtime's poller, which would wait. The runtime has made the socket
// non-blocking.
func (u *udp) ReadNow(b []byte) (n int, err error) {
	err = u.control(func(fd uintptr) error {
		got, _, e := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if e != 0 {
			return e
		}
		n = int(got)
		return nil
	})
	return n, err
}

// Write gives up when the socket's buffer is full of datagrams for hosts that are gone: the hosts that are
// there must not wait for them.
func (u *udp) Write(b []byte, to netip.AddrPort) error {
	at, size, ok := u.sockaddr(to)
	if !ok { // an address with a zone, or of the other family: the runtime knows what to do
		_, err := u.WriteToUDPAddrPort(b, to)
		return err
	}
	return u.control(func(fd uintptr) error {
		_, _, e := unix.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, uintptr(unsafe.Pointer(&at)), size)
		if e != 0 {
			return e
		}
		return nil
	})
}

// sockaddr is to as the kernel takes it, with its size.
func (u *udp) sockaddr(to netip.AddrPort) (at unix.RawSockaddrInet6, size uintptr, ok bool) {
	addr := to.Addr().Unmap()
	var port [2]byte
	binary.BigEndian.PutUint16(port[:], to.Port())
	switch {
	case addr.Zone() != "" || !u.inet6 && !addr.Is4():
		return at, 0, false
	case u.inet6:
		at = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: binary.NativeEndian.Uint16(port[:]), Addr: addr.As16()}
		return at, unix.SizeofSockaddrInet6, true
	}
	*(*unix.RawSockaddrInet4)(unsafe.Pointer(&at)) = unix.RawSockaddrInet4{
		Family: unix.AF_INET, Port: binary.NativeEndian.Uint16(port[:]), Addr: addr.As4(),
	}
	return at, unix.SizeofSockaddrInet4, true
}

// Wait sets the timer, and waits until it fires.
func (u *udp) Wait(ctx context.Context, at time.Time) {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(max(time.Until(at), 1)))}
	armed := false
	var fired [8]byte
	var failed error
	err := u.fires.Read(func(fd uintptr) bool {
		if !armed {
			armed = true
			_, _, e := unix.RawSyscall6(unix.SYS_TIMERFD_SETTIME, fd, 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0)
			if e != 0 {
				failed = e
			}
			return e != 0 // else the poller says when it fires
		}
		_, _, e := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&fired)), uintptr(len(fired)))
		return e != unix.EAGAIN
	})
	if err == nil && failed == nil {
		return
	}
	select { // no timer: the runtime's own will do
	case <-ctx.Done():
	case <-time.After(time.Until(at)):
	}
}

func (u *udp) Close() {
	u.UDPConn.Close()
	u.timer.Close()
}
