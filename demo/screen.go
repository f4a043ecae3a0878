package demo

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"
)

// screen shows pictures in place of each other on a terminal, and only the
// story, line by line, anywhere else.
type screen struct {
	out  io.Writer
	live bool

	mu    sync.Mutex
	drawn int // lines of the last picture, below which the cursor stands
}

func newScreen(out io.Writer) *screen {
	f, ok := out.(*os.File)
	return &screen{out: out, live: ok && term.IsTerminal(int(f.Fd()))}
}

// say writes a line of the story where there is no picture to hold it.
func (s *screen) say(e event) {
	if s.live {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintln(s.out, e)
}

// show draws p over the picture before.
func (s *screen) show(p picture) {
	if !s.live {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	if s.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", s.drawn) // cursor up
	}
	lines := p.draw()
	for _, l := range lines {
		// Erase to the end of the line, for lines that have become shorter;
		// no wrapping, for the cursor counts lines.
		b.WriteString("\x1b[?7l" + l + "\x1b[K\x1b[?7h\n")
	}
	b.WriteString("\x1b[J") // erase below
	s.drawn = len(lines)
	io.WriteString(s.out, b.String())
}

// print writes text below the last picture, which stays.
func (s *screen) print(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drawn = 0
	fmt.Fprintln(s.out, text)
}
