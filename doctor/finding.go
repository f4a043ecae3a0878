package doctor

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
)

// A Severity says how much a finding matters.
type Severity string

// The severities. A hint is worth a look and may be as it should be; a problem keeps the appliance from doing its work.
const (
	Fine    Severity = "fine"
	Hint    Severity = "hint"
	Problem Severity = "problem"
)

func (s Severity) rank() int { return slices.Index([]Severity{Problem, Hint, Fine}, s) }

// A Finding is the result of one check.
type Finding struct {
	Check    string   `json:"check"` // a stable name, such as "vip-free"
	Severity Severity `json:"severity"`
	What     string   `json:"what"`
	Why      string   `json:"why,omitempty"` // why it matters; empty where all is fine
	Mend     string   `json:"mend,omitempty"`
}

// A Diagnosis is all that one examination found, what matters most first.
type Diagnosis struct {
	Version  string    `json:"version"`
	Host     string    `json:"host"`
	Kernel   string    `json:"kernel"`
	About    string    `json:"about"` // the file or the flags that were examined
	Problems int       `json:"problems"`
	Hints    int       `json:"hints"`
	Findings []Finding `json:"findings"`
}

// add takes findings in and keeps the order and the counts.
func (r *Diagnosis) add(all ...Finding) {
	for _, f := range all {
		switch f.Severity {
		case Problem:
			r.Problems++
		case Hint:
			r.Hints++
		}
	}
	r.Findings = append(r.Findings, all...)
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return cmp.Compare(a.Severity.rank(), b.Severity.rank())
	})
}

func fine(check, format string, args ...any) Finding {
	return Finding{Check: check, Severity: Fine, What: fmt.Sprintf(format, args...)}
}

func hint(check, what, why, mend string) Finding {
	return Finding{Check: check, Severity: Hint, What: what, Why: why, Mend: mend}
}

func problem(check, what, why, mend string) Finding {
	return Finding{Check: check, Severity: Problem, What: what, Why: why, Mend: mend}
}

// Text writes the report for people. With colour, severities are told by terminal colours too.
func (r Diagnosis) Text(w io.Writer, colour bool) error {
	var b strings.Builder
	fmt.Fprintf(&b, "appliance doctor %s on %s, kernel %s, for %s\n\n", r.Version, r.Host, r.Kernel, r.About)
	paint := map[Severity]string{Problem: "\x1b[31m", Hint: "\x1b[33m", Fine: "\x1b[32m"}
	for _, f := range r.Findings {
		word := fmt.Sprintf("%-8s", f.Severity)
		if colour {
			word = paint[f.Severity] + word + "\x1b[0m"
		}
		fmt.Fprintf(&b, "%s %-14s %s\n", word, f.Check, indent(f.What))
		if f.Why != "" {
			fmt.Fprintf(&b, "%24swhy: %s\n", "", indent(f.Why))
		}
		if f.Mend != "" {
			fmt.Fprintf(&b, "%24sdo:  %s\n", "", indent(f.Mend))
		}
	}
	fmt.Fprintf(&b, "\n%s, %s, %d fine\n", count(r.Problems, "problem"), count(r.Hints, "hint"),
		len(r.Findings)-r.Problems-r.Hints)
	_, err := io.WriteString(w, b.String())
	return err
}

// indent aligns the further lines of a text below the first.
func indent(text string) string {
	return strings.ReplaceAll(text, "\n", "\n"+strings.Repeat(" ", 29))
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
