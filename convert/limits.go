package convert

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"appliance/convert/draft"
)

// headerName is a field name of RFC 9110, section 5.6.2.
var headerName = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")

// notGraphic reports whether a character is not one of ASCII's that print and take space.
func notGraphic(r rune) bool { return r <= ' ' || r > '~' }

// limitChecks keeps of the checks of lb and its servers what their types look at, within the bounds of our loader.
func (p *plan) limitChecks(lb *draft.LB) {
	p.limitCheck(lb, &lb.Check)
	for _, srv := range lb.Servers {
		if srv.Check != nil {
			p.limitCheck(lb, srv.Check)
		}
	}
}

func (p *plan) limitCheck(lb *draft.LB, c *draft.HealthCheck) {
	if c.Type == "none" {
		*c = draft.HealthCheck{Type: "none"}
		return
	}
	if c.Type != "http" && c.Type != "https" {
		c.Method, c.Path, c.Host, c.Headers, c.Status = "", "", "", nil, nil
		c.Contains, c.Matches, c.Absent, c.Mismatches = "", "", "", ""
	}
	if c.Type != "tls" && c.Type != "https" && !c.OverTLS {
		c.Verify, c.CAFile, c.ServerName, c.CertFile, c.KeyFile = "", "", "", "", ""
	}
	advise := func(words, why string) { p.Advise(lb, headOf(lb.Place, words), "%s", why) }
	if c.FastInter.Set && c.FastInter.Value > c.Inter.Value {
		advise("fastinter "+draft.Short(c.FastInter.Value), "was left out: it is longer than inter")
		c.FastInter = draft.Span{}
	}
	const day = 24 * time.Hour
	slowest := max(c.Inter.Value, c.Timeout.Value, c.DownInter.Value, time.Millisecond)
	if !c.Timeout.Set {
		slowest = max(slowest, 4*c.Inter.Value) // the timeout of http and https
	}
	for _, n := range []*draft.Number{&c.Rise, &c.Fall} {
		if most := max(1, int(day/slowest)); n.Value > most {
			advise("rise, fall", "as many checks would take longer than a day; became fewer")
			n.Value = most
		}
	}
	limitRequest(c, advise)
	if strings.ContainsFunc(c.ServerName, notGraphic) {
		advise(c.ServerName, "is no name of a server; was left out")
		c.ServerName = ""
	}
}

// limitRequest keeps of the request of a check what our loader takes.
func limitRequest(c *draft.HealthCheck, advise func(words, why string)) {
	badPath := func(r rune) bool { return notGraphic(r) || r == '#' }
	if c.Path != "" && (c.Path[0] != '/' || strings.ContainsFunc(c.Path, badPath)) {
		advise(c.Path, "is not the path of a page; became /")
		c.Path = "/"
	}
	badHost := func(r rune) bool { return notGraphic(r) || strings.ContainsRune("/@#?", r) }
	if strings.ContainsFunc(c.Host, badHost) {
		advise(c.Host, "is not a host; was left out")
		c.Host = ""
	}
	badValue := func(r rune) bool { return r != ' ' && notGraphic(r) }
	c.Headers = slices.DeleteFunc(c.Headers, func(h [2]string) bool {
		isOther := func(other [2]string) bool { return other[0] == h[0] && other != h }
		wrong := !headerName.MatchString(h[0]) || strings.ContainsFunc(h[1], badValue) ||
			slices.ContainsFunc(c.Headers, isOther)
		if wrong {
			advise(h[0]+": "+h[1], "is not a header that a check can send; was left out")
		}
		return wrong
	})
	if c.Contains+c.Matches+c.Absent+c.Mismatches != "" && c.Method == "HEAD" {
		advise("HEAD", "asks for no body, and one is looked at; became GET")
		c.Method = "GET"
	}
}

// limitAccess says if an access list is longer than our loader takes.
func limitAccess(lb *draft.LB) (refused string) {
	lb.AcceptProxyFrom = draft.Once(lb.AcceptProxyFrom)
	for _, list := range [][]netip.Prefix{lb.Allow, lb.Deny, lb.AcceptProxyFrom} {
		if len(list) > draft.MaxList {
			return fmt.Sprintf("its access list has more than %d entries, the most of a list; write wider prefixes",
				draft.MaxList)
		}
	}
	return ""
}

// usualAdmin is where the state is shown if nobody says where.
var usualAdmin = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 10001)

// planAdmin keeps the admin listener out of the way of load balancers.
func (p *plan) planAdmin() {
	taken := func(at netip.AddrPort) bool {
		return slices.ContainsFunc(p.balancers, func(b *balancer) bool {
			return b.port == at.Port() && (b.everywhere || slices.Contains(b.listen, at.Addr()))
		})
	}
	var free []netip.AddrPort
	for _, at := range p.Admin.Listen {
		if !slices.Contains(free, at) && !taken(at) {
			free = append(free, at)
		}
	}
	p.Admin.Listen = free
	if len(free) == 0 && taken(usualAdmin) {
		p.Admin.Off = true
		p.hint("admin", "Port 10001, where the state is shown else, is that of a load balancer.")
	}
}
