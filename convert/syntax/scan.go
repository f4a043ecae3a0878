package syntax

import (
	"bytes"
	"fmt"
	"strings"
)

// A Grammar says what separates words and statements. The formats differ in little else.
type Grammar struct {
	// Comments are the bytes that begin a comment; Inside means that they need no space before them.
	Comments string
	Inside   bool
	// Semicolons end a statement; otherwise the end of the line does.
	Semicolons bool
	// Braces open and close bodies.
	Braces bool
	// Escapes means that a backslash takes the next byte as it is, Letters that it does so before the few bytes alone
	// that haproxy names, and that some letters after it mean more, such as \n.
	Escapes, Letters bool
	// Continues means that a backslash at the end of a line joins it with the next.
	Continues bool
	// QuotesWords means that a quote begins at the beginning of a word alone.
	QuotesWords bool
}

// A token is a word, or one of the marks { } ; and the end of a line.
type token struct {
	text string
	line int
	mark byte
}

// maxWord is longer than any real word; otherwise an open quote would take the rest of the file.
const maxWord = 4096

// A scanner cuts data into tokens.
type scanner struct {
	Grammar
	file   string
	data   []byte
	next   int // the byte of data after the current one
	line   int
	tokens []token
	// word is the word as far as it was read, begun at line start. It may be empty, in quotes.
	word  strings.Builder
	begun bool
	start int
	quote byte // the open one, 0 if there is none
}

// scan cuts data into tokens.
func (g Grammar) scan(file string, data []byte) ([]token, error) {
	s := &scanner{Grammar: g, file: file, data: data, line: 1}
	for s.next < len(data) {
		if s.word.Len() > maxWord {
			return nil, fmt.Errorf("%s: a word of more than %d letters; is a quote left open?",
				Place{file, s.start}, maxWord)
		}
		c := data[s.next]
		s.next++
		switch {
		case c == '\r' && s.peek() == '\n':
			// The end of a line as Windows writes it.
		case g.Continues && c == '\\' && s.endsLine():
			s.line++
		case g.Letters && c == '\\' && s.quote != '\'' && s.next < len(data):
			s.letter()
		case g.Escapes && c == '\\' && s.quote != '\'' && s.next < len(data):
			s.escape()
		case s.quote != 0 && c == '\n' && !g.Semicolons:
			return nil, fmt.Errorf("%s: a quote is left open; close it with %c", Place{file, s.line}, s.quote)
		case s.quote != 0:
			s.quoted(c)
		default:
			s.bare(c)
		}
	}
	if s.quote != 0 {
		return nil, fmt.Errorf("%s: a quote is left open; close it with %c", Place{file, s.start}, s.quote)
	}
	s.mark('\n')
	return s.tokens, nil
}

// peek is the next byte, 0 at the end.
func (s *scanner) peek() byte {
	if s.next < len(s.data) {
		return s.data[s.next]
	}
	return 0
}

// begin starts a word, unless one is begun.
func (s *scanner) begin() {
	if !s.begun {
		s.begun, s.start = true, s.line
	}
}

func (s *scanner) add(c byte) {
	s.begin()
	s.word.WriteByte(c)
}

// end ends the word, if one is begun.
func (s *scanner) end() {
	if s.begun {
		s.tokens = append(s.tokens, token{text: s.word.String(), line: s.start})
	}
	s.word.Reset()
	s.begun = false
}

// mark ends the word and adds a mark.
func (s *scanner) mark(c byte) {
	s.end()
	s.tokens = append(s.tokens, token{line: s.line, mark: c})
}

// endsLine reports whether the line ends here, and skips its end if it does.
func (s *scanner) endsLine() bool {
	for _, end := range []string{"\n", "\r\n"} {
		if bytes.HasPrefix(s.data[s.next:], []byte(end)) {
			s.next += len(end)
			return true
		}
	}
	return false
}

// letter reads what follows a backslash in haproxy.cfg. Before any other byte the backslash is one.
func (s *scanner) letter() {
	c := s.data[s.next]
	switch c {
	case 'n':
		c = '\n'
	case 'r':
		c = '\r'
	case 't':
		c = '\t'
	case ' ', '\\', '#', '"', '\'':
	default:
		s.add('\\')
		return
	}
	s.next++
	s.add(c)
}

// escape reads the byte after a backslash.
func (s *scanner) escape() {
	c := s.data[s.next]
	s.next++
	if c == '\n' {
		s.line++ // the line continues
		return
	}
	if s.quote != 0 && c != s.quote && c != '\\' {
		s.add('\\')
	}
	s.add(c)
}

// quoted reads a byte within quotes.
func (s *scanner) quoted(c byte) {
	switch c {
	case s.quote:
		s.quote = 0
		return
	case '\n':
		s.line++
	}
	s.add(c)
}

// bare reads a byte outside quotes.
func (s *scanner) bare(c byte) {
	switch {
	case (c == '"' || c == '\'' && (s.Escapes || !s.begun)) && !(s.QuotesWords && s.begun):
		s.quote = c
		s.begin()
	case strings.IndexByte(s.Comments, c) >= 0 && (!s.begun || s.Inside):
		s.end()
		for s.next < len(s.data) && s.data[s.next] != '\n' {
			s.next++
		}
	case c == '\n':
		s.mark('\n')
		s.line++
	case c == ' ' || c == '\t' || c == '\r' || c == '\v' || c == '\f':
		s.end()
	case s.Braces && c == '{' && s.begun && strings.HasSuffix(s.word.String(), "$"):
		// ${name} is part of a word, not a body.
		s.add(c)
		for s.next < len(s.data) && s.data[s.next] != '\n' {
			c := s.data[s.next]
			s.next++
			s.add(c)
			if c == '}' {
				return
			}
		}
	case s.Braces && (c == '{' || c == '}'), s.Semicolons && c == ';':
		s.mark(c)
	default:
		s.add(c)
	}
}
