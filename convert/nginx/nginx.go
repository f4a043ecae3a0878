package nginx

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// upstream is an upstream block as it is read.
type upstream struct {
	*draft.LB
	used bool
}

// Read reads the stream block of an nginx.conf, or a file that is included
// in one and has its directives at the top.
func Read(d *draft.Draft, list []syntax.Statement) error {
	stream := list
	if i := slices.IndexFunc(list, func(st syntax.Statement) bool { return st.Words[0] == "stream" && st.Body != nil }); i >= 0 {
		stream = nil
		for _, st := range list {
			if st.Words[0] == "stream" {
				stream = append(stream, st.Body...)
				continue
			}
			mainLine(d, st)
		}
	}
	upstreams := map[string]*upstream{}
	for _, st := range stream {
		if st.Words[0] == "upstream" {
			upstreams[st.Arg(1)] = newUpstream(d, st)
		}
	}
	usual := &draft.LB{}
	for _, st := range stream {
		if w := st.Words[0]; w != "upstream" && w != "server" {
			readLine(d, usual, nil, st)
		}
	}
	for _, st := range stream {
		if st.Words[0] == "server" {
			server(d, st, *usual, upstreams)
		}
	}
	for _, st := range stream {
		if st.Words[0] == "upstream" && !upstreams[st.Arg(1)].used {
			d.NoteAll(nil, st, true, "no server passes to it")
		}
	}
	return nil
}

// mainLine notes what stands beside the stream block.
func mainLine(d *draft.Draft, st syntax.Statement) {
	switch st.Words[0] {
	case "http", "mail":
		d.NoteAll(nil, st, false, "only TCP is carried; what answers for health is `appliance health`, and the setting admin.listen")
	case "include":
		d.Note(nil, st, "nothing is included; convert those files too")
	case "events":
		d.NoteAll(nil, st, true, draft.IsTuning)
	case "load_module":
		d.Moot(nil, st, "there are no modules")
	case "error_log":
		d.Moot(nil, st, draft.IsLogging)
	default:
		d.NoteAll(nil, st, true, draft.IsProcess)
	}
}

// newUpstream reads servers and how one is chosen.
func newUpstream(d *draft.Draft, st syntax.Statement) *upstream {
	s := &draft.LB{Statement: syntax.Statement{Place: st.Place, Words: st.Words}, Name: st.Arg(1), Scheduler: "rr", Lines: st.Body}
	for _, line := range st.Body {
		switch line.Words[0] {
		case "server":
			backend(d, s, line)
		case "least_conn":
			s.Scheduler = "lc"
		case "least_time":
			s.Scheduler = "lc"
			d.Advise(s, line, "became scheduler: lc, which counts connections")
		case "random":
			s.Scheduler = "random"
			if len(line.Words) > 1 {
				d.Advise(s, line, "became scheduler: random, which looks at nothing")
			}
		case "hash":
			if line.Arg(1) != "$remote_addr" && line.Arg(1) != "$binary_remote_addr" {
				d.Note(s, line, "clients are told apart by their address only; write scheduler: sh")
				continue
			}
			s.Scheduler = "sh"
		case "zone":
			d.Moot(s, line, draft.IsTuning)
		case "resolver", "resolver_timeout":
			d.Moot(s, line, draft.IsDNS)
		case "include":
			d.Note(s, line, "nothing is included; write its servers here")
		default:
			d.NoteAll(s, line, false, "is not known")
		}
	}
	return &upstream{LB: s}
}

// backend reads server address:port [parameters].
func backend(d *draft.Draft, s *draft.LB, st syntax.Statement) {
	srv := draft.ServerEntry{Statement: st}
	host, port := draft.SplitPort(st.Arg(1))
	var ok bool
	if srv.Addr, ok = draft.ReadAddr(host); !ok {
		d.Note(s, st, "%s", draft.WrongAddr(st.Arg(1)))
		return
	}
	if srv.Port, ok = draft.ReadPort(port); !ok {
		why := "has no port; write address:port"
		if draft.Placeholder(port) {
			why = draft.Unfilled
		}
		d.Note(s, st, "%s", why)
		return
	}
	maxFails, failTimeout := s.MaxFails, s.FailTimeout
	var unknown []string
	for _, w := range st.Words[2:] {
		name, value, _ := strings.Cut(w, "=")
		switch name {
		case "weight":
			d.ReadNumber(s, st, value, 0, 1<<20, &srv.Weight)
		case "max_fails":
			d.ReadNumber(s, st, value, 0, draft.MaxCount, &maxFails)
		case "fail_timeout":
			d.ReadSpan(s, st, units, value, draft.MinFail, draft.MaxFail, &failTimeout)
		case "max_conns":
			d.ReadNumber(s, st, value, 0, draft.MaxConns, &srv.MaxConn)
		case "slow_start":
			d.ReadSpan(s, st, units, value, 0, draft.MaxSlow, &srv.SlowStart)
		case "backup":
			srv.Backup = true
		case "down":
			srv.Weight = draft.Number{Value: 0, Set: true}
			d.Advise(s, st, "down became weight 0; remove that to let connections in again")
		default:
			unknown = append(unknown, w)
		}
	}
	if len(unknown) > 0 {
		d.Advise(s, st, "carried over without %q", strings.Join(unknown, " "))
	}
	if len(s.Servers) > 0 && (maxFails != s.MaxFails || failTimeout != s.FailTimeout) {
		d.Advise(s, st, "fails in another way than the servers before it; maxFails and failTimeout are those of the first")
	} else {
		s.MaxFails, s.FailTimeout = maxFails, failTimeout
	}
	s.Servers = append(s.Servers, srv)
}

// server reads a server block: where to listen, where to pass to.
func server(d *draft.Draft, st syntax.Statement, s draft.LB, upstreams map[string]*upstream) {
	s.Statement, s.Lines = syntax.Statement{Place: st.Place, Words: st.Words}, st.Body
	s.Allow, s.Deny = slices.Clone(s.Allow), slices.Clone(s.Deny)
	if slices.ContainsFunc(st.Body, isAccess) {
		s.Allow, s.Deny, s.DeniesRest = nil, nil, false // what stands here replaces what stands outside
	}
	var pass syntax.Statement
	for _, line := range st.Body {
		switch line.Words[0] {
		case "listen":
			readListen(d, &s, line)
		case "proxy_pass":
			pass = line
		case "server_name":
			d.Note(&s, line, "a load balancer is told apart by its port alone")
		default:
			readLine(d, &s, &s, line)
		}
	}
	defer func() { d.Services = append(d.Services, &s) }()
	if len(s.AcceptProxyFrom) > 0 && !s.AcceptProxy {
		d.Advise(&s, s.Statement, "set_real_ip_from says nothing without listen ... proxy_protocol")
	}
	if len(s.Allow) > 0 && !s.DeniesRest {
		d.Note(&s, s.Statement, "its allow lines keep nobody out, because no line says deny all; they were left out")
		s.Allow = nil
	}
	to := pass.Arg(1)
	up := upstreams[to]
	if len(s.Binds) > 0 {
		s.Name = "lb-" + strconv.Itoa(int(s.Binds[0].Port))
	}
	s.Check.Type = "tcp"
	switch host, port := draft.SplitPort(to); {
	case up != nil:
		up.used = true
		s.Name, s.Scheduler, s.Servers = up.Name, up.Scheduler, up.Servers
		s.MaxFails, s.FailTimeout = up.MaxFails, up.FailTimeout
		s.Joined = append(s.Joined, up.LB)
		if s.Refused == "" {
			s.Refused = up.Refused
		}
	case pass.Line == 0:
		s.Refused = "it has no proxy_pass"
	case draft.Placeholder(to):
		s.Refused = pass.Place.String() + " chooses the upstream by a variable, and every connection of a load balancer goes to the same backends"
	default:
		srv := draft.ServerEntry{Statement: pass}
		addr, okAddr := draft.ReadAddr(host)
		n, okPort := draft.ReadPort(port)
		if !okAddr || !okPort {
			s.Refused = pass.Place.String() + " passes to " + syntax.Printable(to) + ", which is neither an upstream of these files nor an address with a port"
			return
		}
		srv.Addr, srv.Port = addr, n
		s.Servers = append(s.Servers, srv)
	}
	if len(s.Binds) == 0 && s.Refused == "" {
		s.Refused = "it listens on no TCP port"
	}
	if s.Refused == "" {
		d.Advise(&s, pass, "nginx looks at servers only when a client suffers, so check: {type: tcp} was added; for kube-apiservers remove it, which asks https /readyz")
	}
}

func isAccess(st syntax.Statement) bool { return st.Words[0] == "allow" || st.Words[0] == "deny" }

func readListen(d *draft.Draft, s *draft.LB, st syntax.Statement) {
	host, tail := draft.SplitPort(st.Arg(1))
	if tail == "" {
		host, tail = "", st.Arg(1)
	}
	port, ok := draft.ReadPort(tail)
	if !ok {
		why := "is no TCP port of an address"
		if draft.Placeholder(st.Arg(1)) {
			why = draft.Unfilled
		}
		d.Note(s, st, "%s", why)
		return
	}
	b := draft.Bind{Statement: st, Port: port}
	if host = strings.Trim(host, "[]"); host != "" && host != "*" && host != "0.0.0.0" && host != "::" {
		if b.Addr, ok = draft.ReadAddr(host); !ok {
			d.Note(s, st, "%s", draft.WrongAddr(host))
			return
		}
	}
	for _, w := range st.Words[2:] {
		switch name, _, _ := strings.Cut(w, "="); name {
		case "udp":
			d.Note(s, st, "is UDP; TCP is carried")
			return
		case "ssl":
			s.Refused = st.Place.String() + " ends TLS here, while " + draft.IsTLS + ": give the servers the certificate"
		case "proxy_protocol":
			s.AcceptProxy = true
			d.Advise(s, st, "nginx believes the PROXY header of anybody; so does acceptProxyFrom below: write the prefixes of the senders there")
		case "so_keepalive", "reuseport", "backlog", "bind", "deferred", "fastopen", "rcvbuf", "sndbuf", "default_server", "ipv6only":
		default:
			d.Advise(s, st, "carried over without %q", w)
		}
	}
	s.Binds = append(s.Binds, b)
}

// line reads what may stand in stream and in server.
func readLine(d *draft.Draft, s, owner *draft.LB, st syntax.Statement) {
	switch st.Words[0] {
	case "proxy_connect_timeout":
		d.ReadSpan(owner, st, units, st.Arg(1), draft.MinConnect, draft.MaxConnect, &s.Connect)
	case "proxy_timeout":
		d.ReadSpan(owner, st, units, st.Arg(1), 0, draft.MaxQuiet, &s.Client)
		s.Server = s.Client
		if s.Client.Set && s.Client.Value > 0 && s.Client.Value < draft.CutsWatches {
			d.Advise(owner, st, "was carried over, and cuts connections that are quiet for so long, such as watches and kubectl exec; remove it below to let them be")
		}
	case "proxy_protocol":
		if st.Arg(1) == "on" {
			s.SendProxy = "v1"
		}
	case "proxy_protocol_version":
		if s.SendProxy == "" && st.Arg(1) == "2" {
			d.Note(owner, st, "stands before proxy_protocol on; write sendProxy: v2")
		} else if st.Arg(1) == "2" {
			s.SendProxy = "v2"
		}
	case "proxy_next_upstream":
		if st.Arg(1) == "off" {
			s.Retries = draft.Number{Value: 0, Set: true}
		}
	case "proxy_next_upstream_tries":
		var tries draft.Number
		if d.ReadNumber(owner, st, st.Arg(1), 0, 100, &tries); tries.Value > 0 {
			s.Retries = draft.Number{Value: tries.Value - 1, Set: true}
		}
	case "allow", "deny":
		access(d, s, owner, st)
	case "set_real_ip_from":
		if prefix, ok := draft.ReadPrefix(st.Arg(1)); ok {
			s.AcceptProxyFrom = append(s.AcceptProxyFrom, prefix)
			return
		}
		d.Note(owner, st, "%s", draft.WrongAddr(st.Arg(1)))
	case "proxy_next_upstream_timeout", "proxy_socket_keepalive", "tcp_nodelay", "proxy_buffer_size", "proxy_half_close", "preread_buffer_size", "proxy_protocol_timeout",
		"variables_hash_max_size", "variables_hash_bucket_size", "proxy_session_drop":
		d.Moot(owner, st, draft.IsTuning)
	case "log_format", "access_log", "error_log", "open_log_file_cache":
		d.Moot(owner, st, draft.IsLogging)
	case "resolver", "resolver_timeout":
		d.Moot(owner, st, draft.IsDNS)
	case "include":
		d.Note(owner, st, "nothing is included; convert that file too")
	case "ssl_preread":
		d.Note(owner, st, "the server name that a client asks for is not looked at; requireTLS: 5s looks whether it speaks TLS")
	case "proxy_bind":
		d.Note(owner, st, "the kernel's routes choose the source address")
	case "proxy_ssl":
		d.Note(owner, st, "%s", draft.IsTLS)
	case "limit_conn", "limit_conn_zone", "proxy_download_rate", "proxy_upload_rate":
		d.Note(owner, st, "connections are not counted per client; maxconn limits them all together")
	case "map", "geo", "split_clients":
		d.NoteAll(owner, st, false, "every connection of a load balancer goes to the same backends; write another load balancer on another port")
	default:
		if strings.HasPrefix(st.Words[0], "ssl_") || strings.HasPrefix(st.Words[0], "proxy_ssl_") {
			d.Moot(owner, st, draft.IsTLS)
			return
		}
		d.NoteAll(owner, st, false, "is not known")
	}
}

// access reads allow and deny, of which the first that fits decides;
// here deny wins.
func access(d *draft.Draft, s, owner *draft.LB, st syntax.Statement) {
	if st.Arg(1) == "all" {
		switch {
		case st.Words[0] == "deny" && len(s.Allow) == 0:
			s.Refused = st.Place.String() + " refuses everybody"
		case st.Words[0] == "deny":
			s.DeniesRest = true
		case st.Words[0] == "allow" && len(s.Allow) > 0:
			d.Advise(s, st, "became an empty allow list; the allow lines before it say nothing")
			s.Allow = nil
		}
		return
	}
	prefix, ok := draft.ReadPrefix(st.Arg(1))
	if !ok {
		d.Note(owner, st, "%s", draft.WrongAddr(st.Arg(1)))
		return
	}
	if st.Words[0] == "allow" {
		s.Allow = append(s.Allow, prefix)
		return
	}
	if slices.ContainsFunc(s.Allow, prefix.Overlaps) {
		d.Advise(owner, st, "refuses some whom a line before it lets in; here deny wins")
	}
	s.Deny = append(s.Deny, prefix)
}

// Grammar is the grammar of this format.
var Grammar = syntax.Grammar{Comments: "#", Semicolons: true, Braces: true, Escapes: true}

var units = draft.Units{Bare: time.Second, Named: map[string]time.Duration{
	"ms": time.Millisecond, "s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour, "w": 7 * 24 * time.Hour,
}}
