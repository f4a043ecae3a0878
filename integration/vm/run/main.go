// Command run runs a program of this host in a virtual machine whose kernel
// has ip_vs, and exits as the program does.
//
//	go run ./integration/vm/run [-env K=V] [-memory MiB] [-timeout 10m] [-console] [--] CMD ARGS...
//
// It exits with 77 when this host lacks what that takes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"appliance/integration/vm"
)

// exitSkip is what test drivers take for "skipped" (automake and meson too).
const exitSkip = 77

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
	}
	os.Exit(code)
}

func run(ctx context.Context) (int, error) {
	o := vm.Spec{Stdout: os.Stdout, Stderr: os.Stderr}
	flag.Func("env", "`NAME=value` for the command; may be given again", func(kv string) error {
		o.Env = append(o.Env, kv)
		return nil
	})
	flag.IntVar(&o.MemoryMiB, "memory", 0, "memory of the machine in `MiB`")
	flag.IntVar(&o.CPUs, "cpus", 0, "`number` of processors")
	flag.DurationVar(&o.Timeout, "timeout", 0, "hard limit on the whole run")
	console := flag.Bool("console", false, "show what the guest's kernel says, on stderr")
	flag.Parse()
	if *console {
		o.Console = os.Stderr
	}
	if flag.NArg() == 0 {
		return 2, errors.New("no command; give the program that is to run, and its arguments")
	}

	// The guest has the same files, so that a program is looked up here.
	command := flag.Args()
	path, err := exec.LookPath(command[0])
	if err != nil {
		return 127, err
	}
	if command[0], err = filepath.Abs(path); err != nil {
		return 127, err
	}
	code, err := vm.Run(ctx, o, command...)
	if errors.Is(err, vm.ErrUnavailable) {
		return exitSkip, err
	}
	if err != nil {
		return 1, err
	}
	return code, nil
}
