package convert

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// headerName is RFC 9110, section 5.6.2.
var headerName = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")

// tidyCheck keeps of a check what its kind looks at, within the loader's
// bounds.
func tidyCheck(d *draft.Draft, s *draft.LB) {
	c := &s.Check
	switch c.Type {
	case "none":
		*c = draft.HealthCheck{Type: "none"}
		return
	case "tcp", "tls":
		c.Method, c.Path, c.Host, c.Headers, c.Status, c.Contains, c.Matches = "", "", "", nil, nil, "", ""
	}
	if c.Type != "tls" && c.Type != "https" {
		c.Verify, c.CAFile, c.ServerName, c.CertFile, c.KeyFile = "", "", "", "", ""
	}
	drop := func(words, why string) {
		d.Advise(s, syntax.Statement{Place: s.Place, Words: []string{words}}, "%s", why)
	}
	if c.FastInter.Set && c.FastInter.Value > c.Inter.Value {
		drop("fastinter "+draft.Short(c.FastInter.Value), "was left out: it is longer than inter")
		c.FastInter = draft.Span{}
	}
	const day = 24 * time.Hour
	slowest := max(c.Inter.Value, c.Timeout.Value, c.DownInter.Value, time.Millisecond)
	if !c.Timeout.Set {
		slowest = max(slowest, 4*c.Inter.Value) // the patience with http and https
	}
	for _, n := range []*draft.Number{&c.Rise, &c.Fall} {
		if most := max(1, int(day/slowest)); n.Value > most {
			drop("rise, fall", "as many checks would take longer than a day; became fewer")
			n.Value = most
		}
	}
	bad := func(r rune) bool { return r <= ' ' || r > '~' }
	if strings.ContainsFunc(c.Path, func(r rune) bool { return bad(r) || r == '#' }) || c.Path != "" && c.Path[0] != '/' {
		drop(c.Path, "is not the path of a page; became /")
		c.Path = "/"
	}
	if strings.ContainsFunc(c.Host, func(r rune) bool { return bad(r) || strings.ContainsRune("/@#?", r) }) {
		drop(c.Host, "is not a host; was left out")
		c.Host = ""
	}
	c.Headers = slices.DeleteFunc(c.Headers, func(h [2]string) bool {
		wrong := !headerName.MatchString(h[0]) || strings.ContainsFunc(h[1], func(r rune) bool { return r < ' ' || r > '~' }) ||
			slices.ContainsFunc(c.Headers, func(other [2]string) bool { return other[0] == h[0] && other != h })
		if wrong {
			drop(h[0]+": "+h[1], "is not a header that a check can send; was left out")
		}
		return wrong
	})
	if (c.Contains != "" || c.Matches != "") && c.Method == "HEAD" {
		drop("HEAD", "asks for no body, and one is expected; became GET")
		c.Method = "GET"
	}
	if strings.ContainsFunc(c.ServerName, bad) {
		drop(c.ServerName, "is no name of a server; was left out")
		c.ServerName = ""
	}
}

// tidyAccess makes of allow and deny lists without doubles.
func tidyAccess(s *draft.LB) (refused string) {
	s.Allow, s.Deny, s.AcceptProxyFrom = single(s.Allow), single(s.Deny), single(s.AcceptProxyFrom)
	some := len(s.Allow) > 0
	s.Allow = slices.DeleteFunc(s.Allow, func(p netip.Prefix) bool { return slices.Contains(s.Deny, p) })
	if some && len(s.Allow) == 0 {
		return "it refuses everybody whom it allows"
	}
	if slices.Contains(s.Deny, draft.Everybody()[0]) && slices.Contains(s.Deny, draft.Everybody()[1]) {
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
