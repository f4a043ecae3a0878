package script

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A Program is a file that may be run, with its arguments.
type Program struct {
	path string
	args []string
	who  identity
}

// Open checks that the file may be run, and runs nothing. Whoever can write to the file or replace it can act as the
// user of this process, so only that user and root may be able to. user is a name or a number; empty means nobody, or
// this process's own user if it may not run programs as others.
func Open(argv []string, user string) (*Program, error) {
	if len(argv) == 0 {
		return nil, errors.New("no program; write its path and its arguments")
	}
	who, err := identify(user)
	if err != nil {
		return nil, err
	}
	p := &Program{argv[0], argv[1:], who}
	f, err := p.open()
	if err != nil {
		return p, err
	}
	return p, f.Close()
}

func (p *Program) open() (*os.File, error) {
	f, err := find(p.path)
	if err != nil {
		return nil, err
	}
	if err := mayRun(f, p.who); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// environment is what every program gets. It leaves out what this process was given, which may be secret.
func (p *Program) environment() []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C", "HOME=/",
		// A script sees itself as a descriptor, so $0 is not its path.
		"APPLIANCE_PROGRAM=" + p.path,
	}
}

const (
	// maxOutput is how many bytes of a program's output are kept, to find the reason of a failure in.
	maxOutput = 4 << 10
	// maxWritten is how many bytes a program may write before it is killed.
	maxWritten = 1 << 20
	// maxMemory is the writable memory of each process of a program.
	maxMemory = 512 << 20
	// maxProcesses is how many threads a program may have. Root has no such limit (setrlimit(2)).
	maxProcesses = 64
	maxFiles     = 1024
	// longest is the time of a program that is given no deadline.
	longest = time.Hour
)

// limits are those of a run within ctx.
func (p *Program) limits(ctx context.Context) limits {
	left := longest
	if at, ok := ctx.Deadline(); ok {
		left = time.Until(at)
	}
	return limits{
		UID: p.who.uid, GID: p.who.gid, Groups: p.who.groups, Other: p.who.other,
		Memory: maxMemory, Processes: maxProcesses, Files: maxFiles,
		Seconds: uint64(max(left, 0)/time.Second) + 1,
	}
}

// Run runs the program until it ends or ctx does. Then everything that is left of its process group is killed. env is
// added to a minimal environment. The error has the exit status and the last line of output; it is ctx's own error when
// ctx was cancelled.
func (p *Program) Run(ctx context.Context, env ...string) error {
	file, err := p.open() // it may have changed
	if err != nil {
		return err
	}
	defer file.Close()
	report, reported, err := os.Pipe()
	if err != nil {
		return err
	}
	defer report.Close()
	defer reported.Close()
	spec, err := json.Marshal(p.limits(ctx))
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = append([]string{childName, childFlag, string(spec), p.path}, p.args...)
	cmd.Env = append(p.environment(), env...)
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{file, reported} // programFD, reportFD
	out := &tail{}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	kill := func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Cancel = kill
	out.tooMuch = func() { _ = kill() }
	// A child that has left the group may keep the pipe open forever.
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", p.path, err)
	}
	reported.Close()
	why, _ := io.ReadAll(report) // ends when the program runs, or when there is none
	err = cmd.Wait()
	_ = kill() // what it left behind; usually nothing
	name, line := filepath.Base(p.path), out.last()
	if line != "" {
		line = ": " + line
	}
	switch {
	case ctx.Err() == nil && len(why) > 0:
		return p.failed(why)
	case out.written > maxWritten:
		return fmt.Errorf("%s wrote more than %d MiB and was killed%s", name, maxWritten>>20, line)
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return nil // it succeeded, though another process may still hold its output
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%s did not end in time and was killed%s", name, line)
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return fmt.Errorf("%s: %w%s", name, err, line)
}

// failed is the error of a program that never ran.
func (p *Program) failed(why []byte) error {
	var f failure
	if err := json.Unmarshal(why, &f); err != nil {
		return fmt.Errorf("%s: %w", p.path, err)
	}
	err := &os.PathError{Op: "fork/exec", Path: p.path, Err: f.Errno}
	switch f.Errno {
	case syscall.ENOEXEC, syscall.ENOENT:
		return fmt.Errorf("%w; is it a program of this machine, with a first line such as #!/bin/sh?", err)
	case syscall.EACCES:
		return fmt.Errorf("%w; may user %s run it, and is its file system not mounted noexec?", err, p.who.name)
	}
	return fmt.Errorf("%s: %w", f.Step, err)
}

// A tail keeps the last maxOutput bytes that are written.
type tail struct {
	b       []byte
	written int
	tooMuch func() // is called once more than maxWritten bytes are written
}

func (t *tail) Write(p []byte) (int, error) {
	if t.written += len(p); t.written > maxWritten {
		t.tooMuch()
	}
	t.b = append(t.b, p...)
	if n := len(t.b) - maxOutput; n > 0 {
		t.b = append(t.b[:0], t.b[n:]...)
	}
	return len(p), nil
}

// last is the last line that is not empty, cut to 200 bytes of printable text.
func (t *tail) last() string {
	lines := bytes.Split(bytes.TrimSpace(t.b), []byte("\n"))
	line := strings.ToValidUTF8(string(lines[len(lines)-1]), "?")
	line = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, line)
	if len(line) > 200 {
		line = line[:200]
	}
	return strings.TrimSpace(line)
}
