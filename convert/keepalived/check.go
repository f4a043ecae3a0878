package keepalived

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// readCheck reads TCP_CHECK, HTTP_GET, SSL_GET or SMTP_CHECK.
func (v *virtualServer) readCheck(l draft.Line) {
	c := &v.Check
	switch l.Words[0] {
	case "HTTP_GET":
		*c = v.usualCheck("http")
	case "SSL_GET":
		*c = v.usualCheck("https")
		c.Verify = "false"
	case "SMTP_CHECK":
		*c = v.usualCheck("smtp")
		c.Helo = "HELO " + usualHelo
	default:
		*c = v.usualCheck("tcp")
	}
	urls, hosts := 0, 0
	all := l.Lines(v.LB, l.Body)
	slices.SortStableFunc(all, func(a, b draft.Line) int { // what a url says wins, wherever it stands
		return cmp.Compare(strings.Index(a.Words[0], "url"), strings.Index(b.Words[0], "url"))
	})
	for _, line := range all {
		switch line.Words[0] {
		case "helo_name":
			v.helo(line)
			continue
		case "host": // connection options as in the check itself
			if hosts++; hosts > 1 {
				v.lose(line, "a check asks one host, and this is a second one")
				continue
			}
			for _, inner := range line.Lines(v.LB, line.Body) {
				v.checkLine(inner)
			}
			continue
		}
		if line.Words[0] != "url" {
			v.checkLine(line)
			continue
		}
		if urls++; urls > 1 {
			v.lose(line, "a check asks for one URL, and this is a second one")
			continue
		}
		v.checkURL(line)
	}
	if limitTimeout(c) {
		l.Advise("connect_timeout became %s, the delay_loop: checks of one server do not overlap",
			draft.Short(c.Inter.Value))
	}
}

// program reads a MISC_CHECK, or returns nil if none can be made of it.
func (v *virtualServer) program(l draft.Line) *draft.HealthCheck {
	c := &v.Check
	retry := v.usual.Fall.Set
	*c = v.usualCheck("program")
	// Its own defaults: the delay_loop, and no retry (check_misc.c).
	if c.Timeout, c.User = (draft.Span{}), v.user; !retry {
		c.Fall = draft.Number{Value: 1, Set: true}
	}
	if !v.usual.FastInter.Set {
		c.FastInter = draft.Span{}
	}
	why, weighs := "names no program", false
	lines := l.Lines(v.LB, l.Body)
	for _, line := range lines {
		switch line.Words[0] {
		case "misc_path":
			c.Exec, why = command(line, line.Words[1:])
		case "misc_dynamic":
			weighs = true
		}
	}
	if weighs {
		why = "gives the server a weight, which no check does here"
	}
	if why != "" {
		l.NoteAll(false, why+", so it "+isOtherCheck)
		return nil
	}
	for _, line := range lines {
		switch line.Words[0] {
		case "misc_path":
		case "misc_timeout":
			line.Span(units, line.Arg(1), draft.MinInter, draft.MaxInter, &c.Timeout)
		case "user":
			c.User = readUser(line, line.Arg(1))
		default:
			v.checkLine(line)
		}
	}
	for _, span := range []*draft.Span{&c.Timeout, &c.FastInter} { // what the delay_loop is
		if !span.Set {
			*span = c.Inter
		}
	}
	const shortest = time.Second // our loader's
	for _, span := range []*draft.Span{&c.Inter, &c.FastInter} {
		if span.Set && span.Value < shortest {
			l.Advise("%s between two runs became %s", draft.Short(span.Value), draft.Short(shortest))
			span.Value = shortest
		}
	}
	if limitTimeout(c) {
		l.Advise("misc_timeout became %s, the delay_loop: checks of one server do not overlap", draft.Short(c.Inter.Value))
	}
	if c.User == "" {
		l.Advise(noUser)
	}
	own := *c
	return &own
}

// usualHelo is the name that keepalived gives where helo_name says none (its check_smtp.c).
const usualHelo = "smtpchecker.keepalived.org"

// lose notes a line of a check that cannot be carried over, and refuses the load balancer: without it the check would
// take servers that it keeps out in keepalived.
func (v *virtualServer) lose(l draft.Line, why string) {
	l.NoteAll(false, "%s", why)
	if v.Refused == "" {
		v.Refused = l.Place.String() + " is not carried over, and without it the check takes servers that it is there to " +
			"keep out; convert without that line, and write what has to come: check: {expect: {contains: ok}}"
	}
}

// helo reads the name that an SMTP_CHECK gives.
func (v *virtualServer) helo(l draft.Line) {
	name := l.Arg(1)
	isBad := func(r rune) bool { return r <= ' ' || r > '~' }
	if v.Check.Type != "smtp" || name == "" || len(name) > 255 || strings.ContainsFunc(name, isBad) {
		l.Note("is no name that a check of SMTP gives")
		return
	}
	v.Check.Helo = "HELO " + name
}

// usualCheck is a check of that kind as keepalived makes it where a server says nothing about it.
func (v *virtualServer) usualCheck(kind string) draft.HealthCheck {
	c := v.usual
	c.Type = kind
	again := defaultTCPAgain
	if kind == "http" || kind == "https" {
		again = defaultHTTPAgain
		c.Method, c.Path, c.Status = "GET", "/", []string{"200-299"}
	}
	for _, one := range []struct {
		into  *draft.Span
		usual time.Duration
	}{{&c.Inter, defaultDelay}, {&c.Timeout, defaultTimeout}, {&c.FastInter, again}} {
		if !one.into.Set {
			*one.into = draft.Span{Value: one.usual, Set: true}
		}
	}
	if c.FastInter.Value >= c.Inter.Value && !v.usual.FastInter.Set {
		c.FastInter = draft.Span{}
	}
	if !c.Fall.Set {
		c.Fall = draft.Number{Value: defaultRetry + 1, Set: true}
	}
	return c
}

// limitTimeout keeps the timeout of a check that waits for no answer within its interval, and reports whether somebody
// has to know.
func limitTimeout(c *draft.HealthCheck) bool {
	if c.Type != "tcp" && c.Type != "program" || c.Timeout.Value <= c.Inter.Value {
		return false
	}
	c.Timeout.Value = c.Inter.Value
	return true
}

// checkURL reads the url block of a check.
func (v *virtualServer) checkURL(l draft.Line) {
	c := &v.Check
	isContrary := func(st syntax.Statement) bool { return st.Words[0] == "regex_no_match" }
	pattern := &c.Matches
	if slices.ContainsFunc(l.Body, isContrary) {
		pattern = &c.Mismatches
	}
	for _, line := range l.Lines(v.LB, l.Body) {
		switch line.Words[0] {
		case "path":
			c.Path = line.PathWithoutSecret(line.Arg(1))
			if !strings.HasPrefix(c.Path, "/") {
				line.Advise("is no path; became /")
				c.Path = "/"
			}
		case "status_code":
			status, ok := draft.ReadStatus(strings.Join(line.Words[1:], ","))
			if !ok {
				v.lose(line, draft.NoStatuses)
				continue
			}
			c.Status = draft.Statuses(status)
		case "virtualhost":
			c.Host = line.Arg(1)
		case "regex_no_match": // read above
		case "regex":
			if !draft.ReadRegexp(line.Arg(1)) {
				v.lose(line, draft.NoRegexp)
				continue
			}
			*pattern = draft.TailRegexp(line.Arg(1))
		case "digest":
			v.lose(line, "write what the body has in it: check: {expect: {contains: ok}}")
		case "regex_options", "regex_min_offset", "regex_max_offset", "regex_stack":
			v.lose(line, isMissing)
		default:
			if strings.HasPrefix(line.Words[0], "include") {
				v.Refused = line.Place.String() + isIncluded
			}
			line.Note(isMissing)
		}
	}
}

// checkLines are the keywords of all kinds of checks with something to read.
var checkLines = map[string]reader{
	"delay_loop": func(v *virtualServer, l draft.Line) {
		l.Span(units, l.Arg(1), draft.MinInter, draft.MaxInter, &v.Check.Inter)
	},
	"connect_port": func(v *virtualServer, l draft.Line) {
		if port, ok := draft.ReadPort(l.Arg(1)); ok {
			v.Check.Port = port
			return
		}
		v.lose(l, noSuchPort)
	},
	"connect_ip": func(v *virtualServer, l draft.Line) {
		if a, ok := draft.ReadAddr(l.Arg(1)); ok {
			v.Check.Addr = a
			return
		}
		v.lose(l, draft.WrongAddr(l.Arg(1)))
	},
	"connect_timeout": func(v *virtualServer, l draft.Line) {
		l.Span(units, l.Arg(1), draft.MinConnect, draft.MaxInter, &v.Check.Timeout)
	},
	"delay_before_retry": func(v *virtualServer, l draft.Line) {
		l.Span(units, l.Arg(1), draft.MinInter, draft.MaxInter, &v.Check.FastInter)
	},
	"virtualhost":  func(v *virtualServer, l draft.Line) { v.Check.Host = l.Arg(1) },
	"retry":        (*virtualServer).retry,
	"nb_get_retry": (*virtualServer).retry,
}

// checkRemarks are the keywords of all kinds of checks that are noted and nothing else.
var checkRemarks = draft.NewRemarks(
	draft.Remark{Keywords: "warmup", Moot: true, Text: "checks begin at different moments anyway"},
	draft.Remark{Keywords: "enable_sni", Text: "write check: {tls: {serverName: ...}}"},
	draft.Remark{Keywords: "bindto bind_if bind_port fwmark http_protocol tls_compliant fast_recovery",
		Text: isMissing},
)

// checkLine reads what all kinds of checks have.
func (v *virtualServer) checkLine(l draft.Line) {
	if strings.HasPrefix(l.Words[0], "include") {
		v.Refused = l.Place.String() + isIncluded
	} else if read := checkLines[l.Words[0]]; read != nil {
		read(v, l)
	} else if !l.Remark(checkRemarks, l.Words[0]) {
		l.NoteAll(false, draft.IsUnknown)
	}
}

// usualRetry reads how many more checks have to fail where a check does not say it.
func (v *virtualServer) usualRetry(l draft.Line) {
	if l.Arg(1) == "0" {
		l.Moot("keepalived passes over 0 here, and takes its default")
		return
	}
	v.retry(l)
}

// retry reads how many more checks have to fail.
func (v *virtualServer) retry(l draft.Line) {
	var retry draft.Number
	if l.Number(l.Arg(1), 0, draft.MaxCount-1, &retry); retry.Set {
		v.Check.Fall = draft.Number{Value: retry.Value + 1, Set: true}
	}
}
