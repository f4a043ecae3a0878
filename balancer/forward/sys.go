package forward

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of the loops. None of them blocks, so they need not tell the scheduler
// (entersyscall, exitsyscall), which saves a tenth of their cost. They are repeated when a
// signal interrupts them.

func sysRead(fd int, p []byte) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall(
			unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
		)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

func sysPeek(fd int, p []byte) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(
			unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
			unix.MSG_PEEK, 0, 0,
		)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

func sysSend(fd int, p []byte, flags int) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(
			unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
			uintptr(flags|unix.MSG_NOSIGNAL), 0, 0,
		)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

func sysSplice(from, to, n int) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(
			unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE,
		)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

func sysAccept(fd int, from *unix.RawSockaddrAny) (int, unix.Errno) {
	for {
		size := uint32(unix.SizeofSockaddrAny)
		n, _, errno := unix.RawSyscall6(
			unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(from)), uintptr(unsafe.Pointer(&size)),
			unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0,
		)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

func sysBind(fd int, to []byte) unix.Errno {
	_, _, errno := unix.RawSyscall(
		unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(to))), uintptr(len(to)),
	)
	return errno
}

// sysListen requests the longest queue that the kernel allows (somaxconn).
func sysListen(fd int) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_LISTEN, uintptr(fd), 1<<16, 0)
	return errno
}

func sysShutdown(fd int) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
	return errno
}

func sysWatch(ep, op, fd int, ev *unix.EpollEvent) unix.Errno {
	_, _, errno := unix.RawSyscall6(
		unix.SYS_EPOLL_CTL, uintptr(ep), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(ev)), 0, 0,
	)
	return errno
}

// sysPoll is epoll_wait without waiting.
func sysPoll(ep int, events []unix.EpollEvent) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(
		unix.SYS_EPOLL_PWAIT, uintptr(ep), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0,
	)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// addrPort reads the address that accept4 wrote.
func addrPort(sa *unix.RawSockaddrAny) netip.AddrPort {
	port := func(p *uint16) uint16 {
		b := (*[2]byte)(unsafe.Pointer(p))
		return uint16(b[0])<<8 | uint16(b[1])
	}
	switch sa.Addr.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), port(&in.Port))
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom16(in.Addr).Unmap(), port(&in.Port))
	}
	return netip.AddrPort{}
}
