package keepalived

import (
	"regexp"
	"strings"

	"appliance/convert/syntax"
)

var (
	definition = regexp.MustCompile(`^\$([A-Za-z_][A-Za-z0-9_]*)=(.*)$`)
	reference  = regexp.MustCompile(`\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$([A-Za-z_][A-Za-z0-9_]*)`)
)

// maxExpanded is how many bytes the values of definitions may take in the place of their names.
const maxExpanded = 1 << 20

// An expander replaces the names of definitions, $NAME=value, which hold for the lines below them.
type expander struct {
	values map[string]string
	spent  int
}

// expand is list without definitions, and with their values in the place of their names. Secrets stay names.
func (e *expander) expand(list []syntax.Statement) []syntax.Statement {
	var out []syntax.Statement
	for _, st := range list {
		if m := definition.FindStringSubmatch(st.Words[0]); m != nil && st.Body == nil {
			value := strings.Join(append([]string{m[2]}, st.Words[1:]...), " ")
			if !syntax.IsSecretName(m[1]) {
				e.values[m[1]] = e.replace(value)
			}
			continue
		}
		var words []string
		for _, w := range st.Words {
			if v := e.replace(w); v == w || len(st.Words) == 2 && strings.Contains(w, " ") {
				words = append(words, v)
			} else {
				words = append(words, strings.Fields(v)...)
			}
		}
		if st.Words = words; len(words) > 0 {
			st.Body = e.expand(st.Body)
			out = append(out, st)
		}
	}
	return out
}

func (e *expander) replace(word string) string {
	if !strings.Contains(word, "$") {
		return word
	}
	return reference.ReplaceAllStringFunc(word, func(ref string) string {
		v, ok := e.values[strings.Trim(ref, "${}")]
		if e.spent += len(v); !ok || e.spent > maxExpanded {
			return ref
		}
		return v
	})
}
