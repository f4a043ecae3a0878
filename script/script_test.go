package script

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	RunIfChild()
	os.Exit(m.Run())
}

// own is the user of this process.
var own = strconv.Itoa(os.Geteuid())

// program writes a shell script and opens it.
func program(t *testing.T, mode os.FileMode, text string, args ...string) (string, *Program, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "check.sh")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	p, err := Open(append([]string{path}, args...), own)
	return path, p, err
}

func mustOpen(t *testing.T, text string, args ...string) *Program {
	t.Helper()
	_, p, err := program(t, 0o755, text, args...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestRun(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"success", "exit 0", ""},
		{"fails", "echo one; echo 'the reason' >&2; exit 3", "check.sh: exit status 3: the reason"},
		{"says nothing", "exit 1", "check.sh: exit status 1"},
		{"is killed", "kill -9 $$", "check.sh: signal: killed"},
		{"says much", "i=0; while [ $i -lt 3000 ]; do echo 0123456789; i=$((i+1)); done; echo last; exit 1",
			"check.sh: exit status 1: last"},
		{"says garbage", `printf 'a\033[31mb\377'; exit 1`, "check.sh: exit status 1: a [31mb?"},
		{"argument", `[ "$1" = "a b" ] || exit 1`, ""},
		{"environment", `[ "$EVENT" = holder ] && [ -z "$SECRET" ] && [ "$PWD" = / ] || { env; exit 1; }`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("SECRET", "x")
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			err := mustOpen(t, tt.text, "a b").Run(ctx, "EVENT=holder")
			if fmt.Sprint(err) != tt.want && (tt.want != "" || err != nil) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

// When the context ends, a program is killed with everything that it started.
func TestKilledWithChildren(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	p := mustOpen(t, "sleep 600 & echo $! > "+pids+"; sleep 600")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	pid := readPID(t, pids)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	awaitGone(t, pid)

	// What a successful program leaves behind is killed as well.
	if err := mustOpen(t, "sleep 600 >/dev/null 2>&1 & echo $! > "+pids).Run(t.Context()); err != nil {
		t.Error(err)
	}
	awaitGone(t, readPID(t, pids))
}

func TestTimeLimit(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := mustOpen(t, "sleep 600").Run(ctx)
	if err == nil || !strings.Contains(err.Error(), "did not end in time and was killed") {
		t.Error(err)
	}
}

func readPID(t *testing.T, path string) int {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		data, err := os.ReadFile(path)
		if pid, perr := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && perr == nil {
			return pid
		}
	}
	t.Fatal("the program does not start")
	return 0
}

func awaitGone(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
	t.Errorf("process %d still runs", pid)
}

func TestRefused(t *testing.T) {
	refused := func(want string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	for mode, want := range map[os.FileMode]string{
		0o775: "chmod go-w", 0o757: "chmod go-w", 0o777: "chmod go-w", 0o644: "chmod 755",
	} {
		_, _, err := program(t, mode, "exit 0")
		refused(want, err)
	}
	_, err := Open(nil, "")
	refused("write its path", err)
	_, err = Open([]string{"check.sh"}, "")
	refused("begin it with /", err)
	_, err = Open([]string{"/nonexistent/check.sh"}, "")
	refused("correct the path", err)
	_, err = Open([]string{t.TempDir()}, "")
	refused("is no file", err)

	// Everybody may replace the files of this directory.
	path, p, err := program(t, 0o755, "exit 0")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	refused("chmod go-w "+filepath.Dir(path), p.Run(t.Context())) // it was fine when it was opened
	// Through a link too.
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	_, err = Open([]string{link}, "")
	refused("chmod go-w "+filepath.Dir(path), err)
	if os.Getuid() != 0 {
		t.Skip("only root can give files away")
	}
	path, _, _ = program(t, 0o755, "exit 0")
	if err := os.Chown(path, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	_, err = Open([]string{path}, "")
	refused("belongs to user 65534", err)
}
