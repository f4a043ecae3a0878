package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"appliance/integration/bench/load"
	"appliance/integration/vm"
)

// A row is one thing that is measured of every forwarder.
type row struct {
	name string
	job  load.Job
	// per is what CPU time is given for: connections, requests, or bytes.
	per  string
	unit float64
	// wrk is the client then, and not ours.
	wrk bool
	// busy says that something else keeps one of the cores busy.
	busy bool
}

func rows(length time.Duration) []row {
	job := func(kind string, conns int) load.Job {
		return load.Job{Kind: kind, Conns: conns, Warm: length / 8, For: length}
	}
	cold := func(kind string, conns int) load.Job { return load.Job{Kind: kind, Conns: conns, For: length} }
	return []row{
		{name: "conn64", job: job("conn", 64), per: "1M connections", unit: 1e6},
		{name: "conn64-wrk", job: cold("conn", 64), per: "1M connections", unit: 1e6, wrk: true},
		{name: "conn1", job: job("conn", 1), per: "1M connections", unit: 1e6},
		{name: "rps64", job: job("rps", 64), per: "1M requests", unit: 1e6},
		{name: "rps64-wrk", job: cold("rps", 64), per: "1M requests", unit: 1e6, wrk: true},
		{name: "rps64-busy", job: job("rps", 64), per: "1M requests", unit: 1e6, busy: true},
		{name: "rps1", job: job("rps", 1), per: "1M requests", unit: 1e6},
		{name: "down4", job: job("down", 4), per: "GB", unit: 1e9},
		{name: "up4", job: job("up", 4), per: "GB", unit: 1e9},
	}
}

// A figure is one measurement.
type figure struct {
	load.Measurement
	// CPU is what the forwarder's processes took for each unit, in seconds.
	CPU float64
}

// rate is connections, requests, or Gbit per second.
func (f figure) rate() float64 {
	if f.Bytes > 0 {
		return float64(f.Bytes) * 8 / 1e9 / f.Took.Seconds()
	}
	return float64(f.Count) / f.Took.Seconds()
}

// A survey is all that was measured.
type survey struct {
	names   []string
	rows    []row
	load    string                 // of the machine before
	figures map[[2]string][]figure // by row and forwarder
	idle    map[string]idleFigure
	broken  map[[2]string][]brokenFigure // by fault and forwarder
	ipvs    *survey                      // in the virtual machine; nil where there was none
}

// forward measures and writes the page. Unless only a part is wanted, it ends
// with what takes a kernel with ip_vs, which has a page of its own.
func forward(ctx context.Context, binary string, rounds int, length time.Duration,
	onlyRows, onlyNames, outDir string, out, progress io.Writer) error {
	s, err := takeSurvey(ctx, binary, rounds, length, onlyRows, onlyNames, progress)
	if err != nil {
		return err
	}
	// Written at once, so that it is there whatever becomes of the rest.
	if err := s.write(outDir, rounds, length); err != nil {
		return err
	}
	if onlyRows == "" && onlyNames == "" {
		s.ipvs, err = ipvsInVM(ctx, binary, rounds, length, outDir, io.Discard, progress)
		switch {
		case errors.Is(err, vm.ErrUnavailable):
			fmt.Fprintln(progress, "data plane ipvs is not measured:", err)
		case err != nil:
			return err
		}
		if err := s.write(outDir, rounds, length); err != nil {
			return err
		}
	}
	s.markdown(out, rounds, length)
	return nil
}

// write writes page and picture, if there is a directory for them.
func (s *survey) write(dir string, rounds int, length time.Duration) error {
	var text bytes.Buffer
	s.markdown(&text, rounds, length)
	return writePage(dir, "forward", text.Bytes(), s.svg())
}

func writePage(dir, name string, page, picture []byte) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, name+".md"), page, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name+".svg"), picture, 0o644)
}

// takeSurvey measures the rows and forwarders that are named; empty is all.
func takeSurvey(ctx context.Context, binary string, rounds int, length time.Duration, onlyRows, onlyNames string,
	progress io.Writer) (*survey, error) {
	var names []string
	if onlyNames != "" {
		names = strings.Split(onlyNames, ";")
	}
	f, err := newField(ctx, binary, names)
	if err != nil {
		return nil, err
	}
	defer f.close()
	if err := sleep(ctx, 5*time.Second); err != nil { // checks begin to trust, direct proves its paths
		return nil, err
	}
	wanted := func(row string) bool { return onlyRows == "" || slices.Contains(strings.Split(onlyRows, ","), row) }
	s := &survey{load: loadAverage(), figures: map[[2]string][]figure{}, idle: map[string]idleFigure{},
		broken: map[[2]string][]brokenFigure{}}
	for _, w := range f.forwarders {
		s.names = append(s.names, w.name)
	}
	for _, r := range rows(length) {
		if wanted(r.name) {
			s.rows = append(s.rows, r)
		}
	}
	// Round by round, so that noise hits all alike.
	for round := range rounds {
		for _, r := range s.rows {
			for _, w := range f.forwarders {
				got, err := f.measure(ctx, r, w)
				if err != nil {
					return nil, fmt.Errorf("%s, %s: %w", r.name, w.name, err)
				}
				key := [2]string{r.name, w.name}
				s.figures[key] = append(s.figures[key], got)
				fmt.Fprintf(progress, "%d %-10s %-27s %10.1f/s  p50 %7.0f p99 %7.0f p99.9 %7.0f µs  CPU %6.2f s per %s  "+
					"%d errors\n", round+1, r.name, w.name, got.rate(), got.P50, got.P99, got.P999, got.CPU, r.per, got.Errors)
			}
		}
	}
	for _, w := range f.forwarders {
		if w.proc == nil || w.name == "appliance direct" || w.name == "appliance nftables" {
			continue // connections cost them nothing in user space
		}
		if wanted("idle") {
			if s.idle[w.name], err = f.measureIdle(ctx, w); err != nil {
				return nil, fmt.Errorf("idle, %s: %w", w.name, err)
			}
			fmt.Fprintf(progress, "idle %-26s %s\n", w.name, s.idle[w.name])
		}
	}
	for _, fault := range []string{"bkill", "bhang"} {
		for range max(1, rounds/4) {
			for _, w := range f.forwarders {
				if w.name == "no balancer" || w.name == "nft by hand" || w.name == "appliance direct" || !wanted(fault) {
					continue // they have no checks, or servers of their own
				}
				got, err := f.break1(ctx, fault, w)
				if err != nil {
					return nil, fmt.Errorf("%s, %s: %w", fault, w.name, err)
				}
				s.broken[[2]string{fault, w.name}] = append(s.broken[[2]string{fault, w.name}], got)
				fmt.Fprintf(progress, "%s %-26s %s\n", fault, w.name, got)
			}
		}
	}
	return s, nil
}

// measure runs one job through w.
func (f *field) measure(ctx context.Context, r row, w *forwarder) (figure, error) {
	j := r.job
	j.To = w.to
	if r.busy {
		p, err := f.client.Start(exec.Command("taskset", "-c", "0", "sh", "-c", "while :; do :; done"))
		if err != nil {
			return figure{}, err
		}
		defer p.Kill()
	}
	run := f.run
	if r.wrk {
		run = f.runWrk
	}
	before := w.cpu()
	res, err := run(ctx, j)
	if err != nil {
		return figure{}, err
	}
	used := w.cpu() - before
	// The warm-up costs time too, and is not counted.
	part := float64(j.For) / float64(j.For+j.Warm)
	units := float64(res.Count+res.Bytes) / r.unit
	return figure{res, used * part / units}, nil
}

// run has a process in the client's machine do the job.
func (f *field) run(ctx context.Context, j load.Job) (r load.Measurement, err error) {
	p, out, err := f.startClient(j)
	if err != nil {
		return r, err
	}
	if err := finish(ctx, p); err != nil {
		return r, err
	}
	return r, json.Unmarshal(out.Bytes(), &r)
}

// finish waits for a client.
func finish(ctx context.Context, p process) error {
	select {
	case <-p.Done():
	case <-ctx.Done():
		p.Kill()
		return ctx.Err()
	}
	if err := p.Wait(); err != nil {
		return fmt.Errorf("the client: %w", err)
	}
	return nil
}

func (f *field) startClient(j load.Job) (process, *bytes.Buffer, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	text, err := json.Marshal(j)
	if err != nil {
		return nil, nil, err
	}
	var out bytes.Buffer
	cmd := exec.Command(self, "-job", string(text))
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	p, err := f.client.Start(cmd)
	return p, &out, err
}

// process is a lab.Process as far as it matters here.
type process interface {
	Done() <-chan struct{}
	Wait() error
	Kill()
}

// pids are the processes of a forwarder: nginx has workers.
func (w *forwarder) pids() []int {
	if w.proc == nil {
		return nil
	}
	pid := w.proc.Cmd.Process.Pid
	all := []int{pid}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err == nil {
		for _, c := range strings.Fields(string(children)) {
			if n, err := strconv.Atoi(c); err == nil {
				all = append(all, n)
			}
		}
	}
	return all
}

// cpu is the time that the forwarder's processes have used, in seconds.
func (w *forwarder) cpu() (seconds float64) {
	const ticks = 100 // USER_HZ, the same everywhere
	for _, pid := range w.pids() {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		// After the name, which may have spaces: fields 14 and 15 of proc(5).
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		for _, i := range []int{11, 12} {
			n, _ := strconv.ParseFloat(fields[i], 64)
			seconds += n / ticks
		}
	}
	return seconds
}

// rss is what the forwarder's processes have in memory, in MiB.
func (w *forwarder) rss() (mib float64) {
	for _, pid := range w.pids() {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(status)) {
			if kb, ok := strings.CutPrefix(line, "VmRSS:"); ok {
				n, _ := strconv.ParseFloat(strings.Fields(kb)[0], 64)
				mib += n / 1024
			}
		}
	}
	return mib
}

// files are what they have open.
func (w *forwarder) files() (n int) {
	for _, pid := range w.pids() {
		entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		n += len(entries)
	}
	return n
}

// idleConns is what 20,000 files allow, with some to spare.
const idleConns = 9000

type idleFigure struct {
	conns         int
	before, after float64 // MiB
	files         int
}

func (i idleFigure) per10k() float64 { return (i.after - i.before) / float64(i.conns) * 10_000 }

func (i idleFigure) String() string {
	return fmt.Sprintf("%.1f MiB, then %.1f MiB with %d connections: %.1f MiB per 10,000; %.1f files each",
		i.before, i.after, i.conns, i.per10k(), float64(i.files)/float64(i.conns))
}

// measureIdle opens many connections that are silent after a first request.
func (f *field) measureIdle(ctx context.Context, w *forwarder) (idleFigure, error) {
	i := idleFigure{conns: idleConns, before: w.rss()}
	files := w.files()
	p, _, err := f.startClient(load.Job{To: w.to, Kind: "idle", Conns: idleConns, For: 20 * time.Second})
	if err != nil {
		return i, err
	}
	defer p.Kill()
	for end := time.Now().Add(15 * time.Second); w.files() < files+2*idleConns && time.Now().Before(end); {
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return i, err
		}
	}
	if err := sleep(ctx, 3*time.Second); err != nil {
		return i, err
	}
	i.after, i.files = w.rss(), w.files()-files
	p.Kill()
	return i, sleep(ctx, time.Second)
}
