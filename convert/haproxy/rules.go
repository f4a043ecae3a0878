package haproxy

import (
	"net/netip"
	"slices"
	"strings"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// An aclTerm is one condition: the client is in one of from, or the connection begins with a TLS ClientHello, or
// something unknown.
type aclTerm struct {
	from    []netip.Prefix
	hello   bool
	not     bool
	unknown bool
}

// An aclRule is tcp-request connection|content accept|reject [if ...].
type aclRule struct {
	syntax.Statement
	accept bool
	always bool
	term   aclTerm
}

func (p *proxy) acl(l draft.Line) {
	term := readTerm(l.Words[min(2, len(l.Words)):])
	if old, ok := p.acls[l.Arg(1)]; ok && !old.unknown && !term.unknown && !old.hello && !term.hello {
		old.from = append(slices.Clone(old.from), term.from...) // lines with one name add up
		term = old
	}
	p.acls[l.Arg(1)] = term
	if term.unknown {
		l.Note("only source addresses and TLS ClientHellos are told apart; write allow and deny with prefixes")
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

// condition reads if|unless and what follows: one term, or several joined by or. Without any words it is always so.
func (p *proxy) condition(words []string) (term aclTerm, always bool) {
	if len(words) == 0 {
		return aclTerm{}, true
	}
	unless := words[0] == "unless"
	words = words[1:]
	var terms []aclTerm
	joined := true // by an or before the next term
	for len(words) > 0 {
		if words[0] == "or" || words[0] == "||" {
			joined, words = true, words[1:]
			continue
		}
		t, rest, ok := p.term(words)
		if !ok {
			return aclTerm{unknown: true}, false
		}
		t.unknown = t.unknown || !joined // terms side by side mean and
		joined, words = false, rest
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

// term reads one term at the beginning of words: [!] name, or [!] { test }.
func (p *proxy) term(words []string) (t aclTerm, rest []string, ok bool) {
	w, rest := words[0], words[1:]
	not := strings.HasPrefix(w, "!")
	w = strings.TrimPrefix(w, "!")
	if w == "" && len(rest) > 0 {
		w, rest = rest[0], rest[1:]
	}
	switch w {
	case "{":
		end := slices.Index(rest, "}")
		if end < 0 {
			return aclTerm{}, nil, false
		}
		t, rest = readTerm(rest[:end]), rest[end+1:]
	case "TRUE":
		t = aclTerm{from: draft.Everybody()}
	case "LOCALHOST":
		t = aclTerm{from: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}}
	default:
		if t, ok = p.acls[w]; !ok {
			t = aclTerm{unknown: true}
		}
	}
	t.not = t.not != not
	return t, rest, true
}

// request reads a tcp-request line.
func (p *proxy) request(l draft.Line) {
	switch l.Arg(1) {
	case "inspect-delay":
		p.inspect = l.Statement
		return
	case "connection", "content", "session":
	default:
		l.Note(draft.IsUnknown)
		return
	}
	switch l.Arg(2) {
	case "accept", "reject":
		p.rule(l, l.Arg(2) == "reject")
	case "expect-proxy":
		p.AcceptProxy = true
		term, always := p.condition(l.Words[min(4, len(l.Words)):])
		if always || term.unknown || term.not || term.hello {
			l.Advise("the PROXY header is believed from everybody; " +
				"write the prefixes of the senders in acceptProxyFrom below")
			return
		}
		p.AcceptProxyFrom = append(p.AcceptProxyFrom, term.from...)
	default:
		l.Note("connections are neither counted nor rewritten; maxconn limits them")
	}
}

// rule reads tcp-request connection|content accept|reject.
func (p *proxy) rule(l draft.Line, reject bool) {
	term, always := p.condition(l.Words[3:])
	switch {
	case term.unknown:
		l.Note("connections are told apart by source address and TLS ClientHello only; " +
			"write allow and deny with prefixes")
	case term.hello && term.not != reject: // neither accept if hello nor reject unless hello
		l.Note("requireTLS lets in what begins with a TLS ClientHello, never the contrary")
	case term.hello:
		p.hello = l.Statement
		p.refuse = p.refuse || reject
	case always && l.Arg(1) == "content" && p.hello.Line != 0:
		p.refuse = p.refuse || reject
	default:
		p.rules = append(p.rules, aclRule{Statement: l.Statement, accept: !reject, always: always, term: term})
	}
}

// access turns the rules, of which the first that fits decides, into allow and deny, of which deny wins.
func (p *proxy) access(d *draft.Draft) {
	var accepted []aclRule
	allow := func() {
		for _, a := range accepted {
			p.Allow = append(p.Allow, a.term.from...)
		}
		accepted = nil
	}
	for i, r := range p.rules {
		last := i == len(p.rules)-1
		switch {
		case r.always && r.accept && last:
		case r.always && !r.accept && last && len(accepted) > 0:
			allow()
		case r.always && !r.accept:
			p.Refused = r.Place.String() + " rejects every connection"
		case r.always:
			d.Note(p.LB, r.Statement, "lets everybody in before the lines below it can refuse; remove either")
			return
		case r.accept && r.term.not:
			d.Note(p.LB, r.Statement, "write it as allow and deny, of which deny wins")
		case r.accept:
			accepted = append(accepted, r)
		case r.term.not && len(p.Allow) > 0:
			d.Note(p.LB, r.Statement, "is a second list of who may come in; make it one list at allow")
		case r.term.not:
			p.Allow = append(p.Allow, r.term.from...)
			allow()
		default:
			p.Deny = append(p.Deny, r.term.from...)
			for _, a := range accepted {
				if overlap(a.term.from, r.term.from) {
					d.Advise(p.LB, a.Statement, "comes before line %d, which refuses some of these; here deny wins", r.Line)
				}
			}
		}
	}
	p.requireTLS(d)
}

// requireTLS turns what looks for a TLS ClientHello into requireTLS.
func (p *proxy) requireTLS(d *draft.Draft) {
	if p.hello.Line == 0 {
		if p.inspect.Line != 0 {
			d.Moot(p.LB, p.inspect, "nothing is looked at within that time")
		}
		return
	}
	p.RequireTLS = draft.Span{Value: defaultHello, Set: true}
	if p.inspect.Line != 0 {
		at := draft.Line{Draft: d, Owner: p.LB, Statement: p.inspect}
		at.Span(units, at.Arg(2), draft.MinHello, draft.MaxHello, &p.RequireTLS)
	}
	if !p.refuse {
		d.Advise(p.LB, p.hello, "haproxy lets everything else in after the delay, "+
			"because no line says tcp-request content reject; with requireTLS it is refused")
	}
}

func overlap(a, b []netip.Prefix) bool {
	return slices.ContainsFunc(a, func(x netip.Prefix) bool { return slices.ContainsFunc(b, x.Overlaps) })
}
