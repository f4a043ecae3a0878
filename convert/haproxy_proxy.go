package convert

import (
	"net/netip"
	"slices"
	"strings"
)

// haproxyProxy is a frontend, backend or listen section as it is read.
type haproxyProxy struct {
	*service
	section haproxySection
	// usual are the words of default-server.
	usual []string
	// checks are the server's own words about its check, the first one's for all.
	checks  []haproxyCheck
	checkBy statement // the line that says how servers are checked
	expects bool
	acls    map[string]haproxyTerm
	rules   []haproxyRule
	inspect statement
	hello   statement
	refuse  bool // content is refused unless it was accepted

	defaultTo, useTo string
	alive            span      // timeout tunnel
	checkPatience    span      // timeout check
	checkPatienceAt  statement // its line
}

func (p *haproxyProxy) target() string {
	if p.defaultTo != "" {
		return p.defaultTo
	}
	return p.useTo
}

func (d *draft) haproxyProxy(s haproxySection) *haproxyProxy {
	p := &haproxyProxy{service: &service{statement: s.statement, name: s.arg(1), lines: s.lines}, section: s, acls: map[string]haproxyTerm{}}
	// listen 443 and frontend web *:443 name addresses in the header.
	if n := len(s.words); n > 2 && s.words[2] != "from" {
		p.bind(d, statement{place: s.place, words: append([]string{"bind"}, s.words[2:]...)})
	}
	for i, st := range s.all() {
		owner := p.service
		if i < len(s.defaults) {
			owner = nil // what defaults say is not this section's alone
		}
		p.line(d, owner, st)
	}
	// listen 443, without any bind, is a name that is meant for a port.
	if port, ok := readPort(p.name); ok && len(p.binds) == 0 && s.words[0] == "listen" {
		p.binds = append(p.binds, bind{statement: s.statement, port: port})
		d.advise(p.service, s.statement, "has no bind; its name is taken for the port")
	}
	p.service.client = either(p.alive, p.service.client)
	p.service.server = either(p.alive, p.service.server)
	p.access(d)
	if s.words[0] != "frontend" {
		p.settleCheck(d)
	}
	return p
}

func either(a, b span) span {
	if a.said {
		return a
	}
	return b
}

func (p *haproxyProxy) finish(d *draft) {
	if p.refused == "" && p.target() == "" && p.section.words[0] == "frontend" {
		p.refused = "it has no default_backend"
	}
	if len(p.binds) == 0 && p.refused == "" {
		p.refused = "it listens on no address and port"
	}
}

// line reads one line of a section, or of its defaults.
func (p *haproxyProxy) line(d *draft, owner *service, st statement) {
	s := p.service
	switch st.words[0] {
	case "bind":
		p.bind(d, st)
	case "mode":
	case "maxconn":
		d.count(owner, st, st.arg(1), 0, maxConns, &s.maxconn)
	case "retries":
		d.count(owner, st, st.arg(1), 0, 100, &s.retries)
	case "timeout", "clitimeout", "srvtimeout", "contimeout":
		p.timeout(d, owner, st)
	case "balance":
		p.balance(d, owner, st)
	case "hash-type":
		d.moot(owner, st, "sh moves only the clients of a server that comes or goes")
	case "default-server":
		p.usual = append(p.usual, st.words[1:]...)
		p.server(d, owner, st, st.words[1:])
	case "server":
		p.add(d, st)
	case "server-template":
		d.note(owner, st, "%s; write each server", isDNS)
	case "option":
		p.option(d, owner, st)
	case "no":
		if st.arg(1) == "option" && st.arg(2) == "redispatch" {
			d.note(owner, st, "a connection whose server does not answer always goes to another; retries: 0 tries none")
			return
		}
		d.moot(owner, st, "switches off what is not there")
	case "http-check":
		p.httpCheck(d, owner, st)
	case "tcp-check":
		if st.arg(1) == "connect" {
			if slices.Contains(st.words, "ssl") {
				p.check.kind, p.checkBy = "tls", st
			}
			return
		}
		d.note(owner, st, "checks say nothing and expect nothing over plain TCP; write check: {type: http or https} if the server speaks it")
	case "default_backend":
		p.defaultTo = st.arg(1)
	case "use_backend":
		if len(st.words) == 2 {
			p.useTo = st.arg(1)
			return
		}
		d.note(owner, st, "every connection of a load balancer goes to the same backends; write another load balancer on another port")
	case "acl":
		p.acl(d, owner, st)
	case "tcp-request":
		p.request(d, owner, st)
	case "stick-table":
		p.stickTable(d, owner, st)
	case "stick":
		if st.arg(1) == "on" && st.arg(2) == "src" && len(st.words) == 3 || st.arg(1) == "match" || st.arg(1) == "store-request" {
			if st.arg(2) == "src" {
				if !p.service.persistence.said {
					p.service.persistence = span{usualPersistence, true} // the table may say another
				}
				return
			}
		}
		d.note(owner, st, "clients stick by their address only; write persistence: 30m")
	case "stats", "monitor-uri", "monitor":
		d.moot(owner, st, "`appliance status` and the setting admin.listen show state")
	case "log", "log-format", "log-tag", "unique-id-format", "capture", "error-log-format", "log-format-sd":
		d.moot(owner, st, isLogging)
	case "description", "id", "enabled", "guid":
		d.moot(owner, st, "has no meaning here")
	case "disabled":
		s.refused = "line " + st.place.String() + " disables it"
	case "source":
		d.note(owner, st, "the kernel's routes choose the source address")
	case "fullconn":
		d.note(owner, st, "limits do not grow with the load; write maxconn at the backends")
	case "bind-process", "grace", "backlog", "max-keep-alive-queue":
		d.moot(owner, st, isTuning)
	case "email-alert":
		d.note(owner, st, "no mail is sent; a hook can run a program on backend-down: hooks: [{on: [backend-down], exec: [/path]}]")
	case "external-check":
		d.note(owner, st, "nothing is run to check a server; write check: {type: tcp, tls, http or https}")
	case "errorfile", "errorloc", "errorloc302", "errorloc303", "errorfiles", "http-request", "http-response", "http-after-response", "cookie",
		"http-reuse", "http-send-name-header", "compression", "redirect", "reqadd", "rspadd", "reqrep", "rsprep", "reqdel", "rspdel", "filter", "http-error", "force-persist", "appsession":
		d.moot(owner, st, isHTTP)
	case "tcp-response":
		d.note(owner, st, "what servers send is carried unread")
	case "include", ".include":
		d.note(owner, st, "nothing is included; convert that file too")
	case ".if", ".elif", ".else", ".endif", ".notice", ".warning", ".alert", ".diag":
		d.note(owner, st, "conditions are not looked at; the lines between were read as if it was not there")
	default:
		d.note(owner, st, "is not known")
	}
}

// bind reads bind [addr]:port[,...] with its parameters.
func (p *haproxyProxy) bind(d *draft, st statement) {
	s := p.service
	for word := range strings.SplitSeq(st.arg(1), ",") {
		word = strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(word, "ipv4@"), "ipv6@"), "tcp@")
		host, tail := splitPort(word)
		port, ok := readPort(tail)
		switch {
		case strings.Contains(tail, "-") && !placeholder(word):
			d.note(s, st, "is a range of ports; write one load balancer for each")
			continue
		case strings.HasPrefix(word, "/") || strings.Contains(word, "@"):
			d.note(s, st, "is no TCP port of an address")
			continue
		case !ok && placeholder(word):
			d.note(s, st, "%s", fillIn)
			continue
		case !ok:
			d.note(s, st, "has no port; write addr:port")
			continue
		}
		b := bind{statement: st, port: port}
		if host = strings.Trim(host, "[]"); host != "" && host != "*" && host != "0.0.0.0" && host != "::" {
			if b.addr, ok = readAddr(host); !ok {
				d.note(s, st, "%s", wrongAddr(host))
				continue
			}
		}
		s.binds = append(s.binds, b)
	}
	for i := 2; i < len(st.words); i++ {
		switch w := st.words[i]; w {
		case "v4v6", "transparent", "tfo", "defer-accept", "nice", "name", "backlog", "level", "mode", "uid", "gid", "user", "group", "id", "process", "thread", "shards", "tcp-ut", "mss":
			if slices.Contains([]string{"nice", "name", "backlog", "level", "mode", "uid", "gid", "user", "group", "id", "process", "thread", "shards", "tcp-ut", "mss"}, w) {
				i++
			}
		case "accept-proxy":
			s.acceptProxy = true
			d.advise(s, st, "haproxy believes the PROXY header of anybody; so does acceptProxyFrom below: write the prefixes of the senders there")
		case "ssl":
			s.refused = st.place.String() + " ends TLS here, while " + isTLS + ": give the servers the certificate"
			return
		case "maxconn":
			i++
			d.count(s, st, st.arg(i), 0, maxConns, &s.maxconn)
		case "v6only", "interface", "namespace":
			d.advise(s, st, "%s is not carried over", w)
			if w != "v6only" {
				i++
			}
		default:
			d.advise(s, st, "%s is not carried over", printable(w))
		}
	}
}

func (p *haproxyProxy) timeout(d *draft, owner *service, st statement) {
	name, value := st.arg(1), st.arg(2)
	switch st.words[0] {
	case "clitimeout":
		name, value = "client", st.arg(1)
	case "srvtimeout":
		name, value = "server", st.arg(1)
	case "contimeout":
		name, value = "connect", st.arg(1)
	}
	quiet := func(into *span) {
		d.span(owner, st, haproxyUnits, value, 0, maxQuiet, into)
		if into.said && into.d > 0 && into.d < quietWatch {
			d.advise(owner, st, "was carried over, and cuts connections that are quiet for so long, such as watches and kubectl exec; remove it below to let them be")
		}
	}
	switch name {
	case "connect":
		d.span(owner, st, haproxyUnits, value, minConnect, maxConnect, &p.service.connect)
	case "client":
		quiet(&p.service.client)
	case "server":
		quiet(&p.service.server)
	case "tunnel":
		quiet(&p.alive)
	case "queue":
		d.span(owner, st, haproxyUnits, value, minConnect, maxQueue, &p.service.queue)
		p.service.queueAt = st
	case "check":
		d.span(owner, st, haproxyUnits, value, minConnect, maxInter, &p.checkPatience)
		p.checkPatienceAt = st
	case "client-fin", "server-fin":
		d.moot(owner, st, "a connection that is closed on one side ends like any other")
	case "http-request", "http-keep-alive", "tarpit":
		d.moot(owner, st, isHTTP)
	default:
		d.note(owner, st, "is not known")
	}
}

func (p *haproxyProxy) balance(d *draft, owner *service, st statement) {
	s := p.service
	name, _, _ := strings.Cut(st.arg(1), "(")
	switch name {
	case "roundrobin", "static-rr":
		s.scheduler = "rr"
	case "leastconn":
		s.scheduler = "lc"
	case "source":
		s.scheduler = "sh"
	case "random":
		s.scheduler = "random"
	case "first":
		s.scheduler = "first"
	case "hash":
		if st.arg(2) == "src" {
			s.scheduler = "sh"
			return
		}
		d.note(owner, st, "clients are told apart by their address only: write scheduler: sh")
	case "uri", "url_param", "hdr", "rdp-cookie":
		d.note(owner, st, "%s; write scheduler: sh to keep a client on its server", isHTTP)
	default:
		d.note(owner, st, "is not known; write scheduler: rr, lc, sh, random or first")
	}
}

func (p *haproxyProxy) option(d *draft, owner *service, st statement) {
	switch o := st.arg(1); o {
	case "tcp-check":
		p.kind(d, owner, st, "tcp")
	case "ssl-hello-chk":
		p.kind(d, owner, st, "tls")
	case "httpchk":
		p.kind(d, owner, st, "http")
		p.httpchk(d, owner, st)
	case "smtpchk", "ldap-check", "mysql-check", "pgsql-check", "redis-check", "spop-check":
		p.kind(d, owner, st, "tcp")
		d.advise(owner, st, "that protocol is not spoken; a connection is opened")
	case "external-check":
		d.note(owner, st, "nothing is run to check a server; write check: {type: tcp, tls, http or https}")
	case "redispatch", "tcpka", "clitcpka", "srvtcpka", "dontlognull", "splice-auto", "splice-request", "splice-response", "logasap":
		if o == "dontlognull" || o == "logasap" {
			d.moot(owner, st, isLogging)
		} // the others are always so
	case "tcplog", "httplog", "log-separate-errors", "log-health-checks", "socket-stats", "dontlog-normal":
		d.moot(owner, st, isLogging)
	case "allbackups":
		d.moot(owner, st, "backups are used together anyway")
	case "forwardfor", "http-server-close", "httpclose", "forceclose", "http-keep-alive", "http-pretend-keepalive", "http-no-delay",
		"http-use-htx", "http-use-proxy-header", "originalto", "accept-invalid-http-request", "accept-invalid-http-response", "http-buffer-request", "http-ignore-probes", "http_proxy", "prefer-last-server", "disable-h2-upgrade", "http-restrict-req-hdr-names", "h1-case-adjust-bogus-client", "h1-case-adjust-bogus-server", "checkcache":
		d.moot(owner, st, isHTTP)
	case "nolinger", "tcp-smart-accept", "tcp-smart-connect", "abortonclose", "contstats", "idle-close-on-response":
		d.moot(owner, st, isTuning)
	case "persist":
		d.moot(owner, st, isHTTP)
	case "transparent":
		d.note(owner, st, "connections go to backends, never to where they were addressed")
	default:
		d.note(owner, st, "is not known")
	}
}

func (p *haproxyProxy) stickTable(d *draft, owner *service, st statement) {
	for i, w := range st.words {
		if w == "type" && st.arg(i+1) != "ip" && st.arg(i+1) != "ipv6" {
			d.note(owner, st, "clients stick by their address only; write persistence: 30m")
			return
		}
	}
	for i, w := range st.words {
		if w == "expire" {
			d.span(owner, st, haproxyUnits, st.arg(i+1), minPersistence, maxSticky, &p.service.persistence)
			return
		}
	}
	p.service.persistence = span{usualPersistence, true}
	d.advise(owner, st, "never forgets a client; became persistence: %s", short(usualPersistence))
}

// everybody is whom a PROXY header is believed from where nobody says less.
func everybody() []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
}
