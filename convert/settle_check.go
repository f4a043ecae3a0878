package convert

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
)

// headerName is RFC 9110, section 5.6.2.
var headerName = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")

// settleCheck keeps of a check what its kind looks at, within the loader's
// bounds.
func (d *draft) settleCheck(s *service) {
	c := &s.check
	switch c.kind {
	case "none":
		*c = check{kind: "none"}
		return
	case "tcp", "tls":
		c.method, c.path, c.host, c.headers, c.status, c.contains, c.matches = "", "", "", nil, nil, "", ""
	}
	if c.kind != "tls" && c.kind != "https" {
		c.verify, c.caFile, c.serverName, c.certFile, c.keyFile = "", "", "", "", ""
	}
	drop := func(words, why string) {
		d.advise(s, statement{place: s.place, words: []string{words}}, "%s", why)
	}
	if c.fastinter.said && c.fastinter.d > c.inter.d {
		drop("fastinter "+short(c.fastinter.d), "was left out: it is longer than inter")
		c.fastinter = span{}
	}
	const day = 24 * time.Hour
	slowest := max(c.inter.d, c.timeout.d, c.downinter.d, time.Millisecond)
	if !c.timeout.said {
		slowest = max(slowest, 4*c.inter.d) // the patience with http and https
	}
	for _, n := range []*count{&c.rise, &c.fall} {
		if most := max(1, int(day/slowest)); n.n > most {
			drop("rise, fall", "as many checks would take longer than a day; became fewer")
			n.n = most
		}
	}
	bad := func(r rune) bool { return r <= ' ' || r > '~' }
	if strings.ContainsFunc(c.path, func(r rune) bool { return bad(r) || r == '#' }) || c.path != "" && c.path[0] != '/' {
		drop(c.path, "is not the path of a page; became /")
		c.path = "/"
	}
	if strings.ContainsFunc(c.host, func(r rune) bool { return bad(r) || strings.ContainsRune("/@#?", r) }) {
		drop(c.host, "is not a host; was left out")
		c.host = ""
	}
	c.headers = slices.DeleteFunc(c.headers, func(h [2]string) bool {
		wrong := !headerName.MatchString(h[0]) || strings.ContainsFunc(h[1], func(r rune) bool { return r < ' ' || r > '~' }) ||
			slices.ContainsFunc(c.headers, func(other [2]string) bool { return other[0] == h[0] && other != h })
		if wrong {
			drop(h[0]+": "+h[1], "is not a header that a check can send; was left out")
		}
		return wrong
	})
	if (c.contains != "" || c.matches != "") && c.method == "HEAD" {
		drop("HEAD", "asks for no body, and one is expected; became GET")
		c.method = "GET"
	}
	if strings.ContainsFunc(c.serverName, bad) {
		drop(c.serverName, "is no name of a server; was left out")
		c.serverName = ""
	}
}

// settleAccess makes of allow and deny lists without doubles.
func settleAccess(s *service) (refused string) {
	s.allow, s.deny, s.acceptProxyFrom = single(s.allow), single(s.deny), single(s.acceptProxyFrom)
	some := len(s.allow) > 0
	s.allow = slices.DeleteFunc(s.allow, func(p netip.Prefix) bool { return slices.Contains(s.deny, p) })
	if some && len(s.allow) == 0 {
		return "it refuses everybody whom it allows"
	}
	if slices.Contains(s.deny, everybody()[0]) && slices.Contains(s.deny, everybody()[1]) {
		return "it refuses everybody"
	}
	return ""
}

func single(list []netip.Prefix) []netip.Prefix {
	var once []netip.Prefix
	for _, p := range list {
		if p.Addr().Is4In6() {
			p = netip.PrefixFrom(p.Addr().Unmap(), max(0, p.Bits()-96))
		}
		if p = p.Masked(); !slices.Contains(once, p) {
			once = append(once, p)
		}
	}
	return once
}
