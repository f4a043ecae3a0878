package syntax

import (
	"fmt"
	"strings"
)

// A Grammar says what separates words and statements. The three that there
// are differ in little else.
type Grammar struct {
	// comments begin one; inside says that they need no space before them.
	Comments string
	Inside   bool
	// semicolons end a statement, else the end of the line does.
	Semicolons bool
	// braces open and close bodies.
	Braces bool
	// escapes says that a backslash takes the next character as it is, and
	// letters that some mean more, outside quotes: \n.
	Escapes, Letters bool
}

// token is a word, or one of the marks { } ; and the end of a line.
type token struct {
	text string
	line int
	mark byte
}

// maxWord is above any real word; an open quote would otherwise take the rest
// of the file for one.
const maxWord = 4096

// scan cuts data into tokens.
func (g Grammar) scan(file string, data []byte) ([]token, error) {
	var (
		tokens []token
		word   strings.Builder
		begun  bool // a word, perhaps an empty one in quotes
		at     int  // its line
		line   = 1
		quote  byte
	)
	end := func() {
		if begun {
			tokens = append(tokens, token{text: word.String(), line: at})
		}
		word.Reset()
		begun = false
	}
	add := func(c byte) {
		if !begun {
			begun, at = true, line
		}
		word.WriteByte(c)
	}
	for i := 0; i < len(data); i++ {
		c := data[i]
		if word.Len() > maxWord {
			return nil, fmt.Errorf("%s: a word of more than %d letters; is a quote left open?", Place{file, at}, maxWord)
		}
		switch {
		case c == '\r' && i+1 < len(data) && data[i+1] == '\n':
			// the end of a line as Windows writes it
		case g.Escapes && c == '\\' && quote != '\'' && i+1 < len(data):
			i++
			if data[i] == '\n' {
				line++ // the line goes on
				continue
			}
			if quote != 0 && data[i] != quote && data[i] != '\\' {
				add(c)
			}
			add(g.escaped(data[i], quote))
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0 && c == '\n' && !g.Semicolons:
			return nil, fmt.Errorf("%s: a quote is left open; close it with %c", Place{file, line}, quote)
		case quote != 0:
			if c == '\n' {
				line++
			}
			add(c)
		case c == '"' || c == '\'' && (g.Escapes || !begun):
			quote = c
			if !begun {
				begun, at = true, line
			}
		case strings.IndexByte(g.Comments, c) >= 0 && (!begun || g.Inside):
			end()
			for i+1 < len(data) && data[i+1] != '\n' {
				i++
			}
		case c == '\n':
			end()
			tokens = append(tokens, token{line: line, mark: '\n'})
			line++
		case c == ' ' || c == '\t' || c == '\r' || c == '\v' || c == '\f':
			end()
		case g.Braces && c == '{' && begun && strings.HasSuffix(word.String(), "$"):
			// ${name} is part of a word, not a body.
			for ; i < len(data) && data[i] != '}' && data[i] != '\n'; i++ {
				add(data[i])
			}
			if i < len(data) && data[i] == '}' {
				add('}')
			} else {
				i--
			}
		case g.Braces && (c == '{' || c == '}'), g.Semicolons && c == ';':
			end()
			tokens = append(tokens, token{line: line, mark: c})
		default:
			add(c)
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("%s: a quote is left open; close it with %c", Place{file, at}, quote)
	}
	end()
	return append(tokens, token{line: line, mark: '\n'}), nil
}

// escaped is what a backslash and c mean.
func (g Grammar) escaped(c, quote byte) byte {
	if !g.Letters || quote != 0 {
		return c
	}
	switch c {
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	}
	return c
}
