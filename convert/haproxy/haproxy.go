package haproxy

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// Grammar is that of haproxy.cfg.
var Grammar = syntax.Grammar{Comments: "#", Inside: true, Escapes: true, Letters: true}

var units = draft.Units{Bare: time.Millisecond, Named: map[string]time.Duration{
	"us": time.Microsecond, "ms": time.Millisecond, "s": time.Second, "m": time.Minute, "h": time.Hour,
	"d": 24 * time.Hour,
}}

// What haproxy means if it says nothing, and what we write for what has no equal.
const (
	defaultInter       = 2 * time.Second
	defaultRise        = 2
	defaultFall        = 3
	defaultHello       = 5 * time.Second
	defaultPersistence = 30 * time.Minute
)

// sectionWords begin a section, at whatever column.
var sectionWords = []string{
	"global", "defaults", "frontend", "backend", "listen", "peers", "resolvers", "userlist", "mailers", "cache", "program",
	"ring", "log-forward", "log-profile", "fcgi-app", "http-errors", "crt-store", "traces", "acme",
}

// A section is a header with its lines. The lines of a defaults section are those of every section that it is for.
type section struct {
	syntax.Statement
	lines, defaults []syntax.Statement
	// conditional is the .if that decides about the section or some of its lines.
	conditional syntax.Statement
}

// inherit takes from defaults that a condition decides about them.
func (s *section) inherit(defaults section) {
	if s.conditional.Line == 0 {
		s.conditional = defaults.conditional
	}
}

func (s section) all() []syntax.Statement { return append(slices.Clone(s.defaults), s.lines...) }

// checkRules are the words of http-check and tcp-check that make a list, which sections do not share with defaults.
var checkRules = []string{"connect", "send", "send-binary", "send-lf", "send-binary-lf", "expect", "comment", "set-var",
	"set-var-fmt", "unset-var"}

// replaces reports whether lines of the section itself stand in the place of st, a line of its defaults.
func (s section) replaces(st syntax.Statement) bool {
	kind := st.Arg(0)
	if kind != "http-check" && kind != "tcp-check" || !slices.Contains(checkRules, st.Arg(1)) {
		return false
	}
	return slices.ContainsFunc(s.lines, func(own syntax.Statement) bool {
		return own.Arg(0) == kind && slices.Contains(checkRules, own.Arg(1)) ||
			kind == "http-check" && own.Arg(0) == "option" && own.Arg(1) == "httpchk"
	})
}

// mode is http or tcp, or whatever else the last line about it says.
func (s section) mode() string {
	mode := "tcp"
	for _, st := range s.all() {
		if st.Arg(0) == "mode" {
			mode = st.Arg(1)
		}
	}
	return mode
}

// branches are the words that decide about lines, and are in no section themselves.
var branches = []string{".if", ".elif", ".else", ".endif"}

// split cuts the file into sections; first are the lines before them.
func split(list []syntax.Statement) (first []syntax.Statement, sections []section, err error) {
	const most = 10 * draft.MaxStatements
	var last section // the latest defaults
	named := map[string]section{}
	inherited := 0
	var open []syntax.Statement // the .if whose .endif is still to come
	for _, st := range list {
		switch st.Words[0] {
		case ".if":
			open = append(open, st)
		case ".endif":
			open = open[:max(0, len(open)-1)]
		}
		if !slices.Contains(sectionWords, st.Words[0]) {
			if len(sections) == 0 || sections[len(sections)-1].File != st.File {
				first = append(first, st)
				continue
			}
			now := &sections[len(sections)-1]
			now.lines = append(now.lines, st)
			if len(open) > 0 && now.conditional.Line == 0 && !slices.Contains(branches, st.Words[0]) {
				now.conditional = open[0]
			}
			continue
		}
		if n := len(sections); n > 0 && sections[n-1].Words[0] == "defaults" {
			last = sections[n-1]
			named[last.Arg(1)] = last
		}
		s := section{Statement: st}
		if len(open) > 0 {
			s.conditional = open[0]
		}
		switch i := slices.Index(st.Words, "from"); {
		case i > 0 && i+1 < len(st.Words):
			s.defaults = named[st.Words[i+1]].all()
			s.inherit(named[st.Words[i+1]])
		case st.Words[0] != "defaults":
			s.defaults = last.all()
			s.inherit(last)
		}
		if inherited += len(s.defaults); inherited > most {
			return nil, nil, fmt.Errorf("%s: the defaults of all sections together are more than %d lines; "+
				"convert fewer sections at once", st.Place, most)
		}
		sections = append(sections, s)
	}
	return first, sections, nil
}

var variable = regexp.MustCompile(`\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?`)

// withVariables is list with the values that setenv gives in the places of their names, in the lines below it. Secrets
// stay names, and so do the variables of haproxy's own environment.
func withVariables(list []syntax.Statement) []syntax.Statement {
	const mostGrown = 1 << 20
	values, grown := map[string]string{}, 0
	expand := func(ref string) string {
		v, ok := values[variable.FindStringSubmatch(ref)[1]]
		if grown += len(v); !ok || grown > mostGrown {
			return ref
		}
		return v
	}
	out := slices.Clone(list)
	for i, st := range out {
		out[i].Words = slices.Clone(st.Words)
		for j, w := range st.Words {
			if strings.Contains(w, "$") {
				out[i].Words[j] = variable.ReplaceAllStringFunc(w, expand)
			}
		}
		if w := out[i].Words; (w[0] == "setenv" || w[0] == "presetenv") && len(w) == 3 && !syntax.IsSecretName(w[1]) {
			values[w[1]] = w[2]
		}
	}
	return out
}

// Read adds what the statements of a haproxy.cfg say to d.
func Read(d *draft.Draft, list []syntax.Statement) error {
	first, sections, err := split(withVariables(list))
	if err != nil {
		return err
	}
	for _, st := range first {
		d.Note(nil, st, "stands before the first section")
	}
	backends, others := map[string]section{}, map[string]section{}
	for _, s := range sections {
		if s.Words[0] == "backend" {
			backends[s.Arg(1)] = s
		}
		if s.Words[0] == "backend" || s.Words[0] == "listen" {
			others[s.Arg(1)] = s
		}
	}
	used := map[string]bool{}
	shared := 0 // lines of backends, read once for each frontend that uses them
	for _, s := range sections {
		switch s.Words[0] {
		case "global":
			readGlobal(d, s)
		case "defaults", "backend":
		case "resolvers":
			readResolvers(d, s)
		case "listen", "frontend":
			const most = 3 * draft.MaxStatements // more than fit into what our loader reads
			if shared += readFrontend(d, s, backends, others, used); shared > most {
				return fmt.Errorf("%s: the backends of all frontends together are more than %d lines; "+
					"convert fewer frontends at once", s.Place, most)
			}
		default:
			r, ok := foreignSections[s.Words[0]]
			if !ok {
				r = draft.Remark{Moot: true, Text: draft.IsHTTP}
			}
			d.NoteAll(nil, s.Statement, r.Moot, "%s", r.Text)
			d.NoteWithin(nil, s.lines, s.Place, r.Moot)
		}
	}
	for _, s := range sections {
		if s.Words[0] == "backend" && !used[s.Arg(1)] {
			why := "no frontend in mode tcp uses it"
			if s.mode() != "tcp" {
				why = "is in mode " + s.mode() + "; only TCP is carried"
			}
			d.Note(nil, s.Statement, "%s", why)
			d.NoteWithin(nil, s.lines, s.Place, false)
		}
	}
	for _, lb := range d.LoadBalancers {
		if lb.Log != "" { // the share belongs to the target, which any section may name
			lb.LogEvery = d.LogEvery
		}
	}
	return nil
}

// foreignSections are the kinds of sections that are not carried over; all others are for HTTP.
var foreignSections = draft.NewRemarks(
	draft.Remark{Keywords: "peers", Text: "tables of clients are not shared between nodes; " +
		"scheduler: sh chooses the same server on every node"},
	draft.Remark{Keywords: "mailers", Text: noMail},
	draft.Remark{Keywords: "program", Text: "no program is started"},
	draft.Remark{Keywords: "userlist", Moot: true, Text: "nobody logs in over HTTP; admin.users may see the page"},
	draft.Remark{Keywords: "ring log-forward log-profile traces", Moot: true, Text: draft.IsLogging},
	draft.Remark{Keywords: "crt-store acme", Moot: true, Text: draft.IsTLS},
)

// readFrontend reads a frontend or listen section, with the backend that it uses, and reports how many lines that has.
func readFrontend(d *draft.Draft, s section, backends, others map[string]section, used map[string]bool) (lines int) {
	if s.mode() != "tcp" {
		readOtherMode(d, s)
		return 0
	}
	f := newProxy(d, s, others)
	to := f.target()
	var back *proxy
	if own := s.Words[0] == "listen"; to != "" && !(own && len(f.uses) == 0) {
		section, ok := backends[to]
		switch {
		case !ok:
			f.refuse("its backend %s is not in these files", to)
		case section.mode() != "tcp":
			f.refuse("its backend %s is in mode %s", to, section.mode())
		}
		if ok {
			used[to] = true
			lines = len(section.lines) + len(section.defaults)
			back = newProxy(d, section, others)
			f.join(back)
		}
	} else if to == "" && !own {
		f.refuse("it has no default_backend")
	}
	f.limitAccess(d, back)
	if len(f.Binds) == 0 {
		f.refuse("it listens on no address and port")
	}
	d.LoadBalancers = append(d.LoadBalancers, f.LB)
	return lines
}

// readOtherMode notes a section that is not in mode tcp.
func readOtherMode(d *draft.Draft, s section) {
	why := "is in mode " + s.mode() + ", which the defaults say; TCP is carried, and nothing of HTTP is read: " +
		"write mode tcp here if that does, and convert again"
	for _, st := range s.lines {
		switch st.Words[0] {
		case "mode":
			why = "is in mode " + s.mode() + "; write mode tcp if carrying it unread does, and convert again"
		case "stats", "monitor-uri":
			readStats(d, s)
			return
		}
	}
	p := &proxy{LB: &draft.LB{Statement: s.Statement, Name: s.Arg(1), Lines: s.lines}}
	for _, st := range s.lines {
		if st.Words[0] == "bind" { // nobody else is served there
			p.bind(draft.Line{Draft: draft.New(), Statement: st})
		}
	}
	p.Refused, p.Stays, d.GoesOn = "it "+why, true, true
	d.LoadBalancers = append(d.LoadBalancers, p.LB)
}

// readResolvers reads who is asked for names.
func readResolvers(d *draft.Draft, s section) {
	for _, l := range d.Lines(nil, s.lines) {
		switch l.Words[0] {
		case "nameserver":
			l.AddNameserver(strings.TrimPrefix(strings.TrimPrefix(l.Arg(2), "udp@"), "tcp@"))
		case "hold":
			if l.Arg(1) == "valid" {
				l.ReadTTL(units, l.Arg(2))
				continue
			}
			l.Moot("the last good answer stays until there is another")
		default:
			if !l.Remark(resolverRemarks, l.Words[0]) {
				l.Note(draft.IsUnknown)
			}
		}
	}
}

// resolverRemarks are the keywords of resolvers that are noted and nothing else.
var resolverRemarks = draft.NewRemarks(
	draft.Remark{Keywords: "parse-resolv-conf", Moot: true, Text: "is so where no nameserver is named"},
	draft.Remark{Keywords: "resolve_retries timeout accepted_payload_size", Moot: true, Text: draft.IsTuning},
)

// readGlobal notes everything: it is about the process.
func readGlobal(d *draft.Draft, s section) {
	for _, l := range d.Lines(nil, s.lines) {
		if l.Words[0] == "log" {
			logTarget(l)
		} else if !l.Remark(globalRemarks, l.Words[0]) {
			l.Moot(draft.IsProcess)
		}
	}
}

// facilities are those that our loader takes.
const facilities = " user daemon local0 local1 local2 local3 local4 local5 local6 local7 "

// logTarget reads log target [len n] [format x] [sample x] facility [level [minlevel]]: where lines about connections
// go.
func logTarget(l draft.Line) {
	words := l.Words[2:]
	var every draft.Number
	for len(words) > 1 && slices.Contains([]string{"len", "format", "sample", "profile"}, words[0]) {
		if words[0] == "sample" {
			every = sampled(l, words[1])
		}
		words = words[2:]
	}
	word, to := l.Arg(1), ""
	switch udp := strings.TrimPrefix(strings.TrimPrefix(word, "udp@"), "udp4@"); {
	case word == "/dev/log":
		to = "syslog"
	case word == "stderr" || word == "stdout":
		to = "stderr"
	case strings.HasPrefix(word, "/"):
		to = "unix:" + word
	default:
		host, tail := draft.SplitPort(udp)
		a, ok := draft.ReadAddr(host)
		port, okPort := draft.ReadPort(tail)
		if tail == "" {
			port, okPort = syslogPort, true
		}
		if ok && okPort {
			to = "udp://" + netip.AddrPortFrom(a, port).String()
		}
	}
	// Lines about connections are of the level info, which a stricter one leaves out.
	quiet := len(words) > 1 && words[1] != "info" && words[1] != "debug"
	switch {
	case quiet:
		l.Moot("gets no lines about connections in haproxy either")
	case to == "":
		l.Note("is no place where lines are written; write log: {connections: ...}")
	case l.LogTo == to: // the first one has said how
	case l.LogTo != "":
		l.Note("is a second log; lines about connections go to the first one alone")
	default:
		l.LogTo, l.LogEvery = to, every
		if len(words) > 0 && strings.Contains(facilities, " "+words[0]+" ") {
			l.LogFacility = words[0]
		}
	}
}

// sampled reads ranges:size, such as 1:10 or 2-3,8:20: the places of the lines that are written, of so many.
func sampled(l draft.Line, word string) draft.Number {
	ranges, tail, _ := strings.Cut(word, ":")
	size, err := strconv.Atoi(tail)
	places, ok := draft.ReadRanges(ranges)
	wanted := 0
	for _, r := range places {
		wanted += r.To - r.From + 1
	}
	if err != nil || !ok || wanted < 1 || size < wanted || size > draft.MaxConns {
		l.Note("sample %s is no share; write logEvery at the load balancers", word)
		return draft.Number{}
	}
	if size%wanted != 0 {
		l.Advise("sample %s is a share of %d in %d, and became one in %d", word, wanted, size, size/wanted)
	}
	return draft.Number{Value: size / wanted, Set: size/wanted > 1}
}

// syslogPort is that of syslog over UDP (RFC 5426, section 3.3).
const syslogPort = 514

// globalRemarks are the keywords of global that are about more than the process.
var globalRemarks = draft.NewRemarks(
	draft.Remark{Keywords: "log-*", Moot: true, Text: draft.IsLogging},
	draft.Remark{Keywords: "maxconn", Text: "limits the whole process; write maxconn at the load balancers that need it"},
	draft.Remark{Keywords: "stats", Moot: true,
		Text: "`appliance status` talks to a socket of its own, which only root may open"},
	draft.Remark{Keywords: "ssl-* ca-base crt-base key-base tune.ssl.default-dh-param", Moot: true, Text: draft.IsTLS},
	draft.Remark{Keywords: "tune.* nb* max* ulimit-n cpu-map spread-checks", Moot: true, Text: draft.IsTuning},
	draft.Remark{Keywords: "setenv presetenv unsetenv resetenv", Moot: true,
		Text: "its value stands where its name stood, unless it is a secret"},
	draft.Remark{Keywords: "lua-* external-check insecure-fork-wanted", Text: "nothing is loaded or run from it"},
)

// Keywords lists the words of haproxy.cfg that are known, and what becomes of them.
func Keywords() []draft.Keyword {
	bindWords := strings.Fields(silentOfBind + silentWithValueOfBind)
	return slices.Concat(
		draft.Keywords("sections", []string{"defaults", "frontend", "backend", "listen", "resolvers"}, foreignSections),
		draft.Keywords("resolvers", []string{"nameserver", "hold"}, resolverRemarks),
		draft.Keywords("global", []string{"log"}, globalRemarks),
		draft.Keywords("defaults, frontend, backend, listen", draft.Words(lines), remarks, refusals),
		draft.Keywords("option", carriedOptions, optionRemarks),
		draft.Keywords("bind", []string{"accept-proxy", "maxconn"}, bindRemarks,
			draft.NewRemarks(draft.Remark{Keywords: strings.Join(bindWords, " "), Moot: true, Text: draft.IsTuning})),
		draft.Keywords("server, default-server", draft.Words(parameters),
			draft.NewRemarks(draft.Remark{Keywords: droppedWithValue, Text: "the server is carried over without it"})),
	)
}
