package configs

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"appliance/mask"
)

// An Origin says where a value came from. The zero Origin is the default.
type Origin struct {
	// File and Line are the place in the configuration file.
	File string
	Line int
	// Env is the name of the environment variable.
	Env string
	// Flag is the name of the flag, without dashes.
	Flag string
}

// IsDefault reports whether nobody set the value.
func (o Origin) IsDefault() bool { return o == Origin{} }

// String is what `appliance config show` prints.
func (o Origin) String() string {
	switch {
	case o.Flag != "":
		return "flag --" + o.Flag
	case o.Env != "":
		return "env " + o.Env
	case o.File != "" && o.Line > 0:
		return fmt.Sprintf("%s:%d", o.File, o.Line)
	case o.File != "":
		return o.File
	}
	return "default"
}

// messagePrefix begins a message: where, and which key.
func (o Origin) messagePrefix(key string) string {
	switch {
	case o.Flag != "":
		return "--" + o.Flag + ": "
	case o.Env != "":
		return o.Env + ": "
	case o.File != "" && key == "":
		return o.String() + ": "
	case o.File != "":
		return o.String() + ": " + key + ": "
	case key == "":
		return ""
	}
	return key + ": "
}

// A Problem is a value that is not valid, with what to write instead.
type Problem struct {
	Origin Origin
	Key    string
	Text   string
}

func (p Problem) Error() string { return p.Origin.messagePrefix(p.Key) + p.Text }

// A Warning is about something that is accepted, but that the operator should know.
type Warning struct {
	Origin Origin
	Key    string
	Text   string
}

func (w Warning) String() string { return w.Origin.messagePrefix(w.Key) + w.Text }

// report collects all problems, so that a file with three mistakes is corrected in
// one go.
type report struct {
	problems []Problem
	warnings []Warning
}

func (r *report) problem(o Origin, key, format string, args ...any) {
	r.problems = append(r.problems, Problem{o, key, mask.Text(fmt.Sprintf(format, args...))})
}

func (r *report) warn(o Origin, key, format string, args ...any) {
	r.warnings = append(r.warnings, Warning{o, key, mask.Text(fmt.Sprintf(format, args...))})
}

// err joins the problems, in the order of the file's lines.
func (r *report) err() error {
	slices.SortStableFunc(r.problems, func(a, b Problem) int { return cmp.Compare(a.Origin.Line, b.Origin.Line) })
	slices.SortStableFunc(r.warnings, func(a, b Warning) int { return cmp.Compare(a.Origin.Line, b.Origin.Line) })
	errs := make([]error, len(r.problems))
	for i, p := range r.problems {
		errs[i] = p
	}
	return errors.Join(errs...)
}

// orList lists words as people do: a, b or c.
func orList(words []string) string {
	switch len(words) {
	case 0:
		return ""
	case 1:
		return words[0]
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// printable is s, quoted if it could disturb a terminal or a log line.
func printable(s string) string {
	if q := strconv.Quote(s); q != `"`+s+`"` || s == "" {
		return q
	}
	return s
}

// nearest is the known word that word is most probably meant to be. It is empty if
// none is near: more than two letters or a third of them differ, and no known word
// begins it.
func nearest(word string, known []string) string {
	if len(word) > 64 {
		return ""
	}
	best, near := "", min(2, len(word)/3)+1
	for _, k := range known {
		if d := distance(strings.ToLower(word), strings.ToLower(k)); d < near {
			best, near = k, d
		}
	}
	for _, k := range known {
		if w := strings.ToLower(word); best == "" && len(k) > 3 && strings.HasPrefix(w, strings.ToLower(k)) {
			best = k
		}
	}
	return best
}

// distance is the number of letters to insert, remove, change or swap with the next
// letter to turn a into b (optimal string alignment).
func distance(a, b string) int {
	prev2, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := prev[j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			row[j] = min(change, prev[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], prev2[j-2]+1)
			}
		}
		prev2, prev, row = prev, row, prev2
	}
	return prev[len(b)]
}

// lineOf is " (line 7)" if key stands in the file, otherwise empty.
func (b *builder) lineOf(key string) string {
	if o := b.originOf(key); o.Line > 0 {
		return fmt.Sprintf(" (line %d)", o.Line)
	}
	return ""
}

// otherLine says where the first of two equal values stands, if that is another line.
func otherLine(first, second Origin) string {
	if first.Line == 0 || first.Line == second.Line {
		return ""
	}
	return fmt.Sprintf(" (line %d)", first.Line)
}
