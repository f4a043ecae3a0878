package draft

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"appliance/convert/syntax"
)

// Why something has no meaning here, or cannot be carried over.
const (
	IsHTTP    = "is for HTTP, and connections are carried unread"
	IsLogging = "log, log.connections and log.copy say what is logged and where"
	IsProcess = "is the business of systemd or the kubelet, which starts the appliance"
	IsTLS     = "TLS stays between client and server"
	IsTuning  = "is found by itself"
	IsAlways  = "is always so"
	IsUnknown = "is not known"
	// NoStatuses and NoRegexp are for what a check expects.
	NoStatuses = "is no list of statuses from 200 to 599"
	NoRegexp   = "is no regular expression of RE2's kind; write check: {expect: {matches: ...}}"
	OneTarget  = "every connection of a load balancer goes to the same backends; " +
		"write another load balancer on another port"
	// NotCarried begins the note about a load balancer that is refused.
	NotCarried = "was not carried over: "
	Unfilled   = "is still to be filled in; write the value, and convert again"
)

// A Note says that one statement was not carried over, or not as it was.
type Note struct {
	syntax.Place
	words, text string
	// Moot means that nobody has to do anything.
	Moot bool
	// Owner is the load balancer that the note belongs to; nil means the whole.
	Owner  *LB
	within bool // the statement that it is part of has a note that says why
}

// maxQuote is how many bytes of a statement a note quotes.
const maxQuote = 300

// String is the note as a comment.
func (n *Note) String() string {
	words := n.words
	if len(words) > maxQuote {
		words = words[:maxQuote] + "..."
	}
	return oneLine(fmt.Sprintf("%s: %s: %s", n.Place, words, n.text))
}

// oneLine is s without what would end a comment or disturb a terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// Note notes that st was not carried over, and what to do about it.
func (d *Draft) Note(owner *LB, st syntax.Statement, format string, args ...any) {
	d.add(&Note{Place: st.Place, words: st.Text(), text: fmt.Sprintf(format, masked(args)...), Owner: owner})
}

// Moot notes that st has no meaning here, and that nobody needs it.
func (d *Draft) Moot(owner *LB, st syntax.Statement, format string, args ...any) {
	d.add(&Note{Place: st.Place, words: st.Text(), text: fmt.Sprintf(format, masked(args)...), Owner: owner, Moot: true})
}

// masked is args without the secrets in their texts.
func masked(args []any) []any {
	for i, a := range args {
		if s, ok := a.(string); ok {
			args[i] = syntax.Masked(s)
		}
	}
	return args
}

// Advise notes something about st, which was carried over.
func (d *Draft) Advise(owner *LB, st syntax.Statement, format string, args ...any) {
	left := d.left[st.Place]
	d.Note(owner, st, format, args...)
	if !left {
		delete(d.left, st.Place)
	}
}

// NoteAll notes st and everything within it; the note of st says why.
func (d *Draft) NoteAll(owner *LB, st syntax.Statement, moot bool, format string, args ...any) {
	note := d.Note
	if moot {
		note = d.Moot
	}
	note(owner, st.Head(), format, args...)
	d.NoteWithin(owner, st.Body, st.Place, moot)
}

// NoteWithin notes every statement of list as part of the one at head.
func (d *Draft) NoteWithin(owner *LB, list []syntax.Statement, head syntax.Place, moot bool) {
	for _, st := range list {
		d.add(&Note{
			Place: st.Place, words: st.Text(), text: fmt.Sprintf("part of line %d", head.Line),
			Owner: owner, Moot: moot, within: true,
		})
		d.NoteWithin(owner, st.Body, head, moot)
	}
}

// NoteRest notes the statements of a load balancer that was not carried over, as far as they have no note yet. All its
// notes then belong to the whole.
func (d *Draft) NoteRest(lb *LB) {
	for _, n := range d.Notes {
		if n.Owner == lb {
			n.Owner = nil
		}
	}
	for _, st := range lb.Lines {
		if !d.left[st.Place] {
			d.NoteWithin(nil, []syntax.Statement{st}, lb.Place, false)
		}
	}
}

func (d *Draft) add(n *Note) {
	n.words = syntax.Masked(n.words)
	key := n.Place.String() + "\x00" + n.words + "\x00" + n.text
	if d.noted[key] {
		return // haproxy's defaults are read once for each section that has them
	}
	d.noted[key] = true
	d.left[n.Place] = true
	d.Notes = append(d.Notes, n)
}

// FirstReasons ends an error with what was in the way, empty if nothing was.
func (d *Draft) FirstReasons() string {
	const most = 5
	var text strings.Builder
	n := 0
	isRefusal := func(one *Note) bool { return strings.HasPrefix(one.text, NotCarried) }
	notes := slices.Clone(d.Notes)
	slices.SortStableFunc(notes, func(a, b *Note) int { // what the error is about goes first
		switch {
		case isRefusal(a) == isRefusal(b):
			return 0
		case isRefusal(a):
			return -1
		}
		return 1
	})
	for _, one := range notes {
		if one.Moot || one.within {
			continue
		}
		if n++; n > most {
			text.WriteString("\n  ...")
			break
		}
		fmt.Fprintf(&text, "\n  %s", one)
	}
	if text.Len() == 0 {
		return ""
	}
	return ":" + text.String()
}
