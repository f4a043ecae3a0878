package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"appliance/integration/scene"
	"appliance/lab"
)

const (
	// oversubscribed is how many processes are busy on each core.
	oversubscribed = 8
	// request is the CPU time that the printed pod asks for, in thousandths of a core.
	request = 100
	// stall is how long a process stands still, and stallEvery how often one does.
	stall, stallEvery = 200 * time.Millisecond, 2 * time.Second
)

// A load is one row: what the machine has to do beside the group.
type load struct {
	name   string
	stalls bool
	limit  int // of CPU time for each process, in thousandths of a core; 0: none
}

var loads = []load{
	{name: "eight busy processes on each core"},
	{name: "the same, and a process of ours stands still for 200 ms every 2 s", stalls: true},
	{name: "as the first, and each process of ours has a CPU limit of 50m", limit: 50},
}

// A result is what moved.
type result struct {
	load
	took             time.Duration
	holders          int    // changes of the holder
	terms            uint64 // elections
	vanished         int    // lines that say that a peer has
	clients, refused int    // new connections, and those that failed within a second
}

func main() {
	length := flag.Duration("for", 10*time.Minute, "length of each row")
	binary := flag.String("binary", "", "the appliance to measure; empty builds it")
	plane := flag.String("plane", "direct", "the data plane")
	out := flag.String("out", filepath.Join("docs", "benchmarks"), "where the page is written")
	flag.Parse()
	runtime.LockOSThread() // the busy processes end with the thread that started them
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *binary, *plane, *length, *out); err != nil {
		fmt.Fprintln(os.Stderr, "calm:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, binary, plane string, length time.Duration, out string) error {
	if binary == "" {
		built, remove, err := scene.Compile()
		if err != nil {
			return err
		}
		defer remove()
		binary = built
	}
	var results []result
	for _, l := range loads {
		r, err := measure(ctx, binary, plane, l, length)
		if err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		fmt.Fprintf(os.Stderr, "%+v\n", r)
		results = append(results, r)
	}
	text := page(results, plane)
	fmt.Print(text)
	return os.WriteFile(filepath.Join(out, "calm.md"), []byte(text), 0o644)
}

// measure runs a group beside one load.
func measure(ctx context.Context, binary, plane string, l load, length time.Duration) (r result, err error) {
	s, err := scene.Build(scene.Setup{Family: scene.IPv4, Stacked: true})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	pod := filepath.Join(s.Dir, "pod")
	script := "#!/bin/sh\nexec setpriv --bounding-set=-all,+net_admin,+net_raw " + binary + ` "$@"` + "\n"
	if err := os.WriteFile(pod, []byte(script), 0o755); err != nil {
		return r, err
	}
	app, err := s.Appliance(scene.Settings{Binary: pod, Plane: plane})
	if err != nil {
		return r, err
	}
	all, err := newSlice(fmt.Sprintf("appliance-calm-%d", os.Getpid()))
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, all.remove()) }()
	for i := range s.Nodes {
		in, err := all.add(fmt.Sprint("n", i+1), request, l.limit)
		if err != nil {
			return r, err
		}
		defer func() { removeEmpty(in) }()
		if err := app.Start(i); err != nil {
			return r, err
		}
		defer app.Kill(i)
		if err := in.take(app.Process(i).Cmd.Process.Pid); err != nil {
			return r, err
		}
	}
	ready, cancel := context.WithTimeout(ctx, 2*time.Minute)
	err = app.AwaitReady(ready, 0, 1, 2)
	cancel()
	if err != nil {
		return r, err
	}
	rest, err := all.add("busy", 1000*runtime.NumCPU()-len(s.Nodes)*request, 0)
	if err != nil {
		return r, err
	}
	defer func() { removeEmpty(rest) }()
	end, err := keepBusy(rest)
	if err == nil {
		r, err = watch(ctx, s, app, l, length)
	}
	end()
	return r, err
}

// keepBusy starts the busy processes; end ends those that have been started.
func keepBusy(in *slice) (end func(), err error) {
	var all []*exec.Cmd
	end = func() {
		for _, busy := range all {
			busy.Process.Kill()
			busy.Wait()
		}
	}
	for range oversubscribed * runtime.NumCPU() {
		busy := exec.Command("sh", "-c", "while :; do :; done")
		busy.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
		if err := busy.Start(); err != nil {
			return end, err
		}
		all = append(all, busy)
		if err := in.take(busy.Process.Pid); err != nil {
			return end, err
		}
	}
	return end, nil
}

// watch counts what moves.
func watch(ctx context.Context, s *scene.Scene, app *scene.Appliance, l load, length time.Duration) (r result, err error) {
	r.load = l
	before, err := app.Status(ctx, 0)
	if err != nil {
		return r, err
	}
	said := strings.Count(app.Log(), vanishedLine)
	began := time.Now()
	clients := s.Client.Probe(ctx, lab.Probe{Target: s.Target(s.VIPs[0]), Every: 100 * time.Millisecond, Patience: time.Second})
	holder, now := before.Holder, before
	look, still := time.NewTicker(time.Second), time.NewTicker(stallEvery)
	defer look.Stop()
	defer still.Stop()
	for time.Since(began) < length {
		select {
		case <-ctx.Done():
			return r, ctx.Err()
		case <-still.C:
			if !l.stalls {
				continue
			}
			if i := rand.IntN(len(s.Nodes)); app.Freeze(i) == nil {
				time.Sleep(stall)
				if err := app.Thaw(i); err != nil {
					return r, err
				}
			}
		case <-look.C:
			once, cancel := context.WithTimeout(ctx, 10*time.Second)
			got, err := app.Status(once, 0)
			cancel()
			if err != nil {
				continue // it is late
			}
			if now = got; now.Holder != "" && now.Holder != holder {
				holder = now.Holder
				r.holders++
			}
		}
	}
	clients.Finish()
	r.took, r.terms = time.Since(began), now.Term-before.Term
	r.vanished = strings.Count(app.Log(), vanishedLine) - said
	for _, t := range clients.Tries() {
		r.clients++
		if t.Err != nil {
			r.refused++
		}
	}
	return r, nil
}

const vanishedLine = `msg="a peer has vanished"`

// removeEmpty removes a slice whose last process has just ended: the kernel takes a moment.
func removeEmpty(s *slice) {
	for range 100 {
		if s.remove() == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func page(results []result, plane string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Calm, counted\n\n`make calm` has written this page on %s: a group of three in network namespaces of one "+
		"machine with %d cores, data plane %s, heartbeat 150 ms, with the printed pod's capabilities and CPU weight (%dm each). "+
		"The busy processes together have the weight of the rest of the machine. Nothing fails: every change is one too "+
		"many. Clients open ten connections a second and wait for one second.\n\n"+
		"| beside the group | minutes | changes of the holder | elections | \"a peer has vanished\" | clients that failed |\n"+
		"|---|---|---|---|---|---|\n",
		time.Now().UTC().Format("2006-01-02"), runtime.NumCPU(), plane, request)
	for _, r := range results {
		fmt.Fprintf(&b, "| %s | %.0f | %d | %d | %d | %d of %d |\n",
			r.name, r.took.Minutes(), r.holders, r.terms, r.vanished, r.refused, r.clients)
	}
	return b.String()
}
