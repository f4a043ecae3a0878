package convert

import (
	"net/netip"
	"slices"
	"strings"
)

// A haproxyTerm is one condition: the client is in one of from, or the
// connection begins with a TLS ClientHello, or something that is not known.
type haproxyTerm struct {
	from    []netip.Prefix
	hello   bool
	not     bool
	unknown bool
}

// haproxyRule is tcp-request connection|content accept|reject [if ...].
type haproxyRule struct {
	statement
	accept bool
	always bool
	term   haproxyTerm
}

func (p *haproxyProxy) acl(d *draft, owner *service, st statement) {
	term := readTerm(st.words[min(2, len(st.words)):])
	if old, ok := p.acls[st.arg(1)]; ok && !old.unknown && !term.unknown && !old.hello && !term.hello {
		old.from = append(slices.Clone(old.from), term.from...) // lines of one name add up
		term = old
	}
	p.acls[st.arg(1)] = term
	if term.unknown {
		d.note(owner, st, "only source addresses and TLS ClientHellos are told apart; write allow and deny with prefixes")
	}
}

// readTerm reads src 10.0.0.0/8 ... and req.ssl_hello_type 1.
func readTerm(words []string) haproxyTerm {
	if len(words) == 0 {
		return haproxyTerm{unknown: true}
	}
	switch words[0] {
	case "src":
		var t haproxyTerm
		for _, w := range words[1:] {
			if w == "--" || w == "-n" {
				continue
			}
			prefix, ok := readPrefix(w)
			if !ok {
				return haproxyTerm{unknown: true}
			}
			t.from = append(t.from, prefix)
		}
		t.unknown = len(t.from) == 0
		return t
	case "req_ssl_hello_type", "req.ssl_hello_type", "req_ssl_ver", "req.ssl_ver":
		return haproxyTerm{hello: true}
	case "always_true":
		return haproxyTerm{from: everybody()}
	}
	return haproxyTerm{unknown: true}
}

// condition reads if|unless and what follows: one term, or several joined by or.
func (p *haproxyProxy) condition(words []string) (term haproxyTerm, always bool) {
	if len(words) == 0 {
		return haproxyTerm{}, true
	}
	unless := words[0] == "unless"
	words = words[1:]
	var terms []haproxyTerm
	joined := true // or stands before the next term
	for len(words) > 0 {
		w := words[0]
		words = words[1:]
		if w == "or" || w == "||" {
			joined = true
			continue
		}
		not := strings.HasPrefix(w, "!")
		w = strings.TrimPrefix(w, "!")
		if w == "" && len(words) > 0 {
			w, words = words[0], words[1:]
		}
		var t haproxyTerm
		switch {
		case w == "{":
			end := slices.Index(words, "}")
			if end < 0 {
				return haproxyTerm{unknown: true}, false
			}
			t, words = readTerm(words[:end]), words[end+1:]
		case w == "TRUE":
			t = haproxyTerm{from: everybody()}
		case w == "LOCALHOST":
			t = haproxyTerm{from: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}}
		default:
			var ok bool
			if t, ok = p.acls[w]; !ok {
				t = haproxyTerm{unknown: true}
			}
		}
		t.not = t.not != not
		t.unknown = t.unknown || !joined // side by side means and
		joined = false
		terms = append(terms, t)
	}
	if len(terms) == 0 {
		return haproxyTerm{unknown: true}, false
	}
	term = terms[0]
	term.from = slices.Clone(term.from)
	for _, t := range terms[1:] {
		term.unknown = term.unknown || t.unknown || t.not || term.not || t.hello != term.hello
		term.from = append(term.from, t.from...)
	}
	term.not = term.not != unless
	return term, false
}

// request reads the tcp-request lines.
func (p *haproxyProxy) request(d *draft, owner *service, st statement) {
	switch st.arg(1) {
	case "inspect-delay":
		p.inspect = st
		return
	case "connection", "content", "session":
	default:
		d.note(owner, st, "is not known")
		return
	}
	rest := st.words[min(3, len(st.words)):]
	switch st.arg(2) {
	case "accept", "reject":
		term, always := p.condition(rest)
		if term.unknown {
			d.note(owner, st, "connections are told apart by source address and TLS ClientHello only; write allow and deny with prefixes")
			return
		}
		if term.hello {
			// accept if hello, reject unless hello
			if term.not != (st.arg(2) == "reject") {
				d.note(owner, st, "requireTLS lets in what begins with a TLS ClientHello, never the contrary")
				return
			}
			p.hello = st
			p.refuse = p.refuse || st.arg(2) == "reject"
			return
		}
		if always && st.arg(1) == "content" && p.hello.line != 0 {
			p.refuse = p.refuse || st.arg(2) == "reject"
			return
		}
		p.rules = append(p.rules, haproxyRule{statement: st, accept: st.arg(2) == "accept", always: always, term: term})
	case "expect-proxy":
		p.service.acceptProxy = true
		rest = st.words[min(4, len(st.words)):]
		term, always := p.condition(rest)
		if always || term.unknown || term.not || term.hello {
			d.advise(owner, st, "the PROXY header is believed from everybody; write the prefixes of the senders in acceptProxyFrom below")
			return
		}
		p.service.acceptProxyFrom = append(p.service.acceptProxyFrom, term.from...)
	default:
		d.note(owner, st, "connections are neither counted nor rewritten; maxconn limits them")
	}
}

// access turns the rules, of which the first that fits decides, into allow
// and deny, of which deny wins.
func (p *haproxyProxy) access(d *draft) {
	s := p.service
	var accepted []haproxyRule
	for i, r := range p.rules {
		last := i == len(p.rules)-1
		switch {
		case r.always && r.accept && last:
		case r.always && !r.accept && last && len(accepted) > 0:
			for _, a := range accepted {
				s.allow = append(s.allow, a.term.from...)
			}
			accepted = nil
		case r.always && !r.accept:
			s.refused = r.place.String() + " rejects every connection"
		case r.always:
			d.note(s, r.statement, "lets everybody in before the lines below it can refuse; remove either")
			return
		case r.accept && r.term.not:
			d.note(s, r.statement, "write it as allow and deny, of which deny wins")
		case r.accept:
			accepted = append(accepted, r)
		case r.term.not && len(s.allow) > 0:
			d.note(s, r.statement, "is a second list of who may come in; make it one list at allow")
		case r.term.not:
			s.allow = append(s.allow, r.term.from...)
			for _, a := range accepted {
				s.allow = append(s.allow, a.term.from...)
			}
			accepted = nil
		default:
			s.deny = append(s.deny, r.term.from...)
			for _, a := range accepted {
				if overlap(a.term.from, r.term.from) {
					d.advise(s, a.statement, "comes before line %d, which refuses some of these; here deny wins", r.line)
				}
			}
		}
	}
	if p.hello.line == 0 {
		if p.inspect.line != 0 {
			d.moot(s, p.inspect, "nothing is looked at within that time")
		}
		return
	}
	s.requireTLS = span{usualHello, true}
	if p.inspect.line != 0 {
		d.span(s, p.inspect, haproxyUnits, p.inspect.arg(2), minHello, maxHello, &s.requireTLS)
	}
	if !p.refuse {
		d.advise(s, p.hello, "haproxy lets everything else in after the delay, because no line says tcp-request content reject; with requireTLS it is refused")
	}
}

func overlap(a, b []netip.Prefix) bool {
	for _, x := range a {
		if slices.ContainsFunc(b, x.Overlaps) {
			return true
		}
	}
	return false
}
