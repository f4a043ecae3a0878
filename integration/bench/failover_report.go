package main

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// trialBook is what all trials have shown.
type trialBook struct {
	faults  []fault
	drivers []*driver
	results map[[2]string][]result // by fault and way
	missed  int
}

func (t *trialBook) add(f fault, d *driver, r result) {
	key := [2]string{f.name, d.name}
	t.results[key] = append(t.results[key], r)
}

func (t *trialBook) of(f fault, d *driver) []result { return t.results[[2]string{f.name, d.name}] }

// write writes page and picture.
func (t *trialBook) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var page bytes.Buffer
	t.markdown(&page)
	if err := os.WriteFile(filepath.Join(dir, "failover.md"), page.Bytes(), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "failover.svg"), t.svg(), 0o644)
}

func (t *trialBook) markdown(w io.Writer) {
	fmt.Fprintf(w, "# Failover, measured\n\n`make bench-failover` has written this page on %s: three nodes that are load "+
		"balancer and server at once, "+
		"a client that opens a connection every 5 ms with 200 ms patience, and a watcher that asks for the address all the "+
		"time, each in a network namespace of one machine. "+
		"Each way has a scene of its own and meets each fault in turns; defaults everywhere but for what a row's name says. "+
		"keepalived runs with haproxy on every node, as kubeadm's "+
		"guide has it.\n\n%s\n", time.Now().UTC().Format("2006-01-02"), failoverMachine())
	fmt.Fprint(w, "*First*: from the last success before the first failure to the next success. *Steady*: until the "+
		"success after which a second passes without a failure. "+
		"*Two*: how long two nodes answered for the address, by what is on the wire, from the fault until two seconds after "+
		"it was undone. Median (least–most), in ms.\n\n![steady service after each fault](failover.svg)\n")
	if t.missed > 0 {
		fmt.Fprintf(w, "\n%d trials are left out because a way was not in order before them.\n", t.missed)
	}
	for _, f := range t.faults {
		fmt.Fprintf(w, "\n## %s: %s\n\n", f.name, f.what)
		fmt.Fprintln(w, "| | n | first | steady | steady, of ours | failed requests | two | undone: steady | "+
			"undone: failed |")
		fmt.Fprintln(w, "|---|---|---|---|---|---|---|---|---|")
		ours := -1.0
		for _, d := range t.drivers {
			rs := t.of(f, d)
			if len(rs) == 0 {
				continue
			}
			steady := spreadOf(rs, func(r result) float64 { return ms(r.outage.Steady) })
			if ours < 0 {
				ours = steady.median
			}
			fmt.Fprintf(w, "| %s | %d | %s | %s | %s | %s | %s | %s | %s |\n", d.name, len(rs),
				spreadOf(rs, func(r result) float64 { return ms(r.outage.First) }), steady, ratio(steady.median, ours),
				spreadOf(rs, func(r result) float64 { return float64(r.outage.Failed) }),
				spreadOf(rs, func(r result) float64 { return ms(r.two) }),
				spreadOf(rs, func(r result) float64 { return ms(r.back.Steady) }),
				spreadOf(rs, func(r result) float64 { return float64(r.back.Failed) }))
		}
	}
}

// failoverMachine says where and with what it was measured, and how busy the machine
// was with other things.
func failoverMachine() string {
	var u unix.Utsname
	_ = unix.Uname(&u)
	load, _ := os.ReadFile("/proc/loadavg")
	busy, _, _ := strings.Cut(string(load), " ")
	version := func(program string, args ...string) string {
		out, _ := exec.Command(program, args...).CombinedOutput()
		for _, word := range strings.Fields(string(out)) {
			if v := strings.Trim(word, "v,"); v != "" && v[0] >= '0' && v[0] <= '9' && strings.Contains(v, ".") {
				return v
			}
		}
		return "unknown"
	}
	state := "on disk"
	var fs unix.Statfs_t
	if unix.Statfs(os.TempDir(), &fs) == nil && fs.Type == unix.TMPFS_MAGIC {
		state = "in memory (TMPDIR), so without what a disk that is busy with other things would add to an election"
	}
	return fmt.Sprintf("%d cores, Linux %s, %s, keepalived %s, haproxy %s. The group's state is %s. Load average at the "+
		"end: %s.\n", runtime.NumCPU(),
		unix.ByteSliceToString(u.Release[:]), runtime.Version(), version("keepalived", "--version"),
		version("haproxy", "-v"), state, busy)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// ratio is how many times ours fits into theirs.
func ratio(theirs, ours float64) string {
	switch {
	case ours == 0 && theirs == 0:
		return "none either"
	case ours == 0:
		return "ours is none"
	}
	return fmt.Sprintf("%.2g×", theirs/ours)
}

// spread is the median of some values and their range.
type spread struct{ median, min, max float64 }

func spreadOf(rs []result, value func(result) float64) spread {
	var vs []float64
	for _, r := range rs {
		vs = append(vs, value(r))
	}
	return spreadOfValues(vs)
}

func spreadOfValues(vs []float64) spread {
	if len(vs) == 0 {
		return spread{}
	}
	return spread{median(vs), slices.Min(vs), slices.Max(vs)}
}

func (s spread) String() string {
	if s.min == s.max {
		return fmt.Sprintf("%.0f", s.median)
	}
	return fmt.Sprintf("%.0f (%.0f–%.0f)", s.median, s.min, s.max)
}

// svg is a bar for each fault and way: the time to steady service, at a scale of
// powers of ten from 1 ms to a minute.
func (t *trialBook) svg() []byte {
	const bar, gap, left, width = 14, 22, 170, 560
	colours := []string{"#0b6e4f", "#08a045", "#6bbf59", "#d1495b", "#edae49", "#30638e"}
	height := 40
	for range t.faults {
		height += len(t.drivers)*bar + gap
	}
	at := func(v float64) float64 { return min(max(math.Log10(max(v, 1))/math.Log10(60000), 0.002), 1) * width }
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" `+
		`font-size="11">`+"\n", left+width+80, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/>`+
		`<text x="8" y="16" font-size="13">ms until service is steady after a fault (median, logarithmic)</text>`+"\n")
	for _, v := range []float64{10, 100, 1000, 10000} {
		fmt.Fprintf(&b, `<line x1="%.0f" x2="%.0f" y1="34" y2="%d" stroke="#ddd"/>`+
			`<text x="%.0f" y="32" text-anchor="middle" fill="#888">%.0f</text>`+"\n",
			left+at(v), left+at(v), height, left+at(v), v)
	}
	y := 40
	for _, f := range t.faults {
		fmt.Fprintf(&b, `<text x="8" y="%d" font-weight="bold">%s</text>`+"\n", y+11, f.name)
		for i, d := range t.drivers {
			if rs := t.of(f, d); len(rs) > 0 {
				v := spreadOf(rs, func(r result) float64 { return ms(r.outage.Steady) }).median
				fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+
					`<rect x="%d" y="%d" width="%.0f" height="%d" fill="%s"/><text x="%.0f" y="%d">%.0f</text>`+"\n",
					left-6, y+11, d.name, left, y+1, at(v), bar-2, colours[i%len(colours)], left+at(v)+5, y+11, v)
			}
			y += bar
		}
		y += gap
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}
