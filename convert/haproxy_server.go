package convert

import (
	"slices"
	"strconv"
	"strings"
)

// haproxyCheck is what a server line says about the server's check. One load
// balancer checks all its backends in one way, so these must be comparable.
type haproxyCheck struct {
	on, ssl                              bool
	inter, fastinter, downinter          span
	rise, fall                           count
	port                                 uint16
	verify, caFile, serverName, certFile string
}

// add reads a server line: name, address, parameters.
func (p *haproxyProxy) add(d *draft, st statement) {
	s := p.service
	word := st.arg(2)
	for _, prefix := range []string{"ipv4@", "ipv6@", "tcp@", "tcp4@", "tcp6@"} {
		word = strings.TrimPrefix(word, prefix)
	}
	srv := server{statement: st, name: st.arg(1)}
	host, tail := splitPort(word)
	var ok bool
	if srv.addr, ok = readAddr(host); !ok {
		d.note(s, st, "%s", wrongAddr(host))
		return
	}
	if tail != "" {
		if srv.port, ok = readPort(tail); !ok {
			why := "is no port; write a number from 1 to 65535"
			if strings.HasPrefix(tail, "+") || strings.HasPrefix(tail, "-") {
				why = "is relative to the client's; write the port itself"
			} else if placeholder(tail) {
				why = fillIn
			}
			d.note(s, st, "%s %s", tail, why)
			return
		}
	}
	set := haproxyServer{server: &srv}
	set.read(d, nil, st, p.usual, p, false)
	set.read(d, s, st, st.words[3:], p, true)
	if len(p.checks) > 0 && set.check != p.checks[0] {
		d.advise(s, st, "is checked in another way than the first server; one load balancer checks all its backends as it does the first")
	}
	p.checks = append(p.checks, set.check)
	s.servers = append(s.servers, srv)
}

// server reads the words of default-server for what is wrong with them.
func (p *haproxyProxy) server(d *draft, owner *service, st statement, words []string) {
	set := haproxyServer{server: &server{statement: st}}
	set.read(d, owner, st, words, p, true)
}

// haproxyServer is one server as its words are read.
type haproxyServer struct {
	*server
	check haproxyCheck
}

// read reads parameters; those of default-server come first, and have been
// reported where they stand.
func (v *haproxyServer) read(d *draft, owner *service, st statement, words []string, p *haproxyProxy, report bool) {
	quiet := d
	if !report {
		quiet = newDraft() // what it notes has been noted
	}
	var unknown []string
	s := p.service
	for i := 0; i < len(words); i++ {
		w := words[i]
		next := func() string {
			if i++; i < len(words) {
				return words[i]
			}
			return ""
		}
		switch w {
		case "check":
			v.check.on = true
		case "no-check":
			v.check.on = false
		case "check-ssl":
			v.check.ssl = true
		case "no-check-ssl":
			v.check.ssl = false
		case "backup":
			v.backup = true
		case "no-backup":
			v.backup = false
		case "disabled":
			v.weight = count{0, true}
			quiet.advise(owner, st, "disabled became weight 0; remove that to let connections in again")
		case "enabled":
		case "inter":
			quiet.span(owner, st, haproxyUnits, next(), minInter, maxInter, &v.check.inter)
		case "fastinter":
			quiet.span(owner, st, haproxyUnits, next(), minInter, maxInter, &v.check.fastinter)
		case "downinter":
			quiet.span(owner, st, haproxyUnits, next(), minInter, maxInter, &v.check.downinter)
		case "rise":
			quiet.count(owner, st, next(), 1, maxCount, &v.check.rise)
		case "fall":
			quiet.count(owner, st, next(), 1, maxCount, &v.check.fall)
		case "port":
			if port, ok := readPort(next()); ok {
				v.check.port = port
			} else {
				unknown = append(unknown, "port")
			}
		case "weight":
			quiet.count(owner, st, next(), 0, maxWeight, &v.weight)
		case "maxconn":
			quiet.count(owner, st, next(), 0, maxConns, &v.maxconn)
		case "maxqueue":
			quiet.count(owner, st, next(), 0, maxConns, &v.maxqueue)
		case "slowstart":
			quiet.span(owner, st, haproxyUnits, next(), 0, maxSlow, &v.slowstart)
		case "verify":
			v.check.verify = next()
		case "ca-file":
			v.check.caFile = next()
		case "crt":
			v.check.certFile = next()
		case "check-sni", "verifyhost":
			v.check.serverName = next()
		case "send-proxy":
			s.sendProxy = "v1"
		case "send-proxy-v2", "send-proxy-v2-ssl", "send-proxy-v2-ssl-cn":
			s.sendProxy = "v2"
		case "check-send-proxy":
		case "on-marked-down":
			if next() == "shutdown-sessions" {
				s.onMarkedDown = "shutdown-sessions"
			}
		case "on-marked-up":
			if next() == "shutdown-backup-sessions" {
				s.onMarkedUp = "shutdown-backup-sessions"
			}
		case "observe":
			if next() == "layer4" && !s.maxFails.said {
				s.maxFails = count{10, true} // error-limit's default
			}
		case "error-limit":
			quiet.count(owner, st, next(), 1, maxCount, &s.maxFails)
		case "on-error":
			if next() != "mark-down" {
				unknown = append(unknown, "on-error "+words[min(i, len(words)-1)])
			}
		case "ssl":
			v.check.ssl = true
			s.refused = st.place.String() + " begins TLS towards the servers, while " + isTLS + ": let the clients speak TLS"
		case "init-addr", "resolvers", "resolve-prefer", "resolve-net", "resolve-opts", "minconn", "pool-max-conn", "pool-purge-delay", "pool-low-conn", "max-reuse", "tcp-ut", "id", "sni", "cookie", "check-alpn", "alpn", "ciphers", "ciphersuites", "ssl-min-ver", "ssl-max-ver", "crl-file", "curves":
			unknown = append(unknown, strings.TrimSpace(w+" "+next()))
		case "addr", "agent-check", "agent-addr", "agent-inter", "agent-port", "agent-send", "check-proto", "check-via-socks4", "namespace", "proto", "redir", "source", "track", "usesrc", "interface", "proxy-v2-options", "socks4", "ws", "log-proto", "guid", "set-proxy-v2-tlv-fmt":
			if w == "agent-check" || w == "check-via-socks4" {
				unknown = append(unknown, w)
				continue
			}
			unknown = append(unknown, strings.TrimSpace(w+" "+next()))
		case "tfo", "non-stick", "no-ssl", "no-verify", "no-send-proxy", "no-send-proxy-v2", "no-tfo", "no-agent-check", "allow-0rtt", "no-sslv3", "no-tlsv10", "no-tlsv11", "no-tls-tickets", "force-tlsv12", "ssl-reuse", "no-ssl-reuse":
			unknown = append(unknown, w)
		default:
			unknown = append(unknown, w)
		}
	}
	if len(unknown) > 0 {
		quiet.advise(owner, st, "carried over without %q", strings.Join(unknown, " "))
	}
}

// kind says how servers are checked. As in haproxy, the last line wins.
func (p *haproxyProxy) kind(d *draft, owner *service, st statement, kind string) {
	if p.checkBy.line != 0 && p.checkBy.line != st.line && !(p.check.kind == "tcp" && kind == "tcp") {
		d.note(owner, p.checkBy, "is overridden by line %d, as in haproxy; if both are meant, write check: {type: https, path: /healthz}", st.line)
		p.check = check{}
	}
	p.check.kind, p.checkBy = kind, st
}

// httpchk reads option httpchk [method] [uri [version]].
func (p *haproxyProxy) httpchk(d *draft, owner *service, st statement) {
	words := st.words[2:]
	switch len(words) {
	case 0:
		p.check.method, p.check.path = "OPTIONS", "/"
		return
	case 1:
		p.check.method, p.check.path = "OPTIONS", words[0]
	default:
		p.check.method, p.check.path = words[0], words[1]
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

func (p *haproxyProxy) path(d *draft, owner *service, st statement) {
	if !strings.HasPrefix(p.check.path, "/") {
		d.advise(owner, st, "%s is no path; became /", printable(p.check.path))
		p.check.path = "/"
	}
	if !httpMethod(p.check.method) {
		d.advise(owner, st, "%s is no method; became GET", printable(p.check.method))
		p.check.method = "GET"
	}
}

func (p *haproxyProxy) header(d *draft, owner *service, st statement, name, value string) {
	switch {
	case name == "":
	case strings.EqualFold(name, "authorization"):
		d.note(owner, st, "a secret is not copied; put the token in a file, and write check: {bearerTokenFile: /path}")
	case strings.EqualFold(name, "host"):
		p.check.host = value
	default:
		p.check.headers = append(p.check.headers, [2]string{name, value})
	}
}

// httpCheck reads the http-check lines.
func (p *haproxyProxy) httpCheck(d *draft, owner *service, st statement) {
	words := st.words[1:]
	if len(words) == 0 {
		d.note(owner, st, "says nothing")
		return
	}
	switch words[0] {
	case "connect":
		for i := 1; i < len(words); i++ {
			switch words[i] {
			case "ssl":
				p.check.kind = "https"
			case "sni":
				p.check.serverName = st.arg(i + 2)
				i++
			case "port":
				p.check.port, _ = readPort(st.arg(i + 2))
				i++
			case "alpn", "proto", "default", "linger":
			}
		}
	case "send":
		for i := 1; i < len(words); i++ {
			switch words[i] {
			case "meth":
				p.check.method = st.arg(i + 2)
				i++
			case "uri":
				p.check.path = st.arg(i + 2)
				i++
			case "hdr":
				p.header(d, owner, st, st.arg(i+2), st.arg(i+3))
				i += 2
			case "ver":
				i++
			default:
				d.advise(owner, st, "carried over without %s", printable(words[i]))
			}
		}
		if p.check.path == "" {
			p.check.path = "/"
		}
		if p.check.method == "" {
			p.check.method = "GET"
		}
		p.path(d, owner, st)
	case "expect":
		p.expect(d, owner, st, words[1:])
	case "disable-on-404":
		d.note(owner, st, "a server that answers 404 is down; `appliance backends drain` takes one out softly")
	default:
		d.note(owner, st, "is not known")
	}
}

func (p *haproxyProxy) expect(d *draft, owner *service, st statement, words []string) {
	if len(words) < 2 || words[0] == "!" {
		d.note(owner, st, "say what is right, not what is wrong: check: {expect: {status: [200], contains: ok}}")
		return
	}
	for len(words) > 2 && !slices.Contains([]string{"status", "rstatus", "string", "rstring"}, words[0]) {
		words = words[1:] // min-recv 10, comment x, ...
	}
	value := strings.Join(words[1:], " ")
	switch words[0] {
	case "status":
		status, ok := readStatus(value)
		if !ok {
			d.note(owner, st, "is no list of statuses from 200 to 599")
			return
		}
		p.check.status = status
		p.expects = true
	case "string":
		p.check.contains, p.expects = value, true
	case "rstring":
		if !goRegexp(value) {
			d.note(owner, st, "is no regular expression of RE2's kind; write check: {expect: {matches: ...}}")
			return
		}
		p.check.matches, p.expects = value, true
	default:
		d.note(owner, st, "write the statuses out: check: {expect: {status: [200, 204]}}")
	}
}

// settleCheck joins what the section and its servers say about checks.
func (p *haproxyProxy) settleCheck(d *draft) {
	c := &p.service.check
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
		if c.kind != "" {
			d.advise(p.service, p.checkBy, "no server has the word check, so haproxy never checks; became check: {type: none}")
		}
		*c = check{kind: "none"}
		return
	}
	switch {
	case c.kind == "":
		c.kind = "tcp"
		if first.ssl {
			c.kind = "tls"
		}
	case c.kind == "http" && first.ssl:
		c.kind = "https"
	case c.kind == "tcp" && first.ssl:
		c.kind = "tls"
	}
	if c.kind != "http" && c.kind != "https" {
		*c = check{kind: c.kind, port: c.port, serverName: c.serverName}
	} else if !p.expects {
		c.status = []string{"200-399"} // what haproxy takes for healthy
	}
	if first.fastinter.said && !first.inter.said {
		first.inter = span{haproxyInter, true}
	}
	c.inter, c.fastinter, c.downinter, c.rise, c.fall = first.inter, first.fastinter, first.downinter, first.rise, first.fall
	if first.port != 0 {
		c.port = first.port
	}
	p.patience(d)
	if c.kind != "tls" && c.kind != "https" {
		return
	}
	c.verify = "false" // what ssl-hello-chk and verify none do
	if first.verify == "required" || first.verify == "" && first.caFile != "" {
		c.verify = "true"
		c.caFile = p.file(d, first.caFile)
	}
	if first.serverName != "" {
		c.serverName = first.serverName
	}
	if crt := p.file(d, first.certFile); crt != "" {
		c.certFile, c.keyFile = crt, crt // haproxy keeps both in one file
	}
}

// file takes absolute paths only: the program runs somewhere else.
func (p *haproxyProxy) file(d *draft, path string) string {
	if path == "" || strings.HasPrefix(path, "/") {
		return path
	}
	d.note(p.service, p.section.statement, "%s is no absolute path; write it below tls", printable(path))
	return ""
}

// patience holds timeout check against inter, which only http and https may
// exceed.
func (p *haproxyProxy) patience(d *draft) {
	c := &p.service.check
	if !p.checkPatience.said {
		return
	}
	c.timeout = p.checkPatience
	if c.kind == "http" || c.kind == "https" {
		return
	}
	if !c.inter.said {
		c.inter = span{haproxyInter, true}
	}
	if c.timeout.d > c.inter.d {
		c.timeout.d = c.inter.d
		d.advise(p.service, p.checkPatienceAt, "became %s, the time between two checks: checks of one server do not overlap", short(c.inter.d))
	}
}

// readStatus reads 200, 200-299 and lists of them.
func readStatus(s string) ([]string, bool) {
	var list []string
	for part := range strings.SplitSeq(s, ",") {
		low, high, isRange := strings.Cut(part, "-")
		if !isRange {
			high = low
		}
		from, err := strconv.Atoi(low)
		to, err2 := strconv.Atoi(high)
		if err != nil || err2 != nil || from < 200 || to > 599 || to < from {
			return nil, false
		}
		text := strconv.Itoa(from)
		if to > from {
			text += "-" + strconv.Itoa(to)
		}
		list = append(list, text)
	}
	return list, true
}
