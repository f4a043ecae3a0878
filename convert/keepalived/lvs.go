package keepalived

import (
	"maps"
	"reflect"
	"slices"
	"strings"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

func sortedKeys(m map[string]syntax.Statement) []string { return slices.Sorted(maps.Keys(m)) }

// lvsSchedulers are those of IPVS that are known here by the same name.
var lvsSchedulers = []string{"rr", "wrr", "lc", "wlc", "sh", "mh", "sed", "nq", "dh", "lblc", "lblcr", "ovf", "fo", "twos"}

// virtualServer reads a virtual_server block: an address and port, and the
// servers behind it.
func virtualServer(d *draft.Draft, st syntax.Statement, groups map[string]syntax.Statement) {
	s := &draft.LB{Statement: syntax.Statement{Place: st.Place, Words: st.Words}, Lines: st.Body, LVS: true}
	defer func() { d.Services = append(d.Services, s) }()
	switch st.Arg(1) {
	case "fwmark":
		s.Refused = "it serves marked packets; write one load balancer for each port"
	case "group":
		group, ok := groups[st.Arg(2)]
		if !ok {
			s.Refused = "its virtual_server_group is not in these files"
		}
		for _, line := range group.Body {
			virtualAddress(d, s, line, line.Arg(0), line.Arg(1))
		}
	default:
		virtualAddress(d, s, st, st.Arg(1), st.Arg(2))
	}
	if len(s.Binds) == 0 && s.Refused == "" {
		s.Refused = "it has no address and port"
	}
	checked := false
	for _, line := range st.Body {
		virtualLine(d, s, line, &checked)
	}
	if !checked {
		inter := s.Check.Inter
		s.Check = draft.HealthCheck{Type: "none"}
		if inter.Set {
			d.Advise(s, s.Statement, "no real server has a check, so none is made; remove check below to have one")
		}
	}
}

func virtualAddress(d *draft.Draft, s *draft.LB, st syntax.Statement, address, port string) {
	a, ok := draft.ReadAddr(address)
	if !ok {
		d.Note(s, st, "%s", draft.WrongAddr(address))
		return
	}
	n, ok := draft.ReadPort(port)
	if !ok {
		why := "has no port from 1 to 65535; write one load balancer for each port"
		if draft.Placeholder(port) {
			why = draft.Unfilled
		}
		d.Note(s, st, "%s", why)
		return
	}
	s.Binds = append(s.Binds, draft.Bind{Statement: st, Addr: a, Port: n})
}

func virtualLine(d *draft.Draft, s *draft.LB, st syntax.Statement, checked *bool) {
	switch st.Words[0] {
	case "delay_loop":
		d.ReadSpan(s, st, seconds, st.Arg(1), draft.MinInter, draft.MaxInter, &s.Check.Inter)
	case "lb_algo", "lvs_sched":
		if slices.Contains(lvsSchedulers, st.Arg(1)) {
			s.Scheduler = st.Arg(1)
			return
		}
		d.Note(s, st, "write scheduler: %s", strings.Join(lvsSchedulers, ", "))
	case "lb_kind", "lvs_method":
		switch st.Arg(1) {
		case "NAT":
			s.Plane = "ipvs"
		case "DR": // auto takes direct where every server is a peer on the same port
		default:
			d.Note(s, st, "there are no tunnels; the data plane is chosen by what kernel and network can do")
		}
	case "protocol":
		if st.Arg(1) != "TCP" {
			s.Refused = "it is " + syntax.Printable(st.Arg(1)) + ", and TCP is carried"
		}
	case "persistence_timeout":
		if len(st.Words) == 1 {
			s.Persistence = draft.Span{Value: defaultPersistence, Set: true}
			return
		}
		if st.Arg(1) != "0" {
			d.ReadSpan(s, st, seconds, st.Arg(1), draft.MinPersistence, draft.MaxSticky, &s.Persistence)
		}
	case "real_server":
		realServer(d, s, st, checked)
	case "sorry_server":
		if srv, ok := realAddress(d, s, st); ok {
			srv.Backup = true
			s.Servers = append(s.Servers, srv)
		}
	case "inhibit_on_failure", "sorry_server_inhibit":
		s.OnMarkedDown = "keep"
	case "retry", "delay_before_retry", "connect_timeout", "warmup":
		checkLine(d, s, st)
	case "virtualhost":
		s.Check.Host = st.Arg(1)
	case "ha_suspend", "alpha", "omega", "ops", "flag-1", "flag-2", "flag-3", "sh-port", "sh-fallback", "mh-port", "mh-fallback", "hysteresis", "quorum":
		d.Note(s, st, "is not there")
	case "quorum_up", "quorum_down":
		d.Note(s, st, "is no event here; hooks know holder, released, backend-up and backend-down")
	case "persistence_granularity", "persistence_engine":
		d.Note(s, st, "persistence is by the whole address")
	default:
		d.NoteAll(s, st, false, "is not known")
	}
}

func realAddress(d *draft.Draft, s *draft.LB, st syntax.Statement) (draft.ServerEntry, bool) {
	srv := draft.ServerEntry{Statement: syntax.Statement{Place: st.Place, Words: st.Words}}
	var ok bool
	if srv.Addr, ok = draft.ReadAddr(st.Arg(1)); !ok {
		d.Note(s, srv.Statement, "%s", draft.WrongAddr(st.Arg(1)))
		return srv, false
	}
	if st.Arg(2) == "" || st.Arg(2) == "0" {
		return srv, true // the port of the virtual server
	}
	if srv.Port, ok = draft.ReadPort(st.Arg(2)); !ok {
		d.Note(s, srv.Statement, "%s is no port; write a number from 1 to 65535", st.Arg(2))
	}
	return srv, ok
}

// realServer reads a server with its check. The first server's check is that
// of all.
func realServer(d *draft.Draft, s *draft.LB, st syntax.Statement, checked *bool) {
	srv, ok := realAddress(d, s, st)
	if !ok {
		d.NoteWithin(s, st.Body, st.Place, false)
		return
	}
	before := s.Check
	own := 0
	for _, line := range st.Body {
		switch line.Words[0] {
		case "weight":
			d.ReadNumber(s, line, line.Arg(1), 0, 1<<20, &srv.Weight)
		case "uthreshold":
			d.ReadNumber(s, line, line.Arg(1), 0, draft.MaxConns, &srv.MaxConn)
		case "inhibit_on_failure":
			s.OnMarkedDown = "keep"
		case "TCP_CHECK", "HTTP_GET", "SSL_GET":
			if own++; own > 1 {
				d.NoteAll(s, line, false, "a second check of one server is not made")
				continue
			}
			realCheck(d, s, line)
		case "notify_up", "notify_down":
			realNotify(d, s, line)
		case "MISC_CHECK", "SMTP_CHECK", "DNS_CHECK", "BFD_CHECK", "UDP_CHECK", "PING_CHECK", "FILE_CHECK":
			d.NoteAll(s, line, false, "is not there; write check: {type: tcp, tls, http or https}")
		case "delay_loop":
			d.Note(s, line, "checks of one load balancer are made in one rhythm; write check: {inter: 10s}")
		case "retry", "delay_before_retry", "connect_timeout":
			checkLine(d, s, line)
		default:
			d.NoteAll(s, line, false, "is not there")
		}
	}
	if own > 0 && *checked && !sameCheck(before, s.Check) {
		d.Advise(s, srv.Statement, "is checked in another way than the first server; one load balancer checks all its backends as it does the first")
		s.Check = before
	}
	if own > 0 {
		*checked = true
	}
	s.Servers = append(s.Servers, srv)
}

func realNotify(d *draft.Draft, s *draft.LB, st syntax.Statement) {
	exec, why := command(st.Words[1:])
	if why != "" {
		d.Note(s, st, "%s", why)
		return
	}
	on := "backend-up"
	if st.Words[0] == "notify_down" {
		on = "backend-down"
	}
	for _, h := range d.Hooks {
		if h.On == on && slices.Equal(h.Exec, exec) {
			return // each server names the same one; a hook is for all
		}
	}
	d.Hooks = append(d.Hooks, draft.HookEntry{Place: st.Place, On: on, Exec: exec})
	d.Advise(s, st, "became a hook for every backend; it is told which one")
}

func realCheck(d *draft.Draft, s *draft.LB, st syntax.Statement) {
	c := &s.Check
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
			checkLine(d, s, line)
			continue
		}
		if urls++; urls > 1 {
			d.NoteAll(s, line, false, "a second URL is not asked")
			continue
		}
		checkURL(d, s, line)
	}
	if c.FastInter.Set && !c.Inter.Set {
		c.Inter = draft.Span{Value: defaultDelay, Set: true}
	}
	if c.Timeout.Set && c.Type == "tcp" {
		limit := draft.Span{Value: defaultDelay, Set: true}
		if inter.Set {
			limit = inter
		}
		c.Inter = limit
		if c.Timeout.Value > limit.Value {
			c.Timeout.Value = limit.Value
			d.Advise(s, syntax.Statement{Place: st.Place, Words: st.Words}, "connect_timeout became %s, the delay_loop: checks of one server do not overlap", draft.Short(limit.Value))
		}
	}
}

func checkURL(d *draft.Draft, s *draft.LB, st syntax.Statement) {
	c := &s.Check
	for _, line := range st.Body {
		switch line.Words[0] {
		case "path":
			c.Path = line.Arg(1)
			if !strings.HasPrefix(c.Path, "/") {
				d.Advise(s, line, "is no path; became /")
				c.Path = "/"
			}
		case "status_code":
			status, ok := draft.ReadStatus(strings.Join(line.Words[1:], ","))
			if !ok {
				d.Note(s, line, "is no list of statuses from 200 to 599")
				continue
			}
			c.Status = status
		case "virtualhost":
			c.Host = line.Arg(1)
		case "regex":
			if !draft.GoRegexp(line.Arg(1)) {
				d.Note(s, line, "is no regular expression of RE2's kind; write check: {expect: {matches: ...}}")
				continue
			}
			c.Matches = line.Arg(1)
		case "digest":
			d.Note(s, line, "write what the body has in it: check: {expect: {contains: ok}}")
		default:
			d.Note(s, line, "is not there")
		}
	}
}

// checkLine reads what all kinds of checks have.
func checkLine(d *draft.Draft, s *draft.LB, st syntax.Statement) {
	c := &s.Check
	switch st.Words[0] {
	case "connect_port":
		if port, ok := draft.ReadPort(st.Arg(1)); ok {
			c.Port = port
			return
		}
		d.Note(s, st, "is no port; write a number from 1 to 65535")
	case "connect_timeout":
		d.ReadSpan(s, st, seconds, st.Arg(1), draft.MinConnect, draft.MaxInter, &c.Timeout)
	case "retry", "nb_get_retry":
		var retry draft.Number
		if d.ReadNumber(s, st, st.Arg(1), 0, draft.MaxCount-1, &retry); retry.Set {
			c.Fall = draft.Number{Value: retry.Value + 1, Set: true}
		}
	case "delay_before_retry":
		d.ReadSpan(s, st, seconds, st.Arg(1), draft.MinInter, draft.MaxInter, &c.FastInter)
	case "delay_loop":
		d.Note(s, st, "checks of one load balancer are made in one rhythm; write check: {inter: 10s}")
	case "warmup":
		d.Moot(s, st, "checks begin at different moments anyway")
	case "enable_sni":
		d.Note(s, st, "write check: {tls: {serverName: ...}}")
	case "connect_ip", "bindto", "bind_if", "bind_port", "fwmark", "http_protocol", "tls_compliant", "fast_recovery":
		d.Note(s, st, "is not there")
	default:
		d.NoteAll(s, st, false, "is not known")
	}
}

// sameCheck compares what is said about checks; a check has slices.
func sameCheck(a, b draft.HealthCheck) bool { return reflect.DeepEqual(a, b) }
