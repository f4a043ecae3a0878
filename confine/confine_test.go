package confine

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The confined child of a test, which is this program again.
const childEnv = "APPLIANCE_TEST_CONFINED"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		child()
	}
	os.Exit(m.Run())
}

// report is what the child has found.
type report struct {
	Err     string
	Powers  Powers
	Threads []string // of each thread, the lines of /proc that matter
	Calls   map[string]int
	Script  string
}

func child() {
	var r report
	var held sync.WaitGroup
	held.Add(1)
	threads := func() {
		var started sync.WaitGroup
		for range 5 {
			started.Add(1)
			go func() {
				runtime.LockOSThread()
				started.Done()
				held.Wait()
			}()
		}
		started.Wait()
	}
	threads()
	err := errors.Join(
		Keep(unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_SYS_NICE, unix.CAP_SETPCAP), Keep(unix.CAP_NET_RAW),
		Seal(slog.Default()),
	)
	if err != nil {
		r.Err = err.Error()
	}
	threads()
	r.Powers = Now()
	tasks, _ := filepath.Glob("/proc/self/task/*/status")
	for _, path := range tasks {
		text, _ := os.ReadFile(path)
		var lines []string
		for line := range strings.Lines(string(text)) {
			for _, key := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp:"} {
				if strings.HasPrefix(line, key) {
					lines = append(lines, strings.Join(strings.Fields(line), " "))
				}
			}
		}
		r.Threads = append(r.Threads, strings.Join(lines, ", "))
	}
	call := func(trap uintptr, args ...uintptr) int {
		args = append(args, 0, 0, 0, 0, 0, 0)
		_, _, errno := syscall.RawSyscall6(trap, args[0], args[1], args[2], args[3], args[4], args[5])
		return int(errno)
	}
	none := ^uintptr(0)
	r.Calls = map[string]int{
		"ptrace": call(unix.SYS_PTRACE, none), "unshare": call(unix.SYS_UNSHARE, unix.CLONE_NEWUSER),
		"kexec": call(unix.SYS_KEXEC_LOAD, none), "module": call(unix.SYS_INIT_MODULE, none),
		"mount": call(unix.SYS_MOUNT, none), "bpf": call(unix.SYS_BPF, none), "keyctl": call(unix.SYS_KEYCTL, none),
		"perf": call(unix.SYS_PERF_EVENT_OPEN, none), "userfaultfd": call(unix.SYS_USERFAULTFD, none),
		"clone a user namespace": call(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD)),
		"clone3":                 call(unix.SYS_CLONE3, none), "io_uring": call(unix.SYS_IO_URING_SETUP, none, none),
		"AF_ALG":   call(unix.SYS_SOCKET, unix.AF_ALG, unix.SOCK_SEQPACKET),
		"AF_VSOCK": call(unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM),
		"AF_INET":  call(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM), "getppid": call(unix.SYS_GETPPID),
		"AF_NETLINK": call(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW),
	}
	const ask = "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/$$/status; (true) | cat"
	out, err := exec.Command("/bin/sh", "-c", ask).CombinedOutput()
	r.Script = strings.Join(strings.Fields(string(out)), " ")
	if err != nil {
		r.Script += err.Error()
	}
	_ = json.NewEncoder(os.Stdout).Encode(r)
	os.Exit(0)
}

// Every thread, older and younger, has lost what was given up, and so has what the process runs.
func TestConfined(t *testing.T) {
	// With cgo, as under the race detector, Go cannot reach every thread. The product is built without it.
	child := filepath.Join(t.TempDir(), "child")
	build := exec.Command("go", "test", "-c", "-o", child, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cmd := exec.Command(child)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if r.Err != "" {
		t.Fatal(r.Err)
	}
	before, err := permitted()
	if err != nil {
		t.Fatal(err)
	}
	kept := before & setOf([]int{unix.CAP_NET_RAW})
	none := fmt.Sprintf("%016x", 0)
	bound := fmt.Sprintf("%016x", kept)
	if before&(1<<unix.CAP_SETPCAP) == 0 {
		t.Log("without SETPCAP the bounding set stays as it is")
		bound = ""
	}
	if len(r.Threads) < 10 {
		t.Errorf("only %d threads", len(r.Threads))
	}
	for _, got := range r.Threads {
		want := fmt.Sprintf("CapInh: %s, CapPrm: %016x, CapEff: %016x, CapBnd: %s", none, kept, kept, bound)
		filtered := "Seccomp: 2"
		if !slices.Contains([]string{"amd64", "arm64"}, runtime.GOARCH) {
			filtered = "Seccomp: "
		}
		if !strings.HasPrefix(got, want) || !strings.Contains(got, "CapAmb: "+none+", NoNewPrivs: 1, "+filtered) {
			t.Errorf("a thread has %s\nwant %s ...", got, want)
		}
	}
	p := r.Powers
	if p.User != os.Geteuid() || !slices.Equal(p.Capabilities, append([]string{}, kept.list()...)) ||
		!p.NoNewPrivs || p.Dumpable {
		t.Errorf("privileges are %+v", p)
	}
	if !strings.HasPrefix(r.Script, fmt.Sprintf("CapEff: %016x NoNewPrivs: 1", kept)) {
		t.Errorf("a program has %s", r.Script)
	}
	if !slices.Contains([]string{"amd64", "arm64"}, runtime.GOARCH) {
		t.Skip("system calls are not filtered on this architecture")
	}
	if !p.Seccomp {
		t.Error("system calls are not filtered")
	}
	for name, got := range r.Calls {
		want := unix.EPERM
		switch name {
		case "AF_INET", "AF_NETLINK", "getppid":
			want = 0
		case "AF_ALG", "AF_VSOCK":
			want = unix.EAFNOSUPPORT
		case "clone3":
			want = unix.ENOSYS
		}
		if unix.Errno(got) != want {
			t.Errorf("%s: %v, want %v", name, unix.Errno(got), want)
		}
	}
}
