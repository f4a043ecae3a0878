package standstill

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// hearNewMachines waits for the kernel's word that the machine was started from a snapshot, until ctx ends. It returns an
// error at once if the kernel cannot be listened to.
func hearNewMachines(ctx context.Context, heard func(why string)) error {
	return listen(ctx, func(event []byte) {
		if isNewMachine(event) {
			heard("the hypervisor's generation counter has changed")
		}
	})
}

// kernelEvents is the multicast group of the kernel's own events; 2 is udev's.
const kernelEvents = 1

func listen(ctx context.Context, heard func(event []byte)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK,
		unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelEvents}); err != nil {
		unix.Close(fd)
		return os.NewSyscallError("bind", err)
	}
	f := os.NewFile(uintptr(fd), "uevents")
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	b := make([]byte, 8<<10) // the kernel's UEVENT_BUFFER_SIZE is 2 KiB
	for {
		var n int
		var from unix.Sockaddr
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			n, from, failed = unix.Recvfrom(int(fd), b, 0)
			return failed != unix.EAGAIN
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case errors.Is(failed, unix.ENOBUFS): // events were lost: other machines have many at their start
			continue
		case failed != nil:
			return os.NewSyscallError("recvfrom", failed)
		}
		// Programs may send to the group too, with their own number.
		if k, ok := from.(*unix.SockaddrNetlink); ok && k.Pid == 0 {
			heard(b[:n])
		}
	}
}
