package haproxy

import (
	"encoding/hex"
	"regexp"
	"slices"
	"strings"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// A conversation is what the tcp-check lines say.
type conversation struct {
	steps     []draft.SpokenStep
	connected bool
	expects   bool
	connect   serverCheck // what connect says of port, sendProxy and sni
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
		case key == "send" && credentials.MatchString(text):
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
		c.lacks(l, "sends what is known only then")
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

// tcpConnect reads tcp-check connect [default] [port x] [ssl] [sni x] [send-proxy] [linger] [alpn x].
func (p *proxy) tcpConnect(l draft.Line) {
	c := &p.talk
	if c.connected || len(c.steps) > 0 {
		c.lacks(l, "connects once more")
		return
	}
	c.connected = true
	for i := 2; i < len(l.Words); i++ {
		switch w := l.Words[i]; w {
		case "ssl":
			p.tcpTLS = true
		case "port":
			i++
			c.connect.port, _ = draft.ReadPort(l.Arg(i))
		case "sni":
			i++
			c.connect.serverName = l.Arg(i)
		case "send-proxy":
			c.connect.proxy = "v1"
		case "default", "linger":
		case "alpn", "comment":
			i++
		default:
			l.Advise("carried over without %s", syntax.Printable(w))
		}
	}
}

// joinTalk makes the check of option tcp-check the conversation of the tcp-check lines. Without what it expects,
// clients would get to servers that the check keeps them from, such as the replicas of a database.
func (p *proxy) joinTalk(c *draft.HealthCheck) {
	talk := p.talk
	c.Port, c.SendProxy, c.ServerName = talk.connect.port, talk.connect.proxy, talk.connect.serverName
	if talk.expects && talk.missing.Line > 0 {
		p.refuse("%s is not carried over, and without it the check takes servers that do not answer as it expects; "+
			"convert without its tcp-check lines, and write check: {type: exchange, steps: [...]}", talk.missing.Place)
	}
	if len(talk.steps) > 0 && talk.missing.Line == 0 {
		c.Type, c.Steps, c.OverTLS = "exchange", slices.Clone(talk.steps), p.tcpTLS
	} else if p.tcpTLS {
		c.Type = "tls"
	}
}
