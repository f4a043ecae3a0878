package haproxy

import (
	"slices"
	"strings"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// serverCheck is what a server line says about the server's check. One load
// balancer checks all its backends in one way, so these must be comparable.
type serverCheck struct {
	on, ssl                              bool
	inter, fastinter, downinter          draft.Span
	rise, fall                           draft.Number
	port                                 uint16
	verify, caFile, serverName, certFile string
}

// kind says how servers are checked. As in haproxy, the last line wins.
func (p *proxy) kind(d *draft.Draft, owner *draft.LB, st syntax.Statement, kind string) {
	if p.checkBy.Line != 0 && p.checkBy.Line != st.Line && !(p.Check.Type == "tcp" && kind == "tcp") {
		d.Note(owner, p.checkBy, "is overridden by line %d, as in haproxy; if both are meant, write check: {type: https, path: /healthz}", st.Line)
		p.Check = draft.HealthCheck{}
	}
	p.Check.Type, p.checkBy = kind, st
}

// httpchk reads option httpchk [method] [uri [version]].
func (p *proxy) httpchk(d *draft.Draft, owner *draft.LB, st syntax.Statement) {
	words := st.Words[2:]
	switch len(words) {
	case 0:
		p.Check.Method, p.Check.Path = "OPTIONS", "/"
		return
	case 1:
		p.Check.Method, p.Check.Path = "OPTIONS", words[0]
	default:
		p.Check.Method, p.Check.Path = words[0], words[1]
	}
	// Older files put headers behind the version: HTTP/1.1\r\nHost:\ www.
	rest := strings.Join(words[min(2, len(words)):], " ")
	for i, line := range strings.Split(strings.ReplaceAll(rest, `\r\n`, "\n"), "\n") {
		if name, value, ok := strings.Cut(line, ":"); i > 0 && ok {
			p.header(d, owner, st, strings.TrimSpace(name), strings.TrimSpace(value))
		}
	}
	p.path(d, owner, st)
}

func (p *proxy) path(d *draft.Draft, owner *draft.LB, st syntax.Statement) {
	if !strings.HasPrefix(p.Check.Path, "/") {
		d.Advise(owner, st, "%s is no path; became /", syntax.Printable(p.Check.Path))
		p.Check.Path = "/"
	}
	if !draft.HttpMethod(p.Check.Method) {
		d.Advise(owner, st, "%s is no method; became GET", syntax.Printable(p.Check.Method))
		p.Check.Method = "GET"
	}
}

func (p *proxy) header(d *draft.Draft, owner *draft.LB, st syntax.Statement, name, value string) {
	switch {
	case name == "":
	case strings.EqualFold(name, "authorization"):
		d.Note(owner, st, "a secret is not copied; put the token in a file, and write check: {bearerTokenFile: /path}")
	case strings.EqualFold(name, "host"):
		p.Check.Host = value
	default:
		p.Check.Headers = append(p.Check.Headers, [2]string{name, value})
	}
}

// httpCheck reads the http-check lines.
func (p *proxy) httpCheck(d *draft.Draft, owner *draft.LB, st syntax.Statement) {
	words := st.Words[1:]
	if len(words) == 0 {
		d.Note(owner, st, "says nothing")
		return
	}
	switch words[0] {
	case "connect":
		for i := 1; i < len(words); i++ {
			switch words[i] {
			case "ssl":
				p.Check.Type = "https"
			case "sni":
				p.Check.ServerName = st.Arg(i + 2)
				i++
			case "port":
				p.Check.Port, _ = draft.ReadPort(st.Arg(i + 2))
				i++
			case "alpn", "proto", "default", "linger":
			}
		}
	case "send":
		for i := 1; i < len(words); i++ {
			switch words[i] {
			case "meth":
				p.Check.Method = st.Arg(i + 2)
				i++
			case "uri":
				p.Check.Path = st.Arg(i + 2)
				i++
			case "hdr":
				p.header(d, owner, st, st.Arg(i+2), st.Arg(i+3))
				i += 2
			case "ver":
				i++
			default:
				d.Advise(owner, st, "carried over without %s", syntax.Printable(words[i]))
			}
		}
		if p.Check.Path == "" {
			p.Check.Path = "/"
		}
		if p.Check.Method == "" {
			p.Check.Method = "GET"
		}
		p.path(d, owner, st)
	case "expect":
		p.expect(d, owner, st, words[1:])
	case "disable-on-404":
		d.Note(owner, st, "a server that answers 404 is down; `appliance backends drain` takes one out softly")
	default:
		d.Note(owner, st, "is not known")
	}
}

func (p *proxy) expect(d *draft.Draft, owner *draft.LB, st syntax.Statement, words []string) {
	if len(words) < 2 || words[0] == "!" {
		d.Note(owner, st, "say what is right, not what is wrong: check: {expect: {status: [200], contains: ok}}")
		return
	}
	for len(words) > 2 && !slices.Contains([]string{"status", "rstatus", "string", "rstring"}, words[0]) {
		words = words[1:] // min-recv 10, comment x, ...
	}
	value := strings.Join(words[1:], " ")
	switch words[0] {
	case "status":
		status, ok := draft.ReadStatus(value)
		if !ok {
			d.Note(owner, st, "is no list of statuses from 200 to 599")
			return
		}
		p.Check.Status = status
		p.expects = true
	case "string":
		p.Check.Contains, p.expects = value, true
	case "rstring":
		if !draft.GoRegexp(value) {
			d.Note(owner, st, "is no regular expression of RE2's kind; write check: {expect: {matches: ...}}")
			return
		}
		p.Check.Matches, p.expects = value, true
	default:
		d.Note(owner, st, "write the statuses out: check: {expect: {status: [200, 204]}}")
	}
}

// joinChecks joins what the section and its servers say about checks.
func (p *proxy) joinChecks(d *draft.Draft) {
	c := &p.LB.Check
	if len(p.checks) == 0 {
		return
	}
	first := p.checks[0]
	for i, other := range p.checks {
		if other.on && !first.on {
			first = p.checks[i]
		}
	}
	if !first.on {
		if c.Type != "" {
			d.Advise(p.LB, p.checkBy, "no server has the word check, so haproxy never checks; became check: {type: none}")
		}
		*c = draft.HealthCheck{Type: "none"}
		return
	}
	switch {
	case c.Type == "":
		c.Type = "tcp"
		if first.ssl {
			c.Type = "tls"
		}
	case c.Type == "http" && first.ssl:
		c.Type = "https"
	case c.Type == "tcp" && first.ssl:
		c.Type = "tls"
	}
	if c.Type != "http" && c.Type != "https" {
		*c = draft.HealthCheck{Type: c.Type, Port: c.Port, ServerName: c.ServerName}
	} else if !p.expects {
		c.Status = []string{"200-399"} // what haproxy takes for healthy
	}
	if first.fastinter.Set && !first.inter.Set {
		first.inter = draft.Span{Value: defaultInter, Set: true}
	}
	c.Inter, c.FastInter, c.DownInter, c.Rise, c.Fall = first.inter, first.fastinter, first.downinter, first.rise, first.fall
	if first.port != 0 {
		c.Port = first.port
	}
	p.patience(d)
	if c.Type != "tls" && c.Type != "https" {
		return
	}
	c.Verify = "false" // what ssl-hello-chk and verify none do
	if first.verify == "required" || first.verify == "" && first.caFile != "" {
		c.Verify = "true"
		c.CAFile = p.file(d, first.caFile)
	}
	if first.serverName != "" {
		c.ServerName = first.serverName
	}
	if crt := p.file(d, first.certFile); crt != "" {
		c.CertFile, c.KeyFile = crt, crt // haproxy keeps both in one file
	}
}

// patience holds timeout check against inter, which only http and https may
// exceed.
func (p *proxy) patience(d *draft.Draft) {
	c := &p.LB.Check
	if !p.checkPatience.Set {
		return
	}
	c.Timeout = p.checkPatience
	if c.Type == "http" || c.Type == "https" {
		return
	}
	if !c.Inter.Set {
		c.Inter = draft.Span{Value: defaultInter, Set: true}
	}
	if c.Timeout.Value > c.Inter.Value {
		c.Timeout.Value = c.Inter.Value
		d.Advise(p.LB, p.checkPatienceAt, "became %s, the time between two checks: checks of one server do not overlap", draft.Short(c.Inter.Value))
	}
}
