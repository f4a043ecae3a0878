package keepalived

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

var (
	definition = regexp.MustCompile(`^\$([A-Za-z_][A-Za-z0-9_]*)=(.*)$`)
	// reference is a name in braces, or one with a space or the end behind it.
	reference = regexp.MustCompile(`\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$([A-Za-z_][A-Za-z0-9_]*)(?:[ \t]|$)`)
	// block is a line that is read several times, each time with other values.
	block = regexp.MustCompile(`^~(SEQx?|LST)\(([^)]*)\)[ \t]*(.*)$`)
)

const (
	// maxExpanded is how many bytes the values of definitions may take in the place of their names.
	maxExpanded = 1 << 20
	// maxNested is how deep definitions may use each other.
	maxNested = 32
)

// A sourceLine is a line of a file, without its end.
type sourceLine struct {
	text   string
	number int
}

// An unfolder replaces the definitions of one file, as keepalived does: $NAME=value, those of several lines, and the
// blocks ~SEQ and ~LST. A name is replaced where it is used, by what it means then.
type unfolder struct {
	file string
	expander
	blocks map[string][]sourceLine // the definitions of several lines
	out    bytes.Buffer
	lines  []int // the line of the file that each line of out is from
	nested int
	steps  int
	err    error
}

// Unfold is data with the meaning of its definitions in their places, and from which line of data each line is. Those
// of one line stay, since other files may use them.
func Unfold(file string, data []byte) (out []byte, lines []int, err error) {
	u := &unfolder{file: file, expander: expander{values: map[string]string{}}, blocks: map[string][]sourceLine{}}
	var all []sourceLine
	for i, text := range strings.Split(string(data), "\n") {
		all = append(all, sourceLine{strings.TrimSuffix(text, "\r"), i + 1})
	}
	u.read(all)
	return u.out.Bytes(), u.lines, u.err
}

// read reads lines, which may define what those below them use.
func (u *unfolder) read(all []sourceLine) {
	for i := 0; i < len(all); i++ {
		name, ok := strings.CutSuffix(strings.TrimSpace(all[i].text), `\`)
		m := definition.FindStringSubmatch(strings.TrimSpace(name))
		if !ok || m == nil || strings.TrimSpace(m[2]) != "" {
			u.line(all[i])
			continue
		}
		var body []sourceLine
		for more := true; more && i+1 < len(all); {
			i++
			l := all[i]
			if strings.TrimSpace(l.text) == "" {
				continue
			}
			l.text, more = strings.CutSuffix(strings.TrimRight(l.text, " \t"), `\`)
			body = append(body, l)
		}
		u.blocks[m[1]] = body
	}
}

// line reads one line, and writes what it means.
func (u *unfolder) line(l sourceLine) {
	text := strings.TrimSpace(l.text)
	if m := definition.FindStringSubmatch(text); m != nil {
		if !syntax.IsSecretName(m[1]) {
			u.values[m[1]] = strings.TrimSpace(m[2])
		}
		u.write(l)
		return
	}
	if !strings.Contains(text, "$") && !strings.HasPrefix(text, "~") {
		u.write(l)
		return
	}
	u.nested++
	u.steps++
	switch {
	case u.nested > maxNested:
		u.fail(l, "definitions use each other in a circle, or deeper than %d", maxNested)
	case u.steps > draft.MaxStatements:
		u.fail(l, "definitions are used more than %d times", draft.MaxStatements)
	}
	defer func() { u.nested-- }()
	if u.err != nil {
		return
	}
	if m := block.FindStringSubmatch(text); m != nil {
		u.repeat(l, m[1], m[2], m[3])
		return
	}
	l.text = u.replace(l.text)
	// One of several lines may stand at the end of a line.
	for name, body := range u.blocks {
		for _, word := range []string{"$" + name, "${" + name + "}"} {
			before, ok := strings.CutSuffix(strings.TrimRight(l.text, " \t"), word)
			if !ok || strings.ContainsAny(before, "#!") {
				continue
			}
			body = slices.Clone(body)
			if len(body) > 0 && strings.TrimSpace(before) != "" {
				body[0].text = before + body[0].text
			}
			u.read(body)
			return
		}
	}
	u.write(l)
}

// repeat reads the rest of a line once for each value of a block.
func (u *unfolder) repeat(l sourceLine, kind, args, rest string) {
	names, sets, ok := sequence(kind, args)
	if kind == "LST" {
		names, sets, ok = list(args)
	}
	if !ok {
		u.fail(l, "~%s(%s) is no block that is known; write out what it stands for", kind, syntax.Printable(args))
		return
	}
	for _, set := range sets {
		for i, name := range names {
			u.values[name] = set[i]
		}
		u.line(sourceLine{rest, l.number})
	}
	for _, name := range names {
		delete(u.values, name)
	}
}

// sequence reads var[, start[, step]], end.
func sequence(kind, args string) (names []string, sets [][]string, ok bool) {
	words := strings.Split(args, ",")
	numbers := make([]int64, 0, len(words))
	for _, w := range words[1:] {
		n, err := strconv.ParseInt(strings.TrimSpace(w), 0, 32)
		if err != nil {
			return nil, nil, false
		}
		numbers = append(numbers, n)
	}
	if len(numbers) < 1 || len(numbers) > 3 {
		return nil, nil, false
	}
	end := numbers[len(numbers)-1]
	start, step := int64(1), int64(1)
	if end < 0 {
		start = -1
	}
	if len(numbers) > 1 {
		start = numbers[0]
	}
	if end < start {
		step = -1
	}
	if len(numbers) == 3 {
		step = numbers[1]
	}
	if step == 0 || (end-start)/step > draft.MaxStatements {
		return nil, nil, false
	}
	base := 10
	if kind == "SEQx" {
		base = 16
	}
	for n := start; step > 0 && n <= end || step < 0 && n >= end; n += step {
		sets = append(sets, []string{strconv.FormatInt(n, base)})
	}
	return []string{strings.TrimSpace(words[0])}, sets, true
}

// list reads var, value, ... or {var, var}, {value, value}, ...
func list(args string) (names []string, sets [][]string, ok bool) {
	var groups [][]string
	for rest := strings.TrimSpace(args); rest != ""; {
		group := ""
		if within, isGroup := strings.CutPrefix(rest, "{"); isGroup {
			if group, rest, ok = strings.Cut(within, "}"); !ok {
				return nil, nil, false
			}
			_, rest, _ = strings.Cut(rest, ",")
		} else {
			group, rest, _ = strings.Cut(rest, ",")
		}
		words := strings.Split(group, ",")
		for i := range words {
			words[i] = strings.TrimSpace(words[i])
		}
		groups, rest = append(groups, words), strings.TrimSpace(rest)
	}
	if len(groups) < 2 {
		return nil, nil, false
	}
	for _, set := range groups[1:] {
		if len(set) != len(groups[0]) {
			return nil, nil, false
		}
	}
	return groups[0], groups[1:], true
}

func (u *unfolder) write(l sourceLine) {
	if u.err != nil {
		return
	}
	if u.out.Len()+len(l.text) > 2*maxExpanded || len(u.lines) > draft.MaxStatements*2 {
		u.fail(l, "definitions make more of the file than %d bytes or %d lines", 2*maxExpanded, draft.MaxStatements*2)
		return
	}
	u.out.WriteString(l.text + "\n")
	u.lines = append(u.lines, l.number)
}

func (u *unfolder) fail(l sourceLine, format string, args ...any) {
	if u.err == nil {
		u.err = fmt.Errorf("%s: "+format, append([]any{syntax.Place{File: u.file, Line: l.number}}, args...)...)
	}
}

// An expander replaces the names of definitions, $NAME=value, which hold for the lines below them, also of other files.
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
				e.values[m[1]] = value
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

// replace replaces names by their values, which may have further names in them.
func (e *expander) replace(word string) string {
	for range maxNested {
		if !strings.Contains(word, "$") {
			return word
		}
		next := reference.ReplaceAllStringFunc(word, func(ref string) string {
			name := strings.Trim(ref, "${} \t")
			v, ok := e.values[name]
			if e.spent += len(v); !ok || e.spent > maxExpanded {
				return ref
			}
			if last := ref[len(ref)-1]; last == ' ' || last == '\t' {
				v += string(last)
			}
			return v
		})
		if next == word {
			return word
		}
		word = next
	}
	return word
}
