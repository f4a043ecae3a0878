package haproxy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// A proxy is a frontend, backend or listen section as it is read.
type proxy struct {
	*draft.LB
	section section
	others  map[string]section // the sections with servers, by their names
	// usual are the words of default-server.
	usual []string
	// checks are what each server says about its check.
	checks     []serverCheck
	checkWords string           // which option that is
	checkBy    syntax.Statement // the line that says how servers are checked
	// observes says of each server whether failed connections take it out.
	observes []bool
	// ask is what http-check send and expect say, with statuses; talk what tcp-check lines say; httpTo and tcpTo the
	// connect lines, of which to is the one in force.
	ask                 draft.HealthCheck
	asks                bool
	statuses            []draft.Range
	talk                conversation
	httpTo, tcpTo, to   connection
	lost                draft.Line // the first http-check line that is not carried over, and would have to be
	expects, allBackups bool
	redispatch          bool // another server is tried when one fails
	asksMore            bool // a second request has begun
	isOff404            bool // a server that answers 404 gets no connections
	// sticks are the lines by which a client keeps its server, by its address or, with onlyOne, as all others do; table
	// are those of the table, which alone keep nobody anywhere.
	sticks, onlyOne, table []draft.Line
	// logs means that a log is named; tcplog is the option.
	logs   bool
	tcplog syntax.Statement
	acls   map[string][]aclLine
	known  map[string]term
	// ruleLines and proxyLines are the tcp-request lines, rules what they say, by stage.
	ruleLines    []ruleLine
	proxyLines   []draft.Line
	rules        [][]draft.AccessRule
	inspect      syntax.Statement
	hello        syntax.Statement
	refusesOther bool // content is refused unless it was accepted

	defaultTo      string
	uses           []draft.Line     // the use_backend lines
	tunnel         draft.Span       // timeout tunnel
	checkTimeout   draft.Span       // timeout check
	checkTimeoutAt syntax.Statement // its line
}

// refuse says why p cannot be carried over; the first reason counts.
func (p *proxy) refuse(format string, args ...any) {
	if p.Refused == "" {
		p.Refused = fmt.Sprintf(format, args...)
	}
}

// target is the backend of a frontend: that of the first use_backend whose condition is met, or else the default. It
// refuses the frontend if that depends on the connection.
func (p *proxy) target() string {
	to := p.defaultTo
	var depends draft.Line
	for _, l := range p.uses {
		c, ok := p.condition(l.Words[min(2, len(l.Words)):])
		isConstant := ok && !c.has(func(t term) bool { return !t.always })
		if !isConstant {
			if depends.Line == 0 {
				depends = l
			}
			continue
		}
		if holds(c) {
			to = l.Arg(1)
			break
		}
	}
	for _, l := range p.uses {
		if strings.Contains(to, "%[") && l.Arg(1) == to {
			depends = l // its name is found for each connection
		}
	}
	if depends.Line != 0 {
		p.refuse("%s chooses the backend by something of the connection, and %s", depends.Place, draft.OneTarget)
	}
	return to
}

// holds reports whether a condition whose tests are all constant is met.
func holds(c condition) bool {
	if c.always() {
		return true
	}
	isFalse := func(t term) bool { return t.not }
	met := slices.ContainsFunc(c.anyOf, func(all []term) bool { return !slices.ContainsFunc(all, isFalse) })
	return met != c.unless
}

func newProxy(d *draft.Draft, s section, others map[string]section) *proxy {
	p := &proxy{
		LB:      &draft.LB{Statement: s.Statement, Name: s.Arg(1), Lines: s.lines},
		section: s, others: others, acls: map[string][]aclLine{}, known: map[string]term{},
	}
	// listen 443 and frontend web *:443 name addresses in the header.
	if n := len(s.Words); n > 2 && s.Words[2] != "from" {
		words := append([]string{"bind"}, s.Words[2:]...)
		p.bind(draft.Line{Draft: d, Statement: syntax.Statement{Place: s.Place, Words: words}})
	}
	for i, st := range s.all() {
		if i < len(s.defaults) && s.replaces(st) {
			d.Moot(nil, st, "is not in force in sections that have such lines, or option httpchk, of their own")
			continue
		}
		owner := p.LB
		if i < len(s.defaults) {
			owner = nil // what defaults say is not about this section alone
		}
		p.line(draft.Line{Draft: d, Owner: owner, Statement: st})
	}
	// listen 443, without any bind, is a name that is meant for a port.
	if port, ok := draft.ReadPort(p.Name); ok && len(p.Binds) == 0 && s.Words[0] == "listen" {
		p.Binds = append(p.Binds, draft.Bind{Statement: s.Statement, Port: port, Only4: true})
		d.Advise(p.LB, s.Statement, "has no bind; its name is taken for the port")
	}
	if at := s.conditional; at.Line != 0 {
		p.refuse("%s decides about some of its lines, and conditions are not looked at; "+
			"remove the lines between that are not in force, and convert again", at.Place)
	}
	if p.tunnel.Set {
		p.Client, p.Server = p.tunnel, p.tunnel
	}
	p.RefuseMixed()
	p.access()
	p.sticky()
	p.logged(d)
	p.OneBackup = !p.allBackups
	if s.Words[0] != "frontend" {
		p.keepFirst(d)
		p.joinObserved()
		p.joinChecks(d)
	}
	return p
}

// join makes the statements of a backend part of its frontend's load balancer.
func (p *proxy) join(back *proxy) {
	b := back.LB
	p.Scheduler, p.Servers, p.Check = b.Scheduler, b.Servers, b.Check
	p.Persistence, p.Retries = b.Persistence, b.Retries
	p.Connect, p.Server, p.Queue, p.QueueAt = b.Connect, b.Server, b.Queue, b.QueueAt
	p.MaxFails, p.FailTimeout = b.MaxFails, b.FailTimeout
	p.OneBackup, p.LostFirst = b.OneBackup, b.LostFirst
	p.SendProxy, p.OnMarkedDown, p.OnMarkedUp = b.SendProxy, b.OnMarkedDown, b.OnMarkedUp
	p.Refused = cmp.Or(p.Refused, b.Refused)
	p.Joined = append(p.Joined, b)
}

// A reader reads one line; owner is the load balancer that its notes belong to.
type reader func(p *proxy, l draft.Line)

// lines are the keywords of a section with something to read.
var lines = map[string]reader{
	"mode": func(*proxy, draft.Line) {}, // read before
	"bind": (*proxy).bind,
	"maxconn": func(p *proxy, l draft.Line) {
		l.Number(l.Arg(1), 0, draft.MaxConns, &p.MaxConn)
	},
	"retries": func(p *proxy, l draft.Line) {
		l.Number(l.Arg(1), 0, 100, &p.Retries)
	},
	"timeout": func(p *proxy, l draft.Line) {
		p.timeout(l, l.Arg(1), l.Arg(2))
	},
	"clitimeout": oldTimeout("client"),
	"srvtimeout": oldTimeout("server"),
	"contimeout": oldTimeout("connect"),
	"balance":    (*proxy).balance,
	"default-server": func(p *proxy, l draft.Line) {
		p.usual = append(p.usual, l.Words[1:]...)
		// Read for what is wrong with the words; servers read them again.
		set := server{ServerEntry: &draft.ServerEntry{Statement: l.Statement}}
		set.read(l, l.Words[1:], p)
	},
	"log":             (*proxy).log,
	"server":          (*proxy).server,
	"server-template": (*proxy).template,
	"option":          (*proxy).option,
	"no":              (*proxy).no,
	"http-check":      (*proxy).httpCheck,
	"tcp-check":       (*proxy).tcpCheck,
	"use_backend":     (*proxy).useBackend,
	"default_backend": func(p *proxy, l draft.Line) {
		p.defaultTo = l.Arg(1)
	},
	"acl":         (*proxy).acl,
	"tcp-request": (*proxy).request,
	"stick-table": (*proxy).stickTable,
	"stick":       (*proxy).stick,
	"disabled": func(p *proxy, l draft.Line) {
		p.Refused = "line " + l.Place.String() + " disables it"
	},
}

// refusals are the keywords that send connections by rules that are not there.
var refusals = draft.NewRemarks(
	draft.Remark{Keywords: "use-server dispatch filter",
		Text: "leads connections by rules of its own, and " + draft.OneTarget},
)

const (
	noMail        = "no mail is sent; a hook can run a program on backend-down: hooks: [{on: [backend-down], exec: [/path]}]"
	carriedUnread = "what servers send is carried unread"
	noScript      = "becomes a plainer check, because what it is given differs; write check: {type: program, exec: [...]}"
)

// remarks are the keywords of a section that are noted and nothing else.
var remarks = draft.NewRemarks(
	draft.Remark{Keywords: "hash-type", Moot: true, Text: "sh moves only the clients of a server that comes or goes"},
	draft.Remark{Keywords: "stats monitor-uri monitor", Moot: true,
		Text: "`appliance status` and the setting admin.listen show state"},
	draft.Remark{Keywords: "log-format log-tag unique-id-format capture error-log-format log-format-sd", Moot: true,
		Text: draft.IsLogging},
	draft.Remark{Keywords: "description id enabled guid", Moot: true, Text: "has no meaning here"},
	draft.Remark{Keywords: "source", Text: "the kernel's routes choose the source address"},
	draft.Remark{Keywords: "fullconn", Text: "limits do not grow with the load; write maxconn at the backends"},
	draft.Remark{Keywords: "bind-process grace backlog max-keep-alive-queue", Moot: true, Text: draft.IsTuning},
	draft.Remark{Keywords: "rate-limit", Text: "how fast connections come is not limited; maxconn limits those that are open"},
	draft.Remark{Keywords: "email-alert", Text: noMail},
	draft.Remark{Keywords: "external-check", Text: noScript},
	draft.Remark{Keywords: "errorfile errorloc errorloc302 errorloc303 errorfiles http-request http-response " +
		"http-after-response cookie http-reuse http-send-name-header compression redirect reqadd rspadd reqrep rsprep " +
		"reqdel rspdel http-error force-persist appsession block", Moot: true, Text: draft.IsHTTP},
	draft.Remark{Keywords: "persist", Text: stickyByAddress},
	draft.Remark{Keywords: "tcp-response", Text: carriedUnread},
	draft.Remark{Keywords: "include .include", Text: "nothing is included; convert that file too"},
	draft.Remark{Keywords: ".if .elif .else .endif", Text: "conditions are not looked at"},
	draft.Remark{Keywords: ".notice .warning .alert .diag", Moot: true, Text: "says something when haproxy starts"},
)

// line reads one line of a section, or of its defaults.
func (p *proxy) line(l draft.Line) {
	if read := lines[l.Words[0]]; read != nil {
		read(p, l)
	} else if r, ok := refusals[l.Words[0]]; ok {
		p.refuse("%s %s", l.Place, r.Text)
	} else if l.Words[0] == "tcp-response" && slices.Contains([]string{"reject", "close", "silent-drop"}, l.Arg(2)) {
		p.refuse("%s ends connections by what servers send, and %s", l.Place, carriedUnread)
	} else if !l.Remark(remarks, l.Words[0]) {
		l.Note(draft.IsUnknown)
	}
}

// bind reads bind [addr]:port[,...] with its parameters. Its notes always belong to the section.
func (p *proxy) bind(l draft.Line) {
	l.Owner = p.LB
	for _, w := range l.Words[min(2, len(l.Words)):] {
		if r, ok := bindRemarks[w]; ok && w != "ssl" {
			l.Note("%s", r.Text)
			return
		}
	}
	for word := range strings.SplitSeq(l.Arg(1), ",") {
		if b, ok := p.bindAddress(l, word); ok {
			b.Only6 = b.Only6 && slices.Contains(l.Words, "v6only")
			b.ByProxy = slices.Contains(l.Words[2:], "accept-proxy")
			p.Binds = append(p.Binds, b)
		}
	}
	for i := 2; i < len(l.Words); i++ {
		w := l.Words[i]
		switch {
		case strings.Contains(silentOfBind, " "+w+" "):
		case strings.Contains(silentWithValueOfBind, " "+w+" "):
			i++
		case w == "accept-proxy":
			p.AcceptProxy = true
			l.Advise("haproxy believes the PROXY header of anybody; so does acceptProxyFrom below: " +
				"write the prefixes of the senders there")
		case w == "ssl":
			p.refuse("%s %s", l.Place, bindRemarks[w].Text)
			return
		case w == "maxconn":
			i++
			l.Number(l.Arg(i), 0, draft.MaxConns, &p.MaxConn)
		default:
			l.Advise("%s is not carried over", syntax.Printable(w))
		}
	}
}

// The parameters of bind that change nothing here, without and with a value.
const (
	silentOfBind          = " v4v6 v6only transparent tfo defer-accept "
	silentWithValueOfBind = " nice name backlog level mode uid gid user group id process thread shards tcp-ut mss "
)

// bindRemarks are the parameters of bind for which the address, or with ssl the load balancer, is not carried over.
var bindRemarks = draft.NewRemarks(
	draft.Remark{Keywords: "ssl", Text: "ends TLS here, while " + draft.IsTLS + ": give the servers the certificate"},
	draft.Remark{Keywords: "interface namespace", Text: "listens within that interface or namespace only, " +
		"which is not possible here; write vips: with the virtual addresses there"},
	draft.Remark{Keywords: "accept-netscaler-cip", Text: "clients are named by that header, which is not read"},
)

// bindAddress reads one address and port of bind.
func (p *proxy) bindAddress(l draft.Line, word string) (draft.Bind, bool) {
	whole := word
	for _, prefix := range []string{"ipv4@", "ipv6@", "tcp@", "tcp4@", "tcp6@"} {
		word = strings.TrimPrefix(word, prefix)
	}
	host, tail := draft.SplitPort(word)
	tail = strings.TrimRight(tail, ";") // haproxy reads the digits alone
	port, ok := draft.ReadPort(tail)
	b := draft.Bind{Statement: l.Statement, Port: port}
	why := ""
	switch {
	case strings.Contains(tail, "-") && !draft.Placeholder(word):
		why = "is a range of ports; write one load balancer for each"
	case strings.HasPrefix(word, "/") || strings.Contains(word, "@"):
		why = "is no TCP port of an address"
	case !ok && draft.Placeholder(word):
		why = draft.Unfilled
	case !ok:
		why = "has no port; write addr:port"
	default:
		host = strings.Trim(host, "[]")
		if host == "" || host == "*" || host == "0.0.0.0" || host == "::" {
			b.Only6 = host == "::" || strings.HasPrefix(whole, "ipv6@") || strings.HasPrefix(whole, "tcp6@")
			b.Only4 = !b.Only6
			return b, true
		}
		if b.Addr, ok = draft.ReadAddr(host); ok {
			return b, true
		}
		why = draft.WrongAddr(host)
	}
	l.Note("%s", why)
	return b, false
}

// oldTimeout is a timeout as older versions wrote it.
func oldTimeout(name string) reader {
	return func(p *proxy, l draft.Line) {
		p.timeout(l, name, l.Arg(1))
	}
}

func (p *proxy) timeout(l draft.Line, name, value string) {
	quiet := func(into *draft.Span) {
		l.Span(units, value, 0, draft.MaxQuiet, into)
		l.AdviseQuiet(*into)
	}
	switch name {
	case "connect":
		l.Span(units, value, draft.MinConnect, draft.MaxConnect, &p.Connect)
	case "client":
		quiet(&p.Client)
	case "server":
		quiet(&p.Server)
	case "tunnel":
		quiet(&p.tunnel)
	case "queue":
		l.Span(units, value, draft.MinConnect, draft.MaxQueue, &p.Queue)
		p.QueueAt = l.Statement
	case "check":
		l.Span(units, value, draft.MinConnect, draft.MaxInter, &p.checkTimeout)
		p.checkTimeoutAt = l.Statement
	case "client-fin", "server-fin":
		l.Moot("a connection that is closed on one side ends like any other")
	case "http-request", "http-keep-alive", "tarpit":
		l.Moot(draft.IsHTTP)
	default:
		l.Note(draft.IsUnknown)
	}
}

// schedulers are ours for haproxy's.
var schedulers = map[string]string{
	"roundrobin": "rr", "static-rr": "rr", "leastconn": "lc", "source": "sh", "random": "random", "first": "first",
}

func (p *proxy) balance(l draft.Line) {
	name, _, _ := strings.Cut(l.Arg(1), "(")
	ours := schedulers[name]
	if name == "hash" && l.Arg(2) == "src" {
		ours = "sh"
	}
	switch {
	case ours != "":
		p.Scheduler = ours
	case name == "hash":
		l.Note("clients are told apart by their address only: write scheduler: sh")
	case name == "rdp-cookie":
		l.Note("connections are carried unread, and clients told apart by their address only: write scheduler: sh")
	case slices.Contains([]string{"uri", "url_param", "hdr"}, name):
		l.Note("%s; write scheduler: sh to keep a client on its server", draft.IsHTTP)
	default:
		l.Note("is not known; write scheduler: rr, lc, sh, random or first")
	}
}

// optionRemarks are the options that are noted and nothing else.
var optionRemarks = draft.NewRemarks(
	draft.Remark{Keywords: "external-check", Text: noScript},
	draft.Remark{Keywords: "dontlognull logasap httplog log-separate-errors log-health-checks socket-stats " +
		"dontlog-normal", Moot: true, Text: draft.IsLogging},
	draft.Remark{Keywords: "forwardfor http-server-close httpclose forceclose http-keep-alive http-pretend-keepalive " +
		"http-no-delay http-use-htx http-use-proxy-header originalto accept-invalid-http-request " +
		"accept-invalid-http-response http-buffer-request http-ignore-probes prefer-last-server " +
		"disable-h2-upgrade http-restrict-req-hdr-names h1-case-adjust-bogus-client h1-case-adjust-bogus-server " +
		"checkcache persist", Moot: true, Text: draft.IsHTTP},
	draft.Remark{Keywords: "nolinger tcp-smart-accept tcp-smart-connect abortonclose contstats idle-close-on-response",
		Moot: true, Text: draft.IsTuning},
	draft.Remark{Keywords: "transparent http_proxy",
		Text: "connections go to backends, never to where they were addressed"},
)

// carriedOptions are the options that option reads.
var carriedOptions = []string{"tcp-check", "ssl-hello-chk", "httpchk", "smtpchk", "ldap-check", "mysql-check",
	"pgsql-check", "redis-check", "spop-check", "allbackups", "tcplog", "redispatch", "tcpka", "clitcpka", "srvtcpka",
	"splice-auto",
	"splice-request", "splice-response"}

func (p *proxy) option(l draft.Line) {
	switch o := l.Arg(1); o {
	case "tcp-check":
		p.kind(l, "tcp")
	case "ssl-hello-chk":
		p.kind(l, "tls")
	case "httpchk":
		p.kind(l, "http")
		p.httpchk(l)
	case "smtpchk", "ldap-check", "mysql-check", "pgsql-check", "redis-check":
		p.protocol(l)
	case "spop-check":
		p.kind(l, "tcp")
		l.Advise("that protocol is not spoken; a connection is opened")
	case "allbackups":
		p.allBackups = true
	case "tcplog":
		p.tcplog = l.Statement
	case "redispatch":
		p.redispatch = true
	case "tcpka", "clitcpka", "srvtcpka", "splice-auto", "splice-request", "splice-response":
		// Always so.
	default:
		if !l.Remark(optionRemarks, o) {
			l.Note(draft.IsUnknown)
		}
	}
}

// log reads log global, or a target of its own. What a log says of connections is haproxy's option tcplog; without
// that it has a line when a connection begins, which is not carried over.
func (p *proxy) log(l draft.Line) {
	p.logs = true
	if l.Arg(1) != "global" {
		logTarget(l)
	}
}

// logged gives the load balancer a log, if the section has one.
func (p *proxy) logged(d *draft.Draft) {
	if !p.logs || p.tcplog.Line == 0 {
		return
	}
	p.Log = "text"
	d.Advise(p.LB, p.tcplog, "became log: text, which user space does; remove it to have the kernel carry the connections")
}

func (p *proxy) no(l draft.Line) {
	switch {
	case l.Arg(1) == "log":
		p.logs = false
		return
	case l.Arg(1) == "option" && l.Arg(2) == "tcplog":
		p.tcplog = syntax.Statement{}
		return
	}
	if l.Arg(1) == "option" && l.Arg(2) == "redispatch" {
		if p.redispatch = false; p.Scheduler == "first" {
			return // is so then
		}
		l.Note("a connection whose server does not answer always goes to another; retries: 0 tries none")
		return
	}
	if l.Arg(1) == "option" && l.Arg(2) == "allbackups" {
		p.allBackups = false
		return
	}
	l.Moot("switches off what is not there")
}

func (p *proxy) useBackend(l draft.Line) { p.uses = append(p.uses, l) }

func (p *proxy) stick(l draft.Line) {
	by, what := l.Arg(1), l.Arg(2)
	plain := len(l.Words) == 3 && (by == "on" || by == "match" || by == "store-request")
	isConstant := what == "dst" || strings.HasPrefix(what, "int(") || strings.HasPrefix(what, "str(")
	switch {
	case plain && what == "src":
		p.sticks = append(p.sticks, l)
	case plain && isConstant && by != "store-request":
		p.onlyOne = append(p.onlyOne, l)
	case plain && isConstant: // says the same as the line that matches
	default:
		l.Note(stickyByAddress)
	}
}

// sticky says who keeps a server, once all lines are read.
func (p *proxy) sticky() {
	switch {
	case len(p.onlyOne) > 0: // as databases with one writer have it
		p.Scheduler, p.Persistence = "first", draft.Span{}
		p.Retries = draft.Number{Set: true} // a second server would be a second writer
		p.onlyOne[0].Advise("keeps all clients on one server; became scheduler: first, which does too, and goes back to " +
			"the first server when that is well again")
	case len(p.sticks) == 0:
		p.Persistence = draft.Span{}
		for _, l := range p.table {
			l.Note("keeps nobody on a server, because no stick line says so, and connections are not counted")
		}
	case !p.Persistence.Set: // the table may say how long
		p.Persistence = draft.Span{Value: defaultPersistence, Set: true}
		if len(p.table) > 0 {
			p.table[0].Advise("never forgets a client; became persistence: %s", draft.Short(defaultPersistence))
		}
	}
}

// keepFirst has the first server tried alone where haproxy tries no other: the next one may be a second writer.
func (p *proxy) keepFirst(d *draft.Draft) {
	if p.Scheduler != "first" || p.redispatch || len(p.Servers) < 2 || len(p.onlyOne) > 0 {
		return
	}
	p.Retries = draft.Number{Set: true}
	d.Advise(p.LB, p.section.Statement, "has retries: 0, because no option redispatch lets a client whose connection fails "+
		"try the next server; here each retry does")
}

const stickyByAddress = "clients stick by their address only; write persistence: 30m"

func (p *proxy) stickTable(l draft.Line) {
	p.table = append(p.table, l)
	if i := slices.Index(l.Words, "expire"); i >= 0 {
		l.Span(units, l.Arg(i+1), draft.MinPersistence, draft.MaxSticky, &p.Persistence)
	}
}
