package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// terminal says whether w takes colours, and its height in rows; 0 if it is not a terminal.
func screen(w io.Writer) (colour bool, rows int) {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return false, 0
	}
	_, rows, err := term.GetSize(int(f.Fd()))
	if err != nil {
		rows = 0
	}
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb", rows
}

const (
	clearScreen = "\x1b[H\x1b[2J"
	altScreen   = "\x1b[?1049h\x1b[?25l"
	mainScreen  = "\x1b[?25h\x1b[?1049l"
)

// repeat draws again and again until ctx ends. On a terminal each picture replaces the one before, on the alternate
// screen; elsewhere the pictures follow each other.
func repeat(ctx context.Context, w io.Writer, every time.Duration, draw func(w io.Writer, colour bool) error) error {
	colour, rows := screen(w)
	if rows > 0 {
		fmt.Fprint(w, altScreen)
		defer fmt.Fprint(w, mainScreen)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		var b strings.Builder
		err := draw(&b, colour)
		if ctx.Err() != nil {
			return nil // Ctrl-C is how this ends
		}
		if err != nil && rows == 0 {
			return err
		}
		if err != nil { // it may be restarting: try again
			fmt.Fprintf(&b, "%v\n", err)
		}
		text := b.String()
		if rows > 0 {
			text = clearScreen + cut(text, rows-1)
		} else {
			text += "\n"
		}
		if _, err := io.WriteString(w, text); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// cut returns the first lines of text.
func cut(text string, lines int) string {
	for i := range text {
		if text[i] == '\n' {
			if lines--; lines <= 0 {
				return text[:i]
			}
		}
	}
	return text
}
