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
	version                              string // the one of the headers that the server gets otherwise
	track                                string // the server whose state is this one's
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

// lose notes a line of a check that is not carried over, and without which the check would take servers that it keeps
// out in haproxy.
func (p *proxy) lose(l draft.Line, why string) {
	if p.lost.Line == 0 {
		p.lost = l
	}
	l.Note("%s", why)
}

// httpCheck reads the http-check lines. They are steps: what comes after a second request is about its answer.
func (p *proxy) httpCheck(l draft.Line) {
	what := l.Arg(1)
	if p.asks && (what == "send" || what == "connect") || p.httpTo.Line > 0 && what == "connect" {
		p.asksMore = true
	}
	if p.asksMore && slices.Contains(checkRules, what) {
		p.lose(l, "a check asks once; this is of a second request, which is not made")
		return
	}
	switch l.Arg(1) {
	case "":
		l.Note("says nothing")
	case "connect":
		p.httpTo.read(l)
	case "send":
		p.httpSend(l)
	case "expect":
		p.expect(l, l.Words[2:])
	case "disable-on-404":
		p.isOff404 = true
		l.Note("a server that answers 404 is down; `appliance backends drain` takes one out softly")
	case "comment", "send-state", "set-var", "set-var-fmt", "unset-var":
		l.Moot("changes nothing of what a check asks for")
	default:
		l.Note(draft.IsUnknown)
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
			if strings.Contains(l.Arg(i+2), "%[") {
				p.lose(l, "sends what is known only then")
			} else {
				header(l, c, l.Arg(i+1), l.Arg(i+2))
			}
			i += 2
		case "ver", "comment":
			i++
		default:
			p.lose(l, "asks in a way that no check has here, by "+w)
			i++
		}
	}
	if draft.Placeholder(c.Path + c.Host) {
		p.lose(l, draft.Unfilled)
	}
	asked := draft.HealthCheck{Path: cmp.Or(c.Path, "/"), Method: cmp.Or(c.Method, http.MethodGet)}
	path(l, &asked)
	if c.Path != "" {
		c.Path = asked.Path
	}
	if c.Method != "" {
		c.Method = asked.Method
	}
}

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

// expectOptions are the words of an expect line that change nothing of what has to come.
var expectOptions = []string{"comment", "min-recv", "ok-status", "error-status", "tout-status", "on-success",
	"on-error", "status-code"}

// expect reads http-check expect; words are those after it. What several such lines expect has to come together.
func (p *proxy) expect(l draft.Line, words []string) {
	not := false
	words = slices.Clone(words)
	for i := 0; i < len(words); {
		switch {
		case words[i] == "!" && i == 0:
			words, not = words[1:], true
		case slices.Contains(expectOptions, words[i]):
			words = slices.Delete(words, i, min(i+2, len(words)))
		default:
			i += 2 // the kind and what it takes
		}
	}
	if len(words) != 2 {
		p.lose(l, "expects nothing that is known")
		return
	}
	p.expects = true
	switch kind, value := words[0], words[1]; {
	case kind == "status", kind == "rstatus":
		status, ok := expectedStatus(kind, value, not)
		if p.statuses != nil {
			status = draft.InBoth(p.statuses, status)
		}
		if !ok || len(status) == 0 {
			p.lose(l, draft.NoStatuses)
			return
		}
		p.statuses = status
	case kind == "string" || kind == "rstring":
		text, pattern := &p.ask.Contains, &p.ask.Matches
		if not {
			text, pattern = &p.ask.Absent, &p.ask.Mismatches
		}
		p.expectBody(l, value, kind == "rstring", text, pattern)
	default:
		p.lose(l, "is no kind of answer that is known; write check: {expect: {status: [200, 204]}}")
	}
}

// expectBody reads what the body must or must not have: a text or a pattern, which goes where there is room.
func (p *proxy) expectBody(l draft.Line, value string, isPattern bool, text, pattern *string) {
	switch {
	case isPattern && !draft.ReadRegexp(value):
		p.lose(l, draft.NoRegexp)
	case isPattern && *pattern == "":
		*pattern = draft.TailRegexp(value)
	case !isPattern && *text == "":
		*text = value
	case !isPattern && *pattern == "":
		*pattern = regexp.QuoteMeta(value)
	default:
		p.lose(l, "is more than a check looks for: one text and one pattern, or two texts")
	}
}

// anyBody matches what has a byte in it.
const anyBody = "(?s)."

// joinRules adds what http-check and tcp-check lines say to a check of their kind.
func (p *proxy) joinRules() {
	c := &p.Check
	switch c.Type {
	case "tcp":
		if p.checkWords == "tcp-check" {
			p.to = p.tcpTo
			p.joinTalk(c)
		}
	case "http":
		p.to = p.httpTo
		// What send does not say is as option httpchk has it.
		c.Method, c.Path = cmp.Or(p.ask.Method, c.Method), cmp.Or(p.ask.Path, c.Path)
		c.Host, c.Headers = cmp.Or(p.ask.Host, c.Host), append(slices.Clone(c.Headers), p.ask.Headers...)
		if p.lost.Line > 0 {
			p.refuse("%s is not carried over, and without it the check takes servers that it is there to keep out; "+
				"convert without that line, and write what has to come: check: {expect: {contains: ok}}", p.lost.Place)
		}
		if p.isOff404 && p.expects {
			if p.statuses == nil {
				p.statuses = draft.StatusesThat(func(int) bool { return true })
			}
			const below, above = http.StatusNotFound - 1, http.StatusNotFound + 1
			p.statuses = slices.Concat(draft.InBoth(p.statuses, []draft.Range{{From: 0, To: below}}),
				draft.InBoth(p.statuses, []draft.Range{{From: above, To: 999}}))
			if len(p.statuses) == 0 {
				p.refuse("its check expects the status 404 alone, with which disable-on-404 gives servers no connections")
			}
		}
		c.Status, c.Contains, c.Matches = draft.Statuses(p.statuses), p.ask.Contains, p.ask.Matches
		c.Absent, c.Mismatches = p.ask.Absent, p.ask.Mismatches
		if c.Absent+c.Mismatches != "" && c.Contains+c.Matches == "" {
			c.Matches = anyBody // an answer without a body fails in haproxy, whatever must not be in it
		}
	}
	if at := p.to.wrong; at.Line > 0 {
		p.refuse("%s is not carried over, and without it another place is checked; convert without that line, and write "+
			"check: {port: ...}, or a check with address at each backend", at.Place)
	}
}

// joinChecks joins what the section and its servers say about checks. The load balancer's is that of the first server
// that has one; servers with another have their own.
func (p *proxy) joinChecks(d *draft.Draft) {
	p.leaveIdle(d)
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
		if own.on && (own != first || own.addr.IsValid() || p.to.addr.IsValid() || own.track != "") {
			c := p.checkOf(d, section, own)
			if own.track != "" {
				c = p.trackedCheck(d, p.Servers[i], own.track)
			}
			p.Servers[i].Check = &c
		} else if !own.on {
			p.Servers[i].Check = &draft.HealthCheck{Type: "none"}
		}
	}
}

// trackedCheck is the check of the server whose state another one has.
func (p *proxy) trackedCheck(d *draft.Draft, own draft.ServerEntry, name string) draft.HealthCheck {
	at := own.Statement
	from, server, ok := strings.Cut(name, "/")
	if !ok {
		from, server = p.section.Arg(1), name
	}
	section, ok := p.others[from]
	switch {
	case p.others == nil: // is asked for the check of another server
		return draft.HealthCheck{Type: "none"}
	case !ok:
		p.refuse("%s has the state of %s, which is not in these files", at.Place, syntax.Printable(name))
		return draft.HealthCheck{Type: "none"}
	}
	other := newProxy(draft.New(), section, nil) // what it says is noted where it is read
	i := slices.IndexFunc(other.Servers, func(s draft.ServerEntry) bool { return s.Name == server })
	if i < 0 || other.checks[i].track != "" || other.Servers[i].Host != "" || other.Refused != "" {
		p.refuse("%s has the state of %s, and how that is found is not carried over; write check in its place", at.Place,
			syntax.Printable(name))
		return draft.HealthCheck{Type: "none"}
	}
	c, srv := other.Check, other.Servers[i]
	if srv.Check != nil {
		c = *srv.Check
	}
	if c.Port = cmp.Or(c.Port, srv.Port); c.Type == "none" {
		c.Port = 0
	}
	if !c.Addr.IsValid() && c.Type != "none" && srv.Addr != own.Addr {
		c.Addr = srv.Addr
	}
	d.Advise(p.LB, at, "has the state of %s in haproxy; here that one is checked twice, once for each", name)
	return c
}

// leaveIdle leaves out backups that never serve: those beside a server that nobody checks, which so is never down.
func (p *proxy) leaveIdle(d *draft.Draft) {
	always := -1
	for i, srv := range p.Servers {
		serves := !srv.Backup && !srv.Disabled && (!srv.Weight.Set || srv.Weight.Value > 0)
		if always < 0 && serves && !p.checks[i].on {
			always = i
		}
	}
	if always < 0 {
		return
	}
	var checks []serverCheck
	var servers []draft.ServerEntry
	for i, srv := range p.Servers {
		if srv.Backup {
			d.Note(p.LB, srv.Statement, "was left out, because it never serves in haproxy: line %d has no check, and so is "+
				"never down there; add it, and a check, if it is meant to serve", p.Servers[always].Line)
			continue
		}
		checks, servers = append(checks, p.checks[i]), append(servers, srv)
	}
	p.checks, p.Servers = checks, servers
}

// checkOf is the check of a server that says first of it, in a section whose lines say c.
func (p *proxy) checkOf(d *draft.Draft, section draft.HealthCheck, first serverCheck) draft.HealthCheck {
	c := &section
	c.Type = cmp.Or(c.Type, "tcp")
	first = p.to.of(first)
	overTLS := map[string]string{"http": "https", "tcp": "tls"}[c.Type]
	switch {
	case !first.ssl:
	case overTLS != "":
		c.Type = overTLS
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
	} else if len(c.Status) == 0 {
		c.Status = []string{"200-599"} // haproxy looks at what it expects alone
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
	c.Port, c.Addr = first.port, first.addr
	p.limitTimeout(d, c)
	c.SendProxy = first.proxy
	if c.Type == "tcp" {
		c.SendProxy = ""
	}
	if c.Type != "tls" && c.Type != "https" && !c.OverTLS {
		return *c
	}
	c.Verify = "false" // what ssl-hello-chk and verify none do
	if first.verify == "required" || first.verify == "" && first.caFile != "" {
		c.Verify = "true"
		if c.CAFile = ""; first.caFile != systemCA {
			c.CAFile = p.file(d, first.caFile)
		}
		if first.serverName == "" && c.ServerName == "" {
			d.Advise(p.LB, p.section.Statement, "haproxy asks for no name in the certificates of its servers, and here they "+
				"have to name the address; write check: {tls: {serverName: ...}} if they do not")
		}
	}
	c.ServerName = cmp.Or(first.serverName, c.ServerName)
	if crt := p.file(d, first.certFile); crt != "" {
		c.CertFile, c.KeyFile = crt, crt // haproxy keeps both in one file
	}
	return *c
}

// systemCA are the authorities of the system, which verify certificates where no file is named.
const systemCA = "@system-ca"

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
