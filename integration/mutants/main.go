package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// longest bounds one test, mutated.
const longest = 4 * time.Minute

func main() {
	only := flag.String("only", "", "of the mutants, those whose name or file contains `text`")
	short := flag.Bool("short", false, "only a few quick ones, of different files")
	sim := flag.Bool("sim", false, "instead of the named test, run whole groups in virtual time (TestSim in ./raft)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, selected(*only, *short), *sim))
}

// selected are the mutants that flags ask for.
func selected(only string, short bool) (those []mutant) {
	files := make(map[string]bool)
	for _, m := range mutants {
		if !strings.Contains(m.name, only) && !strings.Contains(m.file, only) {
			continue
		}
		// Tests of package raft itself start whole groups.
		if short && (files[m.file] || path.Dir(m.file) == "raft") {
			continue
		}
		files[m.file] = true
		those = append(those, m)
	}
	return those
}

func run(ctx context.Context, those []mutant, sim bool) (code int) {
	dir, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	began := time.Now()
	for _, m := range those {
		at := time.Now()
		err := m.try(ctx, dir, sim)
		if ctx.Err() != nil {
			return 1
		}
		verdict := "dies"
		if err != nil {
			verdict, code = err.Error(), 1
		}
		fmt.Printf("%6.1fs  %s: %s\n", time.Since(at).Seconds(), m.name, verdict)
	}
	fmt.Printf("%d mutants in %v\n", len(those), time.Since(began).Round(time.Second))
	return code
}

// try runs the test of m, or the simulation, on the changed tree, and returns an error unless it fails.
func (m mutant) try(ctx context.Context, dir string, sim bool) error {
	folder, test := path.Dir(m.file), m.test
	if sim {
		folder, test = "raft", "TestSim"
	}
	text, err := os.ReadFile(m.file)
	if err != nil {
		return err
	}
	if n := strings.Count(string(text), m.old); n != 1 {
		return fmt.Errorf("%s has the text of this mutant %d times; correct the list", m.file, n)
	}
	changed := filepath.Join(dir, "changed.go")
	if err := os.WriteFile(changed, []byte(strings.Replace(string(text), m.old, m.new, 1)), 0o600); err != nil {
		return err
	}
	real, err := filepath.Abs(m.file)
	if err != nil {
		return err
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {real: changed}})
	if err != nil {
		return err
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		return err
	}
	args := []string{"test", "-overlay", list, "-count=1", "-vet=off", "-timeout", longest.String()}
	if sim {
		args = append(args, "-tags", "sim", "-ldflags=-checklinkname=0") // raft/simlocks_test.go
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "-run", "^"+test+"$", "./"+folder)...)
	out, err := cmd.CombinedOutput()
	switch said := string(out); {
	case err == nil && strings.Contains(said, "no tests to run"):
		return fmt.Errorf("there is no %s", test)
	case err == nil:
		return fmt.Errorf("LIVES: %s passes", test)
	case sim && !strings.Contains(said, "WRONG"):
		return fmt.Errorf("the simulation ends by something else: %.200s", said)
	case strings.Contains(said, "[build failed]") || strings.Contains(said, "[setup failed]"):
		return fmt.Errorf("does not compile: %s", said)
	}
	return nil
}
