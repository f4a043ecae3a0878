package lease

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Clock tells the time since some fixed moment. It never steps, whatever happens to the time of day.
type Clock func() time.Duration

// Boottime is CLOCK_BOOTTIME: unlike the monotonic clock that package time uses it goes on while the host is
// suspended, so a lease does not survive a suspend. (A paused virtual machine may stop this clock too:
// package standstill.)
func Boottime() time.Duration {
	var ts unix.Timespec
	// The runtime is not told of the call, which never waits: it would wake the thread that looks for calls that do.
	if _, _, e := unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_BOOTTIME,
		uintptr(unsafe.Pointer(&ts)), 0); e != 0 {
		// Linux before 2.6.39. Without a clock there is no safe answer.
		panic("lease: CLOCK_BOOTTIME: " + e.Error())
	}
	return time.Duration(ts.Nano())
}
