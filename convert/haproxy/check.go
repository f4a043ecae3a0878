package haproxy

import (
	"cmp"
	"net/http"
	"slices"
	"strings"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// A serverCheck is what a server line says about the server's check. It is comparable, because one load balancer checks
// all its backends in one way.
type serverCheck struct {
	on, ssl                              bool
	inter, fastInter, downInter          draft.Span
	rise, fall                           draft.Number
	port                                 uint16
	verify, caFile, serverName, certFile string
}

// kind says how servers are checked. As in haproxy, the last line wins.
func (p *proxy) kind(l draft.Line, kind string) {
	if p.checkBy.Line != 0 && p.checkBy.Line != l.Line && !(p.Check.Type == "tcp" && kind == "tcp") {
		l.Draft.Note(l.Owner, p.checkBy, "is overridden by line %d, as in haproxy; "+
			"if both are meant, write check: {type: https, path: /healthz}", l.Line)
		p.Check = draft.HealthCheck{}
	}
	p.Check.Type, p.checkBy = kind, l.Statement
}

// httpchk reads option httpchk [method] [uri [version]].
func (p *proxy) httpchk(l draft.Line) {
	words := l.Words[2:]
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
			p.header(l, strings.TrimSpace(name), strings.TrimSpace(value))
		}
	}
	p.path(l)
}

// methods are those that a check can use.
var methods = []string{http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPost}

// path corrects the path and the method of a check.
func (p *proxy) path(l draft.Line) {
	if !strings.HasPrefix(p.Check.Path, "/") {
		l.Advise("%s is no path; became /", syntax.Printable(p.Check.Path))
		p.Check.Path = "/"
	}
	if !slices.Contains(methods, p.Check.Method) {
		l.Advise("%s is no method; became GET", syntax.Printable(p.Check.Method))
		p.Check.Method = "GET"
	}
}

func (p *proxy) header(l draft.Line, name, value string) {
	switch {
	case name == "":
	case strings.EqualFold(name, "authorization"):
		l.Note("a secret is not copied; put the token in a file, and write check: {bearerTokenFile: /path}")
	case strings.EqualFold(name, "host"):
		p.Check.Host = value
	default:
		p.Check.Headers = append(p.Check.Headers, [2]string{name, value})
	}
}

// httpCheck reads the http-check lines.
func (p *proxy) httpCheck(l draft.Line) {
	switch l.Arg(1) {
	case "":
		l.Note("says nothing")
	case "connect":
		p.httpConnect(l)
	case "send":
		p.httpSend(l)
	case "expect":
		p.expect(l, l.Words[2:])
	case "disable-on-404":
		l.Note("a server that answers 404 is down; `appliance backends drain` takes one out softly")
	default:
		l.Note(draft.IsUnknown)
	}
}

// httpConnect reads http-check connect [ssl] [sni x] [port x] ...
func (p *proxy) httpConnect(l draft.Line) {
	for i := 2; i < len(l.Words); i++ {
		switch l.Words[i] {
		case "ssl":
			p.Check.Type = "https"
		case "sni":
			i++
			p.Check.ServerName = l.Arg(i)
		case "port":
			i++
			p.Check.Port, _ = draft.ReadPort(l.Arg(i))
		}
	}
}

// httpSend reads http-check send [meth x] [uri x] [hdr name value] ...
func (p *proxy) httpSend(l draft.Line) {
	for i := 2; i < len(l.Words); i++ {
		switch w := l.Words[i]; w {
		case "meth":
			i++
			p.Check.Method = l.Arg(i)
		case "uri":
			i++
			p.Check.Path = l.Arg(i)
		case "hdr":
			p.header(l, l.Arg(i+1), l.Arg(i+2))
			i += 2
		case "ver":
			i++
		default:
			l.Advise("carried over without %s", syntax.Printable(w))
		}
	}
	p.Check.Path = cmp.Or(p.Check.Path, "/")
	p.Check.Method = cmp.Or(p.Check.Method, http.MethodGet)
	p.path(l)
}

// expect reads http-check expect; words are those after it.
func (p *proxy) expect(l draft.Line, words []string) {
	if len(words) < 2 || words[0] == "!" {
		l.Note("say what is right, not what is wrong: check: {expect: {status: [200], contains: ok}}")
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
			l.Note(draft.NoStatuses)
			return
		}
		p.Check.Status = status
		p.expects = true
	case "string":
		p.Check.Contains, p.expects = value, true
	case "rstring":
		if !draft.ReadRegexp(value) {
			l.Note(draft.NoRegexp)
			return
		}
		p.Check.Matches, p.expects = value, true
	default:
		l.Note("write the statuses out: check: {expect: {status: [200, 204]}}")
	}
}

// joinChecks joins what the section and its servers say about checks.
func (p *proxy) joinChecks(d *draft.Draft) {
	c := &p.Check
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
	c.Type = cmp.Or(c.Type, "tcp")
	if overTLS := map[string]string{"http": "https", "tcp": "tls"}[c.Type]; first.ssl && overTLS != "" {
		c.Type = overTLS
	}
	if c.Type != "http" && c.Type != "https" {
		*c = draft.HealthCheck{Type: c.Type, Port: c.Port, ServerName: c.ServerName}
	} else if !p.expects {
		c.Status = []string{"200-399"} // healthy for haproxy
	}
	if first.fastInter.Set && !first.inter.Set {
		first.inter = draft.Span{Value: defaultInter, Set: true}
	}
	c.Inter, c.FastInter, c.DownInter = first.inter, first.fastInter, first.downInter
	c.Rise, c.Fall = first.rise, first.fall
	c.Port = cmp.Or(first.port, c.Port)
	p.limitTimeout(d)
	if c.Type != "tls" && c.Type != "https" {
		return
	}
	c.Verify = "false" // what ssl-hello-chk and verify none do
	if first.verify == "required" || first.verify == "" && first.caFile != "" {
		c.Verify = "true"
		c.CAFile = p.file(d, first.caFile)
	}
	c.ServerName = cmp.Or(first.serverName, c.ServerName)
	if crt := p.file(d, first.certFile); crt != "" {
		c.CertFile, c.KeyFile = crt, crt // haproxy keeps both in one file
	}
}

// limitTimeout holds timeout check against inter, which only http and https may exceed.
func (p *proxy) limitTimeout(d *draft.Draft) {
	c := &p.Check
	if !p.checkTimeout.Set {
		return
	}
	c.Timeout = p.checkTimeout
	if c.Type == "http" || c.Type == "https" {
		return
	}
	if !c.Inter.Set {
		c.Inter = draft.Span{Value: defaultInter, Set: true}
	}
	if c.Timeout.Value > c.Inter.Value {
		c.Timeout.Value = c.Inter.Value
		d.Advise(p.LB, p.checkTimeoutAt, "became %s, the time between two checks: checks of one server do not overlap",
			draft.Short(c.Inter.Value))
	}
}

// file takes absolute paths only: the appliance runs in another directory.
func (p *proxy) file(d *draft.Draft, path string) string {
	if path == "" || strings.HasPrefix(path, "/") {
		return path
	}
	d.Note(p.LB, p.section.Statement, "%s is no absolute path; write it below tls", syntax.Printable(path))
	return ""
}
