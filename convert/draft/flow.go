package draft

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// plain matches words that YAML takes as they are, also within [] and {}.
var plain = regexp.MustCompile(`^[A-Za-z0-9/][A-Za-z0-9/._-]*$`)

// Scalar is a word in YAML, quoted if need be. The strings of JSON are strings of YAML.
func Scalar(s string) string {
	if plain.MatchString(s) && !strings.EqualFold(s, "null") {
		return s
	}
	quoted, _ := json.Marshal(s) // a string always can be
	var b strings.Builder
	for _, r := range string(quoted) {
		if strconv.IsPrint(r) {
			b.WriteRune(r)
		} else { // JSON takes control characters such as DEL, and YAML does not
			fmt.Fprintf(&b, `\U%08x`, r)
		}
	}
	return b.String()
}

// A Flow is a YAML mapping that is written in one line: its pairs. The methods leave out what has no value.
type Flow []string

// Add adds a pair whose value is YAML already.
func (f *Flow) Add(key, value string) { *f = append(*f, key+": "+value) }

// Word adds a text.
func (f *Flow) Word(key, value string) {
	if value != "" {
		f.Add(key, Scalar(value))
	}
}

// Span adds a duration.
func (f *Flow) Span(key string, v Span) {
	if v.Set {
		f.Add(key, Short(v.Value))
	}
}

// Number adds an integer.
func (f *Flow) Number(key string, v Number) {
	if v.Set {
		f.Add(key, strconv.Itoa(v.Value))
	}
}

// Port adds a port.
func (f *Flow) Port(key string, port uint16) {
	if port != 0 {
		f.Add(key, strconv.Itoa(int(port)))
	}
}

func (f Flow) String() string { return "{" + strings.Join(f, ", ") + "}" }
