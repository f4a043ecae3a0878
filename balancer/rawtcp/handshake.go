package rawtcp

import (
	"context"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Handshake asks whether a server takes a connection, and leaves none: it holds back the last ACK of the TCP handshake
// (RFC 9293, section 3.5) and sends a reset instead. It ends when ctx does, with ctx's error. Other errors are those of
// the system calls.
//
// Mostly the answer is there before the call that asks has returned (on one host), or soon after. So the runtime's poller
// gets to know the socket only if there is something to wait for.
func Handshake(ctx context.Context, at netip.AddrPort) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	family, to := Sockaddr(at)
	fd, errno := Socket(family)
	if errno != 0 {
		return os.NewSyscallError("socket", errno)
	}
	if errno = SetOption(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0); errno == 0 {
		errno = Connect(fd, to)
	}
	if errno == unix.EINPROGRESS && !isSettled(fd) {
		return awaitHandshake(ctx, fd, at)
	}
	defer Reset(fd)
	if errno != 0 && errno != unix.EINPROGRESS {
		return os.NewSyscallError("connect", errno)
	}
	return outcome(fd, at)
}

// awaitHandshake waits until the connection of fd is there or has failed, and closes fd.
func awaitHandshake(ctx context.Context, fd int, at netip.AddrPort) error {
	f := os.NewFile(uintptr(fd), "tcp")
	defer f.Close()
	if errno := resetOnClose(fd); errno != 0 {
		return os.NewSyscallError("setsockopt", errno)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	var found error
	err = raw.Write(func(fd uintptr) bool {
		if !isSettled(int(fd)) {
			return false
		}
		found = outcome(int(fd), at)
		return true
	})
	if ended := ctx.Err(); err != nil && ended != nil {
		return ended
	}
	if err != nil {
		return err
	}
	return found
}

// isSettled says that a connection is there or has failed.
func isSettled(fd int) bool {
	ask, now := unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT}, unix.Timespec{}
	n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&ask)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	return errno == 0 && n > 0
}

// outcome is nil if a connection that is settled leads to a server.
func outcome(fd int, at netip.AddrPort) error {
	if err := Err(fd); err != nil {
		return os.NewSyscallError("connect", err)
	}
	// Where nobody listens, the kernel may choose the port that is asked for as this end's, and the socket is connected to
	// itself (simultaneous open, RFC 9293, section 3.5).
	if LocalAddr(fd) == netip.AddrPortFrom(at.Addr().Unmap(), at.Port()) {
		return os.NewSyscallError("connect", unix.ECONNREFUSED)
	}
	return nil
}
