package script

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// said is what a program writes in its last line, which fails so that it can be seen.
func said(t *testing.T, user, text string, args ...string) string {
	t.Helper()
	path, _, err := program(t, 0o755, text+"; exit 1", args...)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Open(append([]string{path}, args...), user)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err = p.Run(ctx)
	if err == nil {
		t.Fatal("no error")
	}
	_, line, _ := strings.Cut(err.Error(), "exit status 1: ")
	if line == "" {
		t.Fatal(err)
	}
	return line
}

func needRoot(t *testing.T) {
	t.Helper()
	if !mayBecome() {
		t.Skip("needs root, to run programs as another user")
	}
}

// Without a user, a program of root runs as nobody and in no further group.
func TestNobody(t *testing.T) {
	needRoot(t)
	want, err := lookup(nobody)
	if err != nil {
		t.Fatal(err)
	}
	const ids = `grep -E "^(Uid|Gid|Groups):" /proc/$$/status | tr -s "\t\n" "  "`
	all := func(id uint32) string { return strings.Repeat(fmt.Sprint(" ", id), 4) }
	if got := strings.TrimSpace(said(t, "", ids)); got != "Uid:"+all(want.uid)+" Gid:"+all(want.gid)+" Groups:" {
		t.Errorf("ran with %s", got)
	}
	if got := strings.TrimSpace(said(t, "12345", ids)); got != "Uid:"+all(12345)+" Gid:"+all(12345)+" Groups:" {
		t.Errorf("ran with %s", got)
	}
}

// The same for the service's own user, which has the capabilities for that.
func TestNobodyOfAService(t *testing.T) {
	needRoot(t)
	if os.Geteuid() != 0 {
		TestNobody(t)
		return
	}
	// The test's directory and program may be root's alone.
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestNobodyOfAService$", "-test.v")
	cmd.Dir, cmd.Env = "/", append(os.Environ(), "TMPDIR=/tmp")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: 4242, Gid: 4242},
		AmbientCaps: []uintptr{unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_KILL},
	}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestNobodyOfAService") {
		t.Errorf("%v\n%s", err, out)
	}
}

// Whoever it runs as, a program has no capabilities, and gets none.
func TestNoPrivileges(t *testing.T) {
	users := []string{own}
	if mayBecome() {
		users = append(users, "")
	}
	for _, user := range users {
		got := said(t, user, `grep -E "^(CapInh|CapPrm|CapEff|CapAmb|NoNewPrivs):" /proc/$$/status | tr -s "\t\n" "  "`)
		none := strings.Repeat("0", 16)
		want := "CapInh: " + none + " CapPrm: " + none + " CapEff: " + none + " CapAmb: " + none + " NoNewPrivs: 1"
		if strings.TrimSpace(got) != want {
			t.Errorf("user %q: %s", user, got)
		}
	}
}

// A program has limits, and is an ordinary process however this one runs.
func TestLimits(t *testing.T) {
	want := fmt.Sprint("0 ", maxMemory>>10, " 1024")
	if got := said(t, own, "echo $(ulimit -c) $(ulimit -d) $(ulimit -n)"); got != want {
		t.Errorf("limits are %s", got)
	}
	if got := said(t, own, "ulimit -t"); got != "60" && got != "61" {
		t.Errorf("%s seconds of processor time", got)
	}
	if got := said(t, own, "cut -d' ' -f19 /proc/$$/stat"); got != "0" {
		t.Errorf("niceness is %s", got)
	}
	needRoot(t)
	// Another user's processes count for the limit too.
	other := exec.Command("sleep", "600")
	other.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 12345, Gid: 12345}}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = other.Process.Kill()
		_ = other.Wait()
	}()
	if got := said(t, "12345", `awk '/^Max processes/ {print $3}' /proc/$$/limits`); got != fmt.Sprint(maxProcesses+1) {
		t.Errorf("%s processes", got)
	}
	// More than that cannot be started.
	many := `n=0; while [ $n -lt 200 ]; do sleep 600 & n=$((n+1)); done; wait`
	path, _, err := program(t, 0o755, many)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Open([]string{path}, "12345")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := p.Run(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("200 processes: %v", err)
	}
}

func TestOutputLimit(t *testing.T) {
	start := time.Now()
	err := mustOpen(t, "while :; do echo 0123456789012345678901234567890123456789; done").Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "wrote more than 1 MiB and was killed") {
		t.Errorf("%v after %s", err, time.Since(start))
	}
}

// What was checked is what runs: a file that is put in its place afterwards is not run in its stead.
func TestRunsWhatWasChecked(t *testing.T) {
	path, p, err := program(t, 0o755, "echo checked; exit 1")
	if err != nil {
		t.Fatal(err)
	}
	f, err := p.open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, []byte("#!/bin/sh\necho exchanged; exit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(other, path); err != nil {
		t.Fatal(err)
	}
	out, _ := exec.Command("/bin/sh", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())).Output()
	if got := strings.TrimSpace(string(out)); got != "checked" {
		t.Errorf("%s is what runs", got)
	}
}

// The way to a program is checked as well: links, and the directories that they are in.
func TestLinksAreChecked(t *testing.T) {
	path, _, err := program(t, 0o755, "exit 0")
	if err != nil {
		t.Fatal(err)
	}
	open := func(at string) error {
		_, err := Open([]string{at}, own)
		return err
	}
	dir := filepath.Join(t.TempDir(), "links")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	link, twice, loop := filepath.Join(dir, "link"), filepath.Join(dir, "twice"), filepath.Join(dir, "loop")
	for at, target := range map[string]string{link: path, twice: "../links/./link", loop: "loop"} {
		if err := os.Symlink(target, at); err != nil {
			t.Fatal(err)
		}
	}
	for _, at := range []string{link, twice} {
		if err := open(at); err != nil {
			t.Error(err)
		}
	}
	if err := open(loop); !errors.Is(err, unix.ELOOP) {
		t.Error(err)
	}
	if err := open(path + "/x"); !errors.Is(err, unix.ENOTDIR) {
		t.Error(err)
	}
	// Everybody may exchange the link, though not the file.
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := open(twice); err == nil || !strings.Contains(err.Error(), "chmod go-w "+dir) {
		t.Error(err)
	}
	if os.Getuid() != 0 {
		t.Skip("only root can give links away")
	}
	if err := errors.Join(os.Chmod(dir, 0o755|os.ModeSticky), os.Lchown(link, 12345, 12345)); err != nil {
		t.Fatal(err)
	}
	if err := open(twice); err == nil || !strings.Contains(err.Error(), "chown -h root "+link) {
		t.Error(err)
	}
}

// A user that may not run the program is named before it is needed.
func TestUserMayRun(t *testing.T) {
	needRoot(t)
	for mode, want := range map[os.FileMode]string{
		0o755: "", 0o700: "chmod o+rx", 0o711: "chmod o+rx", 0o744: "chmod o+rx",
	} {
		path, _, err := program(t, mode, "exit 0")
		if err != nil {
			t.Fatal(err)
		}
		_, err = Open([]string{path}, "12345")
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%o: %v", mode, err)
		}
		if err := os.Chown(path, 0, 12345); err != nil {
			t.Fatal(err)
		}
	}
	_, err := Open([]string{"/bin/sh"}, "no-such-user")
	if err == nil || !strings.Contains(err.Error(), "write one that /etc/passwd has") {
		t.Error(err)
	}
}

// The program of a directory that only root may enter runs all the same.
func TestHiddenDirectory(t *testing.T) {
	needRoot(t)
	path, _, err := program(t, 0o755, "exit 0")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	p, err := Open([]string{path}, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Run(t.Context()); err != nil {
		t.Error(err)
	}
}
