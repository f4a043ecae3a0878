package syntax

import (
	"fmt"
	"strconv"
	"strings"
)

// A Place is where something was written.
type Place struct {
	File string
	Line int
}

func (p Place) String() string { return fmt.Sprintf("%s:%d", Printable(p.File), p.Line) }

// A Statement is one line of haproxy, one directive of nginx, one keyword of
// keepalived: words, and what stands in braces behind them.
type Statement struct {
	Place
	Words []string
	Body  []Statement
	// last is the line of the closing brace; zero without a body.
	last int
}

// Arg is the word at i, or nothing.
func (s Statement) Arg(i int) string {
	if i < len(s.Words) {
		return s.Words[i]
	}
	return ""
}

func (s Statement) Text() string { return strings.Join(s.Words, " ") }

// Printable is s, quoted if it could disturb a terminal or a YAML comment.
func Printable(s string) string {
	if q := strconv.Quote(s); q != `"`+s+`"` {
		return q
	}
	return s
}
