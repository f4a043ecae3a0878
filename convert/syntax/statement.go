package syntax

import (
	"fmt"
	"strconv"
	"strings"
)

// A Place is a line of a file.
type Place struct {
	File string
	Line int
}

func (p Place) String() string { return fmt.Sprintf("%s:%d", Printable(p.File), p.Line) }

// A Statement is one line of haproxy, one directive of nginx, or one keyword of keepalived: words, and the statements
// in the braces after them.
type Statement struct {
	Place
	Words []string
	Body  []Statement
}

// Arg is the word at i, empty if there is none.
func (s Statement) Arg(i int) string {
	if i < len(s.Words) {
		return s.Words[i]
	}
	return ""
}

// Head is the statement without its body.
func (s Statement) Head() Statement { return Statement{Place: s.Place, Words: s.Words} }

// Text is the words of the statement as one.
func (s Statement) Text() string { return strings.Join(s.Words, " ") }

// Printable is s, quoted if it could disturb a terminal or a YAML comment.
func Printable(s string) string {
	if q := strconv.Quote(s); q != `"`+s+`"` {
		return q
	}
	return s
}
