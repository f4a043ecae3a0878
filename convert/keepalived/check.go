package keepalived

import (
	"strings"

	"appliance/convert/draft"
)

// readCheck reads TCP_CHECK, HTTP_GET or SSL_GET.
func (v *virtualServer) readCheck(l draft.Line) {
	c := &v.Check
	inter := c.Inter
	*c = draft.HealthCheck{Inter: inter, Host: c.Host, Type: "tcp"}
	switch l.Words[0] {
	case "HTTP_GET":
		c.Type, c.Method, c.Path = "http", "GET", "/"
	case "SSL_GET":
		c.Type, c.Method, c.Path, c.Verify = "https", "GET", "/", "false"
	}
	urls := 0
	for _, line := range l.Lines(v.LB, l.Body) {
		if line.Words[0] != "url" {
			v.checkLine(line)
			continue
		}
		if urls++; urls > 1 {
			line.NoteAll(false, "a second URL is not asked")
			continue
		}
		v.checkURL(line)
	}
	if c.FastInter.Set && !c.Inter.Set {
		c.Inter = draft.Span{Value: defaultDelay, Set: true}
	}
	if c.Timeout.Set && c.Type == "tcp" {
		if c.Inter = inter; !inter.Set {
			c.Inter = draft.Span{Value: defaultDelay, Set: true}
		}
		if c.Timeout.Value > c.Inter.Value {
			c.Timeout.Value = c.Inter.Value
			l.Advise("connect_timeout became %s, the delay_loop: checks of one server do not overlap",
				draft.Short(c.Inter.Value))
		}
	}
}

// checkURL reads the url block of a check.
func (v *virtualServer) checkURL(l draft.Line) {
	c := &v.Check
	for _, line := range l.Lines(v.LB, l.Body) {
		switch line.Words[0] {
		case "path":
			c.Path = line.Arg(1)
			if !strings.HasPrefix(c.Path, "/") {
				line.Advise("is no path; became /")
				c.Path = "/"
			}
		case "status_code":
			status, ok := draft.ReadStatus(strings.Join(line.Words[1:], ","))
			if !ok {
				line.Note(draft.NoStatuses)
				continue
			}
			c.Status = status
		case "virtualhost":
			c.Host = line.Arg(1)
		case "regex":
			if !draft.ReadRegexp(line.Arg(1)) {
				line.Note(draft.NoRegexp)
				continue
			}
			c.Matches = line.Arg(1)
		case "digest":
			line.Note("write what the body has in it: check: {expect: {contains: ok}}")
		default:
			line.Note(isMissing)
		}
	}
}

// checkLines are the keywords of all kinds of checks with something to read.
var checkLines = map[string]reader{
	"connect_port": func(v *virtualServer, l draft.Line) {
		if port, ok := draft.ReadPort(l.Arg(1)); ok {
			v.Check.Port = port
			return
		}
		l.Note(noSuchPort)
	},
	"connect_timeout": func(v *virtualServer, l draft.Line) {
		l.Span(units, l.Arg(1), draft.MinConnect, draft.MaxInter, &v.Check.Timeout)
	},
	"delay_before_retry": func(v *virtualServer, l draft.Line) {
		l.Span(units, l.Arg(1), draft.MinInter, draft.MaxInter, &v.Check.FastInter)
	},
	"retry":        (*virtualServer).retry,
	"nb_get_retry": (*virtualServer).retry,
}

// checkRemarks are the keywords of all kinds of checks that are noted and nothing else.
var checkRemarks = draft.NewRemarks(
	draft.Remark{Keywords: "delay_loop", Text: oneRhythm},
	draft.Remark{Keywords: "warmup", Moot: true, Text: "checks begin at different moments anyway"},
	draft.Remark{Keywords: "enable_sni", Text: "write check: {tls: {serverName: ...}}"},
	draft.Remark{Keywords: "connect_ip bindto bind_if bind_port fwmark http_protocol tls_compliant fast_recovery",
		Text: isMissing},
)

// checkLine reads what all kinds of checks have.
func (v *virtualServer) checkLine(l draft.Line) {
	if read := checkLines[l.Words[0]]; read != nil {
		read(v, l)
	} else if !l.Remark(checkRemarks, l.Words[0]) {
		l.NoteAll(false, draft.IsUnknown)
	}
}

// retry reads how many more checks have to fail.
func (v *virtualServer) retry(l draft.Line) {
	var retry draft.Number
	if l.Number(l.Arg(1), 0, draft.MaxCount-1, &retry); retry.Set {
		v.Check.Fall = draft.Number{Value: retry.Value + 1, Set: true}
	}
}
