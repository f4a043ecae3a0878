package convert

import (
	"fmt"
	"slices"
	"strings"
)

// The reasons why something has no meaning here.
const (
	isHTTP    = "is for HTTP, and connections are carried unread"
	isLogging = "changes of state are logged to stderr, connections are not"
	isProcess = "is the business of systemd or the kubelet, which starts the appliance"
	isTLS     = "TLS stays between client and server"
	isTuning  = "is found by itself"
	isDNS     = "names are not looked up; servers are given by address"
	isAlways  = "is always so"
	fillIn    = "is still to be filled in; write the value, and convert again"
)

// sections begin with these words, at whatever column.
var haproxySections = []string{
	"global", "defaults", "frontend", "backend", "listen", "peers", "resolvers", "userlist", "mailers", "cache", "program",
	"ring", "log-forward", "log-profile", "fcgi-app", "http-errors", "crt-store", "traces", "acme",
}

// haproxySection is a header with its lines; a defaults section's lines are
// those of every section that it is for.
type haproxySection struct {
	statement
	lines, defaults []statement
}

func (s haproxySection) all() []statement { return append(slices.Clone(s.defaults), s.lines...) }

// mode is http or tcp, or whatever else the last line about it says.
func (s haproxySection) mode() string {
	mode := "tcp"
	for _, st := range s.all() {
		if st.arg(0) == "mode" {
			mode = st.arg(1)
		}
	}
	return mode
}

// haproxySplit cuts the file into sections, after what stands before the first.
func haproxySplit(list []statement) (first []statement, sections []haproxySection, err error) {
	var last []statement // the latest defaults
	named := map[string][]statement{}
	inherited := 0
	for _, st := range list {
		if !slices.Contains(haproxySections, st.words[0]) {
			if len(sections) == 0 {
				first = append(first, st)
			} else {
				now := &sections[len(sections)-1]
				now.lines = append(now.lines, st)
			}
			continue
		}
		if n := len(sections); n > 0 && sections[n-1].words[0] == "defaults" {
			last = sections[n-1].all()
			named[sections[n-1].arg(1)] = last
		}
		s := haproxySection{statement: st}
		switch i := slices.Index(st.words, "from"); {
		case i > 0 && i+1 < len(st.words):
			s.defaults = named[st.words[i+1]]
		case st.words[0] != "defaults":
			s.defaults = last
		}
		if inherited += len(s.defaults); inherited > 10*maxStatements {
			return nil, nil, fmt.Errorf("%s: the defaults of all sections together are more than %d lines; convert fewer sections at once", st.place, 10*maxStatements)
		}
		sections = append(sections, s)
	}
	return first, sections, nil
}

// haproxy reads a haproxy.cfg.
func (d *draft) haproxy(list []statement) error {
	first, sections, err := haproxySplit(list)
	if err != nil {
		return err
	}
	for _, st := range first {
		d.note(nil, st, "stands before the first section")
	}
	backends := map[string]haproxySection{}
	for _, s := range sections {
		if s.words[0] == "backend" {
			backends[s.arg(1)] = s
		}
	}
	used := map[string]bool{}
	for _, s := range sections {
		switch s.words[0] {
		case "global":
			d.haproxyGlobal(s)
		case "defaults", "backend":
		case "listen", "frontend":
			if s.mode() != "tcp" {
				d.haproxyOther(s)
				continue
			}
			f := d.haproxyProxy(s)
			if to := f.target(); to != "" && s.words[0] == "frontend" {
				back, ok := backends[to]
				if ok {
					used[to] = true
					b := d.haproxyProxy(back)
					f.service.take(b.service)
				} else if f.service.refused == "" {
					f.service.refused = "its backend " + to + " is not in these files"
				}
			}
			f.finish(d)
			d.services = append(d.services, f.service)
		default:
			why, moot := haproxyForeign(s.words[0])
			say := d.note
			if moot {
				say = d.moot
			}
			say(nil, s.statement, "%s", why)
			d.within(nil, s.lines, s.place, moot)
		}
	}
	for _, s := range sections {
		if s.words[0] == "backend" && !used[s.arg(1)] {
			why := "no frontend in mode tcp uses it"
			if s.mode() != "tcp" {
				why = "is in mode " + s.mode() + "; only TCP is carried"
			}
			d.note(nil, s.statement, "%s", why)
			d.within(nil, s.lines, s.place, false)
		}
	}
	return nil
}

// haproxyOther notes a section that is not in mode tcp.
func (d *draft) haproxyOther(s haproxySection) {
	why := "is in mode " + s.mode() + ", which the defaults say; TCP is carried, and nothing of HTTP is read: write mode tcp here if that does, and convert again"
	for _, st := range s.lines {
		switch st.words[0] {
		case "mode":
			why = "is in mode " + s.mode() + "; write mode tcp if carrying it unread does, and convert again"
		case "stats", "monitor-uri":
			d.haproxyAdmin(s)
			return
		}
	}
	d.note(nil, s.statement, "%s", why)
	d.within(nil, s.lines, s.place, false)
}

// haproxyGlobal notes everything: it is about the process.
func (d *draft) haproxyGlobal(s haproxySection) {
	for _, st := range s.lines {
		switch w := st.words[0]; {
		case w == "log" || strings.HasPrefix(w, "log-"):
			d.moot(nil, st, isLogging)
		case w == "maxconn":
			d.note(nil, st, "limits the whole process; write maxconn at the load balancers that need it")
		case w == "stats":
			d.moot(nil, st, "`appliance status` talks to a socket of its own, which only root may open")
		case strings.HasPrefix(w, "ssl-") || strings.HasSuffix(w, "-base") || w == "tune.ssl.default-dh-param":
			d.moot(nil, st, isTLS)
		case strings.HasPrefix(w, "tune.") || strings.HasPrefix(w, "nb") || strings.HasPrefix(w, "max") || w == "ulimit-n" || w == "cpu-map" || w == "spread-checks":
			d.moot(nil, st, isTuning)
		case strings.HasPrefix(w, "lua-") || w == "external-check" || w == "insecure-fork-wanted":
			d.note(nil, st, "nothing is loaded or run from it")
		default:
			d.moot(nil, st, isProcess)
		}
	}
}

// haproxyForeign says why a kind of section is not carried over.
func haproxyForeign(kind string) (why string, moot bool) {
	switch kind {
	case "peers":
		return "tables of clients are not shared between nodes; scheduler: sh chooses the same server on every node", false
	case "mailers":
		return "no mail is sent; a hook can run a program on backend-down: hooks: [{on: [backend-down], exec: [/path]}]", false
	case "program":
		return "no program is started", false
	case "resolvers":
		return isDNS, true
	case "userlist":
		return "nobody logs in over HTTP; admin.users may see the page", true
	case "ring", "log-forward", "log-profile", "traces":
		return isLogging, true
	case "crt-store", "acme":
		return isTLS, true
	}
	return isHTTP, true
}

// take makes the statements of a backend part of the load balancer s, which
// its frontend began.
func (s *service) take(b *service) {
	s.scheduler, s.servers, s.check = b.scheduler, b.servers, b.check
	s.persistence, s.retries = b.persistence, b.retries
	s.connect, s.server, s.queue, s.queueAt = b.connect, b.server, b.queue, b.queueAt
	s.maxFails, s.failTimeout = b.maxFails, b.failTimeout
	s.sendProxy, s.onMarkedDown, s.onMarkedUp = b.sendProxy, b.onMarkedDown, b.onMarkedUp
	if s.refused == "" {
		s.refused = b.refused
	}
	s.allow, s.deny = append(s.allow, b.allow...), append(s.deny, b.deny...)
	s.joined = append(s.joined, b)
}
