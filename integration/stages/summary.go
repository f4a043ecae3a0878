package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"
)

// An event is a line of `go test -json`, see `go doc test2json`.
type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64 // seconds
}

// A summary is what is told at the end.
type summary struct {
	ci      bool
	stages  []stage
	closing []string // the lines with which go test ends packages
	skipped []skip
	failed  []string // what the tests that failed have said
	tests   []timed
}

type stage struct {
	name string
	took time.Duration
	err  error
}

// A skip is a test that was skipped, as it says.
type skip struct{ test, reason string }

// A timed test is one at the top of its package.
type timed struct {
	test string
	took time.Duration
}

// read takes the events of one run of go test and prints what they say: all of it
// in a verbose run, else the closing lines and what failed packages have said.
func (s *summary) read(in io.Reader, out io.Writer, verbose bool) error {
	said := map[string][]string{} // by package, what is not printed yet
	lines := map[string]string{}  // by test, what it has said
	sc := bufio.NewScanner(in)
	sc.Buffer(nil, 1<<26)
	for sc.Scan() {
		var e event
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			fmt.Fprintf(out, "%s\n", sc.Bytes()) // not of go test
			continue
		}
		test := e.Package + "." + e.Test
		switch e.Action {
		case "build-output":
			fmt.Fprint(out, e.Output)
		case "output":
			closes := e.Test == "" && closing.MatchString(e.Output)
			if closes {
				s.closing = append(s.closing, e.Output)
			}
			if e.Test != "" {
				lines[test] += e.Output
			}
			if verbose || closes {
				fmt.Fprint(out, e.Output)
			} else {
				said[e.Package] = append(said[e.Package], e.Output)
			}
		case "skip":
			if e.Test != "" {
				s.skipped = append(s.skipped, skip{short(test), reason(lines[test])})
			}
			delete(lines, test)
		case "pass", "fail":
			if e.Test != "" && e.Action == "fail" {
				s.failed = append(s.failed, short(test)+"\n"+gist(lines[test]))
			}
			switch {
			case e.Test == "" && e.Action == "fail":
				fmt.Fprint(out, strings.Join(said[e.Package], ""))
				s.failed = append(s.failed, ended(e.Package, lines)...)
			case e.Test != "" && !strings.Contains(e.Test, "/"):
				s.tests = append(s.tests, timed{short(test), time.Duration(e.Elapsed * float64(time.Second))})
			}
			if e.Test == "" {
				delete(said, e.Package)
			}
			delete(lines, test)
		}
	}
	return sc.Err()
}

// closing is how a line begins with which go test ends a package.
var closing = regexp.MustCompile(`^(ok  |FAIL|\?   )\s*\S`)

func short(test string) string { return strings.TrimPrefix(test, "appliance/") }

// said is a line of t.Log or t.Skip, without the place in the source.
var said = regexp.MustCompile(`(?m)^\s+\w+\.go:\d+: (.*)$`)

// reason is the last thing that a skipped test has said.
func reason(text string) string {
	all := said.FindAllStringSubmatch(text, -1)
	if len(all) == 0 {
		return "no reason"
	}
	return all[len(all)-1][1]
}

// mostOfOne is how many lines of one thing said are told again at the end. Errors are shorter, logs of nodes longer.
const mostOfOne = 8

// gist is what a test has said, without most of what is long.
func gist(text string) string {
	var b strings.Builder
	n := 0
	for line := range strings.Lines(text) {
		if said.MatchString(line) {
			n = 0
		} else if !strings.HasPrefix(line, "     ") { // of go test itself
			continue
		}
		if n++; n <= mostOfOne {
			b.WriteString(line)
		}
	}
	return b.String()
}

// ended is what is told of the tests that ended their package: go test says nothing of one that panics, or runs until
// the package's time is over.
func ended(pkg string, lines map[string]string) (all []string) {
	for test, text := range lines {
		if i := strings.Index(text, "\npanic: "); strings.HasPrefix(test, pkg+".") && i >= 0 {
			all = append(all, short(test)+"\n"+gist(text[:i+1])+stuck(text[i+1:]))
		}
	}
	return all
}

// stuck is why a package ended, and where its own goroutines were: go test prints all stacks, the lines of one without
// an empty one between them.
func stuck(dump string) string {
	why, stacks, _ := strings.Cut(dump, "\n\n")
	var b strings.Builder
	fmt.Fprintln(&b, why)
	told := map[string]bool{}
	for stack := range strings.SplitSeq(stacks, "\n\n") {
		state, frames, _ := strings.Cut(stack, "\n")
		if own := ownFrame.FindStringSubmatch(frames); own != nil && !told[own[1]] && len(told) < mostStuck {
			told[own[1]] = true
			fmt.Fprintf(&b, "    %s %s\n", state, own[1])
		}
	}
	return b.String()
}

// mostStuck is how many places are told in which goroutines were.
const mostStuck = 20

// ownFrame is a call of the project's own on a stack; the innermost is the first.
var ownFrame = regexp.MustCompile(`(?m)^appliance/.*\n\t\S*?(\w+/\w+\.go:\d+)`)

// most is how many tests are listed that took longest.
const most = 12

// write tells how it was, and whether that is good. The closing lines of go test
// are the last ones.
func (s *summary) write(out io.Writer) bool {
	good, unexcused := true, false
	if len(s.skipped) > 0 {
		fmt.Fprintln(out, "\n== skipped, with the reasons")
	}
	for _, of := range group(s.skipped) {
		excused, why := excuse(of.reason)
		if !excused {
			why = "the set-up (integration/setup.sh) has to bring it, or skips.go to say why not"
			unexcused = true
		}
		fmt.Fprintf(out, "%s\n    %s\n    (%s)\n", strings.Join(of.tests, " "), of.reason, why)
	}
	slices.SortStableFunc(s.tests, func(a, b timed) int { return int(b.took - a.took) })
	if len(s.tests) > 0 {
		fmt.Fprintln(out, "\n== what took longest")
	}
	for _, t := range s.tests[:min(most, len(s.tests))] {
		fmt.Fprintf(out, "%8s  %s\n", t.took.Round(time.Second), t.test)
	}
	fmt.Fprintln(out, "\n== stages")
	var all time.Duration
	for _, st := range s.stages {
		all += st.took
		fmt.Fprintf(out, "%8s  %s", st.took.Round(time.Second), st.name)
		if st.err != nil {
			good = false
			fmt.Fprintf(out, ": FAILED: %v", st.err)
		}
		fmt.Fprintln(out)
	}
	fmt.Fprintf(out, "%8s  in all\n", all.Round(time.Second))
	if unexcused && s.ci {
		good = false
		fmt.Fprintln(out, "\nIn CI a test may be skipped only for a reason that integration/stages/skips.go has.")
	}
	if len(s.closing) > 0 {
		fmt.Fprintf(out, "\n%s", strings.Join(s.closing, ""))
	}
	if len(s.failed) > 0 {
		fmt.Fprintf(out, "\n== what failed\n%s", strings.Join(s.failed, ""))
	}
	if !good {
		fmt.Fprintln(out, "FAIL")
	}
	return good
}

type sameReason struct {
	reason string
	tests  []string
}

// group puts tests that were skipped for the same reason together.
func group(skipped []skip) (all []sameReason) {
	for _, sk := range skipped {
		i := slices.IndexFunc(all, func(of sameReason) bool { return of.reason == sk.reason })
		if i < 0 {
			i, all = len(all), append(all, sameReason{reason: sk.reason})
		}
		all[i].tests = append(all[i].tests, sk.test)
	}
	return all
}
