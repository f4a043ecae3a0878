package configs

import (
	"cmp"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// builder makes a Config of a sheet. Its readers return the default, and the
// zero value after a problem, so that building goes on and finds the rest.
type builder struct {
	*report
	*sheet
	file string
	src  Source
	cfg  *Config
	// vipAt has the place of each virtual address, for messages.
	vipAt map[netip.Addr]Origin
	// doubt is set when the file has keys that were not understood: what
	// seems to be missing may be among them. halfRead says that of the peers.
	doubt, halfRead bool
}

// get is the value of key as written, or its default.
func (b *builder) get(key string) cell {
	if c, ok := b.cells[key]; ok {
		return c
	}
	return cell{value: b.otherwise(key)}
}

// otherwise is the default of key.
func (b *builder) otherwise(key string) string {
	s, _ := setting(key)
	return s.Default
}

// at is where a problem with key is reported: its line, or the file.
func (b *builder) at(key string) Origin {
	if o := b.place(key); !o.IsDefault() {
		return o
	}
	return Origin{File: b.file}
}

func (b *builder) bad(key, format string, args ...any) {
	b.problem(b.at(key), key, format, args...)
}

// missing reports what should be there, unless it may be there misspelt.
func (b *builder) missing(key, format string, args ...any) {
	if !b.doubt {
		b.bad(key, format, args...)
	}
}

// show notes a value that is in force, fit for a terminal.
func (b *builder) show(key, value string, o Origin) {
	if strings.ContainsFunc(value, unicode.IsControl) {
		value = strconv.Quote(value)
	}
	b.cfg.values = append(b.cfg.values, Value{Key: key, Value: value, Origin: o})
}

// text reads a string and notes it.
func (b *builder) text(key string) string {
	c := b.get(key)
	v := b.choice(key, c.value)
	b.show(key, v, c.origin)
	return v
}

// choice holds value against the words that its setting allows.
func (b *builder) choice(key, value string) string {
	s, _ := setting(key)
	if value == "" || len(s.Choices) == 0 || slices.Contains(s.Choices, value) {
		return value
	}
	if near := nearest(value, s.Choices); near != "" {
		b.bad(key, "%s is not known; did you mean %s?", printable(value), near)
	} else {
		b.bad(key, "%s is not known; write %s", printable(value), choices(s.Choices))
	}
	return s.Default
}

func (b *builder) bool(key string) bool {
	c := b.get(key)
	v := c.value
	if v != "true" && v != "false" {
		b.bad(key, "%s is neither true nor false; write one of them", printable(v))
	}
	b.show(key, v, c.origin)
	return v == "true"
}

func (b *builder) int(key string, low, high int) int {
	c := b.get(key)
	b.show(key, c.value, c.origin)
	n, ok := decimal(c.value)
	if !ok || n < low || n > high {
		b.bad(key, "%s is not a number from %d to %d; write one", printable(c.value), low, high)
		n, _ = decimal(b.otherwise(key))
	}
	return n
}

// port reads a port; what is not set, or 0 where zero may stand for it, is 0.
func (b *builder) port(key string, zero bool) uint16 {
	value := b.get(key).value
	if value == "" || zero && value == "0" {
		return 0
	}
	n, ok := decimal(value)
	if !ok || n < 1 || n > 65535 {
		b.bad(key, "%s is not a port; write a number from 1 to 65535", printable(value))
		return 0
	}
	return uint16(n)
}

// decimal reads digits only: 0x10, 1e3, +5 and 010 are read in different ways
// by different YAML versions.
func decimal(s string) (int, bool) {
	n, err := strconv.Atoi(s)
	return n, err == nil && strconv.Itoa(n) == s
}

func (b *builder) duration(key string, low, high time.Duration) time.Duration {
	c := b.get(key)
	b.show(key, c.value, c.origin)
	d, err := time.ParseDuration(c.value)
	switch {
	case err != nil:
		b.bad(key, "%s is not a duration; write a number and its unit, such as %s", printable(c.value), b.otherwise(key))
		d, _ = time.ParseDuration(b.otherwise(key))
	case d < low || d > high:
		b.bad(key, "%s is out of range; write a duration from %s to %s", c.value, short(low), short(high))
		d, _ = time.ParseDuration(b.otherwise(key))
	}
	return d
}

// short is d without the zeros that time.Duration prints: 24h, not 24h0m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// path reads an absolute path: the program runs in another directory than
// the one in which the operator writes.
func (b *builder) path(key string) string {
	c := b.get(key)
	b.show(key, c.value, c.origin)
	if c.value == "" {
		return ""
	}
	if !filepath.IsAbs(c.value) || strings.ContainsRune(c.value, 0) {
		b.bad(key, "%s is not an absolute path; begin it with /", printable(c.value))
		return ""
	}
	return filepath.Clean(c.value)
}

// name reads a name for people. It ends in logs, metrics and status lines.
func (b *builder) name(key, otherwise string) string {
	c := b.get(key)
	v := cmp.Or(c.value, otherwise)
	b.show(key, v, c.origin)
	switch {
	case printable(c.value) != c.value && c.value != "", strings.TrimSpace(v) != v:
		b.bad(key, "%s has characters that a name cannot have; use letters, digits, spaces, - and .", strconv.Quote(v))
	case len(v) > 64:
		b.bad(key, "is longer than 64 characters; write a shorter name")
	}
	return v
}
