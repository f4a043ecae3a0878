package script

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
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
}

// Open looks whether the file may be run, and runs nothing. Whoever can write
// to it, or put another in its place, could become the user of this process: so
// nobody but that user and root may.
func Open(argv []string) (*Program, error) {
	if len(argv) == 0 {
		return nil, errors.New("no program; write its path and its arguments")
	}
	p := &Program{argv[0], argv[1:]}
	return p, p.check()
}

func (p *Program) check() error {
	if !filepath.IsAbs(p.path) {
		return fmt.Errorf("%s: not an absolute path; begin it with /", p.path)
	}
	real, err := filepath.EvalSymlinks(p.path)
	if err != nil {
		return fmt.Errorf("%w; correct the path, or make the file", err)
	}
	info, err := os.Stat(real)
	if err != nil {
		return err
	}
	switch {
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is no file; give the path of a program", p.path)
	case info.Mode().Perm()&0o111 == 0:
		return fmt.Errorf("%s is not executable; run `chmod 755 %s`", p.path, real)
	}
	for at := real; ; at = filepath.Dir(at) {
		if info, err = os.Stat(at); err != nil {
			return err
		}
		if err := guarded(at, info); err != nil {
			return err
		}
		if at == filepath.Dir(at) {
			return nil
		}
	}
}

// guarded refuses what others can write to. In a directory with the sticky bit
// they cannot replace what is not theirs.
func guarded(at string, info fs.FileInfo) error {
	sticky := info.IsDir() && info.Mode()&fs.ModeSticky != 0
	if info.Mode().Perm()&0o022 != 0 && !sticky {
		return fmt.Errorf("%s can be written by its group or by everybody, who could so run anything as this user; run `chmod go-w %s`", at, at)
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && s.Uid != 0 && int(s.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d, who could so run anything as this user; run `chown root %s`", at, s.Uid, at)
	}
	return nil
}

// The environment of every program. What else this process was given, secrets
// among it, is not for them.
var environment = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C", "HOME=/"}

// maxOutput is how much of what a program says is kept, for the reason.
const maxOutput = 4 << 10

// Run runs the program until it ends or ctx does; then it is killed, with all
// processes that it has started and that have not left its process group. env is
// added to a minimal environment. The error says how it failed, and the last
// line that it wrote.
func (p *Program) Run(ctx context.Context, env ...string) error {
	if err := p.check(); err != nil { // it may have changed
		return err
	}
	cmd := exec.CommandContext(ctx, p.path, p.args...)
	cmd.Env = append(append([]string(nil), environment...), env...)
	cmd.Dir = "/"
	out := &tail{}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	kill := func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Cancel = kill
	// A child that left the group may hold the pipe open for ever.
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w; is it a program of this machine, with a first line such as #!/bin/sh?", err)
	}
	err := cmd.Wait()
	_ = kill() // what it left behind; usually nothing
	if line := out.last(); line != "" && err != nil {
		line = ": " + line
		return p.failed(ctx, err, line)
	}
	return p.failed(ctx, err, "")
}

func (p *Program) failed(ctx context.Context, err error, said string) error {
	name := filepath.Base(p.path)
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return nil // it ended well; somebody else holds its output
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%s did not end in time and was killed%s", name, said)
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return fmt.Errorf("%s: %w%s", name, err, said)
}

// tail keeps the end of what is written.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if n := len(t.b) - maxOutput; n > 0 {
		t.b = append(t.b[:0], t.b[n:]...)
	}
	return len(p), nil
}

// last is the last line with something in it, fit for a log.
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
