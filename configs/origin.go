package configs

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
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

// at begins a message: where, and which key.
func (o Origin) at(key string) string {
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

// A Problem is a value that cannot be, with what to write instead.
type Problem struct {
	Origin Origin
	Key    string
	Text   string
}

func (p Problem) Error() string { return p.Origin.at(p.Key) + p.Text }

// A Warning is something that is accepted but that the operator should know.
type Warning struct {
	Origin Origin
	Key    string
	Text   string
}

func (w Warning) String() string { return w.Origin.at(w.Key) + w.Text }

// report collects everything that is wrong, so that a file with three
// mistakes is corrected in one go.
type report struct {
	problems []Problem
	warnings []Warning
}

func (r *report) problem(o Origin, key, format string, args ...any) {
	r.problems = append(r.problems, Problem{o, key, fmt.Sprintf(format, args...)})
}

func (r *report) warn(o Origin, key, format string, args ...any) {
	r.warnings = append(r.warnings, Warning{o, key, fmt.Sprintf(format, args...)})
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
