package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// ticksPerSecond is USER_HZ, which is 100 on every architecture that Go has.
const ticksPerSecond = 100

// usage is what the programs of one node have used since they began.
type usage struct {
	cpu      time.Duration
	switches uint64 // of all threads that live
	written  uint64 // bytes that went to a disk
	received uint64 // packets, by the interface
	memory   uint64 // resident, in KiB
	programs []string
}

// rest is what the nodes of one way have used at the begin and the end of a measurement.
type rest struct {
	way           string
	before, after []usage
	took          time.Duration
}

// idle measures what each way costs while nothing happens, and writes a page. Ways are measured at the same time, but for
// those with many load balancers, which the others would notice.
func idle(ctx context.Context, binary string, length time.Duration, through, outDir string, out io.Writer) error {
	var small, large []way
	for _, w := range ways() {
		switch {
		case through != "" && !slices.Contains(strings.Split(through, ";"), w.name):
		case w.further > 0:
			large = append(large, w)
		default:
			small = append(small, w)
		}
	}
	var all []rest
	for _, some := range [][]way{small, large} {
		if len(some) == 0 {
			continue
		}
		rests, err := restOf(ctx, binary, length, some)
		if err != nil {
			return err
		}
		all = append(all, rests...)
	}
	var page bytes.Buffer
	idlePage(&page, all)
	if err := os.MkdirAll(outDir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(outDir, "idle.md"), page.Bytes(), 0o644); err != nil {
		return err
	}
	_, err := out.Write(page.Bytes())
	return err
}

// restOf measures some ways at the same time.
func restOf(ctx context.Context, binary string, length time.Duration, some []way) (all []rest, err error) {
	ds, err := drivers(ctx, binary, some)
	defer func() { err = errors.Join(err, closeAll(ds)) }()
	if err != nil {
		return nil, err
	}
	// What a start costs is over then, of two hundred load balancers too.
	if err := sleep(ctx, 10*settle); err != nil {
		return nil, err
	}
	before, err := usages(ds)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := sleep(ctx, length); err != nil {
		return nil, err
	}
	after, err := usages(ds)
	if err != nil {
		return nil, err
	}
	for i, d := range ds {
		all = append(all, rest{d.name, before[i], after[i], time.Since(began)})
	}
	return all, nil
}

// usages are those of each node of each driver.
func usages(ds []*driver) (all [][]usage, err error) {
	for _, d := range ds {
		var nodes []usage
		for _, n := range d.scene.Nodes {
			u, err := usageIn(n.Namespace())
			if err != nil {
				return nil, err
			}
			err = n.Do(func() error {
				link, err := netlink.LinkByName("eth0")
				if err == nil {
					u.received = link.Attrs().Statistics.RxPackets
				}
				return err
			})
			if err != nil {
				return nil, err
			}
			nodes = append(nodes, u)
		}
		all = append(all, nodes)
	}
	return all, nil
}

// usageIn adds up the processes in a network namespace. This process, with its servers, is none of them.
func usageIn(namespace string) (u usage, err error) {
	own, err := os.Readlink(namespace)
	if err != nil {
		return u, err
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return u, err
	}
	for _, p := range processes {
		ns, err := os.Readlink(p + "/ns/net")
		if err != nil || ns != own || p == fmt.Sprintf("/proc/%d", os.Getpid()) {
			continue // others end at any time
		}
		stat, err := os.ReadFile(p + "/stat")
		if err != nil {
			continue
		}
		// The name is in brackets and may have any character, see proc(5).
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		user, _ := strconv.ParseUint(fields[11], 10, 64)
		system, _ := strconv.ParseUint(fields[12], 10, 64)
		u.cpu += time.Duration(user+system) * time.Second / ticksPerSecond
		u.memory += procField(p+"/status", "VmRSS:")
		u.written += procField(p+"/io", "write_bytes:")
		tasks, _ := filepath.Glob(p + "/task/*/status")
		for _, t := range tasks {
			u.switches += procField(t, "voluntary_ctxt_switches:") + procField(t, "nonvoluntary_ctxt_switches:")
		}
		name, _ := os.ReadFile(p + "/comm")
		u.programs = append(u.programs, strings.TrimSpace(string(name)))
	}
	if len(u.programs) == 0 {
		return u, fmt.Errorf("no process runs in %s", namespace)
	}
	return u, nil
}

// procField is the number behind a word at the begin of a line of a file in /proc, 0 if there is none.
func procField(file, word string) uint64 {
	text, _ := os.ReadFile(file)
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, word); ok {
			n, _ := strconv.ParseUint(strings.Fields(rest)[0], 10, 64)
			return n
		}
	}
	return 0
}

// idlePage writes the page. The nodes of a way are sorted by each figure.
func idlePage(w io.Writer, all []rest) {
	fmt.Fprintf(w, "# Idle, measured\n\n`make bench-idle` has written this page on %s: groups of three nodes in network "+
		"namespaces of one machine, each with one virtual IP, one load balancer unless said otherwise, and checks (tcp) "+
		"every 500 ms, for %s at the same time (those with many load balancers after the others), without any client. Packets are what a node receives, those of the checks included. Three figures are those of the three "+
		"nodes, the least first.\n\n%s\n\n| | CPU, %% of a core | context switches/s | packets/s | written, KiB/s | memory, "+
		"MiB | processes |\n|---|---|---|---|---|---|---|\n",
		time.Now().UTC().Format("2006-01-02"), all[0].took.Round(time.Second),
		host()+".\n\nThe load of the machine was "+loadAverage()+" when it ended.")
	for _, r := range all {
		figures := func(format string, of func(before, after usage) float64) string {
			var found []float64
			for n := range r.after {
				found = append(found, of(r.before[n], r.after[n]))
			}
			slices.Sort(found)
			var texts []string
			for _, f := range found {
				texts = append(texts, fmt.Sprintf(format, f))
			}
			return strings.Join(texts, " · ")
		}
		rate := func(of func(usage) uint64) func(b, a usage) float64 {
			return func(b, a usage) float64 { return float64(of(a)-min(of(b), of(a))) / r.took.Seconds() }
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s |\n", r.way,
			figures("%.1f", func(b, a usage) float64 { return 100 * (a.cpu - b.cpu).Seconds() / r.took.Seconds() }),
			figures("%.0f", rate(func(u usage) uint64 { return u.switches })),
			figures("%.0f", rate(func(u usage) uint64 { return u.received })),
			figures("%.1f", func(b, a usage) float64 { return rate(func(u usage) uint64 { return u.written })(b, a) / 1024 }),
			figures("%.0f", func(_, a usage) float64 { return float64(a.memory) / 1024 }),
			strings.Join(slices.Compact(slices.Sorted(slices.Values(r.after[0].programs))), ", "))
	}
}
