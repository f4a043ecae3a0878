package haproxy

import (
	"slices"
	"strings"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// proxy is a frontend, backend or listen section as it is read.
type proxy struct {
	*draft.LB
	section section
	// usual are the words of default-server.
	usual []string
	// checks are the server's own words about its check, the first one's for all.
	checks  []serverCheck
	checkBy syntax.Statement // the line that says how servers are checked
	expects bool
	acls    map[string]aclTerm
	rules   []aclRule
	inspect syntax.Statement
	hello   syntax.Statement
	refuse  bool // content is refused unless it was accepted

	defaultTo, useTo string
	alive            draft.Span       // timeout tunnel
	checkPatience    draft.Span       // timeout check
	checkPatienceAt  syntax.Statement // its line
}

func (p *proxy) target() string {
	if p.defaultTo != "" {
		return p.defaultTo
	}
	return p.useTo
}

func newProxy(d *draft.Draft, s section) *proxy {
	p := &proxy{LB: &draft.LB{Statement: s.Statement, Name: s.Arg(1), Lines: s.lines}, section: s, acls: map[string]aclTerm{}}
	// listen 443 and frontend web *:443 name addresses in the header.
	if n := len(s.Words); n > 2 && s.Words[2] != "from" {
		p.bind(d, syntax.Statement{Place: s.Place, Words: append([]string{"bind"}, s.Words[2:]...)})
	}
	for i, st := range s.all() {
		owner := p.LB
		if i < len(s.defaults) {
			owner = nil // what defaults say is not this section's alone
		}
		p.line(d, owner, st)
	}
	// listen 443, without any bind, is a name that is meant for a port.
	if port, ok := draft.ReadPort(p.Name); ok && len(p.Binds) == 0 && s.Words[0] == "listen" {
		p.Binds = append(p.Binds, draft.Bind{Statement: s.Statement, Port: port})
		d.Advise(p.LB, s.Statement, "has no bind; its name is taken for the port")
	}
	p.LB.Client = either(p.alive, p.LB.Client)
	p.LB.Server = either(p.alive, p.LB.Server)
	p.access(d)
	if s.Words[0] != "frontend" {
		p.joinChecks(d)
	}
	return p
}

func either(a, b draft.Span) draft.Span {
	if a.Set {
		return a
	}
	return b
}

func (p *proxy) finish(d *draft.Draft) {
	if p.Refused == "" && p.target() == "" && p.section.Words[0] == "frontend" {
		p.Refused = "it has no default_backend"
	}
	if len(p.Binds) == 0 && p.Refused == "" {
		p.Refused = "it listens on no address and port"
	}
}

// line reads one line of a section, or of its defaults.
func (p *proxy) line(d *draft.Draft, owner *draft.LB, st syntax.Statement) {
	s := p.LB
	switch st.Words[0] {
	case "bind":
		p.bind(d, st)
	case "mode":
	case "maxconn":
		d.ReadNumber(owner, st, st.Arg(1), 0, draft.MaxConns, &s.MaxConn)
	case "retries":
		d.ReadNumber(owner, st, st.Arg(1), 0, 100, &s.Retries)
	case "timeout", "clitimeout", "srvtimeout", "contimeout":
		p.timeout(d, owner, st)
	case "balance":
		p.balance(d, owner, st)
	case "hash-type":
		d.Moot(owner, st, "sh moves only the clients of a server that comes or goes")
	case "default-server":
		p.usual = append(p.usual, st.Words[1:]...)
		p.server(d, owner, st, st.Words[1:])
	case "server":
		p.add(d, st)
	case "server-template":
		d.Note(owner, st, "%s; write each server", draft.IsDNS)
	case "option":
		p.option(d, owner, st)
	case "no":
		if st.Arg(1) == "option" && st.Arg(2) == "redispatch" {
			d.Note(owner, st, "a connection whose server does not answer always goes to another; retries: 0 tries none")
			return
		}
		d.Moot(owner, st, "switches off what is not there")
	case "http-check":
		p.httpCheck(d, owner, st)
	case "tcp-check":
		if st.Arg(1) == "connect" {
			if slices.Contains(st.Words, "ssl") {
				p.Check.Type, p.checkBy = "tls", st
			}
			return
		}
		d.Note(owner, st, "checks say nothing and expect nothing over plain TCP; write check: {type: http or https} if the server speaks it")
	case "default_backend":
		p.defaultTo = st.Arg(1)
	case "use_backend":
		if len(st.Words) == 2 {
			p.useTo = st.Arg(1)
			return
		}
		d.Note(owner, st, "every connection of a load balancer goes to the same backends; write another load balancer on another port")
	case "acl":
		p.acl(d, owner, st)
	case "tcp-request":
		p.request(d, owner, st)
	case "stick-table":
		p.stickTable(d, owner, st)
	case "stick":
		if st.Arg(1) == "on" && st.Arg(2) == "src" && len(st.Words) == 3 || st.Arg(1) == "match" || st.Arg(1) == "store-request" {
			if st.Arg(2) == "src" {
				if !p.LB.Persistence.Set {
					p.LB.Persistence = draft.Span{Value: draft.DefaultPersistence, Set: true} // the table may say another
				}
				return
			}
		}
		d.Note(owner, st, "clients stick by their address only; write persistence: 30m")
	case "stats", "monitor-uri", "monitor":
		d.Moot(owner, st, "`appliance status` and the setting admin.listen show state")
	case "log", "log-format", "log-tag", "unique-id-format", "capture", "error-log-format", "log-format-sd":
		d.Moot(owner, st, draft.IsLogging)
	case "description", "id", "enabled", "guid":
		d.Moot(owner, st, "has no meaning here")
	case "disabled":
		s.Refused = "line " + st.Place.String() + " disables it"
	case "source":
		d.Note(owner, st, "the kernel's routes choose the source address")
	case "fullconn":
		d.Note(owner, st, "limits do not grow with the load; write maxconn at the backends")
	case "bind-process", "grace", "backlog", "max-keep-alive-queue":
		d.Moot(owner, st, draft.IsTuning)
	case "email-alert":
		d.Note(owner, st, "no mail is sent; a hook can run a program on backend-down: hooks: [{on: [backend-down], exec: [/path]}]")
	case "external-check":
		d.Note(owner, st, "nothing is run to check a server; write check: {type: tcp, tls, http or https}")
	case "errorfile", "errorloc", "errorloc302", "errorloc303", "errorfiles", "http-request", "http-response", "http-after-response", "cookie",
		"http-reuse", "http-send-name-header", "compression", "redirect", "reqadd", "rspadd", "reqrep", "rsprep", "reqdel", "rspdel", "filter", "http-error", "force-persist", "appsession":
		d.Moot(owner, st, draft.IsHTTP)
	case "tcp-response":
		d.Note(owner, st, "what servers send is carried unread")
	case "include", ".include":
		d.Note(owner, st, "nothing is included; convert that file too")
	case ".if", ".elif", ".else", ".endif", ".notice", ".warning", ".alert", ".diag":
		d.Note(owner, st, "conditions are not looked at; the lines between were read as if it was not there")
	default:
		d.Note(owner, st, "is not known")
	}
}

// bind reads bind [addr]:port[,...] with its parameters.
func (p *proxy) bind(d *draft.Draft, st syntax.Statement) {
	s := p.LB
	for word := range strings.SplitSeq(st.Arg(1), ",") {
		word = strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(word, "ipv4@"), "ipv6@"), "tcp@")
		host, tail := draft.SplitPort(word)
		port, ok := draft.ReadPort(tail)
		switch {
		case strings.Contains(tail, "-") && !draft.Placeholder(word):
			d.Note(s, st, "is a range of ports; write one load balancer for each")
			continue
		case strings.HasPrefix(word, "/") || strings.Contains(word, "@"):
			d.Note(s, st, "is no TCP port of an address")
			continue
		case !ok && draft.Placeholder(word):
			d.Note(s, st, "%s", draft.Unfilled)
			continue
		case !ok:
			d.Note(s, st, "has no port; write addr:port")
			continue
		}
		b := draft.Bind{Statement: st, Port: port}
		if host = strings.Trim(host, "[]"); host != "" && host != "*" && host != "0.0.0.0" && host != "::" {
			if b.Addr, ok = draft.ReadAddr(host); !ok {
				d.Note(s, st, "%s", draft.WrongAddr(host))
				continue
			}
		}
		s.Binds = append(s.Binds, b)
	}
	for i := 2; i < len(st.Words); i++ {
		switch w := st.Words[i]; w {
		case "v4v6", "transparent", "tfo", "defer-accept", "nice", "name", "backlog", "level", "mode", "uid", "gid", "user", "group", "id", "process", "thread", "shards", "tcp-ut", "mss":
			if slices.Contains([]string{"nice", "name", "backlog", "level", "mode", "uid", "gid", "user", "group", "id", "process", "thread", "shards", "tcp-ut", "mss"}, w) {
				i++
			}
		case "accept-proxy":
			s.AcceptProxy = true
			d.Advise(s, st, "haproxy believes the PROXY header of anybody; so does acceptProxyFrom below: write the prefixes of the senders there")
		case "ssl":
			s.Refused = st.Place.String() + " ends TLS here, while " + draft.IsTLS + ": give the servers the certificate"
			return
		case "maxconn":
			i++
			d.ReadNumber(s, st, st.Arg(i), 0, draft.MaxConns, &s.MaxConn)
		case "v6only", "interface", "namespace":
			d.Advise(s, st, "%s is not carried over", w)
			if w != "v6only" {
				i++
			}
		default:
			d.Advise(s, st, "%s is not carried over", syntax.Printable(w))
		}
	}
}

func (p *proxy) timeout(d *draft.Draft, owner *draft.LB, st syntax.Statement) {
	name, value := st.Arg(1), st.Arg(2)
	switch st.Words[0] {
	case "clitimeout":
		name, value = "client", st.Arg(1)
	case "srvtimeout":
		name, value = "server", st.Arg(1)
	case "contimeout":
		name, value = "connect", st.Arg(1)
	}
	quiet := func(into *draft.Span) {
		d.ReadSpan(owner, st, units, value, 0, draft.MaxQuiet, into)
		if into.Set && into.Value > 0 && into.Value < draft.CutsWatches {
			d.Advise(owner, st, "was carried over, and cuts connections that are quiet for so long, such as watches and kubectl exec; remove it below to let them be")
		}
	}
	switch name {
	case "connect":
		d.ReadSpan(owner, st, units, value, draft.MinConnect, draft.MaxConnect, &p.LB.Connect)
	case "client":
		quiet(&p.LB.Client)
	case "server":
		quiet(&p.LB.Server)
	case "tunnel":
		quiet(&p.alive)
	case "queue":
		d.ReadSpan(owner, st, units, value, draft.MinConnect, draft.MaxQueue, &p.LB.Queue)
		p.LB.QueueAt = st
	case "check":
		d.ReadSpan(owner, st, units, value, draft.MinConnect, draft.MaxInter, &p.checkPatience)
		p.checkPatienceAt = st
	case "client-fin", "server-fin":
		d.Moot(owner, st, "a connection that is closed on one side ends like any other")
	case "http-request", "http-keep-alive", "tarpit":
		d.Moot(owner, st, draft.IsHTTP)
	default:
		d.Note(owner, st, "is not known")
	}
}

func (p *proxy) balance(d *draft.Draft, owner *draft.LB, st syntax.Statement) {
	s := p.LB
	name, _, _ := strings.Cut(st.Arg(1), "(")
	switch name {
	case "roundrobin", "static-rr":
		s.Scheduler = "rr"
	case "leastconn":
		s.Scheduler = "lc"
	case "source":
		s.Scheduler = "sh"
	case "random":
		s.Scheduler = "random"
	case "first":
		s.Scheduler = "first"
	case "hash":
		if st.Arg(2) == "src" {
			s.Scheduler = "sh"
			return
		}
		d.Note(owner, st, "clients are told apart by their address only: write scheduler: sh")
	case "uri", "url_param", "hdr", "rdp-cookie":
		d.Note(owner, st, "%s; write scheduler: sh to keep a client on its server", draft.IsHTTP)
	default:
		d.Note(owner, st, "is not known; write scheduler: rr, lc, sh, random or first")
	}
}

func (p *proxy) option(d *draft.Draft, owner *draft.LB, st syntax.Statement) {
	switch o := st.Arg(1); o {
	case "tcp-check":
		p.kind(d, owner, st, "tcp")
	case "ssl-hello-chk":
		p.kind(d, owner, st, "tls")
	case "httpchk":
		p.kind(d, owner, st, "http")
		p.httpchk(d, owner, st)
	case "smtpchk", "ldap-check", "mysql-check", "pgsql-check", "redis-check", "spop-check":
		p.kind(d, owner, st, "tcp")
		d.Advise(owner, st, "that protocol is not spoken; a connection is opened")
	case "external-check":
		d.Note(owner, st, "nothing is run to check a server; write check: {type: tcp, tls, http or https}")
	case "redispatch", "tcpka", "clitcpka", "srvtcpka", "dontlognull", "splice-auto", "splice-request", "splice-response", "logasap":
		if o == "dontlognull" || o == "logasap" {
			d.Moot(owner, st, draft.IsLogging)
		} // the others are always so
	case "tcplog", "httplog", "log-separate-errors", "log-health-checks", "socket-stats", "dontlog-normal":
		d.Moot(owner, st, draft.IsLogging)
	case "allbackups":
		d.Moot(owner, st, "backups are used together anyway")
	case "forwardfor", "http-server-close", "httpclose", "forceclose", "http-keep-alive", "http-pretend-keepalive", "http-no-delay",
		"http-use-htx", "http-use-proxy-header", "originalto", "accept-invalid-http-request", "accept-invalid-http-response", "http-buffer-request", "http-ignore-probes", "http_proxy", "prefer-last-server", "disable-h2-upgrade", "http-restrict-req-hdr-names", "h1-case-adjust-bogus-client", "h1-case-adjust-bogus-server", "checkcache":
		d.Moot(owner, st, draft.IsHTTP)
	case "nolinger", "tcp-smart-accept", "tcp-smart-connect", "abortonclose", "contstats", "idle-close-on-response":
		d.Moot(owner, st, draft.IsTuning)
	case "persist":
		d.Moot(owner, st, draft.IsHTTP)
	case "transparent":
		d.Note(owner, st, "connections go to backends, never to where they were addressed")
	default:
		d.Note(owner, st, "is not known")
	}
}

func (p *proxy) stickTable(d *draft.Draft, owner *draft.LB, st syntax.Statement) {
	for i, w := range st.Words {
		if w == "type" && st.Arg(i+1) != "ip" && st.Arg(i+1) != "ipv6" {
			d.Note(owner, st, "clients stick by their address only; write persistence: 30m")
			return
		}
	}
	for i, w := range st.Words {
		if w == "expire" {
			d.ReadSpan(owner, st, units, st.Arg(i+1), draft.MinPersistence, draft.MaxSticky, &p.LB.Persistence)
			return
		}
	}
	p.LB.Persistence = draft.Span{Value: draft.DefaultPersistence, Set: true}
	d.Advise(owner, st, "never forgets a client; became persistence: %s", draft.Short(draft.DefaultPersistence))
}
