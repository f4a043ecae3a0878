package convert

import (
	"fmt"
	"strings"
)

// A place is where something was written.
type place struct {
	file string
	line int
}

func (p place) String() string { return fmt.Sprintf("%s:%d", printable(p.file), p.line) }

// A statement is one line of haproxy, one directive of nginx, one keyword of
// keepalived: words, and what stands in braces behind them.
type statement struct {
	place
	words []string
	body  []statement
	// last is the line of the closing brace; zero without a body.
	last int
}

// arg is the word at i, or nothing.
func (s statement) arg(i int) string {
	if i < len(s.words) {
		return s.words[i]
	}
	return ""
}

func (s statement) text() string { return strings.Join(s.words, " ") }

// A grammar says what separates words and statements. The three that there
// are differ in little else.
type grammar struct {
	// comments begin one; inside says that they need no space before them.
	comments string
	inside   bool
	// semicolons end a statement, else the end of the line does.
	semicolons bool
	// braces open and close bodies.
	braces bool
	// escapes says that a backslash takes the next character as it is, and
	// letters that some mean more, outside quotes: \n.
	escapes, letters bool
}

var (
	haproxyGrammar    = grammar{comments: "#", inside: true, escapes: true, letters: true}
	nginxGrammar      = grammar{comments: "#", semicolons: true, braces: true, escapes: true}
	keepalivedGrammar = grammar{comments: "#!", inside: true, braces: true}
)

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
func (g grammar) scan(file string, data []byte) ([]token, error) {
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
			return nil, fmt.Errorf("%s: a word of more than %d letters; is a quote left open?", place{file, at}, maxWord)
		}
		switch {
		case c == '\r' && i+1 < len(data) && data[i+1] == '\n':
			// the end of a line as Windows writes it
		case g.escapes && c == '\\' && quote != '\'' && i+1 < len(data):
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
		case quote != 0 && c == '\n' && !g.semicolons:
			return nil, fmt.Errorf("%s: a quote is left open; close it with %c", place{file, line}, quote)
		case quote != 0:
			if c == '\n' {
				line++
			}
			add(c)
		case c == '"' || c == '\'' && (g.escapes || !begun):
			quote = c
			if !begun {
				begun, at = true, line
			}
		case strings.IndexByte(g.comments, c) >= 0 && (!begun || g.inside):
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
		case g.braces && c == '{' && begun && strings.HasSuffix(word.String(), "$"):
			// ${name} is part of a word, not a body.
			for ; i < len(data) && data[i] != '}' && data[i] != '\n'; i++ {
				add(data[i])
			}
			if i < len(data) && data[i] == '}' {
				add('}')
			} else {
				i--
			}
		case g.braces && (c == '{' || c == '}'), g.semicolons && c == ';':
			end()
			tokens = append(tokens, token{line: line, mark: c})
		default:
			add(c)
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("%s: a quote is left open; close it with %c", place{file, at}, quote)
	}
	end()
	return append(tokens, token{line: line, mark: '\n'}), nil
}

// escaped is what a backslash and c mean.
func (g grammar) escaped(c, quote byte) byte {
	if !g.letters || quote != 0 {
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

// maxDepth is above any real nesting.
const maxDepth = 32

// parse cuts data into statements.
func (g grammar) parse(file string, data []byte) ([]statement, error) {
	tokens, err := g.scan(file, data)
	if err != nil {
		return nil, err
	}
	list, rest, err := g.body(file, tokens, 0)
	if err != nil {
		return nil, err
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%s: } closes nothing; remove it, or look for the { that is missing", place{file, rest[0].line})
	}
	return list, nil
}

// body reads statements up to the closing brace, which it leaves in rest.
func (g grammar) body(file string, tokens []token, depth int) (list []statement, rest []token, err error) {
	if depth > maxDepth {
		return nil, nil, fmt.Errorf("%s: more than %d braces in each other; is one left open?", place{file, tokens[0].line}, maxDepth)
	}
	var now statement
	end := func() {
		if len(now.words) > 0 {
			list = append(list, now)
		}
		now = statement{}
	}
	for len(tokens) > 0 {
		t := tokens[0]
		switch t.mark {
		case 0:
			if len(now.words) == 0 {
				now.place = place{file, t.line}
			}
			now.words = append(now.words, t.text)
		case '\n':
			if !g.semicolons && !opensNext(tokens[1:]) {
				end()
			}
		case ';':
			end()
		case '}':
			if len(now.words) > 0 && g.semicolons {
				return nil, nil, fmt.Errorf("%s: %s lacks its semicolon; write it", now.place, printable(now.text()))
			}
			end()
			return list, tokens, nil
		case '{':
			if len(now.words) == 0 {
				return nil, nil, fmt.Errorf("%s: { stands alone; write what it belongs to before it", place{file, t.line})
			}
			body, after, err := g.body(file, tokens[1:], depth+1)
			if err != nil {
				return nil, nil, err
			}
			if len(after) == 0 {
				return nil, nil, fmt.Errorf("%s: the { of %s is never closed; write the } that is missing", now.place, printable(now.text()))
			}
			now.body, now.last, tokens = body, after[0].line, after
			end()
		}
		tokens = tokens[1:]
	}
	if len(now.words) > 0 && g.semicolons {
		return nil, nil, fmt.Errorf("%s: %s lacks its semicolon; write it", now.place, printable(now.text()))
	}
	end()
	return list, nil, nil
}

// opensNext says that the next thing in tokens is an opening brace, which
// belongs to the line before.
func opensNext(tokens []token) bool {
	for _, t := range tokens {
		if t.mark != '\n' {
			return t.mark == '{'
		}
	}
	return false
}
