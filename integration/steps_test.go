package integration

import (
	"bufio"
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

	"appliance/lab"
	"appliance/status/client"
)

// TestEveryStepIsKilled kills the program at each step of its start and of its stop, which are the lines that it logs
// at level debug. After every other one cleanup leaves nothing of it in the kernel; after those between, the next start
// serves, and leaves nothing when it has stopped.
func TestEveryStepIsKilled(t *testing.T) {
	for first, name := range []string{1: "then cleanup", 2: "then the next start"} {
		if name == "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStreet(t, "dual", 0)
			node, err := s.lab.Machine("node", s.addrs(2)...)
			if err != nil {
				t.Fatal(err)
			}
			w := &walker{Machine: node, dir: t.TempDir()}
			var vips []string
			for _, p := range s.addrs(10) {
				vips = append(vips, fmt.Sprintf("%q", p.Addr()))
			}
			config := fmt.Sprintf("vips: [%s]\nsingleNode: true\ndataDir: %s/data\nsocket: %[2]s/socket\nlinger: 0s\n"+
				"log: {level: debug}\nloadBalancers:\n- {name: apiserver, port: 6443, check: {type: tcp}, backends: [%q, %q]}\n",
				strings.Join(vips, ", "), w.dir, s.addrs(11)[0].Addr(), s.addrs(11)[1].Addr())
			if err := os.WriteFile(filepath.Join(w.dir, "config.yaml"), []byte(config), 0o600); err != nil {
				t.Fatal(err)
			}
			before := w.kernel(t)
			same := func(step string) {
				t.Helper()
				if now := w.kernel(t); now != before {
					t.Errorf("killed after %q, it leaves\n%s\nand before there was\n%s", step, now, before)
				}
			}
			seen := 0
			for _, stops := range []bool{false, true} {
				for n := first; ; n += 2 {
					step, more := w.killAt(t, n, stops)
					if !more {
						break
					}
					seen++
					if first == 1 {
						w.must(t, binary, "cleanup", "--socket", filepath.Join(w.dir, "socket"))
						same(step)
					}
				}
			}
			if seen < 8 {
				t.Errorf("%d steps only: does it still log what it does?", seen)
			}
			t.Logf("%d steps", seen)
			p, lines := w.start(t)
			w.serves(t)
			if err := p.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			for range lines {
			}
			if err := p.Wait(); err != nil {
				t.Error(err)
			}
			same("a stop in order")
		})
	}
}

// A walker starts the program again and again on a machine of its own.
type walker struct {
	*lab.Machine
	dir string
}

// start starts the program; its log comes line by line, and ends with it.
func (w *walker) start(t *testing.T) (*lab.Process, <-chan string) {
	t.Helper()
	r, end, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "start", "--config", filepath.Join(w.dir, "config.yaml"))
	cmd.Stdout, cmd.Stderr = end, end
	p, err := w.Start(cmd)
	end.Close()
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan string)
	go func() {
		defer close(lines)
		defer r.Close()
		for in := bufio.NewScanner(r); in.Scan(); {
			lines <- in.Text()
		}
	}()
	return p, lines
}

// killAt kills the program when it has logged n lines since it began, or since it was told to stop. It reports false
// when the program serves, or has ended, before.
func (w *walker) killAt(t *testing.T, n int, stops bool) (step string, more bool) {
	t.Helper()
	p, lines := w.start(t)
	defer func() {
		p.Kill()
		for range lines {
		}
	}()
	if stops {
		served := make(chan struct{})
		go func() {
			for range lines {
				select {
				case <-served:
					return
				default:
				}
			}
		}()
		w.serves(t)
		close(served)
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	ctx := patient(t)
	var said []string
	var served time.Time // since when it serves; what it said before may come later
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case line, open := <-lines:
			if !open {
				return "", false
			}
			said = append(said, line)
			if n--; n == 0 {
				return line, true
			}
		case <-tick.C:
			switch {
			case stops || served.IsZero() && w.isServing(ctx) != nil:
			case served.IsZero():
				served = time.Now()
			case time.Since(served) > 300*time.Millisecond:
				return "", false
			}
		case <-ctx.Done():
			t.Fatalf("neither a line of the log nor an end: %v; it said\n%s", w.isServing(t.Context()), strings.Join(said, "\n"))
		}
	}
}

func (w *walker) isServing(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	s, err := client.New(filepath.Join(w.dir, "socket")).Snapshot(ctx)
	switch {
	case err != nil:
		return err
	case len(s.NotReady) > 0:
		return errors.New(strings.Join(s.NotReadyTexts(), "; "))
	case !s.Group.Holding:
		return errors.New("it does not hold")
	}
	return nil
}

func (w *walker) serves(t *testing.T) {
	t.Helper()
	eventually(t, func() error { return w.isServing(t.Context()) })
}

// kernel is what a program can leave in the kernel, but for parameters, which after a crash stay as they are and do no
// harm (docs/security.md), and its socket.
func (w *walker) kernel(t *testing.T) string {
	t.Helper()
	_, err := os.Stat(filepath.Join(w.dir, "socket"))
	return fmt.Sprintf("socket: %v\n", err == nil) + w.must(t, "bash", "-ec", "nft list tables; ip -o -4 address; "+
		"ip -o -6 address | sed 's/ *valid_lft.*//'; ip rule; ip -6 rule; ip route show table all type local")
}

// must runs a program on the machine.
func (w *walker) must(t *testing.T, args ...string) string {
	t.Helper()
	var out strings.Builder
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := w.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, &out)
	}
	return out.String()
}
