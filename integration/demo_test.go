package integration

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestDemo runs the demo without a terminal.
func TestDemo(t *testing.T) {
	for _, flags := range [][]string{nil, {"--ipv6"}} {
		t.Run(strings.Join(flags, " "), func(t *testing.T) {
			cmd, tmp := demo(t, flags...)
			var out, hints strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &hints
			if err := cmd.Run(); err != nil {
				t.Fatalf("%v\n%s\n%s", err, out.String(), hints.String())
			}
			for _, want := range []string{"SIGKILL", "took over", "is back", "two machines at once for 0 ms"} {
				if !strings.Contains(out.String(), want) {
					t.Errorf("the story lacks %q:\n%s", want, out.String())
				}
			}
			nothingIn(t, tmp)
		})
	}
}

// TestDemoInterrupted presses Ctrl-C while the demo runs.
func TestDemoInterrupted(t *testing.T) {
	cmd, tmp := demo(t)
	var hints strings.Builder
	cmd.Stderr = &hints
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "answers for") {
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, out)
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() <= 0 {
		t.Errorf("it ended with %v, want a failed exit", err)
	}
	if !strings.Contains(hints.String(), "interrupted") {
		t.Errorf("it does not say that it was interrupted: %s", hints.String())
	}
	nothingIn(t, tmp)
}

func demo(t *testing.T, flags ...string) (*exec.Cmd, string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	inputs(t)
	tmp := t.TempDir()
	cmd := exec.CommandContext(t.Context(), binary, append([]string{"demo"}, flags...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	return cmd, tmp
}

// nothingIn checks that the demo left neither files nor processes.
func nothingIn(t *testing.T, tmp string) {
	t.Helper()
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range lines {
		if line, err := os.ReadFile(f); err == nil && strings.Contains(string(line), tmp) {
			t.Errorf("still running: %s", strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
}
