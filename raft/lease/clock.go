package lease

import (
	"time"

	"golang.org/x/sys/unix"
)

// A Clock tells the time since some fixed moment. It never steps, whatever happens to the time of day.
type Clock func() time.Duration

// Boottime is CLOCK_BOOTTIME: unlike the monotonic clock that package time uses it goes on while the host is
// suspended, so a lease does not survive a suspend. (A paused virtual machine may stop this clock too; then a
// stale lease is limited to what was left of it when the machine was paused.)
func Boottime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		// Linux before 2.6.39. Without a clock there is no safe answer.
		panic("lease: CLOCK_BOOTTIME: " + err.Error())
	}
	return time.Duration(ts.Nano())
}
