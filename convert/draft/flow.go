package draft

import (
	"encoding/json"
	"regexp"
	"strconv"
	"strings"
)

// plain are the words that mean in YAML what they are, also within [] and {}.
var plain = regexp.MustCompile(`^[A-Za-z0-9/][A-Za-z0-9/._-]*$`)

// Scalar is a word as YAML has it. JSON's strings are YAML's.
func Scalar(s string) string {
	if plain.MatchString(s) && !strings.EqualFold(s, "null") {
		return s
	}
	quoted, _ := json.Marshal(s) // a string always can be
	return string(quoted)
}

// pairs of a mapping that is written in one line.
type Flow []string

func (f *Flow) Add(key, value string) { *f = append(*f, key+": "+value) }

func (f *Flow) Word(key, value string) {
	if value != "" {
		f.Add(key, Scalar(value))
	}
}

func (f *Flow) Span(key string, v Span) {
	if v.Set {
		f.Add(key, Short(v.Value))
	}
}

func (f *Flow) Count(key string, v Number) {
	if v.Set {
		f.Add(key, strconv.Itoa(v.Value))
	}
}

func (f *Flow) Port(key string, port uint16) {
	if port != 0 {
		f.Add(key, strconv.Itoa(int(port)))
	}
}

func (f Flow) String() string { return "{" + strings.Join(f, ", ") + "}" }

func List[T any](values []T, text func(T) string) string {
	words := make([]string, len(values))
	for i, v := range values {
		words[i] = text(v)
	}
	return "[" + strings.Join(words, ", ") + "]"
}
