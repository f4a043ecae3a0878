package haproxy

import (
	"net/netip"
	"slices"
	"strings"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// A term is one test of a condition: the client is in one of from, or the connection begins with a TLS ClientHello, or
// something unknown.
type term struct {
	from    []netip.Prefix
	always  bool // from is everybody
	hello   bool
	not     bool
	unknown bool
	// sets are the clients that are in from and those that are not, once somebody has asked.
	sets *[2]draft.AddrSet
}

func (t term) set() draft.AddrSet {
	if t.always {
		if t.not {
			return draft.AddrSet{}
		}
		return draft.AllAddrs()
	}
	if t.sets[0] == nil {
		t.sets[0] = draft.NewAddrSet(t.from)
		t.sets[1] = t.sets[0].Not()
	}
	if t.not {
		return t.sets[1]
	}
	return t.sets[0]
}

// A condition is what stands behind if or unless: alternatives, of which each is tests that must all be met.
type condition struct {
	anyOf  [][]term
	unless bool
}

// always reports whether a condition without alternatives stands there.
func (c condition) always() bool { return len(c.anyOf) == 0 }

// has reports whether any test of the condition is so.
func (c condition) has(is func(t term) bool) bool {
	return slices.ContainsFunc(c.anyOf, func(all []term) bool { return slices.ContainsFunc(all, is) })
}

func isUnknown(t term) bool { return t.unknown }
func isHello(t term) bool   { return t.hello }

// hello reports whether the condition is a single test for a TLS ClientHello, and whether it asks for one.
func (c condition) hello() (wants, single bool) {
	if len(c.anyOf) == 0 {
		return false, false
	}
	first := c.anyOf[0]
	for _, all := range c.anyOf {
		if len(all) != 1 || !all[0].hello || all[0].not != first[0].not {
			return false, false
		}
	}
	return first[0].not == c.unless, true
}

// rule is what the condition says of clients.
func (c condition) rule(at syntax.Statement, accept bool) []draft.AccessRule {
	r := draft.AccessRule{Statement: at, Accept: accept, Except: c.unless}
	if c.always() {
		r.Set = draft.AllAddrs()
		return []draft.AccessRule{r}
	}
	simple := !c.unless || len(c.anyOf) == 1
	for _, all := range c.anyOf {
		simple = simple && len(all) == 1 && !all[0].always
	}
	if simple { // each alternative is a rule of its own, with the prefixes as they are written
		var list []draft.AccessRule
		for _, all := range c.anyOf {
			r.From, r.Except = all[0].from, c.unless != all[0].not
			list = append(list, r)
		}
		return list
	}
	r.Set = draft.AddrSet{}
	for _, all := range c.anyOf {
		sets := make([]draft.AddrSet, len(all))
		for i, t := range all {
			sets[i] = t.set()
		}
		slices.SortFunc(sets, func(a, b draft.AddrSet) int { return len(a) - len(b) }) // the cheapest order
		for _, set := range sets[1:] {
			sets[0] = sets[0].And(set)
		}
		r.Set = append(r.Set, sets[0]...)
	}
	r.Set = r.Set.Or(nil)
	return []draft.AccessRule{r}
}

func (p *proxy) acl(l draft.Line) {
	t := readTerm(l.Words[min(2, len(l.Words)):])
	t.line = l
	p.acls[l.Arg(1)] = append(p.acls[l.Arg(1)], t)
}

// An aclLine is one line of a named acl, whose lines add up.
type aclLine struct {
	term
	line draft.Line
}

// named is the test of the acl of that name. Its lines are noted if they cannot be understood, which matters only where
// the acl is used.
func (p *proxy) named(name string) term {
	if t, ok := p.known[name]; ok {
		return t
	}
	all := p.acls[name]
	t := term{unknown: len(all) == 0, sets: &[2]draft.AddrSet{}}
	isNever := func(one aclLine) bool { return one.always && one.not }
	lines := slices.DeleteFunc(slices.Clone(all), isNever) // those add nothing
	if len(lines) == 0 {
		t.always, t.not = true, true
	}
	for i, one := range lines {
		switch {
		case one.unknown:
			one.line.Note(onlyAddresses)
			t.unknown = true
		case one.hello != lines[0].hello:
			t.unknown = true
		default:
			t.hello, t.always = one.hello, t.always || one.always
			t.from = append(t.from, lines[i].from...)
		}
	}
	p.known[name] = t
	return t
}

const onlyAddresses = "only source addresses and TLS ClientHellos are told apart; write allow and deny with prefixes"

// anyTLS are the tests of a ClientHello's version that all of TLS passes: 3.1 is TLS 1.0.
var anyTLS = []string{"gt 3", "gt 3.0", "ge 3", "ge 3.0", "ge 3.1"}

// readTerm reads src 10.0.0.0/8 ... and req.ssl_hello_type 1.
func readTerm(words []string) (l aclLine) {
	l.sets = &[2]draft.AddrSet{}
	if len(words) == 0 {
		l.unknown = true
		return l
	}
	switch words[0] {
	case "src":
		for i, w := range words[1:] {
			before := words[i]
			if w == "--" || w == "-n" || w == "-i" || w == "-m" || w == "ip" && before == "-m" {
				continue
			}
			prefix, ok := draft.ReadPrefix(w)
			l.unknown = l.unknown || !ok
			l.from = append(l.from, prefix)
		}
		l.unknown = l.unknown || len(l.from) == 0
	case "req_ssl_hello_type", "req.ssl_hello_type":
		l.hello = true
		l.unknown = len(words) != 2 || words[1] != "1"
	case "req_ssl_ver", "req.ssl_ver":
		l.hello = true
		l.unknown = len(words) > 1 && !slices.Contains(anyTLS, strings.Join(words[1:], " "))
	case "always_true":
		l.always = true
	case "always_false":
		l.always, l.not = true, true
	default:
		l.unknown = true
	}
	return l
}

// condition reads if|unless and what follows: tests side by side must all be met, and or separates alternatives.
func (p *proxy) condition(words []string) (c condition, ok bool) {
	if len(words) == 0 {
		return c, true
	}
	if words[0] != "if" && words[0] != "unless" || len(words) == 1 {
		return c, false
	}
	c.unless = words[0] == "unless"
	var all []term
	end := func() bool {
		some := len(all) > 0
		c.anyOf, all = append(c.anyOf, all), nil
		return some
	}
	for words = words[1:]; len(words) > 0; {
		if w := words[0]; w == "or" || w == "||" || w == "OR" {
			if !end() {
				return c, false
			}
			words = words[1:]
			continue
		}
		t, rest, ok := p.term(words)
		if !ok {
			return c, false
		}
		all, words = append(all, t), rest
	}
	return c, end()
}

// term reads one test at the beginning of words: [!] name, or [!] { test }.
func (p *proxy) term(words []string) (t term, rest []string, ok bool) {
	w, rest := words[0], words[1:]
	not := false
	for strings.HasPrefix(w, "!") {
		not, w = !not, w[1:]
	}
	if w == "" && len(rest) > 0 {
		w, rest = rest[0], rest[1:]
	}
	_, isNamed := p.acls[w]
	switch {
	case w == "{":
		end := slices.Index(rest, "}")
		if end < 0 {
			return t, nil, false
		}
		t, rest = readTerm(rest[:end]).term, rest[end+1:]
	case isNamed:
		t = p.named(w)
	case w == "TRUE" || w == "WAIT_END":
		t.always = true
	case w == "FALSE":
		t.always, t.not = true, true
	case w == "LOCALHOST":
		t.sets = &[2]draft.AddrSet{}
		t.from = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	default:
		t = p.named(w)
	}
	t.not = t.not != not
	return t, rest, true
}

// stages are the lists of rules that a connection passes one after the other.
var stages = []string{"connection", "session", "content"}

// request reads a tcp-request line.
func (p *proxy) request(l draft.Line) {
	stage := slices.Index(stages, l.Arg(1))
	action := l.Arg(2)
	switch {
	case l.Arg(1) == "inspect-delay":
		p.inspect = l.Statement
	case stage < 0:
		l.Note(draft.IsUnknown)
	case action == "accept" || action == "reject" || action == "silent-drop":
		p.ruleLines = append(p.ruleLines, ruleLine{l, stage})
	case action == "expect-proxy":
		p.AcceptProxy = true
		p.proxyLines = append(p.proxyLines, l)
	case slices.ContainsFunc(harmless, func(prefix string) bool { return strings.HasPrefix(action, prefix) }):
		l.Note("connections are neither counted nor rewritten; maxconn limits them")
	default:
		p.refuse("%s does to connections what is not possible here", l.Place)
	}
}

// harmless begin the actions that neither refuse a connection nor lead it elsewhere.
var harmless = []string{
	"track-sc", "sc-", "sc0-", "sc1-", "sc2-", "set-var", "unset-var", "capture", "log", "set-log-level", "set-priority",
	"set-mark", "set-tos", "set-nice", "send-spoe-group", "set-fc-", "set-bc-",
}

// A ruleLine is tcp-request connection|session|content accept|reject [if ...].
type ruleLine struct {
	draft.Line
	stage int
}

// expectProxy reads who sends the PROXY header.
func (p *proxy) expectProxy(l draft.Line) {
	c, ok := p.condition(l.Words[min(4, len(l.Words)):])
	if ok && !c.always() && !c.unless && !c.has(func(t term) bool { return t.unknown || t.hello || t.not || t.always }) &&
		!slices.ContainsFunc(c.anyOf, func(all []term) bool { return len(all) > 1 }) {
		for _, all := range c.anyOf {
			p.AcceptProxyFrom = append(p.AcceptProxyFrom, all[0].from...)
		}
		return
	}
	if ok && c.always() {
		l.Advise("the PROXY header is believed from everybody; write the prefixes of the senders in acceptProxyFrom below")
		return
	}
	p.refuse("%s believes the PROXY header of some clients, and who they are is not understood", l.Place)
}

// access reads the rules, of which the first that fits decides, once for each stage.
func (p *proxy) access() {
	for _, l := range p.proxyLines {
		p.expectProxy(l)
	}
	if p.AcceptProxy {
		for _, l := range p.ruleLines {
			if stages[l.stage] == "connection" && len(l.Words) > 3 {
				p.refuse("%s looks at who sends the PROXY header, while allow and deny look at the client that it names: "+
					"write acceptProxyFrom with the senders, and let nobody else reach the port", l.Place)
			}
		}
	}
	p.rules = make([][]draft.AccessRule, len(stages))
	decided := make([]bool, len(stages)) // every client is accepted or refused already
	seen := map[string]bool{}
	for _, l := range p.ruleLines {
		accept := l.Arg(2) == "accept"
		if text := l.Text(); decided[l.stage] || seen[text] {
			continue // never reached, or never fits
		} else {
			seen[text] = true
		}
		c, ok := p.condition(l.Words[3:])
		wants, single := c.hello()
		switch {
		case (!ok || c.has(isUnknown)) && accept:
			l.Note("was left out, so that nobody comes in by it; connections are told apart by source address and " +
				"TLS ClientHello only: write allow and deny with prefixes")
		case !ok || c.has(isUnknown):
			p.refuse("%s refuses some connections, and which is not understood: they are told apart by source address "+
				"and TLS ClientHello only", l.Place)
		case single && wants == accept: // accept if it is one, or reject unless it is
			p.hello = l.Statement
			if slices.ContainsFunc(p.rules[l.stage], func(r draft.AccessRule) bool { return r.Accept }) {
				l.Advise("requireTLS is for every client, also for those whom a line before lets in without it")
			}
			p.refusesOther = p.refusesOther || !accept
			decided[l.stage] = accept
		case single && accept:
			l.Note("requireTLS lets in what begins with a TLS ClientHello, never the contrary")
		case c.has(isHello):
			p.refuse("%s refuses connections by their TLS ClientHello; "+
				"requireTLS lets in what begins with one, never the contrary", l.Place)
		default:
			p.rules[l.stage] = append(p.rules[l.stage], c.rule(l.Statement, accept)...)
			decided[l.stage] = c.always()
		}
	}
	if p.hello.Line != 0 { // what is no ClientHello comes to the end of the rules
		for _, l := range p.ruleLines {
			p.refusesOther = p.refusesOther || l.Arg(2) != "accept" && len(l.Words) == 3
		}
	}
}

// limitAccess gives the load balancer its lists. A backend's rules come after its frontend's.
func (p *proxy) limitAccess(d *draft.Draft, backend *proxy) {
	all := slices.Clone(p.rules)
	if backend != nil {
		all = append(all, backend.rules...)
		if backend.hello.Line != 0 {
			p.hello, p.refusesOther = backend.hello, p.refusesOther || backend.refusesOther
		}
		if p.inspect.Line == 0 {
			p.inspect = backend.inspect
		}
	}
	var refused string
	if p.Allow, p.Deny, refused = draft.Access(all...); refused != "" {
		p.refuse("%s", refused)
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
	if !p.refusesOther {
		d.Advise(p.LB, p.hello, "haproxy lets everything else in after the delay, "+
			"because no line says tcp-request content reject; with requireTLS it is refused")
	}
}
