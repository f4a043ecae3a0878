package draft

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"appliance/convert/syntax"
)

// A Note is one statement that was not carried over, or not as it was.
type Note struct {
	syntax.Place
	words string
	text  string
	// moot says that nobody has to do anything.
	Moot bool
	// owner is the load balancer that it belongs to; nil is the whole.
	Owner   *LB
	Written bool
}

// Note writes down that st was not carried over, and what to do about it.
func (d *Draft) Note(owner *LB, st syntax.Statement, format string, args ...any) {
	d.add(&Note{Place: st.Place, words: st.Text(), text: fmt.Sprintf(format, args...), Owner: owner})
}

// Moot writes down that st has no meaning here, and that nobody needs it.
func (d *Draft) Moot(owner *LB, st syntax.Statement, format string, args ...any) {
	d.add(&Note{Place: st.Place, words: st.Text(), text: fmt.Sprintf(format, args...), Owner: owner, Moot: true})
}

// Advise says something about st, which was carried over.
func (d *Draft) Advise(owner *LB, st syntax.Statement, format string, args ...any) {
	left := d.left[st.Place]
	d.Note(owner, st, format, args...)
	if !left {
		delete(d.left, st.Place)
	}
}

func (d *Draft) add(n *Note) {
	n.words = secretless(n.words)
	key := n.Place.String() + "\x00" + n.words + "\x00" + n.text
	if d.noted[key] {
		return // defaults are read once for each section that has them
	}
	d.noted[key] = true
	d.left[n.Place] = true
	d.Notes = append(d.Notes, n)
}

// NoteAll notes st with everything in it: the first line says why.
func (d *Draft) NoteAll(owner *LB, st syntax.Statement, moot bool, format string, args ...any) {
	say := d.Note
	if moot {
		say = d.Moot
	}
	say(owner, syntax.Statement{Place: st.Place, Words: st.Words}, format, args...)
	d.NoteWithin(owner, st.Body, st.Place, moot)
}

// NoteWithin notes every statement of list as part of what stands at head.
func (d *Draft) NoteWithin(owner *LB, list []syntax.Statement, head syntax.Place, moot bool) {
	for _, st := range list {
		d.add(&Note{Place: st.Place, words: st.Text(), text: fmt.Sprintf("part of line %d", head.Line), Owner: owner, Moot: moot})
		d.NoteWithin(owner, st.Body, head, moot)
	}
}

// The reasons why something has no meaning here.
const (
	IsHTTP    = "is for HTTP, and connections are carried unread"
	IsLogging = "changes of state are logged to stderr, connections are not"
	IsProcess = "is the business of systemd or the kubelet, which starts the appliance"
	IsTLS     = "TLS stays between client and server"
	IsTuning  = "is found by itself"
	IsDNS     = "names are not looked up; servers are given by address"
	IsAlways  = "is always so"
	Unfilled  = "is still to be filled in; write the value, and convert again"
)

// NoteRest notes what was said in a service that was not carried over.
func (d *Draft) NoteRest(s *LB) {
	for _, n := range d.Notes {
		if n.Owner == s {
			n.Owner = nil
		}
	}
	for _, st := range s.Lines {
		if !d.left[st.Place] {
			d.NoteWithin(nil, []syntax.Statement{st}, s.Place, false)
		}
	}
}

// FirstReasons ends an error with what was in the way.
func (d *Draft) FirstReasons() string {
	var text strings.Builder
	n := 0
	for _, one := range d.Notes {
		if one.Moot || strings.HasPrefix(one.text, "part of line") {
			continue
		}
		if n++; n > 5 {
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

// secret finds the words that are followed by one.
var secret = regexp.MustCompile(`(?i)\b(auth_pass|auth|authorization|password|insecure-password|packetapikey|token|secret|bearer)([ :=]+)\S.*`)

// secretless hides what should not be copied into another file.
func secretless(words string) string { return secret.ReplaceAllString(words, "$1$2****") }

// String is a note as it stands in a comment.
func (n *Note) String() string {
	words := n.words
	if len(words) > maxQuote {
		words = words[:maxQuote] + "..."
	}
	return oneLine(fmt.Sprintf("%s: %s: %s", n.Place, words, n.text))
}

// maxQuote keeps one endless line from making another.
const maxQuote = 300

// oneLine is s without what would end a comment or disturb a terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
