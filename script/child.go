package script

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// childName is the first argument of this program when it is about to become another one. childFlag keeps a program
// that does not know of it, such as a test, from doing its own work.
const (
	childName = "appliance-script"
	childFlag = "-become-a-program"
)

// The descriptors that the child has beside its standard ones.
const (
	programFD = 3 // the program, opened by path only
	reportFD  = 4 // takes why the program could not be run; closes when it runs
)

// limits are of one run.
type limits struct {
	UID, GID  uint32
	Groups    []uint32
	Other     bool   // become UID and GID
	Memory    uint64 // writable memory in bytes
	Processes uint64 // beside those that the user has
	Files     uint64
	Seconds   uint64 // of processor time
}

// failure is why the program does not run, as the child reports it.
type failure struct {
	Step  string
	Errno unix.Errno
}

// RunIfChild becomes the program if this process was started for that, and returns otherwise. Whatever opens a Program
// has to call it first of all.
func RunIfChild() {
	if len(os.Args) < 4 || os.Args[0] != childName || os.Args[1] != childFlag {
		return
	}
	runtime.LockOSThread() // user, capabilities and no_new_privs belong to a thread
	report, _ := json.Marshal(become(os.Args[2], os.Args[3:]))
	_, _ = unix.Write(reportFD, report)
	os.Exit(1)
}

// become returns only if it fails.
func become(spec string, argv []string) failure {
	var l limits
	if err := json.Unmarshal([]byte(spec), &l); err != nil {
		return failure{"read the limits", unix.EINVAL}
	}
	unix.CloseOnExec(reportFD)
	processes := l.Processes + tasksOf(l.UID)
	// This process runs before others do and is killed last; the program is an ordinary one.
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 0)
	if f, err := os.OpenFile("/proc/self/oom_score_adj", os.O_WRONLY, 0); err == nil {
		_, _ = f.WriteString("0")
		f.Close()
	}
	for _, r := range []struct {
		name  string
		which int
		most  uint64
	}{
		{"limit core dumps", unix.RLIMIT_CORE, 0},
		{"limit the memory", unix.RLIMIT_DATA, l.Memory},
		{"limit the processes", unix.RLIMIT_NPROC, processes},
		{"limit the files", unix.RLIMIT_NOFILE, l.Files},
		{"limit the processor time", unix.RLIMIT_CPU, l.Seconds},
	} {
		if errno := lower(r.which, r.most); errno != 0 {
			return failure{r.name, errno}
		}
	}
	if _, _, errno := unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return failure{"set no_new_privs", errno}
	}
	if l.Other {
		if errno := setUser(l); errno != 0 {
			return failure{"become user " + strconv.FormatUint(uint64(l.UID), 10), errno}
		}
	}
	if errno := dropAll(); errno != 0 {
		return failure{"give up the capabilities", errno}
	}
	path, err := unix.BytePtrFromString(fmt.Sprintf("/proc/self/fd/%d", programFD))
	args, err2 := syscall.SlicePtrFromStrings(argv)
	env, err3 := syscall.SlicePtrFromStrings(os.Environ())
	if err != nil || err2 != nil || err3 != nil {
		return failure{"read the arguments", unix.EINVAL}
	}
	_, _, errno := unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(path)),
		uintptr(unsafe.Pointer(&args[0])), uintptr(unsafe.Pointer(&env[0])))
	return failure{"run it", errno}
}

// lower sets both limits, unless they are lower already.
func lower(which int, most uint64) unix.Errno {
	var now unix.Rlimit
	if err := unix.Getrlimit(which, &now); err != nil {
		return errnoOf(err)
	}
	now.Max = min(now.Max, most)
	now.Cur = now.Max
	return errnoOf(unix.Setrlimit(which, &now))
}

// setUser changes user and groups of this thread, for good.
func setUser(l limits) unix.Errno {
	var groups unsafe.Pointer
	if len(l.Groups) > 0 {
		groups = unsafe.Pointer(&l.Groups[0])
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(l.Groups)), uintptr(groups), 0); errno != 0 {
		return errno
	}
	gid, uid := uintptr(l.GID), uintptr(l.UID)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return errno
	}
	_, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid)
	return errno
}

// dropAll gives up every capability of this thread. With no_new_privs, root does not get them back from execve(2).
func dropAll() unix.Errno {
	_, _, _ = unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0, 0)
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return errnoOf(unix.Capset(&head, &none[0]))
}

// tasksOf is how many threads a user has. The kernel counts them all, whoever started them.
func tasksOf(uid uint32) uint64 {
	all, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	n := uint64(0)
	for _, p := range all {
		var info unix.Stat_t
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		path := "/proc/" + p.Name() + "/task"
		if unix.Stat(path, &info) == nil && info.Uid == uid {
			n += max(uint64(info.Nlink), 3) - 2
		}
	}
	return n
}

func errnoOf(err error) unix.Errno {
	if err == nil {
		return 0
	}
	if errno, ok := err.(unix.Errno); ok {
		return errno
	}
	return unix.EINVAL
}
