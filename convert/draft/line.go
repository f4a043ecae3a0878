package draft

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"appliance/convert/syntax"
)

// A Line is a statement while it is read.
type Line struct {
	*Draft
	// Owner is the load balancer that the notes about the statement belong to; nil means the whole.
	Owner *LB
	syntax.Statement
}

// Lines are the statements of list, whose notes belong to owner.
func (d *Draft) Lines(owner *LB, list []syntax.Statement) []Line {
	lines := make([]Line, len(list))
	for i, st := range list {
		lines[i] = Line{d, owner, st}
	}
	return lines
}

// Note notes that the statement was not carried over, and what to do about it.
func (l Line) Note(format string, args ...any) { l.Draft.Note(l.Owner, l.Statement, format, args...) }

// Moot notes that the statement has no meaning here, and that nobody needs it.
func (l Line) Moot(format string, args ...any) { l.Draft.Moot(l.Owner, l.Statement, format, args...) }

// Advise notes something about the statement, which was carried over.
func (l Line) Advise(format string, args ...any) {
	l.Draft.Advise(l.Owner, l.Statement, format, args...)
}

// NoteAll notes the statement and everything within it.
func (l Line) NoteAll(moot bool, format string, args ...any) {
	l.Draft.NoteAll(l.Owner, l.Statement, moot, format, args...)
}

// LoseServer notes a server that cannot be read, and why. Its line says backup if it is one.
func (lb *LB) LoseServer(l Line, why string) {
	l.Note("%s", why)
	lb.LostFirst = lb.LostFirst || !slices.Contains(l.Words, "backup")
}

// Remark notes the statement and everything within it if there is a remark for the keyword, and reports whether there
// was.
func (l Line) Remark(all Remarks, keyword string) bool {
	r, ok := all.find(keyword)
	if ok {
		l.NoteAll(r.Moot, "%s", r.Text)
	}
	return ok
}

// AdviseQuiet notes that a timeout cuts quiet connections, if it is so short that people notice.
func (l Line) AdviseQuiet(timeout Span) {
	if timeout.Set && timeout.Value > 0 && timeout.Value < CutsWatches {
		l.Advise("was carried over, and cuts connections that are quiet for so long, " +
			"such as watches and kubectl exec; remove it below to let them be")
	}
}

// Span reads a duration, limited to low and high.
func (l Line) Span(u Units, word string, low, high time.Duration, into *Span) {
	v, ok := u.read(word)
	switch {
	case Placeholder(word):
		l.Note("%s is still to be filled in", word)
	case !ok:
		l.Note("%s is no duration", word)
	case v == 0 && low > 0:
		l.Note("0 is without end there; was left out, so that the default is in force")
	case v < low:
		l.Advise("is less than is possible here; became %s", Short(low))
		*into = Span{low, true}
	case v > high:
		l.Advise("is more than is possible here; became %s", Short(high))
		*into = Span{high, true}
	default:
		*into = Span{v, true}
	}
}

// Number reads an integer, limited to low and high.
func (l Line) Number(word string, low, high int, into *Number) {
	n, err := strconv.Atoi(word)
	switch {
	case Placeholder(word):
		l.Note("%s is still to be filled in", word)
	case err != nil:
		l.Note("%s is no number", word)
	case n < low:
		l.Advise("%d is less than is possible here; became %d", n, low)
		*into = Number{low, true}
	case n > high:
		l.Advise("%d is more than is possible here; became %d", n, high)
		*into = Number{high, true}
	default:
		*into = Number{n, true}
	}
}

// PathWithoutSecret is the path of a request without a query that has a secret in it.
func (l Line) PathWithoutSecret(path string) string {
	before, query, ok := strings.Cut(path, "?")
	if !ok || !syntax.HasSecret("?"+query) {
		return path
	}
	l.Note("a secret is not copied; the path became %s: write what is missing", syntax.Printable(before))
	return before
}
