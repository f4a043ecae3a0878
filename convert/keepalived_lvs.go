package convert

import (
	"maps"
	"slices"
	"strings"
)

func sortedKeys(m map[string]statement) []string { return slices.Sorted(maps.Keys(m)) }

// lvsSchedulers are those of IPVS that are known here by the same name.
var lvsSchedulers = []string{"rr", "wrr", "lc", "wlc", "sh", "mh", "sed", "nq", "dh", "lblc", "lblcr", "ovf", "fo", "twos"}

// virtualServer reads a virtual_server block: an address and port, and the
// servers behind it.
func (d *draft) virtualServer(st statement, groups map[string]statement) {
	s := &service{statement: statement{place: st.place, words: st.words}, lines: st.body, lvs: true}
	defer func() { d.services = append(d.services, s) }()
	switch st.arg(1) {
	case "fwmark":
		s.refused = "it serves marked packets; write one load balancer for each port"
	case "group":
		group, ok := groups[st.arg(2)]
		if !ok {
			s.refused = "its virtual_server_group is not in these files"
		}
		for _, line := range group.body {
			d.virtualAddress(s, line, line.arg(0), line.arg(1))
		}
	default:
		d.virtualAddress(s, st, st.arg(1), st.arg(2))
	}
	if len(s.binds) == 0 && s.refused == "" {
		s.refused = "it has no address and port"
	}
	checked := false
	for _, line := range st.body {
		d.virtualLine(s, line, &checked)
	}
	if !checked {
		inter := s.check.inter
		s.check = check{kind: "none"}
		if inter.said {
			d.advise(s, s.statement, "no real server has a check, so none is made; remove check below to have one")
		}
	}
}

func (d *draft) virtualAddress(s *service, st statement, address, port string) {
	a, ok := readAddr(address)
	if !ok {
		d.note(s, st, "%s", wrongAddr(address))
		return
	}
	n, ok := readPort(port)
	if !ok {
		why := "has no port from 1 to 65535; write one load balancer for each port"
		if placeholder(port) {
			why = fillIn
		}
		d.note(s, st, "%s", why)
		return
	}
	s.binds = append(s.binds, bind{statement: st, addr: a, port: n})
}

func (d *draft) virtualLine(s *service, st statement, checked *bool) {
	switch st.words[0] {
	case "delay_loop":
		d.span(s, st, secondUnits, st.arg(1), minInter, maxInter, &s.check.inter)
	case "lb_algo", "lvs_sched":
		if slices.Contains(lvsSchedulers, st.arg(1)) {
			s.scheduler = st.arg(1)
			return
		}
		d.note(s, st, "write scheduler: %s", strings.Join(lvsSchedulers, ", "))
	case "lb_kind", "lvs_method":
		switch st.arg(1) {
		case "NAT":
			s.plane = "ipvs"
		case "DR": // auto takes direct where every server is a peer on the same port
		default:
			d.note(s, st, "there are no tunnels; the data plane is chosen by what kernel and network can do")
		}
	case "protocol":
		if st.arg(1) != "TCP" {
			s.refused = "it is " + printable(st.arg(1)) + ", and TCP is carried"
		}
	case "persistence_timeout":
		if len(st.words) == 1 {
			s.persistence = span{lvsPersistence, true}
			return
		}
		if st.arg(1) != "0" {
			d.span(s, st, secondUnits, st.arg(1), minPersistence, maxSticky, &s.persistence)
		}
	case "real_server":
		d.realServer(s, st, checked)
	case "sorry_server":
		if srv, ok := d.realAddress(s, st); ok {
			srv.backup = true
			s.servers = append(s.servers, srv)
		}
	case "inhibit_on_failure", "sorry_server_inhibit":
		s.onMarkedDown = "keep"
	case "retry", "delay_before_retry", "connect_timeout", "warmup":
		d.checkLine(s, st)
	case "virtualhost":
		s.check.host = st.arg(1)
	case "ha_suspend", "alpha", "omega", "ops", "flag-1", "flag-2", "flag-3", "sh-port", "sh-fallback", "mh-port", "mh-fallback", "hysteresis", "quorum":
		d.note(s, st, "is not there")
	case "quorum_up", "quorum_down":
		d.note(s, st, "is no event here; hooks know holder, released, backend-up and backend-down")
	case "persistence_granularity", "persistence_engine":
		d.note(s, st, "persistence is by the whole address")
	default:
		d.leave(s, st, false, "is not known")
	}
}

func (d *draft) realAddress(s *service, st statement) (server, bool) {
	srv := server{statement: statement{place: st.place, words: st.words}}
	var ok bool
	if srv.addr, ok = readAddr(st.arg(1)); !ok {
		d.note(s, srv.statement, "%s", wrongAddr(st.arg(1)))
		return srv, false
	}
	if st.arg(2) == "" || st.arg(2) == "0" {
		return srv, true // the port of the virtual server
	}
	if srv.port, ok = readPort(st.arg(2)); !ok {
		d.note(s, srv.statement, "%s is no port; write a number from 1 to 65535", st.arg(2))
	}
	return srv, ok
}

// realServer reads a server with its check. The first server's check is that
// of all.
func (d *draft) realServer(s *service, st statement, checked *bool) {
	srv, ok := d.realAddress(s, st)
	if !ok {
		d.within(s, st.body, st.place, false)
		return
	}
	before := s.check
	own := 0
	for _, line := range st.body {
		switch line.words[0] {
		case "weight":
			d.count(s, line, line.arg(1), 0, 1<<20, &srv.weight)
		case "uthreshold":
			d.count(s, line, line.arg(1), 0, maxConns, &srv.maxconn)
		case "inhibit_on_failure":
			s.onMarkedDown = "keep"
		case "TCP_CHECK", "HTTP_GET", "SSL_GET":
			if own++; own > 1 {
				d.leave(s, line, false, "a second check of one server is not made")
				continue
			}
			d.realCheck(s, line)
		case "notify_up", "notify_down":
			d.realNotify(s, line)
		case "MISC_CHECK", "SMTP_CHECK", "DNS_CHECK", "BFD_CHECK", "UDP_CHECK", "PING_CHECK", "FILE_CHECK":
			d.leave(s, line, false, "is not there; write check: {type: tcp, tls, http or https}")
		case "delay_loop":
			d.note(s, line, "checks of one load balancer are made in one rhythm; write check: {inter: 10s}")
		case "retry", "delay_before_retry", "connect_timeout":
			d.checkLine(s, line)
		default:
			d.leave(s, line, false, "is not there")
		}
	}
	if own > 0 && *checked && !sameCheck(before, s.check) {
		d.advise(s, srv.statement, "is checked in another way than the first server; one load balancer checks all its backends as it does the first")
		s.check = before
	}
	if own > 0 {
		*checked = true
	}
	s.servers = append(s.servers, srv)
}

func (d *draft) realNotify(s *service, st statement) {
	exec, why := command(st.words[1:])
	if why != "" {
		d.note(s, st, "%s", why)
		return
	}
	on := "backend-up"
	if st.words[0] == "notify_down" {
		on = "backend-down"
	}
	for _, h := range d.hooks {
		if h.on == on && slices.Equal(h.exec, exec) {
			return // each server names the same one; a hook is for all
		}
	}
	d.hooks = append(d.hooks, hook{st.place, on, exec})
	d.advise(s, st, "became a hook for every backend; it is told which one")
}

func (d *draft) realCheck(s *service, st statement) {
	c := &s.check
	inter := c.inter
	*c = check{inter: inter, host: c.host, kind: "tcp"}
	switch st.words[0] {
	case "HTTP_GET":
		c.kind, c.method, c.path = "http", "GET", "/"
	case "SSL_GET":
		c.kind, c.method, c.path, c.verify = "https", "GET", "/", "false"
	}
	urls := 0
	for _, line := range st.body {
		if line.words[0] != "url" {
			d.checkLine(s, line)
			continue
		}
		if urls++; urls > 1 {
			d.leave(s, line, false, "a second URL is not asked")
			continue
		}
		d.checkURL(s, line)
	}
	if c.fastinter.said && !c.inter.said {
		c.inter = span{lvsDelay, true}
	}
	if c.timeout.said && c.kind == "tcp" {
		limit := span{lvsDelay, true}
		if inter.said {
			limit = inter
		}
		c.inter = limit
		if c.timeout.d > limit.d {
			c.timeout.d = limit.d
			d.advise(s, statement{place: st.place, words: st.words}, "connect_timeout became %s, the delay_loop: checks of one server do not overlap", short(limit.d))
		}
	}
}

func (d *draft) checkURL(s *service, st statement) {
	c := &s.check
	for _, line := range st.body {
		switch line.words[0] {
		case "path":
			c.path = line.arg(1)
			if !strings.HasPrefix(c.path, "/") {
				d.advise(s, line, "is no path; became /")
				c.path = "/"
			}
		case "status_code":
			status, ok := readStatus(strings.Join(line.words[1:], ","))
			if !ok {
				d.note(s, line, "is no list of statuses from 200 to 599")
				continue
			}
			c.status = status
		case "virtualhost":
			c.host = line.arg(1)
		case "regex":
			if !goRegexp(line.arg(1)) {
				d.note(s, line, "is no regular expression of RE2's kind; write check: {expect: {matches: ...}}")
				continue
			}
			c.matches = line.arg(1)
		case "digest":
			d.note(s, line, "write what the body has in it: check: {expect: {contains: ok}}")
		default:
			d.note(s, line, "is not there")
		}
	}
}

// checkLine reads what all kinds of checks have.
func (d *draft) checkLine(s *service, st statement) {
	c := &s.check
	switch st.words[0] {
	case "connect_port":
		if port, ok := readPort(st.arg(1)); ok {
			c.port = port
			return
		}
		d.note(s, st, "is no port; write a number from 1 to 65535")
	case "connect_timeout":
		d.span(s, st, secondUnits, st.arg(1), minConnect, maxInter, &c.timeout)
	case "retry", "nb_get_retry":
		var retry count
		if d.count(s, st, st.arg(1), 0, maxCount-1, &retry); retry.said {
			c.fall = count{retry.n + 1, true}
		}
	case "delay_before_retry":
		d.span(s, st, secondUnits, st.arg(1), minInter, maxInter, &c.fastinter)
	case "delay_loop":
		d.note(s, st, "checks of one load balancer are made in one rhythm; write check: {inter: 10s}")
	case "warmup":
		d.moot(s, st, "checks begin at different moments anyway")
	case "enable_sni":
		d.note(s, st, "write check: {tls: {serverName: ...}}")
	case "connect_ip", "bindto", "bind_if", "bind_port", "fwmark", "http_protocol", "tls_compliant", "fast_recovery":
		d.note(s, st, "is not there")
	default:
		d.leave(s, st, false, "is not known")
	}
}
