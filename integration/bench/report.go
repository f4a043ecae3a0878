package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	values = slices.Sorted(slices.Values(values))
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}

// of is the median of what value says of a row and a forwarder.
func (s *survey) of(row, name string, value func(figure) float64) float64 {
	var all []float64
	for _, f := range s.figures[[2]string{row, name}] {
		all = append(all, value(f))
	}
	return median(all)
}

// ratio is the median, over the rounds, of the rate against base in the same
// round.
func (s *survey) ratio(row, name, base string) float64 { return median(s.ratios(row, name, base)) }

func (s *survey) ratios(row, name, base string) (all []float64) {
	ours, theirs := s.figures[[2]string{row, name}], s.figures[[2]string{row, base}]
	for i := range min(len(ours), len(theirs)) {
		all = append(all, ours[i].rate()/theirs[i].rate())
	}
	return all
}

// words are what the rates of a row are in, and how one is written.
func (r row) words() (unit, format string) {
	if r.per == "GB" {
		return "Gbit/s", "%.1f"
	}
	return "per s", "%.0f"
}

// latencyColumns are the heads of what latencies writes.
const latencyColumns = "p50 µs | p99 µs | p99.9 µs | "

// latencies are the medians of a row that has some.
func (s *survey) latencies(r row, name string) string {
	if r.per == "GB" {
		return "– | – | – |"
	}
	return fmt.Sprintf("%.0f | %.0f | %.0f |", s.of(r.name, name, func(f figure) float64 { return f.P50 }),
		s.of(r.name, name, func(f figure) float64 { return f.P99 }),
		s.of(r.name, name, func(f figure) float64 { return f.P999 }))
}

// against is the ratio to base, with the least and the most that a round had.
func (s *survey) against(row, name, base string) string {
	if !s.has(base) || name == base {
		return "–"
	}
	all := s.ratios(row, name, base)
	return fmt.Sprintf("%.2f (%.2f–%.2f)", median(all), slices.Min(all), slices.Max(all))
}

func (s *survey) has(name string) bool { return slices.Contains(s.names, name) }

func (s *survey) markdown(w io.Writer, rounds int, length time.Duration) {
	fmt.Fprintf(w, "# Forwarding, measured\n\n`make bench-forward` has written this page on %s: client, forwarder and "+
		"three servers in network namespaces of one machine, "+
		"so they share its cores, and their wake-ups are part of each figure. %d rounds of %s each, all forwarders in "+
		"turns, each as it runs by itself: the appliance raises its own priority, and one row is of an appliance that may "+
		"not; medians, ratios within a round with the least and the most of them. The client is one epoll loop, and wrk "+
		"with three threads in the rows that are named for it, whose latencies begin when a connection is open; in "+
		"the busy row another process takes all it can get of one core. The load of the machine was %s "+
		"when it began.\n\n%s\n", time.Now().UTC().Format("2006-01-02"), rounds, length, s.load, machine())
	fmt.Fprintf(w, "\n![rates as parts of no balancer](forward.svg)\n")
	for _, r := range s.rows {
		unit, rate := r.words()
		fmt.Fprintf(w, "\n## %s\n\n| forwarder | %s | of no balancer | of haproxy | of nginx | "+latencyColumns+
			"CPU s per %s | errors |\n|---|---|---|---|---|---|---|---|---|---|\n", r.name, unit, r.per)
		for _, name := range s.names {
			errors := s.of(r.name, name, func(f figure) float64 { return float64(f.Errors) })
			fmt.Fprintf(w, "| %s | "+rate+" | %s | %s | %s | %s %.2f | %.0f |\n", name, s.of(r.name, name, figure.rate),
				s.against(r.name, name, "no balancer"), s.against(r.name, name, "haproxy"),
				s.against(r.name, name, "nginx stream"), s.latencies(r, name),
				s.of(r.name, name, func(f figure) float64 { return f.CPU }), errors)
		}
	}
	s.compareIPVS(w)
	if len(s.idle) > 0 {
		fmt.Fprintf(w, "\n## Idle connections\n\n| forwarder | connections | MiB before | MiB then | MiB per 10,000 | files "+
			"each |\n|---|---|---|---|---|---|\n")
		for _, name := range s.names {
			if i, ok := s.idle[name]; ok {
				fmt.Fprintf(w, "| %s | %d | %.1f | %.1f | %.1f | %.1f |\n", name, i.conns, i.before, i.after, i.per10k(),
					float64(i.files)/float64(i.conns))
			}
		}
	}
	for _, fault := range []struct{ name, what string }{
		{"bkill", "one of three servers refuses"}, {"bhang", "one of three servers hangs"},
	} {
		if !slices.ContainsFunc(s.names, func(n string) bool { return len(s.broken[[2]string{fault.name, n}]) > 0 }) {
			continue
		}
		fmt.Fprintf(w, "\n## %s: %s\n\nA new connection every %s for %s.\n\n| forwarder | requests | failed | slower than "+
			"%s | last of them, ms | SYNs to it, checks too | of them later than %s | "+
			"last SYN, ms |\n|---|---|---|---|---|---|---|---|\n",
			fault.name, fault.what, brokenInterval, brokenFor, slow, slow)
		for _, name := range s.names {
			bs := s.broken[[2]string{fault.name, name}]
			if len(bs) == 0 {
				continue
			}
			m := func(value func(brokenFigure) float64) float64 {
				var all []float64
				for _, b := range bs {
					all = append(all, value(b))
				}
				return median(all)
			}
			fmt.Fprintf(w, "| %s | %.0f | %.0f | %.0f | %.0f | %.0f | %.0f | %.0f |\n", name,
				m(func(b brokenFigure) float64 { return float64(b.requests) }),
				m(func(b brokenFigure) float64 { return float64(b.failed) }),
				m(func(b brokenFigure) float64 { return float64(b.slow) }),
				m(func(b brokenFigure) float64 { return ms(b.lastBad) }),
				m(func(b brokenFigure) float64 { return float64(b.tried) }),
				m(func(b brokenFigure) float64 { return float64(b.tried200) }),
				m(func(b brokenFigure) float64 { return ms(b.lastTry) }))
		}
	}
}

// machine says where and with what it was measured.
func machine() string {
	return fmt.Sprintf("%s, haproxy %s (nbthread 2), %s (stream, 2 workers).\n", host(), version(2, "haproxy", "-v"),
		version(2, "nginx", "-v"))
}

// host is the machine itself.
func host() string {
	var u unix.Utsname
	_ = unix.Uname(&u)
	cpu := "unknown CPU"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				cpu = strings.Trim(name, " \t\n:")
				break
			}
		}
	}
	return fmt.Sprintf("%d cores (%s), Linux %s, %s", runtime.NumCPU(), cpu, unix.ByteSliceToString(u.Release[:]),
		runtime.Version())
}

// version is a word of what a program says of itself.
func version(word int, program string, args ...string) string {
	out, _ := exec.Command(program, args...).CombinedOutput()
	fields := strings.Fields(string(out))
	if len(fields) <= word {
		return "unknown"
	}
	return fields[word]
}

// loadAverage is that of the last minute.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Fields(string(text))[0]
}

// svg is a bar for each row and forwarder: its rate as a part of no balancer.
func (s *survey) svg() []byte {
	const bar, gap, left, width = 14, 22, 210, 520
	colours := []string{"#888", "#0b6e4f", "#08a045", "#6bbf59", "#a3d9a5", "#d1495b", "#edae49", "#30638e"}
	base := "no balancer"
	var b bytes.Buffer
	height := 30
	for range s.rows {
		height += len(s.names)*bar + gap
	}
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" `+
		`font-size="11">`+"\n", left+width+80, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/>`+
		`<text x="8" y="18" font-size="13">rate as a part of that without a balancer (median)</text>`+"\n")
	y := 30
	for _, r := range s.rows {
		fmt.Fprintf(&b, `<text x="8" y="%d" font-weight="bold">%s</text>`+"\n", y+11, r.name)
		for i, name := range s.names {
			part := 1.0
			if s.has(base) {
				part = s.ratio(r.name, name, base)
			}
			fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+
				`<rect x="%d" y="%d" width="%.0f" height="%d" fill="%s"/><text x="%.0f" y="%d">%.2f</text>`+"\n",
				left-6, y+11, name, left, y+1, part*width/1.1, bar-2, colours[i%len(colours)], left+part*width/1.1+5, y+11, part)
			y += bar
		}
		y += gap
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}
