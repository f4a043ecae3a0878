package confine

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// names of the capabilities that this program has to do with, without CAP_.
var names = map[int]string{
	unix.CAP_NET_ADMIN: "NET_ADMIN", unix.CAP_NET_RAW: "NET_RAW", unix.CAP_NET_BIND_SERVICE: "NET_BIND_SERVICE",
	unix.CAP_SYS_NICE: "SYS_NICE", unix.CAP_SETUID: "SETUID", unix.CAP_SETGID: "SETGID", unix.CAP_KILL: "KILL",
	unix.CAP_SETPCAP: "SETPCAP", unix.CAP_SYS_ADMIN: "SYS_ADMIN", unix.CAP_DAC_OVERRIDE: "DAC_OVERRIDE",
	unix.CAP_SYS_PTRACE: "SYS_PTRACE", unix.CAP_SYS_MODULE: "SYS_MODULE", unix.CAP_IPC_LOCK: "IPC_LOCK",
	unix.CAP_SYS_RESOURCE: "SYS_RESOURCE",
}

// errUnsupported is of a host that does not know a step.
var errUnsupported = errors.ErrUnsupported

// set is a set of capabilities as the kernel writes it (capabilities(7)).
type set uint64

func setOf(caps []int) (s set) {
	for _, c := range caps {
		s |= 1 << c
	}
	return s
}

// list names what is in the set.
func (s set) list() []string {
	var all []string
	for c := range 64 {
		if s&(1<<c) == 0 {
			continue
		}
		name, ok := names[c]
		if !ok {
			name = fmt.Sprint("capability ", c)
		}
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// permitted is what this thread may do, and all others too.
func permitted() (set, error) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // of 32 capabilities each
	if err := unix.Capget(&head, &data[0]); err != nil {
		return 0, fmt.Errorf("find out the capabilities of this process: %w", err)
	}
	return set(data[0].Permitted) | set(data[1].Permitted)<<32, nil
}

// Keep drops every capability but those of caps from all threads of the process, for good: no program that it runs gets
// them back. What the process does not have is not asked for. Who calls it twice keeps SETPCAP in between, with which
// the second call makes the bounding set smaller.
func Keep(caps ...int) error {
	have, err := permitted()
	if err != nil {
		return err
	}
	keep := have & setOf(caps)
	// The bounding set first: to change it takes a capability. Without that, no_new_privs stands in for it.
	if have&(1<<unix.CAP_SETPCAP) != 0 {
		for c := uintptr(0); c < 64; c++ {
			in, _, errno := syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_READ, c, 0)
			if errno != 0 {
				break // the kernel knows no more
			}
			if in == 0 || keep&(1<<c) != 0 {
				continue
			}
			if err := everywhere("drop a capability", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
				return err
			}
		}
	}
	if err := everywhere("clear the ambient capabilities", unix.SYS_PRCTL,
		unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return err
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(keep), Permitted: uint32(keep)},
		{Effective: uint32(keep >> 32), Permitted: uint32(keep >> 32)},
	}
	return everywhere("drop the capabilities", unix.SYS_CAPSET,
		uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&data[0])), 0, 0, 0)
}

// everywhere makes a system call on every thread of the process. Threads that start later inherit what it changed.
func everywhere(what string, trap, a1, a2, a3, a4, a5 uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(trap, a1, a2, a3, a4, a5, 0); errno != 0 {
		return fmt.Errorf("%s: %w", what, errno)
	}
	return nil
}

// Seal gives up what the process never needs again: new privileges by running a program, core dumps and debuggers of
// its own user, and the system calls that are denied. A step that this host does not know is logged and left out.
func Seal(log *slog.Logger) error {
	if err := everywhere("set no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid dumps: %w", err)
	}
	if err := filter(); err != nil {
		if !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
		log.Debug("system calls are not filtered", "reason", err)
	}
	return nil
}

// Powers are what this process may do.
type Powers struct {
	User         int      `json:"user"`
	Capabilities []string `json:"capabilities"`
	NoNewPrivs   bool     `json:"noNewPrivs"`
	// Seccomp says that system calls are filtered, by this program or by who started it.
	Seccomp bool `json:"seccomp"`
	// Dumpable says that its own user may read its memory.
	Dumpable bool `json:"dumpable"`
}

// Now are the present privileges.
func Now() Powers {
	p := Powers{User: unix.Geteuid(), Capabilities: []string{}}
	if have, err := permitted(); err == nil {
		p.Capabilities = append(p.Capabilities, have.list()...)
	}
	ask := func(option int) int {
		n, err := unix.PrctlRetInt(option, 0, 0, 0, 0)
		if err != nil {
			return 0
		}
		return n
	}
	p.NoNewPrivs = ask(unix.PR_GET_NO_NEW_PRIVS) == 1
	p.Seccomp = ask(unix.PR_GET_SECCOMP) == 2
	p.Dumpable = ask(unix.PR_GET_DUMPABLE) == 1
	return p
}
