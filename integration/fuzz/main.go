package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

const usage = `usage: fuzz [-time DURATION] [-only REGEXP] [-short]

Runs every fuzz target, one after the other, again and again until the time is over. Inputs that
lead to new code stay in Go's build cache, so the next run goes on where this one ends. An input that
fails a target is written below testdata/fuzz of its package: commit it with the fix. The target is
then left out, and the others go on.

`

const (
	// A turn is long enough for what the cache has to be read again, and short enough that all have one soon.
	shortestTurn, longestTurn = 10 * time.Second, 2 * time.Minute
	// By default each input that leads to new code is made smaller for up to a minute, which large ones, such as
	// configurations, need: a turn would try nothing else.
	minimize = time.Second
	// Of the short form: a build takes longer than that.
	shortTargets, shortTurn = 2, 2 * time.Second
)

func main() {
	whole := flag.Duration("time", time.Hour, "how long, in all")
	only := flag.String("only", "", "of the targets, those whose package and name match `regexp`")
	short := flag.Bool("short", false, "only two, others each day, for two seconds")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, *whole, *only, *short))
}

func run(ctx context.Context, whole time.Duration, only string, short bool) (code int) {
	wanted, err := regexp.Compile(only)
	if err != nil {
		fmt.Fprintf(os.Stderr, "fuzz: -only: %v\n", err)
		return 2
	}
	targets, err := list(ctx)
	if err != nil {
		fmt.Fprintf(os.Stderr, "fuzz: %v\n", err)
		return 1
	}
	targets = slices.DeleteFunc(targets, func(t target) bool { return !wanted.MatchString(t.String()) })
	if len(targets) == 0 {
		fmt.Fprintln(os.Stderr, "fuzz: no target matches; leave -only out to see all")
		return 2
	}
	turn := min(max(whole/time.Duration(len(targets)), shortestTurn), longestTurn)
	if short {
		targets, turn, whole = ofDay(targets, time.Now()), shortTurn, 0
	}
	left := whole
	for first := true; (first || left > 0) && len(targets) > 0 && ctx.Err() == nil; first = false {
		targets = slices.DeleteFunc(targets, func(t target) bool {
			if ctx.Err() != nil || left <= 0 && !first {
				return false
			}
			began := time.Now()
			said, ok := t.fuzz(ctx, turn, short)
			left -= max(time.Since(began), turn)
			if ctx.Err() != nil {
				return false
			}
			fmt.Printf("%6.1fs  %v: %s\n", time.Since(began).Seconds(), t, said)
			if !ok {
				code = 1
			}
			return !ok
		})
	}
	return code
}

// A target is one fuzz test.
type target struct{ pkg, dir, name string }

func (t target) String() string { return t.pkg + "." + t.name }

var declared = regexp.MustCompile(`(?m)^func (Fuzz\w*)\(\w+ \*testing\.F\)`)

// list finds the targets in the test files of all packages.
func list(ctx context.Context) (all []target, err error) {
	const format = `{{$p := .}}{{range .TestGoFiles}}{{$p.ImportPath}} {{$p.Dir}}/{{.}}{{"\n"}}{{end}}` +
		`{{range .XTestGoFiles}}{{$p.ImportPath}} {{$p.Dir}}/{{.}}{{"\n"}}{{end}}`
	out, err := exec.CommandContext(ctx, "go", "list", "-f", format, "./...").Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		pkg, file, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		text, err := os.ReadFile(filepath.Clean(file))
		if err != nil {
			return nil, err
		}
		for _, m := range declared.FindAllSubmatch(text, -1) {
			all = append(all, target{pkg, filepath.Dir(file), string(m[1])})
		}
	}
	return all, nil
}

// ofDay are a few of the targets: in some weeks, each has been among them.
func ofDay(all []target, now time.Time) (some []target) {
	day := int(now.Unix() / (24 * 60 * 60))
	for i := range min(shortTargets, len(all)) {
		some = append(some, all[(day*shortTargets+i)%len(all)])
	}
	return some
}

var executed = regexp.MustCompile(`execs: (\d+) \(\d+/sec\)(?:, new interesting: (\d+) \(total: (\d+)\))?`)

// fuzz gives the target a turn, and says how it went. In the short form it is not guided by the code that an input
// leads to: all packages would have to be built for that.
func (t target) fuzz(ctx context.Context, turn time.Duration, short bool) (said string, ok bool) {
	if !short {
		return verdict(t.run(ctx, "", "go", "test", "-run", "^$", "-fuzz", "^"+t.name+"$",
			"-fuzztime", turn.String(), "-fuzzminimizetime", minimize.String(), t.pkg))
	}
	dir, err := os.MkdirTemp("", "fuzz-")
	if err != nil {
		return err.Error(), false
	}
	defer os.RemoveAll(dir)
	test := filepath.Join(dir, "package.test")
	if out, err := t.run(ctx, "", "go", "test", "-c", "-o", test, t.pkg); err != nil {
		return verdict(out, err)
	}
	return verdict(t.run(ctx, t.dir, test, "-test.run", "^$", "-test.fuzz", "^"+t.name+"$",
		"-test.fuzztime", turn.String(), "-test.fuzzminimizetime", minimize.String(), "-test.fuzzcachedir", dir))
}

func (t target) run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	return cmd.CombinedOutput()
}

func verdict(out []byte, err error) (said string, ok bool) {
	said = "no input was run"
	if all := executed.FindAllSubmatch(out, -1); len(all) > 0 {
		last := all[len(all)-1]
		said = fmt.Sprintf("%s inputs", last[1])
		if last[2] != nil {
			said += fmt.Sprintf(", %s lead to new code, %s in all", last[2], last[3])
		}
	}
	// On a busy machine, Go's fuzzer may take the end of its time for a failure.
	if err == nil || bytes.Contains(out, []byte("context deadline exceeded")) &&
		!bytes.Contains(out, []byte("Failing input written to")) {
		return said, true
	}
	return fmt.Sprintf("%s; FAILS: %v\n%s", said, err, out), false
}
