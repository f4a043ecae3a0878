package haproxy

import (
	"net/netip"
	"strings"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// statsPage reads a section that shows haproxy's own state or health, which
// the admin listener does here. Beyond loopback somebody has to make a
// password's hash or a certificate, so there it is said what to write.
func statsPage(d *draft.Draft, s section) {
	p := &proxy{LB: &draft.LB{Statement: s.Statement}}
	silent := draft.New()
	path, user, hide := "", "", false
	for _, st := range s.all() {
		switch {
		case st.Words[0] == "bind":
			p.bind(silent, st)
		case st.Words[0] == "stats" && st.Arg(1) == "uri":
			path = strings.TrimRight(st.Arg(2), "/")
		case st.Words[0] == "stats" && st.Arg(1) == "hide-version":
			hide = true
		case st.Words[0] == "stats" && st.Arg(1) == "auth":
			user, _, _ = strings.Cut(st.Arg(2), ":")
		}
	}
	if strings.Trim(path, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_/") != "" || !strings.HasPrefix(path, "/") || strings.Contains(path, "//") {
		path = ""
	}
	local := len(p.Binds) > 0 && len(silent.Notes) == 0 && p.Refused == "" && user == ""
	for _, b := range p.Binds {
		local = local && b.Addr.IsLoopback()
	}
	if local {
		for _, b := range p.Binds {
			d.Admin.Listen = append(d.Admin.Listen, netip.AddrPortFrom(b.Addr, b.Port))
		}
		if d.Admin.Path == "" {
			d.Admin.Path = path
		}
		d.Admin.HideVersion = d.Admin.HideVersion || hide
		for _, st := range s.lines {
			known := st.Words[0] == "bind" || st.Words[0] == "monitor-uri" || st.Words[0] == "stats" && (st.Arg(1) == "uri" || st.Arg(1) == "hide-version" || st.Arg(1) == "enable")
			if !known {
				d.Moot(nil, st, "has no meaning for the page that admin.listen opens")
			}
		}
		return
	}
	var f draft.Flow
	if len(p.Binds) > 0 {
		at := p.Binds[0]
		listen := ":" + itoa(at.Port)
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
	d.Note(nil, s.Statement, "shows haproxy's own state; for ours write admin: %s with what `appliance passwd` prints; without it, the page is at 127.0.0.1:10001 alone", f)
	d.NoteWithin(nil, s.lines, s.Place, false)
}
