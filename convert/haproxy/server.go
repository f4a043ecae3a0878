package haproxy

import (
	"strings"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// add reads a server line: name, address, parameters.
func (p *proxy) add(d *draft.Draft, st syntax.Statement) {
	s := p.LB
	word := st.Arg(2)
	for _, prefix := range []string{"ipv4@", "ipv6@", "tcp@", "tcp4@", "tcp6@"} {
		word = strings.TrimPrefix(word, prefix)
	}
	srv := draft.ServerEntry{Statement: st, Name: st.Arg(1)}
	host, tail := draft.SplitPort(word)
	var ok bool
	if srv.Addr, ok = draft.ReadAddr(host); !ok {
		d.Note(s, st, "%s", draft.WrongAddr(host))
		return
	}
	if tail != "" {
		if srv.Port, ok = draft.ReadPort(tail); !ok {
			why := "is no port; write a number from 1 to 65535"
			if strings.HasPrefix(tail, "+") || strings.HasPrefix(tail, "-") {
				why = "is relative to the client's; write the port itself"
			} else if draft.Placeholder(tail) {
				why = draft.Unfilled
			}
			d.Note(s, st, "%s %s", tail, why)
			return
		}
	}
	set := serverWords{ServerEntry: &srv}
	set.read(d, nil, st, p.usual, p, false)
	set.read(d, s, st, st.Words[3:], p, true)
	if len(p.checks) > 0 && set.check != p.checks[0] {
		d.Advise(s, st, "is checked in another way than the first server; one load balancer checks all its backends as it does the first")
	}
	p.checks = append(p.checks, set.check)
	s.Servers = append(s.Servers, srv)
}

// server reads the words of default-server for what is wrong with them.
func (p *proxy) server(d *draft.Draft, owner *draft.LB, st syntax.Statement, words []string) {
	set := serverWords{ServerEntry: &draft.ServerEntry{Statement: st}}
	set.read(d, owner, st, words, p, true)
}

// serverWords is one server as its words are read.
type serverWords struct {
	*draft.ServerEntry
	check serverCheck
}

// read reads parameters; those of default-server come first, and have been
// reported where they stand.
func (v *serverWords) read(d *draft.Draft, owner *draft.LB, st syntax.Statement, words []string, p *proxy, report bool) {
	quiet := d
	if !report {
		quiet = draft.New() // what it notes has been noted
	}
	var unknown []string
	s := p.LB
	for i := 0; i < len(words); i++ {
		w := words[i]
		next := func() string {
			if i++; i < len(words) {
				return words[i]
			}
			return ""
		}
		switch w {
		case "check":
			v.check.on = true
		case "no-check":
			v.check.on = false
		case "check-ssl":
			v.check.ssl = true
		case "no-check-ssl":
			v.check.ssl = false
		case "backup":
			v.Backup = true
		case "no-backup":
			v.Backup = false
		case "disabled":
			v.Weight = draft.Number{Value: 0, Set: true}
			quiet.Advise(owner, st, "disabled became weight 0; remove that to let connections in again")
		case "enabled":
		case "inter":
			quiet.ReadSpan(owner, st, units, next(), draft.MinInter, draft.MaxInter, &v.check.inter)
		case "fastinter":
			quiet.ReadSpan(owner, st, units, next(), draft.MinInter, draft.MaxInter, &v.check.fastinter)
		case "downinter":
			quiet.ReadSpan(owner, st, units, next(), draft.MinInter, draft.MaxInter, &v.check.downinter)
		case "rise":
			quiet.ReadNumber(owner, st, next(), 1, draft.MaxCount, &v.check.rise)
		case "fall":
			quiet.ReadNumber(owner, st, next(), 1, draft.MaxCount, &v.check.fall)
		case "port":
			if port, ok := draft.ReadPort(next()); ok {
				v.check.port = port
			} else {
				unknown = append(unknown, "port")
			}
		case "weight":
			quiet.ReadNumber(owner, st, next(), 0, draft.MaxWeight, &v.Weight)
		case "maxconn":
			quiet.ReadNumber(owner, st, next(), 0, draft.MaxConns, &v.MaxConn)
		case "maxqueue":
			quiet.ReadNumber(owner, st, next(), 0, draft.MaxConns, &v.MaxQueued)
		case "slowstart":
			quiet.ReadSpan(owner, st, units, next(), 0, draft.MaxSlow, &v.SlowStart)
		case "verify":
			v.check.verify = next()
		case "ca-file":
			v.check.caFile = next()
		case "crt":
			v.check.certFile = next()
		case "check-sni", "verifyhost":
			v.check.serverName = next()
		case "send-proxy":
			s.SendProxy = "v1"
		case "send-proxy-v2", "send-proxy-v2-ssl", "send-proxy-v2-ssl-cn":
			s.SendProxy = "v2"
		case "check-send-proxy":
		case "on-marked-down":
			if next() == "shutdown-sessions" {
				s.OnMarkedDown = "shutdown-sessions"
			}
		case "on-marked-up":
			if next() == "shutdown-backup-sessions" {
				s.OnMarkedUp = "shutdown-backup-sessions"
			}
		case "observe":
			if next() == "layer4" && !s.MaxFails.Set {
				s.MaxFails = draft.Number{Value: 10, Set: true} // error-limit's default
			}
		case "error-limit":
			quiet.ReadNumber(owner, st, next(), 1, draft.MaxCount, &s.MaxFails)
		case "on-error":
			if next() != "mark-down" {
				unknown = append(unknown, "on-error "+words[min(i, len(words)-1)])
			}
		case "ssl":
			v.check.ssl = true
			s.Refused = st.Place.String() + " begins TLS towards the servers, while " + draft.IsTLS + ": let the clients speak TLS"
		case "init-addr", "resolvers", "resolve-prefer", "resolve-net", "resolve-opts", "minconn", "pool-max-conn", "pool-purge-delay", "pool-low-conn", "max-reuse", "tcp-ut", "id", "sni", "cookie", "check-alpn", "alpn", "ciphers", "ciphersuites", "ssl-min-ver", "ssl-max-ver", "crl-file", "curves":
			unknown = append(unknown, strings.TrimSpace(w+" "+next()))
		case "addr", "agent-check", "agent-addr", "agent-inter", "agent-port", "agent-send", "check-proto", "check-via-socks4", "namespace", "proto", "redir", "source", "track", "usesrc", "interface", "proxy-v2-options", "socks4", "ws", "log-proto", "guid", "set-proxy-v2-tlv-fmt":
			if w == "agent-check" || w == "check-via-socks4" {
				unknown = append(unknown, w)
				continue
			}
			unknown = append(unknown, strings.TrimSpace(w+" "+next()))
		case "tfo", "non-stick", "no-ssl", "no-verify", "no-send-proxy", "no-send-proxy-v2", "no-tfo", "no-agent-check", "allow-0rtt", "no-sslv3", "no-tlsv10", "no-tlsv11", "no-tls-tickets", "force-tlsv12", "ssl-reuse", "no-ssl-reuse":
			unknown = append(unknown, w)
		default:
			unknown = append(unknown, w)
		}
	}
	if len(unknown) > 0 {
		quiet.Advise(owner, st, "carried over without %q", strings.Join(unknown, " "))
	}
}

// file takes absolute paths only: the program runs somewhere else.
func (p *proxy) file(d *draft.Draft, path string) string {
	if path == "" || strings.HasPrefix(path, "/") {
		return path
	}
	d.Note(p.LB, p.section.Statement, "%s is no absolute path; write it below tls", syntax.Printable(path))
	return ""
}
