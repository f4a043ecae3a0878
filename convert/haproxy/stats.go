package haproxy

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// pagePath matches the paths of the page that our loader takes.
var pagePath = regexp.MustCompile(`^(/[A-Za-z0-9_-]+)+$`)

// readStats reads a section that shows haproxy's own state or health, which the admin listener does here. Beyond
// loopback somebody has to make the hash of a password, or a certificate, so there a note says what to write.
func readStats(d *draft.Draft, s section) {
	p := &proxy{LB: &draft.LB{Statement: s.Statement}}
	silent := draft.New()
	path, user, hide, operates := "", "", false, false
	for _, st := range s.all() {
		switch {
		case st.Words[0] == "bind":
			p.bind(draft.Line{Draft: silent, Statement: st})
		case st.Words[0] == "stats" && st.Arg(1) == "uri":
			path = strings.TrimRight(st.Arg(2), "/")
		case st.Words[0] == "stats" && st.Arg(1) == "hide-version":
			hide = true
		case st.Words[0] == "stats" && st.Arg(1) == "admin":
			operates = true
		case st.Words[0] == "stats" && st.Arg(1) == "auth":
			user, _, _ = strings.Cut(st.Arg(2), ":")
		}
	}
	if !pagePath.MatchString(path) {
		path = ""
	}
	beyond := slices.ContainsFunc(p.Binds, func(b draft.Bind) bool { return !b.Addr.IsLoopback() })
	if beyond || len(p.Binds) == 0 || len(silent.Notes) > 0 || p.Refused != "" || user != "" || operates {
		noteStats(d, s, p.Binds, path, user, operates)
		return
	}
	for _, b := range p.Binds {
		d.Admin.Listen = append(d.Admin.Listen, netip.AddrPortFrom(b.Addr, b.Port))
	}
	if d.Admin.Path == "" {
		d.Admin.Path = path
	}
	d.Admin.HideVersion = d.Admin.HideVersion || hide
	for _, st := range s.lines {
		switch st.Words[0] {
		case "bind", "monitor-uri":
			continue
		case "stats":
			if slices.Contains([]string{"uri", "hide-version", "enable"}, st.Arg(1)) {
				continue
			}
		}
		d.Moot(nil, st, "has no meaning for the page that admin.listen opens")
	}
}

// noteStats says what to write for a page that others may see.
func noteStats(d *draft.Draft, s section, binds []draft.Bind, path, user string, operates bool) {
	var f draft.Flow
	if len(binds) > 0 {
		at := binds[0]
		listen := ":" + strconv.Itoa(int(at.Port))
		if at.Addr.IsValid() {
			listen = netip.AddrPortFrom(at.Addr, at.Port).String()
		}
		f.Add("listen", "["+draft.Scalar(listen)+"]")
	}
	f.Word("path", path)
	if user == "" || syntax.Printable(user) != user {
		user = "admin"
	}
	f.Add("users", "[{name: "+draft.Scalar(user)+", passwordHash: ...}]")
	if operates {
		f.Add("operate", "true")
		d.Note(nil, s.Statement, "lets people change things (stats admin); operate: true lets users do so on our page, "+
			"beyond loopback with certFile and certKeyFile; without it, only `appliance backends` on a node does")
	}
	d.Note(nil, s.Statement, "shows haproxy's own state; for ours write admin: %s with what `appliance passwd` prints; "+
		"without it, the page is at 127.0.0.1:10001 alone", f)
	d.NoteWithin(nil, s.lines, s.Place, false)
}
