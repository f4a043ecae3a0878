package haproxy

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// A server is one server as its words are read.
type server struct {
	*draft.ServerEntry
	check serverCheck
	// sendProxy is for the first server what its load balancer says, and so is onDown for the first with a check; onUp is
	// a setting that a load balancer has as a whole here. checkProxy says that checks have the PROXY header even at
	// another place.
	tls, checkProxy         bool
	sendProxy, onDown, onUp string
	// observes means that failed connections count as failed checks, of which limit is the most; notOut that they only
	// hurry checks.
	observes, notOut bool
	limit            draft.Number
}

// server reads a server line: name, address, parameters. Its notes always belong to the section.
func (p *proxy) server(l draft.Line) {
	l.Owner = p.LB
	word := l.Arg(2)
	for _, prefix := range []string{"ipv4@", "ipv6@", "tcp@", "tcp4@", "tcp6@"} {
		word = strings.TrimPrefix(word, prefix)
	}
	srv := draft.ServerEntry{Statement: l.Statement, Name: l.Arg(1)}
	host, tail := draft.SplitPort(word)
	if strings.HasPrefix(host, "_") {
		p.LoseServer(l, isSRV)
		return
	}
	if !srv.SetHost(host) {
		p.LoseServer(l, draft.WrongAddr(host))
		return
	}
	if srv.Host != "" {
		srv.MaxAddresses = 1 // one server of haproxy has one address at a time
	}
	p.add(l, srv, tail, l.Words[3:])
}

// template reads server-template prefix count|from-to name[:port] parameters: a name of which so many addresses are
// servers.
func (p *proxy) template(l draft.Line) {
	l.Owner = p.LB
	low, high, isRange := strings.Cut(l.Arg(2), "-")
	from, err := strconv.Atoi(low)
	to := from
	if from = 1; isRange && err == nil {
		if from, err = strconv.Atoi(low); err == nil {
			to, err = strconv.Atoi(high)
		}
	}
	srv := draft.ServerEntry{Statement: l.Statement, Name: l.Arg(1), MaxAddresses: to - from + 1}
	host, tail := draft.SplitPort(l.Arg(3))
	if strings.HasPrefix(host, "_") {
		p.LoseServer(l, isSRV)
		return
	}
	if err != nil || srv.MaxAddresses < 1 || srv.MaxAddresses > draft.MaxList || !srv.SetHost(host) || srv.Host == "" {
		p.LoseServer(l, "is no count of servers and a name; write each server")
		return
	}
	p.add(l, srv, tail, l.Words[4:])
}

const isSRV = "is looked up by records of type SRV, and here names have addresses; write the names and ports themselves"

// add reads the port and the parameters of a server, and adds it.
func (p *proxy) add(l draft.Line, srv draft.ServerEntry, tail string, words []string) {
	var ok bool
	if srv.Port, ok = draft.ReadPort(tail); !ok && tail != "" {
		why := "is no port; write a number from 1 to 65535"
		switch {
		case strings.HasPrefix(tail, "+") || strings.HasPrefix(tail, "-"):
			why = "is relative to the client's; write the port itself"
		case draft.Placeholder(tail):
			why = draft.Unfilled
		}
		p.LoseServer(l, tail+" "+why)
		return
	}
	set := server{ServerEntry: &srv}
	// What is wrong with the words of default-server is noted where they stand.
	set.read(draft.Line{Draft: draft.New(), Statement: l.Statement}, p.usual, p)
	set.read(l, words, p)
	if set.checkProxy || set.sendProxy != "" && set.check.port == 0 && !set.check.addr.IsValid() {
		set.check.proxy = cmp.Or(set.sendProxy, "v1")
	}
	set.check.version = set.sendProxy
	if set.tls {
		p.refuse("%s begins TLS towards the servers, while "+draft.IsTLS+": let the clients speak TLS", l.Place)
	}
	if len(p.checks) == 0 {
		p.SendProxy, p.OnMarkedUp = set.sendProxy, set.onUp
	}
	if set.sendProxy != p.SendProxy {
		srv.SendProxy = cmp.Or(set.sendProxy, "off")
	}
	if set.check.on { // no other is marked down
		down := cmp.Or(set.onDown, "keep") // haproxy's default is to do nothing
		if p.OnMarkedDown = cmp.Or(p.OnMarkedDown, down); down != p.OnMarkedDown {
			srv.OnMarkedDown = down
		}
	}
	p.observed(l, &srv, set)
	if set.onUp != p.OnMarkedUp {
		l.Advise("does something else than the first server when it comes back; what the first one does is for all")
	}
	p.checks = append(p.checks, set.check)
	p.Servers = append(p.Servers, srv)
}

// observed reads what failed connections of clients do to a server: with observe layer4 they take it out. Beside such a
// server, they do nothing to one without.
func (p *proxy) observed(l draft.Line, srv *draft.ServerEntry, set server) {
	const usualLimit = 10 // haproxy's error-limit
	out := set.observes && !set.notOut
	if out {
		srv.MaxFails = draft.Number{Value: usualLimit, Set: true}
		if set.limit.Set {
			srv.MaxFails = set.limit
		}
		l.Advise("has maxFails: %d: so many failed connections within failTimeout keep it from new ones for that time, and a "+
			"check follows each; in haproxy they count as failed checks, however long they take", srv.MaxFails.Value)
	}
	p.observes = append(p.observes, out)
}

// joinObserved says for every server what failed connections do, if they take some of them out.
func (p *proxy) joinObserved() {
	if !slices.Contains(p.observes, true) {
		return
	}
	for i := range p.Servers {
		if !p.observes[i] {
			p.Servers[i].MaxFails = draft.Number{Set: true}
		}
	}
	p.MaxFails = p.Servers[0].MaxFails
	for i := range p.Servers {
		if p.Servers[i].MaxFails == p.MaxFails {
			p.Servers[i].MaxFails = draft.Number{}
		}
	}
}

// A reading is the words of one server while they are read.
type reading struct {
	draft.Line
	proxy   *proxy
	words   []string
	next    int
	unknown []string // words that were not carried over
}

// word is the next word, empty at the end.
func (r *reading) word() string {
	r.next++
	if r.next > len(r.words) {
		return ""
	}
	return r.words[r.next-1]
}

// read reads parameters. Those of default-server are read first.
func (s *server) read(l draft.Line, words []string, p *proxy) {
	r := &reading{Line: l, proxy: p, words: words}
	for r.next < len(words) {
		w := r.word()
		switch read := parameters[w]; {
		case read != nil:
			read(s, r)
		case strings.Contains(droppedWithValue, " "+w+" "):
			r.unknown = append(r.unknown, strings.TrimSpace(w+" "+r.word()))
		default:
			r.unknown = append(r.unknown, w)
		}
	}
	if len(r.unknown) > 0 {
		l.Advise("carried over without %q", strings.Join(r.unknown, " "))
	}
}

// droppedWithValue are the parameters that are not carried over and have a value.
const droppedWithValue = " resolve-prefer resolve-net resolve-opts minconn pool-max-conn " +
	"pool-purge-delay pool-low-conn max-reuse tcp-ut id sni cookie check-alpn alpn ciphers ciphersuites ssl-min-ver " +
	"ssl-max-ver crl-file curves agent-addr agent-inter agent-port agent-send check-proto namespace proto redir " +
	"source usesrc interface proxy-v2-options socks4 ws log-proto guid set-proxy-v2-tlv-fmt "

// parameters are the words of a server with something to read.
var parameters = map[string]func(s *server, r *reading){
	"check":        func(s *server, _ *reading) { s.check.on = true },
	"no-check":     func(s *server, _ *reading) { s.check.on = false },
	"check-ssl":    func(s *server, _ *reading) { s.check.ssl = true },
	"no-check-ssl": func(s *server, _ *reading) { s.check.ssl = false },
	"track": func(s *server, r *reading) {
		s.check.on, s.check.track = true, r.word()
	},
	"backup":    func(s *server, _ *reading) { s.Backup = true },
	"no-backup": func(s *server, _ *reading) { s.Backup = false },
	"enabled":   func(s *server, _ *reading) { s.Disabled = false },
	"disabled":  func(s *server, _ *reading) { s.Disabled = true },
	"inter":     func(s *server, r *reading) { r.inter(&s.check.inter) },
	"fastinter": func(s *server, r *reading) { r.inter(&s.check.fastInter) },
	"downinter": func(s *server, r *reading) { r.inter(&s.check.downInter) },
	"rise":      func(s *server, r *reading) { r.number(1, draft.MaxCount, &s.check.rise) },
	"fall":      func(s *server, r *reading) { r.number(1, draft.MaxCount, &s.check.fall) },
	"weight":    func(s *server, r *reading) { r.number(0, draft.MaxWeight, &s.Weight) },
	"maxconn":   func(s *server, r *reading) { r.number(0, draft.MaxConns, &s.MaxConn) },
	"maxqueue":  func(s *server, r *reading) { r.number(0, draft.MaxConns, &s.MaxQueued) },
	"slowstart": func(s *server, r *reading) { r.Span(units, r.word(), 0, draft.MaxSlow, &s.SlowStart) },
	"init-addr": func(_ *server, r *reading) { r.word() },
	"resolvers": func(_ *server, r *reading) { r.word() },
	"port": func(s *server, r *reading) {
		if port, ok := draft.ReadPort(r.word()); ok {
			s.check.port = port
		} else {
			r.proxy.refuse("%s checks a port that is no number; write it, and convert again", r.Place)
		}
	},
	"addr": func(s *server, r *reading) {
		word := r.word()
		a, ok := draft.ReadAddr(word)
		if host, tail := draft.SplitPort(word); !ok {
			if a, ok = draft.ReadAddr(host); ok && s.check.port == 0 {
				s.check.port, ok = draft.ReadPort(tail)
			}
		}
		if s.check.addr = a; !ok {
			r.proxy.refuse("%s checks another place, and addr %s is no address; write the address, and convert again",
				r.Place, syntax.Printable(word))
		}
	},
	"verify":               func(s *server, r *reading) { s.check.verify = r.word() },
	"ca-file":              func(s *server, r *reading) { s.check.caFile = r.word() },
	"crt":                  func(s *server, r *reading) { s.check.certFile = r.word() },
	"check-sni":            func(s *server, r *reading) { s.check.serverName = r.word() },
	"verifyhost":           func(s *server, r *reading) { s.check.serverName = r.word() },
	"send-proxy":           func(s *server, _ *reading) { s.sendProxy = "v1" },
	"send-proxy-v2":        func(s *server, _ *reading) { s.sendProxy = "v2" },
	"send-proxy-v2-ssl":    func(s *server, _ *reading) { s.sendProxy = "v2" },
	"send-proxy-v2-ssl-cn": func(s *server, _ *reading) { s.sendProxy = "v2" },
	"check-send-proxy":     func(s *server, _ *reading) { s.checkProxy = true },
	"no-send-proxy":        func(s *server, _ *reading) { s.sendProxy = "" },
	"no-send-proxy-v2":     func(s *server, _ *reading) { s.sendProxy = "" },
	"on-marked-down": func(s *server, r *reading) {
		if r.word() == "shutdown-sessions" {
			s.onDown = "shutdown-sessions"
		}
	},
	"on-marked-up": func(s *server, r *reading) {
		if r.word() == "shutdown-backup-sessions" {
			s.onUp = "shutdown-backup-sessions"
		}
	},
	"observe": func(s *server, r *reading) {
		what := r.word()
		if s.observes = what == "layer4"; what == "layer7" {
			r.unknown = append(r.unknown, "observe layer7")
		}
	},
	"agent-check": func(_ *server, r *reading) {
		r.proxy.refuse("%s asks an agent for the server's state and weight, which no check does here; convert without "+
			"agent-check, and write check: {type: program, exec: [...]} if the agent keeps clients away", r.Place)
	},
	"no-agent-check": func(*server, *reading) {},
	"error-limit":    func(s *server, r *reading) { r.number(1, draft.MaxCount, &s.limit) },
	"on-error":       func(s *server, r *reading) { s.notOut = r.word() == "fastinter" },
	"ssl":            func(s *server, _ *reading) { s.tls, s.check.ssl = true, true },
	"no-ssl":         func(s *server, _ *reading) { s.tls, s.check.ssl = false, false },
}

func (r *reading) number(low, high int, into *draft.Number) { r.Number(r.word(), low, high, into) }

func (r *reading) inter(into *draft.Span) {
	r.Span(units, r.word(), draft.MinInter, draft.MaxInter, into)
}
