package haproxy

import (
	"net/netip"
	"slices"
	"strings"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// A aclTerm is one condition: the client is in one of from, or the
// connection begins with a TLS ClientHello, or something that is not known.
type aclTerm struct {
	from    []netip.Prefix
	hello   bool
	not     bool
	unknown bool
}

// aclRule is tcp-request connection|content accept|reject [if ...].
type aclRule struct {
	syntax.Statement
	accept bool
	always bool
	term   aclTerm
}

func (p *proxy) acl(d *draft.Draft, owner *draft.LB, st syntax.Statement) {
	term := readTerm(st.Words[min(2, len(st.Words)):])
	if old, ok := p.acls[st.Arg(1)]; ok && !old.unknown && !term.unknown && !old.hello && !term.hello {
		old.from = append(slices.Clone(old.from), term.from...) // lines of one name add up
		term = old
	}
	p.acls[st.Arg(1)] = term
	if term.unknown {
		d.Note(owner, st, "only source addresses and TLS ClientHellos are told apart; write allow and deny with prefixes")
	}
}

// readTerm reads src 10.0.0.0/8 ... and req.ssl_hello_type 1.
func readTerm(words []string) aclTerm {
	if len(words) == 0 {
		return aclTerm{unknown: true}
	}
	switch words[0] {
	case "src":
		var t aclTerm
		for _, w := range words[1:] {
			if w == "--" || w == "-n" {
				continue
			}
			prefix, ok := draft.ReadPrefix(w)
			if !ok {
				return aclTerm{unknown: true}
			}
			t.from = append(t.from, prefix)
		}
		t.unknown = len(t.from) == 0
		return t
	case "req_ssl_hello_type", "req.ssl_hello_type", "req_ssl_ver", "req.ssl_ver":
		return aclTerm{hello: true}
	case "always_true":
		return aclTerm{from: draft.Everybody()}
	}
	return aclTerm{unknown: true}
}

// condition reads if|unless and what follows: one term, or several joined by or.
func (p *proxy) condition(words []string) (term aclTerm, always bool) {
	if len(words) == 0 {
		return aclTerm{}, true
	}
	unless := words[0] == "unless"
	words = words[1:]
	var terms []aclTerm
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
		var t aclTerm
		switch {
		case w == "{":
			end := slices.Index(words, "}")
			if end < 0 {
				return aclTerm{unknown: true}, false
			}
			t, words = readTerm(words[:end]), words[end+1:]
		case w == "TRUE":
			t = aclTerm{from: draft.Everybody()}
		case w == "LOCALHOST":
			t = aclTerm{from: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}}
		default:
			var ok bool
			if t, ok = p.acls[w]; !ok {
				t = aclTerm{unknown: true}
			}
		}
		t.not = t.not != not
		t.unknown = t.unknown || !joined // side by side means and
		joined = false
		terms = append(terms, t)
	}
	if len(terms) == 0 {
		return aclTerm{unknown: true}, false
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
func (p *proxy) request(d *draft.Draft, owner *draft.LB, st syntax.Statement) {
	switch st.Arg(1) {
	case "inspect-delay":
		p.inspect = st
		return
	case "connection", "content", "session":
	default:
		d.Note(owner, st, "is not known")
		return
	}
	rest := st.Words[min(3, len(st.Words)):]
	switch st.Arg(2) {
	case "accept", "reject":
		term, always := p.condition(rest)
		if term.unknown {
			d.Note(owner, st, "connections are told apart by source address and TLS ClientHello only; write allow and deny with prefixes")
			return
		}
		if term.hello {
			// accept if hello, reject unless hello
			if term.not != (st.Arg(2) == "reject") {
				d.Note(owner, st, "requireTLS lets in what begins with a TLS ClientHello, never the contrary")
				return
			}
			p.hello = st
			p.refuse = p.refuse || st.Arg(2) == "reject"
			return
		}
		if always && st.Arg(1) == "content" && p.hello.Line != 0 {
			p.refuse = p.refuse || st.Arg(2) == "reject"
			return
		}
		p.rules = append(p.rules, aclRule{Statement: st, accept: st.Arg(2) == "accept", always: always, term: term})
	case "expect-proxy":
		p.LB.AcceptProxy = true
		rest = st.Words[min(4, len(st.Words)):]
		term, always := p.condition(rest)
		if always || term.unknown || term.not || term.hello {
			d.Advise(owner, st, "the PROXY header is believed from everybody; write the prefixes of the senders in acceptProxyFrom below")
			return
		}
		p.LB.AcceptProxyFrom = append(p.LB.AcceptProxyFrom, term.from...)
	default:
		d.Note(owner, st, "connections are neither counted nor rewritten; maxconn limits them")
	}
}

// access turns the rules, of which the first that fits decides, into allow
// and deny, of which deny wins.
func (p *proxy) access(d *draft.Draft) {
	s := p.LB
	var accepted []aclRule
	for i, r := range p.rules {
		last := i == len(p.rules)-1
		switch {
		case r.always && r.accept && last:
		case r.always && !r.accept && last && len(accepted) > 0:
			for _, a := range accepted {
				s.Allow = append(s.Allow, a.term.from...)
			}
			accepted = nil
		case r.always && !r.accept:
			s.Refused = r.Place.String() + " rejects every connection"
		case r.always:
			d.Note(s, r.Statement, "lets everybody in before the lines below it can refuse; remove either")
			return
		case r.accept && r.term.not:
			d.Note(s, r.Statement, "write it as allow and deny, of which deny wins")
		case r.accept:
			accepted = append(accepted, r)
		case r.term.not && len(s.Allow) > 0:
			d.Note(s, r.Statement, "is a second list of who may come in; make it one list at allow")
		case r.term.not:
			s.Allow = append(s.Allow, r.term.from...)
			for _, a := range accepted {
				s.Allow = append(s.Allow, a.term.from...)
			}
			accepted = nil
		default:
			s.Deny = append(s.Deny, r.term.from...)
			for _, a := range accepted {
				if overlap(a.term.from, r.term.from) {
					d.Advise(s, a.Statement, "comes before line %d, which refuses some of these; here deny wins", r.Line)
				}
			}
		}
	}
	if p.hello.Line == 0 {
		if p.inspect.Line != 0 {
			d.Moot(s, p.inspect, "nothing is looked at within that time")
		}
		return
	}
	s.RequireTLS = draft.Span{Value: defaultHello, Set: true}
	if p.inspect.Line != 0 {
		d.ReadSpan(s, p.inspect, units, p.inspect.Arg(2), draft.MinHello, draft.MaxHello, &s.RequireTLS)
	}
	if !p.refuse {
		d.Advise(s, p.hello, "haproxy lets everything else in after the delay, because no line says tcp-request content reject; with requireTLS it is refused")
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
