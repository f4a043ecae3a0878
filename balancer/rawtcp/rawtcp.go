// Package rawtcp has the system calls that open and close TCP sockets without waiting. The scheduler is not told of them
// (entersyscall, exitsyscall): that would cost a tenth more, and wake the thread that looks for calls that wait.
package rawtcp

import (
	"net"
	"net/netip"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Socket is a new TCP socket of AF_INET or AF_INET6.
func Socket(family int) (int, unix.Errno) {
	fd, _, errno := unix.RawSyscall(
		unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP,
	)
	return int(fd), errno
}

// Connect begins a connection to an address that Sockaddr has made: usually it says EINPROGRESS.
func Connect(fd int, to []byte) unix.Errno {
	_, _, errno := unix.RawSyscall(
		unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(to))), uintptr(len(to)),
	)
	return errno
}

// SetOption is setsockopt with a number.
func SetOption(fd, level, name int, value int32) unix.Errno {
	_, _, errno := unix.RawSyscall6(
		unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(unsafe.Pointer(&value)), 4, 0,
	)
	return errno
}

// Close has no retry: the file is closed even if a signal interrupts it.
func Close(fd int) { unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// Reset closes a socket with RST instead of FIN (RFC 9293, section 3.10.5).
func Reset(fd int) {
	resetOnClose(fd)
	Close(fd)
}

func resetOnClose(fd int) unix.Errno {
	linger := unix.Linger{Onoff: 1}
	_, _, errno := unix.RawSyscall6(
		unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&linger)),
		unix.SizeofLinger, 0,
	)
	return errno
}

// Err is the pending error of the socket; nil if there is none.
func Err(fd int) error {
	var n int32
	size := uint32(unsafe.Sizeof(n))
	_, _, errno := unix.RawSyscall6(
		unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ERROR, uintptr(unsafe.Pointer(&n)),
		uintptr(unsafe.Pointer(&size)), 0,
	)
	switch {
	case errno != 0:
		return errno
	case n != 0:
		return unix.Errno(n)
	}
	return nil
}

// Sockaddr is a in the kernel's form.
func Sockaddr(a netip.AddrPort) (family int, raw []byte) {
	port := [2]byte{byte(a.Port() >> 8), byte(a.Port())}
	if a.Addr().Unmap().Is4() {
		sa := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: a.Addr().Unmap().As4()}
		*(*[2]byte)(unsafe.Pointer(&sa.Port)) = port
		return unix.AF_INET, slices.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&sa)), unix.SizeofSockaddrInet4))
	}
	sa := unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: a.Addr().As16()}
	*(*[2]byte)(unsafe.Pointer(&sa.Port)) = port
	if zone := a.Addr().Zone(); zone != "" {
		// An unknown interface stays 0, and the dial fails with a clear error.
		if link, err := net.InterfaceByName(zone); err == nil {
			sa.Scope_id = uint32(link.Index)
		}
	}
	return unix.AF_INET6, slices.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&sa)), unix.SizeofSockaddrInet6))
}

// LocalAddr is the address of this side of a socket.
func LocalAddr(fd int) netip.AddrPort {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	switch in := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(in.Addr).Unmap(), uint16(in.Port))
	}
	return netip.AddrPort{}
}
