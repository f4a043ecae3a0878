package convert

import (
	"net/netip"
	"strings"
)

// haproxyAdmin reads a section that shows haproxy's own state or health, which
// the admin listener does here. Beyond loopback somebody has to make a
// password's hash or a certificate, so there it is said what to write.
func (d *draft) haproxyAdmin(s haproxySection) {
	p := &haproxyProxy{service: &service{statement: s.statement}}
	silent := newDraft()
	path, user, hide := "", "", false
	for _, st := range s.all() {
		switch {
		case st.words[0] == "bind":
			p.bind(silent, st)
		case st.words[0] == "stats" && st.arg(1) == "uri":
			path = strings.TrimRight(st.arg(2), "/")
		case st.words[0] == "stats" && st.arg(1) == "hide-version":
			hide = true
		case st.words[0] == "stats" && st.arg(1) == "auth":
			user, _, _ = strings.Cut(st.arg(2), ":")
		}
	}
	if strings.Trim(path, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_/") != "" || !strings.HasPrefix(path, "/") || strings.Contains(path, "//") {
		path = ""
	}
	local := len(p.binds) > 0 && len(silent.notes) == 0 && p.refused == "" && user == ""
	for _, b := range p.binds {
		local = local && b.addr.IsLoopback()
	}
	if local {
		for _, b := range p.binds {
			d.admin.listen = append(d.admin.listen, netip.AddrPortFrom(b.addr, b.port))
		}
		if d.admin.path == "" {
			d.admin.path = path
		}
		d.admin.hideVersion = d.admin.hideVersion || hide
		for _, st := range s.lines {
			known := st.words[0] == "bind" || st.words[0] == "monitor-uri" || st.words[0] == "stats" && (st.arg(1) == "uri" || st.arg(1) == "hide-version" || st.arg(1) == "enable")
			if !known {
				d.moot(nil, st, "has no meaning for the page that admin.listen opens")
			}
		}
		return
	}
	var f flow
	if len(p.binds) > 0 {
		at := p.binds[0]
		listen := ":" + itoa(at.port)
		if at.addr.IsValid() {
			listen = netip.AddrPortFrom(at.addr, at.port).String()
		}
		f.add("listen", "["+scalar(listen)+"]")
	}
	f.word("path", path)
	if user == "" || printable(user) != user {
		user = "admin"
	}
	f.add("users", "[{name: "+scalar(user)+", passwordHash: ...}]")
	d.note(nil, s.statement, "shows haproxy's own state; for ours write admin: %s with what `appliance passwd` prints; without it, the page is at 127.0.0.1:10001 alone", f)
	d.within(nil, s.lines, s.place, false)
}

// settleAdmin keeps the admin listener out of the way of load balancers.
func (d *draft) settleAdmin(p *plan) {
	a := &d.admin
	taken := func(at netip.AddrPort) bool {
		for _, b := range p.balancers {
			if b.port != at.Port() {
				continue
			}
			for _, l := range b.listen {
				if l == at.Addr() {
					return true
				}
			}
			if b.everywhere {
				return true
			}
		}
		return false
	}
	var free []netip.AddrPort
	for _, at := range a.listen {
		double := false
		for _, other := range free {
			double = double || other == at
		}
		if !double && !taken(at) {
			free = append(free, at)
		}
	}
	a.listen = free
	if len(free) == 0 && taken(usualAdmin) {
		a.off = true
		p.hints["admin"] = []string{"Port 10001, where the state is shown else, is that of a load balancer."}
	}
}

// usualAdmin is where the state is shown when nobody says where.
var usualAdmin = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 10001)
