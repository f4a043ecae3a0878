package keepalived

import (
	"strings"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// readCheck reads TCP_CHECK, HTTP_GET or SSL_GET.
func (v *virtualServer) readCheck(st syntax.Statement) {
	c := &v.Check
	inter := c.Inter
	*c = draft.HealthCheck{Inter: inter, Host: c.Host, Type: "tcp"}
	switch st.Words[0] {
	case "HTTP_GET":
		c.Type, c.Method, c.Path = "http", "GET", "/"
	case "SSL_GET":
		c.Type, c.Method, c.Path, c.Verify = "https", "GET", "/", "false"
	}
	urls := 0
	for _, line := range st.Body {
		if line.Words[0] != "url" {
			v.checkLine(line)
			continue
		}
		if urls++; urls > 1 {
			v.NoteAll(v.LB, line, false, "a second URL is not asked")
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
			v.Advise(v.LB, st.Head(), "connect_timeout became %s, the delay_loop: checks of one server do not overlap",
				draft.Short(c.Inter.Value))
		}
	}
}

// checkURL reads the url block of a check.
func (v *virtualServer) checkURL(st syntax.Statement) {
	c := &v.Check
	for _, line := range st.Body {
		switch line.Words[0] {
		case "path":
			c.Path = line.Arg(1)
			if !strings.HasPrefix(c.Path, "/") {
				v.Advise(v.LB, line, "is no path; became /")
				c.Path = "/"
			}
		case "status_code":
			status, ok := draft.ReadStatus(strings.Join(line.Words[1:], ","))
			if !ok {
				v.Note(v.LB, line, draft.NoStatuses)
				continue
			}
			c.Status = status
		case "virtualhost":
			c.Host = line.Arg(1)
		case "regex":
			if !draft.ReadRegexp(line.Arg(1)) {
				v.Note(v.LB, line, draft.NoRegexp)
				continue
			}
			c.Matches = line.Arg(1)
		case "digest":
			v.Note(v.LB, line, "write what the body has in it: check: {expect: {contains: ok}}")
		default:
			v.Note(v.LB, line, isMissing)
		}
	}
}

// checkLines are the keywords of all kinds of checks with something to read.
var checkLines = map[string]reader{
	"connect_port": func(v *virtualServer, st syntax.Statement) {
		if port, ok := draft.ReadPort(st.Arg(1)); ok {
			v.Check.Port = port
			return
		}
		v.Note(v.LB, st, noSuchPort)
	},
	"connect_timeout": func(v *virtualServer, st syntax.Statement) {
		v.ReadSpan(v.LB, st, units, st.Arg(1), draft.MinConnect, draft.MaxInter, &v.Check.Timeout)
	},
	"delay_before_retry": func(v *virtualServer, st syntax.Statement) {
		v.ReadSpan(v.LB, st, units, st.Arg(1), draft.MinInter, draft.MaxInter, &v.Check.FastInter)
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
func (v *virtualServer) checkLine(st syntax.Statement) {
	if read := checkLines[st.Words[0]]; read != nil {
		read(v, st)
	} else if !v.Remark(checkRemarks, st.Words[0], v.LB, st) {
		v.NoteAll(v.LB, st, false, draft.IsUnknown)
	}
}

// retry reads how many more checks have to fail.
func (v *virtualServer) retry(st syntax.Statement) {
	var retry draft.Number
	if v.ReadNumber(v.LB, st, st.Arg(1), 0, draft.MaxCount-1, &retry); retry.Set {
		v.Check.Fall = draft.Number{Value: retry.Value + 1, Set: true}
	}
}
