package convert

import (
	"slices"
	"strconv"
	"strings"
)

// nginxUpstream is an upstream block as it is read.
type nginxUpstream struct {
	*service
	used bool
}

// nginx reads the stream block of an nginx.conf, or a file that is included
// in one and has its directives at the top.
func (d *draft) nginx(list []statement) error {
	stream := list
	if i := slices.IndexFunc(list, func(st statement) bool { return st.words[0] == "stream" && st.body != nil }); i >= 0 {
		stream = nil
		for _, st := range list {
			if st.words[0] == "stream" {
				stream = append(stream, st.body...)
				continue
			}
			d.nginxMain(st)
		}
	}
	upstreams := map[string]*nginxUpstream{}
	for _, st := range stream {
		if st.words[0] == "upstream" {
			upstreams[st.arg(1)] = d.nginxUpstream(st)
		}
	}
	usual := &service{}
	for _, st := range stream {
		if w := st.words[0]; w != "upstream" && w != "server" {
			d.nginxLine(usual, nil, st)
		}
	}
	for _, st := range stream {
		if st.words[0] == "server" {
			d.nginxServer(st, *usual, upstreams)
		}
	}
	for _, st := range stream {
		if st.words[0] == "upstream" && !upstreams[st.arg(1)].used {
			d.leave(nil, st, true, "no server passes to it")
		}
	}
	return nil
}

// nginxMain notes what stands beside the stream block.
func (d *draft) nginxMain(st statement) {
	switch st.words[0] {
	case "http", "mail":
		d.leave(nil, st, false, "only TCP is carried; what answers for health is `appliance health`, and the setting admin.listen")
	case "include":
		d.note(nil, st, "nothing is included; convert those files too")
	case "events":
		d.leave(nil, st, true, isTuning)
	case "load_module":
		d.moot(nil, st, "there are no modules")
	case "error_log":
		d.moot(nil, st, isLogging)
	default:
		d.leave(nil, st, true, isProcess)
	}
}

// nginxUpstream reads servers and how one is chosen.
func (d *draft) nginxUpstream(st statement) *nginxUpstream {
	s := &service{statement: statement{place: st.place, words: st.words}, name: st.arg(1), scheduler: "rr", lines: st.body}
	for _, line := range st.body {
		switch line.words[0] {
		case "server":
			d.nginxBackend(s, line)
		case "least_conn":
			s.scheduler = "lc"
		case "least_time":
			s.scheduler = "lc"
			d.advise(s, line, "became scheduler: lc, which counts connections")
		case "random":
			s.scheduler = "random"
			if len(line.words) > 1 {
				d.advise(s, line, "became scheduler: random, which looks at nothing")
			}
		case "hash":
			if line.arg(1) != "$remote_addr" && line.arg(1) != "$binary_remote_addr" {
				d.note(s, line, "clients are told apart by their address only; write scheduler: sh")
				continue
			}
			s.scheduler = "sh"
		case "zone":
			d.moot(s, line, isTuning)
		case "resolver", "resolver_timeout":
			d.moot(s, line, isDNS)
		case "include":
			d.note(s, line, "nothing is included; write its servers here")
		default:
			d.leave(s, line, false, "is not known")
		}
	}
	return &nginxUpstream{service: s}
}

// nginxBackend reads server address:port [parameters].
func (d *draft) nginxBackend(s *service, st statement) {
	srv := server{statement: st}
	host, port := splitPort(st.arg(1))
	var ok bool
	if srv.addr, ok = readAddr(host); !ok {
		d.note(s, st, "%s", wrongAddr(st.arg(1)))
		return
	}
	if srv.port, ok = readPort(port); !ok {
		why := "has no port; write address:port"
		if placeholder(port) {
			why = fillIn
		}
		d.note(s, st, "%s", why)
		return
	}
	maxFails, failTimeout := s.maxFails, s.failTimeout
	var unknown []string
	for _, w := range st.words[2:] {
		name, value, _ := strings.Cut(w, "=")
		switch name {
		case "weight":
			d.count(s, st, value, 0, 1<<20, &srv.weight)
		case "max_fails":
			d.count(s, st, value, 0, maxCount, &maxFails)
		case "fail_timeout":
			d.span(s, st, nginxUnits, value, minFail, maxFail, &failTimeout)
		case "max_conns":
			d.count(s, st, value, 0, maxConns, &srv.maxconn)
		case "slow_start":
			d.span(s, st, nginxUnits, value, 0, maxSlow, &srv.slowstart)
		case "backup":
			srv.backup = true
		case "down":
			srv.weight = count{0, true}
			d.advise(s, st, "down became weight 0; remove that to let connections in again")
		default:
			unknown = append(unknown, w)
		}
	}
	if len(unknown) > 0 {
		d.advise(s, st, "carried over without %q", strings.Join(unknown, " "))
	}
	if len(s.servers) > 0 && (maxFails != s.maxFails || failTimeout != s.failTimeout) {
		d.advise(s, st, "fails in another way than the servers before it; maxFails and failTimeout are those of the first")
	} else {
		s.maxFails, s.failTimeout = maxFails, failTimeout
	}
	s.servers = append(s.servers, srv)
}

// nginxServer reads a server block: where to listen, where to pass to.
func (d *draft) nginxServer(st statement, s service, upstreams map[string]*nginxUpstream) {
	s.statement, s.lines = statement{place: st.place, words: st.words}, st.body
	s.allow, s.deny = slices.Clone(s.allow), slices.Clone(s.deny)
	if slices.ContainsFunc(st.body, isAccess) {
		s.allow, s.deny, s.deniesRest = nil, nil, false // what stands here replaces what stands outside
	}
	var pass statement
	for _, line := range st.body {
		switch line.words[0] {
		case "listen":
			d.nginxListen(&s, line)
		case "proxy_pass":
			pass = line
		case "server_name":
			d.note(&s, line, "a load balancer is told apart by its port alone")
		default:
			d.nginxLine(&s, &s, line)
		}
	}
	defer func() { d.services = append(d.services, &s) }()
	if len(s.acceptProxyFrom) > 0 && !s.acceptProxy {
		d.advise(&s, s.statement, "set_real_ip_from says nothing without listen ... proxy_protocol")
	}
	if len(s.allow) > 0 && !s.deniesRest {
		d.note(&s, s.statement, "its allow lines keep nobody out, because no line says deny all; they were left out")
		s.allow = nil
	}
	to := pass.arg(1)
	up := upstreams[to]
	if len(s.binds) > 0 {
		s.name = "lb-" + strconv.Itoa(int(s.binds[0].port))
	}
	s.check.kind = "tcp"
	switch host, port := splitPort(to); {
	case up != nil:
		up.used = true
		s.name, s.scheduler, s.servers = up.name, up.scheduler, up.servers
		s.maxFails, s.failTimeout = up.maxFails, up.failTimeout
		s.joined = append(s.joined, up.service)
		if s.refused == "" {
			s.refused = up.refused
		}
	case pass.line == 0:
		s.refused = "it has no proxy_pass"
	case placeholder(to):
		s.refused = pass.place.String() + " chooses the upstream by a variable, and every connection of a load balancer goes to the same backends"
	default:
		srv := server{statement: pass}
		addr, okAddr := readAddr(host)
		n, okPort := readPort(port)
		if !okAddr || !okPort {
			s.refused = pass.place.String() + " passes to " + printable(to) + ", which is neither an upstream of these files nor an address with a port"
			return
		}
		srv.addr, srv.port = addr, n
		s.servers = append(s.servers, srv)
	}
	if len(s.binds) == 0 && s.refused == "" {
		s.refused = "it listens on no TCP port"
	}
	if s.refused == "" {
		d.advise(&s, pass, "nginx looks at servers only when a client suffers, so check: {type: tcp} was added; for kube-apiservers remove it, which asks https /readyz")
	}
}

func isAccess(st statement) bool { return st.words[0] == "allow" || st.words[0] == "deny" }

func (d *draft) nginxListen(s *service, st statement) {
	host, tail := splitPort(st.arg(1))
	if tail == "" {
		host, tail = "", st.arg(1)
	}
	port, ok := readPort(tail)
	if !ok {
		why := "is no TCP port of an address"
		if placeholder(st.arg(1)) {
			why = fillIn
		}
		d.note(s, st, "%s", why)
		return
	}
	b := bind{statement: st, port: port}
	if host = strings.Trim(host, "[]"); host != "" && host != "*" && host != "0.0.0.0" && host != "::" {
		if b.addr, ok = readAddr(host); !ok {
			d.note(s, st, "%s", wrongAddr(host))
			return
		}
	}
	for _, w := range st.words[2:] {
		switch name, _, _ := strings.Cut(w, "="); name {
		case "udp":
			d.note(s, st, "is UDP; TCP is carried")
			return
		case "ssl":
			s.refused = st.place.String() + " ends TLS here, while " + isTLS + ": give the servers the certificate"
		case "proxy_protocol":
			s.acceptProxy = true
			d.advise(s, st, "nginx believes the PROXY header of anybody; so does acceptProxyFrom below: write the prefixes of the senders there")
		case "so_keepalive", "reuseport", "backlog", "bind", "deferred", "fastopen", "rcvbuf", "sndbuf", "default_server", "ipv6only":
		default:
			d.advise(s, st, "carried over without %q", w)
		}
	}
	s.binds = append(s.binds, b)
}

// nginxLine reads what may stand in stream and in server.
func (d *draft) nginxLine(s, owner *service, st statement) {
	switch st.words[0] {
	case "proxy_connect_timeout":
		d.span(owner, st, nginxUnits, st.arg(1), minConnect, maxConnect, &s.connect)
	case "proxy_timeout":
		d.span(owner, st, nginxUnits, st.arg(1), 0, maxQuiet, &s.client)
		s.server = s.client
		if s.client.said && s.client.d > 0 && s.client.d < quietWatch {
			d.advise(owner, st, "was carried over, and cuts connections that are quiet for so long, such as watches and kubectl exec; remove it below to let them be")
		}
	case "proxy_protocol":
		if st.arg(1) == "on" {
			s.sendProxy = "v1"
		}
	case "proxy_protocol_version":
		if s.sendProxy == "" && st.arg(1) == "2" {
			d.note(owner, st, "stands before proxy_protocol on; write sendProxy: v2")
		} else if st.arg(1) == "2" {
			s.sendProxy = "v2"
		}
	case "proxy_next_upstream":
		if st.arg(1) == "off" {
			s.retries = count{0, true}
		}
	case "proxy_next_upstream_tries":
		var tries count
		if d.count(owner, st, st.arg(1), 0, 100, &tries); tries.n > 0 {
			s.retries = count{tries.n - 1, true}
		}
	case "allow", "deny":
		d.nginxAccess(s, owner, st)
	case "set_real_ip_from":
		if prefix, ok := readPrefix(st.arg(1)); ok {
			s.acceptProxyFrom = append(s.acceptProxyFrom, prefix)
			return
		}
		d.note(owner, st, "%s", wrongAddr(st.arg(1)))
	case "proxy_next_upstream_timeout", "proxy_socket_keepalive", "tcp_nodelay", "proxy_buffer_size", "proxy_half_close", "preread_buffer_size", "proxy_protocol_timeout",
		"variables_hash_max_size", "variables_hash_bucket_size", "proxy_session_drop":
		d.moot(owner, st, isTuning)
	case "log_format", "access_log", "error_log", "open_log_file_cache":
		d.moot(owner, st, isLogging)
	case "resolver", "resolver_timeout":
		d.moot(owner, st, isDNS)
	case "include":
		d.note(owner, st, "nothing is included; convert that file too")
	case "ssl_preread":
		d.note(owner, st, "the server name that a client asks for is not looked at; requireTLS: 5s looks whether it speaks TLS")
	case "proxy_bind":
		d.note(owner, st, "the kernel's routes choose the source address")
	case "proxy_ssl":
		d.note(owner, st, "%s", isTLS)
	case "limit_conn", "limit_conn_zone", "proxy_download_rate", "proxy_upload_rate":
		d.note(owner, st, "connections are not counted per client; maxconn limits them all together")
	case "map", "geo", "split_clients":
		d.leave(owner, st, false, "every connection of a load balancer goes to the same backends; write another load balancer on another port")
	default:
		if strings.HasPrefix(st.words[0], "ssl_") || strings.HasPrefix(st.words[0], "proxy_ssl_") {
			d.moot(owner, st, isTLS)
			return
		}
		d.leave(owner, st, false, "is not known")
	}
}

// nginxAccess reads allow and deny, of which the first that fits decides;
// here deny wins.
func (d *draft) nginxAccess(s, owner *service, st statement) {
	if st.arg(1) == "all" {
		switch {
		case st.words[0] == "deny" && len(s.allow) == 0:
			s.refused = st.place.String() + " refuses everybody"
		case st.words[0] == "deny":
			s.deniesRest = true
		case st.words[0] == "allow" && len(s.allow) > 0:
			d.advise(s, st, "became an empty allow list; the allow lines before it say nothing")
			s.allow = nil
		}
		return
	}
	prefix, ok := readPrefix(st.arg(1))
	if !ok {
		d.note(owner, st, "%s", wrongAddr(st.arg(1)))
		return
	}
	if st.words[0] == "allow" {
		s.allow = append(s.allow, prefix)
		return
	}
	if slices.ContainsFunc(s.allow, prefix.Overlaps) {
		d.advise(owner, st, "refuses some whom a line before it lets in; here deny wins")
	}
	s.deny = append(s.deny, prefix)
}
