package host

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// niceness keeps heartbeats on time on a host whose cores are all busy: the scheduler runs this process before
	// ordinary ones, and still after those with real-time priority.
	niceness = -15
	// lightNiceness is for a process that leaves forwarding to the kernel: it takes a few per cent of one core, so it may
	// run before everything ordinary. A process that forwards itself could starve the host.
	//
	// Not a real-time class: there, threads of one priority wait for each other for whole slices of 100 ms
	// (sched_rr_timeslice_ms), and Go's threads yield to each other in loops. A change of the rules by two threads then
	// held up the heartbeats for as long as 200 ms.
	lightNiceness = -20
	// slice is how long a thread runs before the next one does, in ns. A thread that asks for little runs sooner (EEVDF,
	// Linux 6.12 or later; older kernels ignore it). The kernel's minimum is 100 µs.
	slice = 200_000
	// oomScore is that of the systemd unit too.
	oomScore = -900
)

// Prioritize asks the kernel for what keeps elections calm on a busy host. A process that may not ask, such as a
// container without SYS_NICE, goes on without: peers have more patience with a host that is seen to pause.
func Prioritize(log *slog.Logger) {
	if err := eachThread(renice); err != nil {
		log.Info("runs at ordinary priority: "+
			"on a host that is short of CPU it may lose the virtual addresses to a peer at times; "+
			"give it CAP_SYS_NICE, or Nice= in its unit", "reason", err)
	}
	liftSession(niceness)
	if err := lockMemory(); err != nil {
		log.Debug("memory may be swapped out", "reason", err)
	}
	const score = "/proc/self/oom_score_adj"
	if text, err := os.ReadFile(score); err == nil {
		if now, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && now > oomScore {
			if err := os.WriteFile(score, []byte(strconv.Itoa(oomScore)), 0); err != nil {
				log.Debug("the kernel may kill this process when memory runs out", "reason", err)
			}
		}
	}
}

// lockMemory keeps the process in memory: a page that has to be read from a busy disk takes longer than the peers wait.
// It does so only where no limit applies: otherwise Go's next growth beyond the limit would end the process.
func lockMemory() error {
	all := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &all); err != nil && !mayLock() {
		return fmt.Errorf("raising the limit of locked memory: %w", err)
	}
	// On fault: Go reserves much more than it uses.
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("locking memory: %w", err)
	}
	return nil
}

// MemoryLocked reports whether the process is kept in memory.
func MemoryLocked() bool {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(text), "VmLck:")
	kilobytes, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	return kilobytes != "" && kilobytes != "0"
}

// LockUnlimited reports whether no limit applies to locked memory, whatever the capabilities.
func LockUnlimited() bool {
	var limit unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit)
	return err == nil && limit.Cur == unix.RLIM_INFINITY
}

// mayLock says whether the limit of locked memory does not apply: capabilities(7), CAP_IPC_LOCK.
func mayLock() bool {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // of 32 capabilities each
	err := unix.Capget(&head, &data[0])
	return err == nil && data[0].Effective&(1<<unix.CAP_IPC_LOCK) != 0
}

// PrioritizeLight asks for the highest ordinary priority, for a process that leaves forwarding to the kernel.
func PrioritizeLight(log *slog.Logger) {
	if err := eachThread(reniceLight); err != nil {
		log.Debug("no higher priority", "reason", err)
		return
	}
	liftSession(lightNiceness)
}

// liftSession gives this process's own session a niceness. Where sessions are scheduled as groups (autogroup), the
// niceness of a thread counts within its session only.
func liftSession(nice int) {
	if session, err := unix.Getsid(0); err == nil && session == os.Getpid() {
		_ = os.WriteFile("/proc/self/autogroup", []byte(strconv.Itoa(nice)), 0)
	}
}

func renice(tid int) (changed bool, err error) {
	// The system call, unlike the C library, returns 20 - nice.
	if is, err := unix.Getpriority(unix.PRIO_PROCESS, tid); err != nil || 20-is <= niceness {
		return false, err
	}
	return true, unix.Setpriority(unix.PRIO_PROCESS, tid, niceness)
}

func reniceLight(tid int) (changed bool, err error) {
	attr, err := unix.SchedGetAttr(tid, 0)
	if err != nil || attr.Policy != unix.SCHED_NORMAL || attr.Nice <= lightNiceness {
		return false, err
	}
	attr.Nice, attr.Runtime = lightNiceness, slice
	return true, unix.SchedSetAttr(tid, attr, 0)
}

// eachThread does set to every thread: Linux keeps priorities per thread. One
// that starts meanwhile has its parent's, so threads are looked for until
// none is found that set changes.
func eachThread(set func(tid int) (changed bool, err error)) error {
	const most = 20 // rounds; more than a start ever takes
	for range most {
		tasks, err := filepath.Glob("/proc/self/task/*")
		if err != nil {
			return err
		}
		again := false
		for _, t := range tasks {
			tid, err := strconv.Atoi(filepath.Base(t))
			if err != nil {
				continue
			}
			changed, err := set(tid)
			if err != nil && err != unix.ESRCH { // gone again
				return err
			}
			again = again || changed && err == nil
		}
		if !again {
			return nil
		}
	}
	return nil
}
