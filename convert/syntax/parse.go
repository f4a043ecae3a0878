package syntax

import "fmt"

// maxDepth is deeper than any real nesting.
const maxDepth = 32

// Parse cuts data into statements.
func (g Grammar) Parse(file string, data []byte) ([]Statement, error) {
	tokens, err := g.scan(file, data)
	if err != nil {
		return nil, err
	}
	list, rest, err := g.body(file, tokens, 0)
	if err != nil {
		return nil, err
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%s: } closes nothing; remove it, or look for the { that is missing",
			Place{file, rest[0].line})
	}
	return list, nil
}

// body reads statements up to the closing brace, which it leaves in rest.
func (g Grammar) body(file string, tokens []token, depth int) (list []Statement, rest []token, err error) {
	if depth > maxDepth {
		return nil, nil, fmt.Errorf("%s: more than %d braces in each other; is one left open?",
			Place{file, tokens[0].line}, maxDepth)
	}
	var now Statement
	end := func() {
		if len(now.Words) > 0 {
			list = append(list, now)
		}
		now = Statement{}
	}
	// semicolon checks the end of a body or file, before which a statement needs its semicolon.
	semicolon := func() error {
		if len(now.Words) > 0 && g.Semicolons {
			return fmt.Errorf("%s: %s lacks its semicolon; write it", now.Place, Printable(Masked(now.Text())))
		}
		end()
		return nil
	}
	for len(tokens) > 0 {
		t := tokens[0]
		switch t.mark {
		case 0:
			if len(now.Words) == 0 {
				now.Place = Place{file, t.line}
			}
			now.Words = append(now.Words, t.text)
		case '\n':
			if !g.Semicolons && !opensNext(tokens[1:]) {
				end()
			}
		case ';':
			end()
		case '}':
			err := semicolon()
			return list, tokens, err
		case '{':
			if len(now.Words) == 0 {
				return nil, nil, fmt.Errorf("%s: { stands alone; write what it belongs to before it", Place{file, t.line})
			}
			body, after, err := g.body(file, tokens[1:], depth+1)
			if err != nil {
				return nil, nil, err
			}
			if len(after) == 0 {
				return nil, nil, fmt.Errorf("%s: the { of %s is never closed; write the } that is missing",
					now.Place, Printable(Masked(now.Text())))
			}
			now.Body, tokens = body, after
			end()
		}
		tokens = tokens[1:]
	}
	err = semicolon()
	return list, nil, err
}

// opensNext reports whether the next thing in tokens is an opening brace, which belongs to the line before.
func opensNext(tokens []token) bool {
	for _, t := range tokens {
		if t.mark != '\n' {
			return t.mark == '{'
		}
	}
	return false
}
