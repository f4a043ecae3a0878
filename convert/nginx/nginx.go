package nginx

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// Grammar is that of nginx.conf.
var Grammar = syntax.Grammar{Comments: "#", Semicolons: true, Braces: true, Escapes: true, QuotesWords: true}

var units = draft.Units{Bare: time.Second, Named: map[string]time.Duration{
	"ms": time.Millisecond, "s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour,
	"w": 7 * 24 * time.Hour,
}}

// An upstream is an upstream block as it is read.
type upstream struct {
	*draft.LB
	used bool
}

// Read adds what nginx's stream block says to d. list is an nginx.conf, or a file that is included in the block and has
// its directives at the top.
func Read(d *draft.Draft, list []syntax.Statement) error {
	stream := list
	isStream := func(st syntax.Statement) bool { return st.Words[0] == "stream" && st.Body != nil }
	isMain := func(st syntax.Statement) bool {
		return st.Body != nil && slices.Contains([]string{"stream", "http", "mail", "events"}, st.Words[0])
	}
	if slices.ContainsFunc(list, isMain) {
		stream = nil
		for _, l := range d.Lines(nil, list) {
			d.GoesOn = d.GoesOn || l.Words[0] == "http"
			if l.Words[0] == "http" && slices.ContainsFunc(list, isStream) {
				d.LoadBalancers = append(d.LoadBalancers, webServers(l.Body)...)
			}
			if l.Words[0] == "stream" {
				stream = append(stream, l.Body...)
			} else if !l.Remark(mainRemarks, l.Words[0]) {
				l.NoteAll(true, draft.IsProcess)
			}
		}
	}
	upstreams := map[string]*upstream{}
	usual := &draft.LB{} // what stands in stream for all servers
	for _, st := range stream {
		if st.Words[0] == "upstream" {
			upstreams[st.Arg(1)] = readUpstream(d, st)
		}
	}
	for _, l := range d.Lines(nil, stream) {
		if w := l.Words[0]; w != "upstream" && w != "server" {
			readLine(usual, l)
		}
	}
	for _, st := range stream {
		if st.Words[0] == "include" && !strings.ContainsAny(st.Arg(1), "*?[") {
			usual.Refused = cmp.Or(usual.Refused, st.Place.String()+isIncluded)
		}
	}
	first := len(d.LoadBalancers)
	for _, st := range stream {
		if st.Words[0] == "server" {
			readServer(d, st, *usual, upstreams)
		}
	}
	refuseNamed(d.LoadBalancers[first:])
	for _, st := range stream {
		if st.Words[0] == "upstream" && !upstreams[st.Arg(1)].used {
			d.NoteAll(nil, st, true, "no server passes to it")
		}
	}
	return nil
}

const isIncluded = " includes a file that is not among these, which may say who is served; convert that file too"

// webServers are the servers of an http block that listen on an address by name: no other is served there.
func webServers(list []syntax.Statement) (servers []*draft.LB) {
	for _, st := range list {
		if st.Words[0] != "server" {
			continue
		}
		lb := &draft.LB{Statement: st.Head(), Lines: st.Body, Stays: true}
		for _, l := range draft.New().Lines(nil, st.Body) {
			if l.Words[0] == "listen" {
				readListen(lb, l)
			}
		}
		lb.Refused = "it is for HTTP; only TCP is carried"
		if slices.ContainsFunc(lb.Binds, func(b draft.Bind) bool { return b.Addr.IsValid() }) {
			servers = append(servers, lb)
		}
	}
	return servers
}

// refuseNamed refuses servers that share an address and port, of which nginx chooses one by the name that a client asks
// for.
func refuseNamed(servers []*draft.LB) {
	type place struct {
		addr  netip.Addr
		port  uint16
		only6 bool
	}
	at := map[place][]*draft.LB{}
	for _, lb := range servers {
		for _, b := range lb.Binds {
			key := place{b.Addr, b.Port, !b.Only4}
			at[key] = append(at[key], lb)
		}
	}
	isName := func(st syntax.Statement) bool { return st.Words[0] == "server_name" }
	for _, same := range at {
		byName := func(lb *draft.LB) bool { return slices.ContainsFunc(lb.Lines, isName) }
		if len(same) < 2 || !slices.ContainsFunc(same, byName) {
			continue
		}
		for _, lb := range same {
			lb.Refused = cmp.Or(lb.Refused, "nginx chooses between servers on its address and port by server_name, and "+
				draft.OneTarget)
		}
	}
}

// mainRemarks are the directives beside the stream block; all others are about the process.
var mainRemarks = draft.NewRemarks(
	draft.Remark{Keywords: "http mail", Text: "only TCP is carried; what answers for health is `appliance health`, " +
		"and the setting admin.listen"},
	draft.Remark{Keywords: "include", Text: "nothing is included; convert those files too"},
	draft.Remark{Keywords: "events", Moot: true, Text: draft.IsTuning},
	draft.Remark{Keywords: "load_module", Moot: true, Text: "there are no modules"},
	draft.Remark{Keywords: "error_log", Moot: true, Text: draft.IsLogging},
)

// readUpstream reads servers and how one of them is chosen.
func readUpstream(d *draft.Draft, st syntax.Statement) *upstream {
	lb := &draft.LB{Statement: st.Head(), Name: st.Arg(1), Scheduler: "rr", Lines: st.Body}
	for _, l := range d.Lines(lb, st.Body) {
		switch l.Words[0] {
		case "server":
			readBackend(lb, l)
		case "resolver":
			readResolver(lb, l)
		case "least_conn":
			lb.Scheduler = "lc"
		case "least_time":
			lb.Scheduler = "lc"
			l.Advise("became scheduler: lc, which counts connections")
		case "random":
			lb.Scheduler = "random"
			if len(l.Words) > 1 {
				l.Advise("became scheduler: random, which looks at nothing")
			}
		case "hash":
			if l.Arg(1) != "$remote_addr" && l.Arg(1) != "$binary_remote_addr" {
				l.Note("clients are told apart by their address only; write scheduler: sh")
				continue
			}
			lb.Scheduler = "sh"
		default:
			if !l.Remark(upstreamRemarks, l.Words[0]) {
				l.NoteAll(false, draft.IsUnknown)
			}
		}
	}
	if len(lb.Servers) == 1 { // it is tried always
		lb.MaxFails, lb.FailTimeout = draft.Number{}, draft.Span{}
	}
	return &upstream{LB: lb}
}

// What nginx means where a server says nothing.
const (
	defaultMaxFails    = 1
	defaultFailTimeout = 10 * time.Second
)

// upstreamRemarks are the directives of an upstream that are noted and nothing else.
var upstreamRemarks = draft.NewRemarks(
	draft.Remark{Keywords: "zone", Moot: true, Text: draft.IsTuning},
	draft.Remark{Keywords: "resolver_timeout", Moot: true, Text: draft.IsTuning},
	draft.Remark{Keywords: "include", Text: "nothing is included; write its servers here"},
)

// readResolver reads resolver address[:port]... [valid=time] [ipv6=off].
func readResolver(_ *draft.LB, l draft.Line) {
	for _, w := range l.Words[1:] {
		switch name, value, isOption := strings.Cut(w, "="); {
		case !isOption:
			l.AddNameserver(w)
		case name == "valid":
			l.ReadTTL(units, value)
		case name == "status_zone":
		default:
			l.Advise("carried over without %s", syntax.Printable(w))
		}
	}
}

// readBackend reads server address:port [parameters] of an upstream.
func readBackend(lb *draft.LB, l draft.Line) {
	srv := draft.ServerEntry{Statement: l.Statement}
	host, port := draft.SplitPort(l.Arg(1))
	if strings.HasPrefix(l.Arg(1), "unix:") || !srv.SetHost(host) {
		lb.LoseServer(l, draft.WrongAddr(l.Arg(1)))
		return
	}
	var ok bool
	if srv.Port, ok = draft.ReadPort(port); !ok {
		why := "has no port; write address:port"
		if draft.Placeholder(port) {
			why = draft.Unfilled
		}
		lb.LoseServer(l, why)
		return
	}
	maxFails := draft.Number{Value: defaultMaxFails, Set: true}
	failTimeout := draft.Span{Value: defaultFailTimeout, Set: true}
	var unknown []string
	for _, w := range l.Words[2:] {
		name, value, _ := strings.Cut(w, "=")
		switch name {
		case "weight":
			l.Number(value, 0, 1<<20, &srv.Weight)
		case "max_fails":
			l.Number(value, 0, draft.MaxCount, &maxFails)
		case "fail_timeout":
			l.Span(units, value, draft.MinFail, draft.MaxFail, &failTimeout)
		case "max_conns":
			l.Number(value, 0, draft.MaxConns, &srv.MaxConn)
		case "slow_start":
			l.Span(units, value, 0, draft.MaxSlow, &srv.SlowStart)
		case "backup":
			srv.Backup = true
		case "resolve": // names are always followed
		case "down":
			srv.Disabled = true
		default:
			unknown = append(unknown, w)
		}
	}
	if len(unknown) > 0 {
		l.Advise("carried over without %q", strings.Join(unknown, " "))
	}
	if len(lb.Servers) == 0 {
		lb.MaxFails, lb.FailTimeout = maxFails, failTimeout
	}
	if maxFails != lb.MaxFails {
		srv.MaxFails = maxFails
	}
	if failTimeout != lb.FailTimeout {
		srv.FailTimeout = failTimeout
	}
	lb.Servers = append(lb.Servers, srv)
}

// readServer reads a server block: where to listen, where to pass to. usual has what stands in stream for all.
func readServer(d *draft.Draft, st syntax.Statement, usual draft.LB, upstreams map[string]*upstream) {
	lb := &usual
	lb.Statement, lb.Lines = st.Head(), st.Body
	lb.Access, lb.AcceptProxyFrom = slices.Clone(lb.Access), slices.Clone(lb.AcceptProxyFrom)
	isAccess := func(st syntax.Statement) bool { return st.Words[0] == "allow" || st.Words[0] == "deny" }
	if slices.ContainsFunc(st.Body, isAccess) {
		lb.Access = nil // what stands here replaces what stands outside
	}
	var pass syntax.Statement
	for _, l := range d.Lines(lb, st.Body) {
		switch l.Words[0] {
		case "listen":
			readListen(lb, l)
		case "proxy_pass":
			pass = l.Statement
		case "include":
			lb.Refused = l.Place.String() + isIncluded
		default:
			readLine(lb, l)
		}
	}
	lb.RefuseMixed()
	if lb.AcceptProxy && len(lb.AcceptProxyFrom) == 0 && len(lb.Access) > 0 {
		lb.Refused = cmp.Or(lb.Refused, "without set_real_ip_from, its allow and deny lines look at "+
			"who sends the PROXY header, while allow and deny here look at the client that it names: "+
			"write acceptProxyFrom with the senders, and let nobody else reach the port")
	}
	if len(lb.AcceptProxyFrom) > 0 && !lb.AcceptProxy {
		d.Advise(lb, lb.Statement, "set_real_ip_from says nothing without listen ... proxy_protocol")
	}
	var refused string
	if lb.Allow, lb.Deny, refused = draft.Access(lb.Access); refused != "" {
		lb.Refused = cmp.Or(lb.Refused, refused)
	}
	isAllow := func(r draft.AccessRule) bool { return r.Accept && r.Set == nil }
	if slices.ContainsFunc(lb.Access, isAllow) && len(lb.Allow)+len(lb.Deny) == 0 {
		d.Note(lb, lb.Statement, "its allow lines keep nobody out, because no line says deny all; they were left out")
	}
	if len(lb.Binds) > 0 {
		lb.Name = "lb-" + strconv.Itoa(int(lb.Binds[0].Port))
	}
	lb.Check.Type = "tcp"
	passed := passTo(lb, pass, upstreams)
	if passed && len(lb.Binds) == 0 && lb.Refused == "" {
		lb.Refused = "it listens on no TCP port"
	}
	if lb.Refused == "" {
		d.Advise(lb, pass, "nginx looks at servers only when a client suffers, so check: {type: tcp} was added; "+
			"for kube-apiservers remove it, which asks https /readyz")
	}
	d.LoadBalancers = append(d.LoadBalancers, lb)
}

// passTo gives the load balancer the servers of proxy_pass, and reports whether that has any.
func passTo(lb *draft.LB, pass syntax.Statement, upstreams map[string]*upstream) bool {
	to := pass.Arg(1)
	up := upstreams[to]
	switch {
	case up != nil:
		up.used = true
		lb.Name, lb.Scheduler, lb.Servers = up.Name, up.Scheduler, up.Servers
		lb.MaxFails, lb.FailTimeout, lb.LostFirst = up.MaxFails, up.FailTimeout, up.LostFirst
		lb.Joined = append(lb.Joined, up.LB)
		lb.Refused = cmp.Or(lb.Refused, up.Refused)
		return true
	case pass.Line == 0:
		lb.Refused = "it has no proxy_pass"
		return false
	case draft.Placeholder(to):
		lb.Refused = pass.Place.String() + " chooses the upstream by a variable, " +
			"and every connection of a load balancer goes to the same backends"
		return false
	}
	host, port := draft.SplitPort(to)
	srv := draft.ServerEntry{Statement: pass}
	okAddr := srv.SetHost(host)
	n, okPort := draft.ReadPort(port)
	if !okAddr || !okPort {
		lb.Refused = pass.Place.String() + " passes to " + syntax.Printable(to) +
			", which is neither an upstream of these files nor an address or name with a port"
		return false
	}
	srv.Port = n
	lb.Servers = append(lb.Servers, srv)
	return true
}

// readListen reads listen [address:]port with its parameters.
func readListen(lb *draft.LB, l draft.Line) {
	host, tail := draft.SplitPort(l.Arg(1))
	if tail == "" {
		host, tail = "", l.Arg(1)
	}
	port, ok := draft.ReadPort(tail)
	if !ok {
		why := "is no TCP port of an address"
		switch {
		case draft.Placeholder(l.Arg(1)):
			why = draft.Unfilled
		case strings.Contains(tail, "-"):
			why = "is a range of ports; write one load balancer for each"
		}
		l.Note("%s", why)
		return
	}
	b := draft.Bind{Statement: l.Statement, Port: port, ByProxy: slices.Contains(l.Words[2:], "proxy_protocol")}
	b.Only6 = strings.Contains(host, ":") && !slices.Contains(l.Words, "ipv6only=off")
	b.Only4 = !strings.Contains(host, ":")
	if host = strings.Trim(host, "[]"); host != "" && host != "*" && host != "0.0.0.0" && host != "::" {
		if b.Addr, ok = draft.ReadAddr(host); !ok {
			l.Note("%s", draft.WrongAddr(host))
			return
		}
	}
	const silent = " so_keepalive reuseport backlog bind deferred fastopen rcvbuf sndbuf default_server ipv6only "
	for _, w := range l.Words[2:] {
		name, _, _ := strings.Cut(w, "=")
		switch {
		case name == "udp":
			l.Note("is UDP; TCP is carried")
			return
		case name == "ssl":
			lb.Refused = l.Place.String() + " ends TLS here, while " + draft.IsTLS + ": give the servers the certificate"
		case name == "proxy_protocol":
			lb.AcceptProxy = true
			isFrom := func(st syntax.Statement) bool { return st.Words[0] == "set_real_ip_from" }
			if len(lb.AcceptProxyFrom) > 0 || slices.ContainsFunc(lb.Lines, isFrom) {
				l.Advise("nginx wants a PROXY header of everybody, and believes that of set_real_ip_from; " +
					"here all others come in without one: write allow and deny if they must not")
				continue
			}
			l.Advise("nginx believes the PROXY header of anybody; so does acceptProxyFrom below: " +
				"write the prefixes of the senders there")
		case !strings.Contains(silent, " "+name+" "):
			l.Advise("carried over without %q", w)
		}
	}
	lb.Binds = append(lb.Binds, b)
}

// lines are the directives with something to read that may stand in stream and in server.
var lines = map[string]func(lb *draft.LB, l draft.Line){
	"proxy_connect_timeout": func(lb *draft.LB, l draft.Line) {
		l.Span(units, l.Arg(1), draft.MinConnect, draft.MaxConnect, &lb.Connect)
	},
	"proxy_timeout": func(lb *draft.LB, l draft.Line) {
		l.Span(units, l.Arg(1), 0, draft.MaxQuiet, &lb.Client)
		lb.Server = lb.Client
		l.AdviseQuiet(lb.Client)
	},
	"proxy_protocol": func(lb *draft.LB, l draft.Line) {
		if lb.SendProxy = ""; l.Arg(1) == "on" {
			lb.SendProxy = "v1"
		}
	},
	"proxy_protocol_version": func(lb *draft.LB, l draft.Line) {
		switch {
		case l.Arg(1) != "2":
		case lb.SendProxy == "":
			l.Note("stands before proxy_protocol on; write sendProxy: v2")
		default:
			lb.SendProxy = "v2"
		}
	},
	"proxy_next_upstream": func(lb *draft.LB, l draft.Line) {
		if l.Arg(1) == "off" {
			lb.Retries = draft.Number{Value: 0, Set: true}
		}
	},
	"proxy_next_upstream_tries": func(lb *draft.LB, l draft.Line) {
		var tries draft.Number
		if l.Number(l.Arg(1), 0, 100, &tries); tries.Value > 0 {
			lb.Retries = draft.Number{Value: tries.Value - 1, Set: true}
		}
	},
	"resolver": readResolver,
	"allow":    readAccess,
	"deny":     readAccess,
	"set_real_ip_from": func(lb *draft.LB, l draft.Line) {
		if prefix, ok := draft.ReadPrefix(l.Arg(1)); ok {
			lb.AcceptProxyFrom = append(lb.AcceptProxyFrom, prefix)
			return
		}
		l.Note("%s", draft.WrongAddr(l.Arg(1)))
	},
}

// remarks are the directives of stream and server that are noted and nothing else.
var remarks = draft.NewRemarks(
	draft.Remark{Keywords: "proxy_next_upstream_timeout proxy_socket_keepalive tcp_nodelay proxy_buffer_size " +
		"proxy_half_close preread_buffer_size proxy_protocol_timeout variables_hash_max_size " +
		"variables_hash_bucket_size proxy_session_drop", Moot: true, Text: draft.IsTuning},
	draft.Remark{Keywords: "log_format access_log error_log open_log_file_cache", Moot: true, Text: draft.IsLogging},
	draft.Remark{Keywords: "resolver_timeout", Moot: true, Text: draft.IsTuning},
	draft.Remark{Keywords: "include", Text: "is not among these files; convert that file too"},
	draft.Remark{Keywords: "ssl_preread", Text: "the server name that a client asks for is not looked at; " +
		"requireTLS: 5s looks whether it speaks TLS"},
	draft.Remark{Keywords: "proxy_bind", Text: "the kernel's routes choose the source address"},
	draft.Remark{Keywords: "ssl_* proxy_ssl_*", Moot: true, Text: draft.IsTLS},
	draft.Remark{Keywords: "server_name", Text: "a load balancer is told apart by its address and port alone"},
	draft.Remark{Keywords: "limit_conn limit_conn_zone proxy_download_rate proxy_upload_rate",
		Text: "connections are not counted per client; maxconn limits them all together"},
	draft.Remark{Keywords: "map geo split_clients", Text: draft.OneTarget},
)

// refusals are the directives that a load balancer cannot be without.
var refusals = draft.NewRemarks(
	draft.Remark{Keywords: "proxy_ssl", Text: "begins TLS towards the servers, while " + draft.IsTLS +
		": let the clients speak TLS"},
	draft.Remark{Keywords: "js_access js_preread js_filter access_by_lua_block access_by_lua_file " +
		"preread_by_lua_block preread_by_lua_file",
		Text: "has a script decide about connections, and none is run"},
)

// Keywords lists the words of nginx.conf that are known, and what becomes of them.
func Keywords() []draft.Keyword {
	return slices.Concat(
		draft.Keywords("main", []string{"stream"}, mainRemarks),
		draft.Keywords("stream, server", draft.Words(lines, "listen", "proxy_pass"), remarks, refusals),
		draft.Keywords("upstream",
			[]string{"server", "least_conn", "least_time", "random", "hash", "resolver"}, upstreamRemarks),
	)
}

// readLine reads what may stand in stream and in server. Its notes belong to owner.
func readLine(lb *draft.LB, l draft.Line) {
	w := l.Words[0]
	switch read := lines[w]; {
	case read != nil:
		read(lb, l)
	case l.Remark(remarks, w):
	case refusals[w].Text != "":
		if l.Arg(1) != "off" {
			lb.Refused = cmp.Or(lb.Refused, l.Place.String()+" "+refusals[w].Text)
		}
	default:
		l.NoteAll(false, draft.IsUnknown)
	}
}

// readAccess reads allow and deny, of which the first that fits decides.
func readAccess(lb *draft.LB, l draft.Line) {
	r := draft.AccessRule{Statement: l.Statement, Accept: l.Words[0] == "allow"}
	prefix, ok := draft.ReadPrefix(l.Arg(1))
	switch {
	case l.Arg(1) == "all":
		r.Set = draft.AllAddrs()
	case l.Arg(1) == "unix:":
		l.Moot("nobody connects over a unix socket")
		return
	case !ok && r.Accept:
		l.Note("%s; it was left out, so that nobody comes in by it", draft.WrongAddr(l.Arg(1)))
		return
	case !ok:
		lb.Refused = cmp.Or(lb.Refused, l.Place.String()+" refuses some clients, and which is not understood")
		return
	default:
		r.From = []netip.Prefix{prefix}
	}
	lb.Access = append(lb.Access, r)
}
