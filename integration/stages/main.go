package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

const usage = `usage: stages [-since SECONDS] [-busy N] STAGE...

Runs lint, unit, mutants, fuzz and integration, in the order in which they are named. It stops at
the first that fails. In CI (CI=true) a test that was skipped without one of the
reasons in skips.go fails, too.

`

func main() {
	os.Exit(run())
}

func run() int {
	since := flag.Int64("since", 0, "when the set-up began, in `seconds` since 1970; it counts as a stage")
	busy := flag.Int("busy", 0, "keep that many `threads` busy beside the tests, as on a machine that has more to do")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + *busy)
	for range *busy {
		go func() {
			for ctx.Err() == nil {
			}
		}()
	}
	s := &summary{ci: os.Getenv("CI") == "true"}
	if *since > 0 {
		s.stages = append(s.stages, stage{name: "set-up", took: time.Since(time.Unix(*since, 0))})
	}
	code := 0
	for _, name := range flag.Args() {
		began := time.Now()
		err := s.run(ctx, name)
		s.stages = append(s.stages, stage{name, time.Since(began), err})
		if err != nil {
			code = 1
			break
		}
	}
	if !s.write(os.Stdout) {
		code = 1
	}
	return code
}

func (s *summary) run(ctx context.Context, name string) error {
	switch name {
	case "lint":
		return start(ctx, os.Stdout, "make", "--no-print-directory", "lint")
	case "unit":
		// Everything but the tests that start whole groups, with the race detector.
		out, err := exec.CommandContext(ctx, "go", "list", "./...").Output()
		if err != nil {
			return fmt.Errorf("go list: %w", err)
		}
		packages := slices.DeleteFunc(strings.Fields(string(out)), func(p string) bool {
			return strings.Contains(p, "/integration")
		})
		fmt.Println("== unit tests, race detector on")
		err = s.test(ctx, false, append([]string{"-race", "-timeout", "15m"}, packages...)...)
		if err != nil {
			return err
		}
		fmt.Println("== whole groups in virtual time")
		// With the tag, threads stand still with locks: raft/simlocks_test.go.
		return s.test(ctx, false, "-tags", "sim", "-ldflags=-checklinkname=0", "-timeout", "20m",
			"-run", "^(TestSim|TestFounders$)", "./raft")
	case "mutants":
		// What the tests of "never two" would notice; make mutants tries all.
		fmt.Println("== mutants: a few")
		return start(ctx, os.Stdout, "go", "run", "./integration/mutants", "-short")
	case "fuzz":
		// Two of the fuzz targets, others each day; make fuzz runs all.
		fmt.Println("== fuzz: two targets")
		return start(ctx, os.Stdout, "go", "run", "./integration/fuzz", "-short")
	case "integration":
		// Real processes in network namespaces, and again in a VM whose kernel has ip_vs.
		fmt.Println("== integration tests")
		return s.test(ctx, true, "-timeout", "40m", "-p", "1", "./integration/...")
	}
	return errors.New("there is no such stage; write lint, unit, mutants, fuzz or integration")
}

// test runs go test. Of packages that pass, only a verbose one prints more than
// its closing line.
func (s *summary) test(ctx context.Context, verbose bool, args ...string) error {
	r, w := io.Pipe()
	read := make(chan error, 1)
	go func() {
		err := s.read(r, os.Stdout, verbose)
		r.CloseWithError(err) // lets go test go on, and fail
		read <- err
	}()
	err := start(ctx, w, "go", append([]string{"test", "-json"}, args...)...)
	w.Close()
	return errors.Join(err, <-read)
}

func start(ctx context.Context, out io.Writer, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	// A Ctrl-C reaches everybody in the terminal; who is asked to end by
	// somebody else passes it on.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	return cmd.Run()
}
