package haproxy

import (
	"cmp"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// A serverCheck is what a server line says about the server's check. It is comparable: servers with the same are
// checked in the same way.
type serverCheck struct {
	on, ssl                              bool
	inter, fastInter, downInter          draft.Span
	rise, fall                           draft.Number
	port                                 uint16
	addr                                 netip.Addr
	proxy                                string // the version of the PROXY header
	verify, caFile, serverName, certFile string
}

// kind says how servers are checked. As in haproxy, the last line wins; what http-check and tcp-check lines say counts
// for their kind alone, wherever they stand.
func (p *proxy) kind(l draft.Line, kind string) {
	if p.checkBy.Line != 0 && p.checkBy.Place != l.Place && !(p.Check.Type == "tcp" && kind == "tcp") {
		l.Draft.Note(l.Owner, p.checkBy, "is overridden by line %d, as in haproxy; "+
			"if both are meant, write check: {type: https, path: /healthz}", l.Line)
	}
	p.Check = draft.HealthCheck{Type: kind}
	p.checkBy, p.checkWords = l.Statement, l.Arg(1)
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
			header(l, &p.Check, strings.TrimSpace(name), strings.TrimSpace(value))
		}
	}
	path(l, &p.Check)
}

// methods are those that a check can use.
var methods = []string{http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPost}

// path corrects the path and the method of a check.
func path(l draft.Line, c *draft.HealthCheck) {
	c.Path = l.PathWithoutSecret(c.Path)
	if !strings.HasPrefix(c.Path, "/") {
		l.Advise("%s is no path; became /", syntax.Printable(c.Path))
		c.Path = "/"
	}
	if !slices.Contains(methods, c.Method) {
		l.Advise("%s is no method; became GET", syntax.Printable(c.Method))
		c.Method = "GET"
	}
}

func header(l draft.Line, c *draft.HealthCheck, name, value string) {
	switch {
	case name == "":
	case strings.EqualFold(name, "authorization"):
		l.Note("a secret is not copied; put the token in a file, and write check: {bearerTokenFile: /path}")
	case syntax.IsSecretName(name):
		l.Note("a secret is not copied; write check: {headers: {%s: ...}}", syntax.Printable(name))
	case strings.EqualFold(name, "host"):
		c.Host = value
	default:
		c.Headers = append(c.Headers, [2]string{name, value})
	}
}

// httpCheck reads the http-check lines. They are steps: what comes after a second request is about its answer.
func (p *proxy) httpCheck(l draft.Line) {
	if what := l.Arg(1); p.asks && (what == "send" || what == "connect") {
		p.asksMore = true
	}
	if p.asksMore {
		l.Note("a check asks once; this is of a second request, which is not made")
		return
	}
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
	case "comment", "send-state", "set-var", "set-var-fmt", "unset-var":
		l.Moot("changes nothing of what a check asks for")
	default:
		l.Note(draft.IsUnknown)
	}
}

// httpConnect reads http-check connect [ssl] [sni x] [port x] ...
func (p *proxy) httpConnect(l draft.Line) {
	for i := 2; i < len(l.Words); i++ {
		switch w := l.Words[i]; w {
		case "ssl":
			p.askTLS = true
		case "sni":
			i++
			p.ask.ServerName = l.Arg(i)
		case "port":
			i++
			p.ask.Port, _ = draft.ReadPort(l.Arg(i))
		case "default", "linger":
		case "alpn", "comment":
			i++
		default:
			l.Advise("carried over without %s", syntax.Printable(w))
		}
	}
}

// httpSend reads http-check send [meth x] [uri x] [hdr name value] ...
func (p *proxy) httpSend(l draft.Line) {
	p.asks = true
	c := &p.ask
	for i := 2; i < len(l.Words); i++ {
		switch w := l.Words[i]; w {
		case "meth":
			i++
			c.Method = l.Arg(i)
		case "uri":
			i++
			c.Path = l.Arg(i)
		case "hdr":
			header(l, c, l.Arg(i+1), l.Arg(i+2))
			i += 2
		case "ver", "comment":
			i++
		default:
			l.Advise("carried over without %s", syntax.Printable(w))
			i++
		}
	}
	c.Path, c.Method = cmp.Or(c.Path, "/"), cmp.Or(c.Method, http.MethodGet)
	path(l, c)
}

const oneExpect = "a line before expects another of that kind, and both have to be there; a check expects one: " +
	"write check: {expect: {matches: ...}} that fits both"

// expectedStatus reads what http-check expect [!] status or rstatus takes; it returns false if that is nothing.
func expectedStatus(kind, value string, not bool) (all []draft.Range, ok bool) {
	if kind == "rstatus" {
		pattern, err := regexp.Compile(value)
		if err != nil {
			return nil, false
		}
		all = draft.StatusesThat(func(status int) bool { return pattern.MatchString(strconv.Itoa(status)) != not })
		return all, len(all) > 0
	}
	if all, ok = draft.ReadStatus(value); ok && not {
		listed := all
		all = draft.StatusesThat(func(status int) bool {
			return !slices.ContainsFunc(listed, func(r draft.Range) bool { return r.From <= status && status <= r.To })
		})
	}
	return all, ok && len(all) > 0
}

// expect reads http-check expect; words are those after it.
func (p *proxy) expect(l draft.Line, words []string) {
	not := len(words) > 0 && words[0] == "!"
	if not {
		words = words[1:]
	}
	if len(words) < 2 {
		l.Note("expects nothing")
		return
	}
	for len(words) > 2 && !slices.Contains([]string{"status", "rstatus", "string", "rstring"}, words[0]) {
		words = words[1:] // min-recv 10, comment x, ...
	}
	value := strings.Join(words[1:], " ")
	switch kind := words[0]; {
	case kind == "status", kind == "rstatus":
		if p.ask.Status != nil {
			l.Note(oneExpect)
			return
		}
		status, ok := expectedStatus(kind, value, not)
		if !ok {
			l.Note(draft.NoStatuses)
			return
		}
		p.ask.Status = draft.Statuses(status)
		p.expects = true
	case not:
		p.unlike = l
		l.Note("says what must not come, and a check here says what has to: check: {expect: {status: [200], contains: ok}}")
	case kind == "string":
		if p.ask.Contains != "" {
			l.Note(oneExpect)
			return
		}
		p.ask.Contains, p.expects = value, true
	case kind == "rstring":
		if p.ask.Matches != "" {
			l.Note(oneExpect)
			return
		}
		if !draft.ReadRegexp(value) {
			l.Note(draft.NoRegexp)
			return
		}
		p.ask.Matches, p.expects = value, true
	default:
		l.Note("is no kind of answer that is known; write check: {expect: {status: [200, 204]}}")
	}
}

// joinRules adds what http-check and tcp-check lines say to a check of their kind.
func (p *proxy) joinRules() {
	c := &p.Check
	switch c.Type {
	case "tcp":
		if p.checkWords == "tcp-check" {
			p.joinTalk(c)
		}
	case "http":
		if p.askTLS {
			c.Type = "https"
		}
		c.ServerName, c.Port = cmp.Or(p.ask.ServerName, c.ServerName), cmp.Or(p.ask.Port, c.Port)
		if p.asks {
			c.Method, c.Path, c.Host, c.Headers = p.ask.Method, p.ask.Path, cmp.Or(p.ask.Host, c.Host), p.ask.Headers
		}
		if p.unlike.Line > 0 {
			p.refuse("%s is not carried over, and without it the check takes servers that it is there to keep out; "+
				"convert without that line, and write what has to come: check: {expect: {contains: ok}}", p.unlike.Place)
		}
		c.Status, c.Contains, c.Matches = p.ask.Status, p.ask.Contains, p.ask.Matches
	}
}

// joinChecks joins what the section and its servers say about checks. The load balancer's is that of the first server
// that has one; servers with another have their own.
func (p *proxy) joinChecks(d *draft.Draft) {
	if len(p.checks) == 0 {
		return
	}
	p.joinRules()
	at := slices.IndexFunc(p.checks, func(c serverCheck) bool { return c.on })
	if at < 0 {
		if p.Check.Type != "" {
			d.Advise(p.LB, p.checkBy, "no server has the word check, so haproxy never checks; became check: {type: none}")
		}
		p.Check = draft.HealthCheck{Type: "none"}
		return
	}
	section, first := p.Check, p.checks[at]
	p.Check = p.checkOf(d, section, first)
	p.Check.Addr = netip.Addr{} // that is of one server
	for i, own := range p.checks {
		if own.on && (own != first || own.addr.IsValid()) {
			c := p.checkOf(d, section, own)
			p.Servers[i].Check = &c
		} else if !own.on {
			p.Servers[i].Check = &draft.HealthCheck{Type: "none"}
		}
	}
}

// checkOf is the check of a server that says first of it, in a section whose lines say c.
func (p *proxy) checkOf(d *draft.Draft, section draft.HealthCheck, first serverCheck) draft.HealthCheck {
	c := &section
	c.Type = cmp.Or(c.Type, "tcp")
	overTLS := map[string]string{"http": "https", "tcp": "tls"}[c.Type]
	switch {
	case !first.ssl || p.talk.connected && c.Type == "exchange":
	case overTLS != "":
		c.Type = overTLS
	case c.Type == "mysql" || c.Type == "pgsql":
		d.Advise(p.LB, p.checkBy, "is asked over TLS, and checks of that protocol are in clear here; "+
			"became check: {type: tls}")
		c.Type = "tls"
	case c.Talks():
		c.OverTLS = true
	}
	if c.Type != "http" && c.Type != "https" {
		*c = draft.HealthCheck{Type: c.Type, Port: c.Port, ServerName: c.ServerName, SendProxy: c.SendProxy,
			Steps: c.Steps, User: c.User, Helo: c.Helo, OverTLS: c.OverTLS}
		if !c.Talks() {
			c.User, c.Helo = "", ""
		}
	} else if !p.expects {
		c.Status = []string{"200-399"} // healthy for haproxy
	}
	if !first.inter.Set {
		first.inter = draft.Span{Value: defaultInter, Set: true}
	}
	if !first.rise.Set {
		first.rise = draft.Number{Value: defaultRise, Set: true}
	}
	if !first.fall.Set {
		first.fall = draft.Number{Value: defaultFall, Set: true}
	}
	c.Inter, c.FastInter, c.DownInter = first.inter, first.fastInter, first.downInter
	c.Rise, c.Fall = first.rise, first.fall
	c.Port, c.Addr = cmp.Or(c.Port, first.port), first.addr // connect goes before the server's line
	p.limitTimeout(d, c)
	c.SendProxy = cmp.Or(c.SendProxy, first.proxy)
	if c.Type == "tcp" {
		c.SendProxy = ""
	}
	if c.Type != "tls" && c.Type != "https" && !c.OverTLS {
		return *c
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
	return *c
}

// limitTimeout holds timeout check against inter, which only checks that wait for an answer may exceed.
func (p *proxy) limitTimeout(d *draft.Draft, c *draft.HealthCheck) {
	if !p.checkTimeout.Set {
		if c.Waits() { // ours would be longer
			c.Timeout = c.Inter
		}
		return
	}
	c.Timeout = p.checkTimeout
	if c.Waits() {
		return
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
