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

// idle measures what each way costs while nothing happens, all at the same time, and writes a page.
func idle(ctx context.Context, binary string, length time.Duration, through, outDir string, out io.Writer) (err error) {
	all := slices.DeleteFunc(ways(), func(w way) bool {
		return through != "" && !slices.Contains(strings.Split(through, ";"), w.name)
	})
	ds, err := drivers(ctx, binary, all)
	defer func() { err = errors.Join(err, closeAll(ds)) }()
	if err != nil {
		return err
	}
	// What a start costs is over then, of two hundred load balancers too.
	if err := sleep(ctx, 10*settle); err != nil {
		return err
	}
	before, err := usages(ds)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := sleep(ctx, length); err != nil {
		return err
	}
	after, err := usages(ds)
	if err != nil {
		return err
	}
	var page bytes.Buffer
	idlePage(&page, ds, before, after, time.Since(began))
	if err := os.MkdirAll(outDir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(outDir, "idle.md"), page.Bytes(), 0o644); err != nil {
		return err
	}
	_, err = out.Write(page.Bytes())
	return err
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
func idlePage(w io.Writer, ds []*driver, before, after [][]usage, took time.Duration) {
	fmt.Fprintf(w, "# Idle, measured\n\n`make bench-idle` has written this page on %s: groups of three nodes in network "+
		"namespaces of one machine, each with one load balancer and one virtual IP, for %s at the same time, without "+
		"any client. Packets are what a node receives, those of the checks included. Three figures are those of the three "+
		"nodes, the least first.\n\n%s\n\n| | CPU, %% of a core | context switches/s | packets/s | written, KiB/s | memory, "+
		"MiB | processes |\n|---|---|---|---|---|---|---|\n",
		time.Now().UTC().Format("2006-01-02"), took.Round(time.Second),
		host()+".\n\nThe load of the machine was "+loadAverage()+" when it ended.")
	for i, d := range ds {
		figures := func(format string, of func(before, after usage) float64) string {
			var all []float64
			for n := range after[i] {
				all = append(all, of(before[i][n], after[i][n]))
			}
			slices.Sort(all)
			var texts []string
			for _, f := range all {
				texts = append(texts, fmt.Sprintf(format, f))
			}
			return strings.Join(texts, " · ")
		}
		rate := func(of func(usage) uint64) func(b, a usage) float64 {
			return func(b, a usage) float64 { return float64(of(a)-min(of(b), of(a))) / took.Seconds() }
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s |\n", d.name,
			figures("%.1f", func(b, a usage) float64 { return 100 * (a.cpu - b.cpu).Seconds() / took.Seconds() }),
			figures("%.0f", rate(func(u usage) uint64 { return u.switches })),
			figures("%.0f", rate(func(u usage) uint64 { return u.received })),
			figures("%.1f", func(b, a usage) float64 { return rate(func(u usage) uint64 { return u.written })(b, a) / 1024 }),
			figures("%.0f", func(_, a usage) float64 { return float64(a.memory) / 1024 }),
			strings.Join(slices.Compact(slices.Sorted(slices.Values(after[i][0].programs))), ", "))
	}
}
