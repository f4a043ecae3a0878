package haproxy

import (
	"cmp"
	"encoding/hex"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// A conversation is what the tcp-check lines say.
type conversation struct {
	steps   []draft.SpokenStep
	expects bool
	// missing is the first line that cannot be carried over: then the whole conversation is not.
	missing draft.Line
}

// lacks notes that a line cannot be carried over, and why.
func (c *conversation) lacks(l draft.Line, why string) {
	if c.missing.Line == 0 {
		c.missing = l
	}
	l.Note("%s, so what the check says is not carried over; write check: {type: exchange, steps: [...]}", why)
}

// protocol reads the options that check by a protocol.
func (p *proxy) protocol(l draft.Line) {
	switch l.Arg(1) {
	case "redis-check":
		p.kind(l, "redis")
	case "ldap-check":
		p.kind(l, "ldap")
	case "smtpchk":
		p.kind(l, "smtp")
		p.Check.Helo = "HELO localhost"
		if verb, name := l.Arg(2), l.Arg(3); name != "" && (verb == "HELO" || verb == "EHLO") {
			p.Check.Helo = verb + " " + name
		}
	case "mysql-check":
		p.kind(l, "mysql")
		p.Check.User = user(l)
		if l.Arg(4) == "pre-41" {
			l.Advise("became the login of MySQL 4.1 and later, which servers of today ask for")
		}
	case "pgsql-check":
		p.kind(l, "pgsql")
		if p.Check.User = user(l); p.Check.User == "" {
			p.kind(l, "tcp")
			l.Note("names no user; write check: {type: pgsql, user: NAME}")
		}
	}
}

// credentials match what is sent to log in with a password: AUTH of Redis and SMTP, PASS of POP, LOGIN of IMAP.
var credentials = regexp.MustCompile(`(?i)\b(?:auth|authenticate|pass|password|login)\b`)

// user is the name in mysql-check user NAME, if it is one that our loader takes.
func user(l draft.Line) string {
	name := l.Arg(3)
	if l.Arg(2) != "user" {
		return ""
	}
	if !draft.ValidName(name, 64) {
		l.Advise("%s is no name of a user here; was left out", syntax.Printable(name))
		return ""
	}
	return name
}

// tcpCheck reads the tcp-check lines.
func (p *proxy) tcpCheck(l draft.Line) {
	c := &p.talk
	const maxSteps, maxStep = 50, 4096 // our loader's
	add := func(key, text string) {
		switch {
		case text == "":
			l.Note("says nothing")
		case key == "send" && (credentials.MatchString(text) || syntax.HasSecret(text)):
			c.lacks(l, "a secret is not copied")
		case len(text) > maxStep || len(c.steps) == maxSteps:
			c.lacks(l, "is more than a check says here, 50 steps of 4 KiB")
		default:
			c.steps = append(c.steps, draft.SpokenStep{Key: key, Bytes: text})
		}
	}
	binary := func(key, text string) {
		bytes, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
		if err != nil {
			c.lacks(l, "is not hexadecimal")
			return
		}
		add(key, string(bytes))
	}
	switch l.Arg(1) {
	case "connect":
		p.tcpConnect(l)
	case "send":
		add("send", l.Arg(2))
	case "send-binary":
		binary("send", l.Arg(2))
	case "send-lf", "send-binary-lf":
		text := l.Arg(2)
		switch {
		case strings.Contains(strings.ReplaceAll(text, "%%", ""), "%"):
			c.lacks(l, "sends what is known only then")
		case l.Arg(1) == "send-lf":
			add("send", strings.ReplaceAll(text, "%%", "%"))
		default:
			binary("send", text)
		}
	case "comment", "set-var", "set-var-fmt", "unset-var":
		l.Moot("changes nothing of what a check asks for")
	case "expect":
		c.expects = true
		words, not, least := l.Words[2:], false, false
		for len(words) > 1 {
			if words[0] == "!" {
				words, not = words[1:], true
				continue
			}
			if not && least { // it is judged before all has come
				c.lacks(l, "expects what steps cannot say")
				return
			}
			switch w := words[0]; w {
			case "comment", "ok-status", "error-status", "tout-status", "on-success", "on-error", "status-code":
				words = words[2:]
				continue
			case "min-recv":
				if words[1] != "-1" && words[1] != "0" {
					c.lacks(l, "waits for a number of bytes")
					return
				}
				least = words[1] == "0"
				words = words[2:]
				continue
			case "string":
				add(keyOf("expect", not), words[1])
			case "binary":
				binary(keyOf("expect", not), words[1])
			case "rstring":
				if !draft.ReadRegexp(words[1]) {
					c.lacks(l, draft.NoRegexp)
					return
				}
				add(keyOf("matches", not), draft.TailRegexp(words[1]))
			default:
				c.lacks(l, "expects what steps cannot say")
			}
			return
		}
		c.lacks(l, "expects what steps cannot say")
	default:
		l.Note(draft.IsUnknown)
	}
}

// keyOf is the key of a step that expects something, or with not the opposite.
func keyOf(key string, not bool) string {
	if not {
		return map[string]string{"expect": "absent", "matches": "mismatches"}[key]
	}
	return key
}

// tcpConnect reads tcp-check connect.
func (p *proxy) tcpConnect(l draft.Line) {
	if p.tcpTo.Line > 0 || len(p.talk.steps) > 0 {
		p.talk.lacks(l, "connects once more")
		return
	}
	p.tcpTo.read(l)
}

// A connection is what http-check connect or tcp-check connect says.
type connection struct {
	syntax.Statement
	// usual means that what the server's line says of TLS and the PROXY header counts as well.
	usual, tls, proxy bool
	port              uint16
	addr              netip.Addr
	serverName        string
	// wrong is the line if it checks another place that is not understood.
	wrong draft.Line
}

// read reads connect [default] [addr x] [port x] [ssl] [sni x] [send-proxy] [linger] [alpn x].
func (c *connection) read(l draft.Line) {
	*c = connection{Statement: l.Statement}
	for i := 2; i < len(l.Words); i++ {
		switch w := l.Words[i]; w {
		case "default":
			c.usual = true
		case "ssl":
			c.tls = true
		case "send-proxy":
			c.proxy = true
		case "sni":
			i++
			c.serverName = l.Arg(i)
		case "port":
			i++
			port, ok := draft.ReadPort(l.Arg(i))
			if c.port = port; !ok {
				c.lacks(l, "checks a port that is no number")
			}
		case "addr":
			i++
			var ok bool
			if c.addr, ok = draft.ReadAddr(l.Arg(i)); !ok {
				c.lacks(l, draft.WrongAddr(l.Arg(i)))
			}
		case "via-socks4":
			c.lacks(l, "checks through another host")
		case "linger":
		case "alpn", "comment", "proto":
			i++
		default:
			c.lacks(l, "has "+w+", which is not known")
		}
	}
}

// lacks notes that the line checks another place, and why that is not carried over.
func (c *connection) lacks(l draft.Line, why string) {
	c.wrong = l
	l.Note("%s", why)
}

// of is what a server's line says of its check, as far as the connect line leaves it in force.
func (c connection) of(s serverCheck) serverCheck {
	if c.Line == 0 {
		return s
	}
	if !c.usual {
		s.ssl, s.proxy = false, ""
	}
	if c.proxy {
		s.proxy = cmp.Or(s.version, "v1")
	}
	s.ssl = s.ssl || c.tls
	s.port, s.serverName = cmp.Or(c.port, s.port), cmp.Or(c.serverName, s.serverName)
	if c.addr.IsValid() {
		s.addr = c.addr
	}
	return s
}

// logsIn reports whether what is sent at once is a bind of LDAP with a password (RFC 4511, section 4.2): version 3, a
// name, and tag 128 with the password.
func (c *conversation) logsIn() bool {
	const version = "\x02\x01\x03\x04"
	sent := ""
	for _, s := range c.steps {
		if s.Key != "send" {
			sent = ""
			continue
		}
		sent += s.Bytes
		_, bind, ok := strings.Cut(sent, version)
		if !ok || len(bind) == 0 || len(bind) < int(bind[0])+3 {
			continue
		}
		if rest := bind[1+int(bind[0]):]; rest[0] == 0x80 && rest[1] > 0 {
			return true
		}
	}
	return false
}

// joinTalk makes the check of option tcp-check the conversation of the tcp-check lines. Without what it expects,
// clients would get to servers that the check keeps them from, such as the replicas of a database.
func (p *proxy) joinTalk(c *draft.HealthCheck) {
	talk := p.talk
	if talk.missing.Line == 0 && talk.logsIn() {
		p.refuse("%s: its tcp-check lines send a password, which is not copied; convert without them, and write "+
			"check: {type: ldap}, or a program that reads the password", p.checkBy.Place)
	}
	if talk.expects && talk.missing.Line > 0 {
		p.refuse("%s is not carried over, and without it the check takes servers that do not answer as it expects; "+
			"convert without its tcp-check lines, and write check: {type: exchange, steps: [...]}", talk.missing.Place)
	}
	if len(talk.steps) > 0 && talk.missing.Line == 0 {
		c.Type, c.Steps = "exchange", slices.Clone(talk.steps)
	}
}
