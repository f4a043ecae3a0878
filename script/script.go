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

// Open checks that the file may be run, and runs nothing. Whoever can write to the file or replace it can act as the
// user of this process, so only that user and root may be able to.
func Open(argv []string) (*Program, error) {
	if len(argv) == 0 {
		return nil, errors.New("no program; write its path and its arguments")
	}
	p := &Program{argv[0], argv[1:]}
	return p, p.check()
}

// check looks at the file and at every directory on its real path.
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
		if err := protected(at, info); err != nil {
			return err
		}
		if at == filepath.Dir(at) {
			return nil
		}
	}
}

// protected refuses what others can write to. In a directory with the sticky bit they cannot replace other people's
// files.
func protected(at string, info fs.FileInfo) error {
	sticky := info.IsDir() && info.Mode()&fs.ModeSticky != 0
	if info.Mode().Perm()&0o022 != 0 && !sticky {
		return fmt.Errorf("%s can be written by its group or by everybody, who could then run anything as this user; "+
			"run `chmod go-w %s`", at, at)
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && s.Uid != 0 && int(s.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d, who could then run anything as this user; run `chown root %s`",
			at, s.Uid, at)
	}
	return nil
}

// environment is what every program gets. It leaves out what this process was given, which may be secret.
func environment() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C", "HOME=/"}
}

// maxOutput is how many bytes of a program's output are kept, to find the reason of a failure in.
const maxOutput = 4 << 10

// Run runs the program until it ends or ctx does. Then everything that is left of its process group is killed. env is
// added to a minimal environment. The error has the exit status and the last line of output; it is ctx's own error when
// ctx was cancelled.
func (p *Program) Run(ctx context.Context, env ...string) error {
	if err := p.check(); err != nil { // it may have changed
		return err
	}
	cmd := exec.CommandContext(ctx, p.path, p.args...)
	cmd.Env = append(environment(), env...)
	cmd.Dir = "/"
	out := &tail{}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	kill := func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Cancel = kill
	// A child that has left the group may keep the pipe open forever.
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w; is it a program of this machine, with a first line such as #!/bin/sh?", err)
	}
	err := cmd.Wait()
	_ = kill() // what it left behind; usually nothing
	name, line := filepath.Base(p.path), out.last()
	if line != "" {
		line = ": " + line
	}
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return nil // it succeeded, though another process may still hold its output
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%s did not end in time and was killed%s", name, line)
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return fmt.Errorf("%s: %w%s", name, err, line)
}

// A tail keeps the last maxOutput bytes that are written.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
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
