package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"appliance/integration/bench/load"
)

func main() {
	suite := flag.String("suite", "failover",
		"what is measured: failover, idle, routers, forward (which ends with ipvs), or ipvs (in a virtual machine); "+
			"ipvs-guest is the part in that machine")
	binary := flag.String("binary", "", "the appliance to measure; empty builds it")
	trials := flag.Int("trials", 10, "trials of each fault")
	only := flag.String("only", "", "comma-separated faults or rows to measure; empty is all")
	through := flag.String("through", "",
		"forwarders or ways to keep the address to measure, separated by semicolons; empty is all")
	rounds := flag.Int("rounds", 6, "rounds in which all forwarders are measured in turns")
	length := flag.Duration("for", 3*time.Second, "length of one measurement of forwarding; ten times as long of idling")
	out := flag.String("out", filepath.Join("docs", "benchmarks"), "where the pages are written")
	serve := flag.String("serve", "", "be a server on this address (for the benchmark itself)")
	job := flag.String("job", "", "be a client with this job (for the benchmark itself)")
	flag.Parse()
	if *serve != "" || *job != "" {
		if err := station(*serve, *job); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	// Clients and watchers are in this process: kept from running by whatever else
	// the machine does, they would measure that. Where sessions are scheduled
	// as groups, this is what counts; what is measured has sessions of its own.
	_ = os.WriteFile("/proc/self/autogroup", []byte("-15"), 0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, *binary, func(binary string) error {
		switch *suite {
		case "failover":
			return failover(ctx, binary, *trials, *only, *through, *out, os.Stdout, os.Stderr)
		case "idle":
			return idle(ctx, binary, 10**length, *through, *out, os.Stdout)
		case "routers":
			return routers(ctx, binary, *trials, *out, os.Stdout, os.Stderr)
		case "forward":
			return forward(ctx, binary, *rounds, *length, *only, *through, *out, os.Stdout, os.Stderr)
		case "ipvs":
			_, err := ipvsInVM(ctx, binary, *rounds, *length, *out, os.Stdout, os.Stderr)
			return err
		case "ipvs-guest":
			return ipvsGuest(ctx, binary, *rounds, *length, os.Stdout, os.Stderr)
		}
		return fmt.Errorf("there is no suite %q; write failover, idle, routers, forward or ipvs", *suite)
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// station is one end of a connection that is measured.
func station(serve, job string) error {
	if serve != "" {
		at, err := netip.ParseAddrPort(serve)
		if err != nil {
			return err
		}
		return load.Serve(at)
	}
	var j load.Job
	if err := json.Unmarshal([]byte(job), &j); err != nil {
		return err
	}
	r, err := j.Run()
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// run calls suite with the appliance's binary, built if there is none.
func run(ctx context.Context, binary string, suite func(binary string) error) error {
	if binary == "" {
		dir, err := os.MkdirTemp("", "appliance-bench-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "appliance")
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", binary, "appliance")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build the appliance: %w\n%s", err, out)
		}
	}
	return suite(binary)
}
