package standstill

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Host opens what there is on this machine. Without rights to a device, and on real machines, that is the time of day.
func Host() Sources {
	s := Sources{Clocks: []OtherClock{{Name: "the time of day", Read: timeOfDay}}, Listen: hearNewMachines}
	var files []*os.File
	if f := openHostClock("/sys/class/ptp", "/dev"); f != nil {
		files = append(files, f)
		s.Clocks = append(s.Clocks, OtherClock{Name: "the host's clock", Apart: true, Read: func() (time.Duration, bool) {
			return readClock(f)
		}})
	}
	var page []byte
	if page = mapVMClock("/dev/vmclock0"); page != nil {
		s.Marker = func() uint64 { return markerIn(page) }
	}
	s.Close = func() {
		for _, f := range files {
			f.Close()
		}
		if page != nil {
			unix.Munmap(page)
		}
	}
	return s
}

// timeOfDay is CLOCK_REALTIME.
func timeOfDay() (time.Duration, bool) { return time.Duration(time.Now().UnixNano()), true }

// hostClock is what ptp_kvm calls its clock.
const hostClock = "KVM virtual PTP"

// openHostClock finds the device of ptp_kvm; nil: there is none, or it may not be read.
func openHostClock(class, dev string) *os.File {
	names, _ := filepath.Glob(filepath.Join(class, "ptp*", "clock_name"))
	for _, path := range names {
		name, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(name)) != hostClock {
			continue
		}
		f, err := os.Open(filepath.Join(dev, filepath.Base(filepath.Dir(path))))
		if err != nil {
			continue
		}
		if _, ok := readClock(f); ok {
			return f
		}
		f.Close()
	}
	return nil
}

// readClock reads a clock that is a file: FD_TO_CLOCKID in clock_getres(2).
func readClock(f *os.File) (time.Duration, bool) {
	var ts unix.Timespec
	const clockFD = 3
	err := unix.ClockGettime(int32(^int(f.Fd())<<3|clockFD), &ts)
	return time.Duration(ts.Nano()), err == nil
}

// The page of vmclock: struct vmclock_abi in Linux, include/uapi/linux/vmclock-abi.h.
const (
	vmClockMagic  = 0x4b4c4356 // "VCLK"
	vmClockMarker = 16         // disruption_marker
	vmClockLeast  = 24
)

// mapVMClock maps the page of the device at path; nil: there is none, or it may not be read.
func mapVMClock(path string) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	page, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil
	}
	if binary.LittleEndian.Uint32(page) != vmClockMagic || binary.LittleEndian.Uint32(page[4:]) < vmClockLeast {
		unix.Munmap(page)
		return nil
	}
	return page
}

// markerIn reads the number. A read that meets a change sees the number before or after it: both differ from what is
// there in the end, or the next look does.
func markerIn(page []byte) uint64 {
	return atomic.LoadUint64((*uint64)(unsafe.Pointer(&page[vmClockMarker])))
}

// newMachine is in the event of the driver vmgenid.
var newMachine = []byte("NEW_VMGENID=1")

// isNewMachine says that a kernel's event tells that the machine was started from a snapshot. The kernel writes strings
// that end with a zero byte; what a program has added by a file of sysfs begins with SYNTH_ARG_.
func isNewMachine(event []byte) bool {
	for s := range bytes.SplitSeq(event, []byte{0}) {
		if bytes.Equal(s, newMachine) {
			return true
		}
	}
	return false
}
