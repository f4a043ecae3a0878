package vm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// ErrUnavailable means that this host lacks what a virtual machine takes. The
// error that wraps it says what is missing and how to get it; a test skips
// with that reason.
var ErrUnavailable = errors.New("no virtual machine here")

// A Spec says how the machine is made. The zero value is good for most tests.
type Spec struct {
	// Cache is where fetch-kernel.sh has put the kernel; empty means
	// DefaultCache.
	Cache string
	// CPUs is the number of processors; 0 means 2.
	CPUs int
	// MemoryMiB is the size of the memory; 0 means 1024.
	MemoryMiB int
	// Timeout is a hard limit on the whole run with its boot; 0 means 10
	// minutes.
	Timeout time.Duration
	// Silence is how long the command may write nothing before the run ends with an
	// error; 0 means for ever.
	Silence time.Duration
	// Env is added to the guest's small environment, as KEY=value.
	Env []string
	// Dir is where the command starts; empty means the host's working
	// directory.
	Dir string
	// Stdout and Stderr get what the command writes, while it writes it. Nil
	// drops it.
	Stdout, Stderr io.Writer
	// Console gets what the guest's kernel says. It is also a part of the
	// error when the machine ends without an exit code.
	Console io.Writer
}

// DefaultCache is the directory in which fetch-kernel.sh keeps the kernel.
func DefaultCache() (string, error) {
	if dir := os.Getenv("APPLIANCE_VM"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("%w; set APPLIANCE_VM to the cache directory", err)
	}
	return filepath.Join(dir, "appliance", "vm"), nil
}

// Run boots a machine, runs the command in it as root, and returns the
// command's exit code. The machine and its files are gone when Run returns.
// An error means that the command could not be run to its end.
func Run(ctx context.Context, o Spec, command ...string) (code int, err error) {
	if len(command) == 0 {
		return 0, errors.New("no command for the virtual machine")
	}
	if err := o.fill(); err != nil {
		return 0, err
	}
	k, err := findKernel(o.Cache)
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "appliance-vm-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)

	initramfs := filepath.Join(dir, "initramfs")
	if err := k.writeInitramfs(initramfs, script(o, k, command)); err != nil {
		return 0, fmt.Errorf("initramfs: %w", err)
	}

	limit := fmt.Errorf("the virtual machine was stopped after %v; raise Spec.Timeout if that was too soon", o.Timeout)
	ctx, cancel := context.WithTimeoutCause(ctx, o.Timeout, limit)
	defer cancel()
	if o.Silence > 0 {
		var stop context.CancelCauseFunc
		ctx, stop = context.WithCancelCause(ctx)
		timer := time.AfterFunc(o.Silence, func() {
			stop(fmt.Errorf("the virtual machine was stopped since its command wrote nothing for %v", o.Silence))
		})
		defer timer.Stop()
		defer stop(nil)
		heard := func() { timer.Reset(o.Silence) }
		o.Stdout, o.Stderr = listener{o.Stdout, heard}, listener{o.Stderr, heard}
	}
	return o.boot(ctx, k, dir, initramfs)
}

func (o *Spec) fill() (err error) {
	if o.Cache == "" {
		if o.Cache, err = DefaultCache(); err != nil {
			return err
		}
	}
	if o.Dir == "" {
		if o.Dir, err = os.Getwd(); err != nil {
			return err
		}
	}
	for _, kv := range o.Env {
		if key, _, ok := strings.Cut(kv, "="); !ok || !isName(key) {
			return fmt.Errorf("environment %q is not NAME=value", kv)
		}
	}
	if o.CPUs == 0 {
		o.CPUs = 2
	}
	if o.MemoryMiB == 0 {
		o.MemoryMiB = 1024
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Minute
	}
	for _, w := range []*io.Writer{&o.Stdout, &o.Stderr, &o.Console} {
		if *w == nil {
			*w = io.Discard
		}
	}
	return nil
}

// boot starts qemu and carries its channels until it ends.
func (o Spec) boot(ctx context.Context, k kernel, dir, initramfs string) (int, error) {
	args := []string{
		// kvm hangs guests on nested hosts; emulation works everywhere.
		"-accel", "tcg,thread=multi", "-cpu", "max",
		"-smp", strconv.Itoa(o.CPUs), "-m", strconv.Itoa(o.MemoryMiB),
		"-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot",
		"-kernel", k.image, "-initrd", initramfs,
		// panic=-1 with -no-reboot makes a kernel panic the end of qemu.
		// mitigations=off: emulation pays for them and gains nothing.
		// maxcpus=1: see stage 2, which starts the others.
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off nokaslr random.trust_cpu=on maxcpus=1",
		// multidevs=remap keeps inode numbers apart where the host's root
		// spans file systems, as in a container.
		"-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap",
		"-device", "virtio-serial-pci",
	}

	// The boot's console and the command's output are apart, so that a kernel
	// message never splits a line of the command.
	var answer bytes.Buffer
	channels := []struct {
		name string
		to   io.Writer
	}{
		{"console", nil}, {"stdout", o.Stdout}, {"stderr", o.Stderr}, {"exit", &answer},
	}
	tail := &lastLines{n: 40}
	channels[0].to = io.MultiWriter(o.Console, tail)

	// Closing the listeners lets go of copiers that qemu never called.
	var g errgroup.Group
	var listeners []net.Listener
	defer g.Wait()
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	for _, c := range channels {
		path := filepath.Join(dir, c.name)
		l, err := net.Listen("unix", path)
		if err != nil {
			return 0, err
		}
		listeners = append(listeners, l)
		g.Go(func() error {
			conn, err := l.Accept()
			if err != nil {
				return nil // qemu ended before it connected; its own error tells why
			}
			defer conn.Close()
			_, err = io.Copy(c.to, conn)
			return err
		})
		args = append(args, "-chardev", "socket,id="+c.name+",path="+path)
		if c.name == "console" {
			args = append(args, "-serial", "chardev:console")
		} else {
			args = append(args, "-device", "virtserialport,chardev="+c.name+",name="+c.name)
		}
	}

	// The parent-death signal follows the thread, not the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, k.qemu, args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 10 * time.Second
	runErr := cmd.Run()
	if ctx.Err() != nil {
		return 0, fmt.Errorf("%w\n%s", context.Cause(ctx), tail)
	}
	if runErr != nil {
		return 0, fmt.Errorf("qemu: %w: %s\n%s", runErr, bytes.TrimSpace(said.Bytes()), tail)
	}
	// qemu has closed its ends, so that every copier comes to its end.
	if err := g.Wait(); err != nil {
		return 0, fmt.Errorf("output of the virtual machine: %w", err)
	}
	code, err := strconv.Atoi(strings.TrimSpace(answer.String()))
	if err != nil {
		return 0, fmt.Errorf("the virtual machine ended without an exit code; its console said:\n%s", tail)
	}
	return code, nil
}

// A listener calls heard before each write.
type listener struct {
	io.Writer
	heard func()
}

func (l listener) Write(p []byte) (int, error) {
	l.heard()
	return l.Writer.Write(p)
}

// lastLines keeps the end of what is written to it.
type lastLines struct {
	n int
	b []byte
}

func (l *lastLines) Write(p []byte) (int, error) {
	l.b = append(l.b, p...)
	for bytes.Count(l.b, []byte("\n")) > l.n {
		l.b = l.b[bytes.IndexByte(l.b, '\n')+1:]
	}
	return len(p), nil
}

func (l *lastLines) String() string {
	var out strings.Builder
	sc := bufio.NewScanner(bytes.NewReader(l.b))
	for sc.Scan() {
		out.WriteString("  | " + strings.TrimRight(sc.Text(), "\r") + "\n")
	}
	return out.String()
}
