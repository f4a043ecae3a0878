package terminal

import (
	"strings"
	"unicode/utf8"

	"appliance/balancer"
)

// A painter colours words if the reader is a terminal.
type painter bool

const (
	red   = "\x1b[31m"
	green = "\x1b[32m"
	plain = "\x1b[0m"
)

func (p painter) good(s string) string { return p.paint(green, s) }

func (p painter) bad(s string) string { return p.paint(red, s) }

func (p painter) paint(colour, s string) string {
	if !p || s == "" {
		return s
	}
	return colour + s + plain
}

// table writes rows in columns, two spaces apart. text/tabwriter would count the bytes of colour codes as width.
func table(b *strings.Builder, rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], width(cell))
		}
	}
	b.WriteByte('\n')
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString(cell)
			line.WriteString(strings.Repeat(" ", widths[i]-width(cell)+2))
		}
		b.WriteString(strings.TrimRight(line.String(), " "))
		b.WriteByte('\n')
	}
}

// width is the number of columns that s takes on a terminal.
func width(s string) int {
	for _, code := range []string{red, green, plain} {
		s = strings.ReplaceAll(s, code, "")
	}
	return utf8.RuneCountInString(s)
}

// state is the state of a backend in its colour.
func (p painter) state(be balancer.BackendStatus) string {
	switch word := string(be.State); {
	case be.PassedOver != "":
		return p.bad("passed over")
	case be.State == balancer.Up:
		return p.good(word)
	case be.Disabled: // somebody wants that
		return word
	case be.State == balancer.Down:
		return p.bad(word)
	default:
		return word
	}
}
