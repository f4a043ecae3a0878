package haproxy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// sections begin with these words, at whatever column.
var sectionWords = []string{
	"global", "defaults", "frontend", "backend", "listen", "peers", "resolvers", "userlist", "mailers", "cache", "program",
	"ring", "log-forward", "log-profile", "fcgi-app", "http-errors", "crt-store", "traces", "acme",
}

// section is a header with its lines; a defaults section's lines are
// those of every section that it is for.
type section struct {
	syntax.Statement
	lines, defaults []syntax.Statement
}

func (s section) all() []syntax.Statement { return append(slices.Clone(s.defaults), s.lines...) }

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

// split cuts the file into sections, after what stands before the first.
func split(list []syntax.Statement) (first []syntax.Statement, sections []section, err error) {
	var last []syntax.Statement // the latest defaults
	named := map[string][]syntax.Statement{}
	inherited := 0
	for _, st := range list {
		if !slices.Contains(sectionWords, st.Words[0]) {
			if len(sections) == 0 {
				first = append(first, st)
			} else {
				now := &sections[len(sections)-1]
				now.lines = append(now.lines, st)
			}
			continue
		}
		if n := len(sections); n > 0 && sections[n-1].Words[0] == "defaults" {
			last = sections[n-1].all()
			named[sections[n-1].Arg(1)] = last
		}
		s := section{Statement: st}
		switch i := slices.Index(st.Words, "from"); {
		case i > 0 && i+1 < len(st.Words):
			s.defaults = named[st.Words[i+1]]
		case st.Words[0] != "defaults":
			s.defaults = last
		}
		if inherited += len(s.defaults); inherited > 10*draft.MaxStatements {
			return nil, nil, fmt.Errorf("%s: the defaults of all sections together are more than %d lines; convert fewer sections at once", st.Place, 10*draft.MaxStatements)
		}
		sections = append(sections, s)
	}
	return first, sections, nil
}

// Read reads a haproxy.cfg.
func Read(d *draft.Draft, list []syntax.Statement) error {
	first, sections, err := split(list)
	if err != nil {
		return err
	}
	for _, st := range first {
		d.Note(nil, st, "stands before the first section")
	}
	backends := map[string]section{}
	for _, s := range sections {
		if s.Words[0] == "backend" {
			backends[s.Arg(1)] = s
		}
	}
	used := map[string]bool{}
	for _, s := range sections {
		switch s.Words[0] {
		case "global":
			global(d, s)
		case "defaults", "backend":
		case "listen", "frontend":
			if s.mode() != "tcp" {
				otherMode(d, s)
				continue
			}
			f := newProxy(d, s)
			if to := f.target(); to != "" && s.Words[0] == "frontend" {
				back, ok := backends[to]
				if ok {
					used[to] = true
					b := newProxy(d, back)
					take(f.LB, b.LB)
				} else if f.LB.Refused == "" {
					f.LB.Refused = "its backend " + to + " is not in these files"
				}
			}
			f.finish(d)
			d.Services = append(d.Services, f.LB)
		default:
			why, moot := foreign(s.Words[0])
			say := d.Note
			if moot {
				say = d.Moot
			}
			say(nil, s.Statement, "%s", why)
			d.NoteWithin(nil, s.lines, s.Place, moot)
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
	return nil
}

// otherMode notes a section that is not in mode tcp.
func otherMode(d *draft.Draft, s section) {
	why := "is in mode " + s.mode() + ", which the defaults say; TCP is carried, and nothing of HTTP is read: write mode tcp here if that does, and convert again"
	for _, st := range s.lines {
		switch st.Words[0] {
		case "mode":
			why = "is in mode " + s.mode() + "; write mode tcp if carrying it unread does, and convert again"
		case "stats", "monitor-uri":
			statsPage(d, s)
			return
		}
	}
	d.Note(nil, s.Statement, "%s", why)
	d.NoteWithin(nil, s.lines, s.Place, false)
}

// global notes everything: it is about the process.
func global(d *draft.Draft, s section) {
	for _, st := range s.lines {
		switch w := st.Words[0]; {
		case w == "log" || strings.HasPrefix(w, "log-"):
			d.Moot(nil, st, draft.IsLogging)
		case w == "maxconn":
			d.Note(nil, st, "limits the whole process; write maxconn at the load balancers that need it")
		case w == "stats":
			d.Moot(nil, st, "`appliance status` talks to a socket of its own, which only root may open")
		case strings.HasPrefix(w, "ssl-") || strings.HasSuffix(w, "-base") || w == "tune.ssl.default-dh-param":
			d.Moot(nil, st, draft.IsTLS)
		case strings.HasPrefix(w, "tune.") || strings.HasPrefix(w, "nb") || strings.HasPrefix(w, "max") || w == "ulimit-n" || w == "cpu-map" || w == "spread-checks":
			d.Moot(nil, st, draft.IsTuning)
		case strings.HasPrefix(w, "lua-") || w == "external-check" || w == "insecure-fork-wanted":
			d.Note(nil, st, "nothing is loaded or run from it")
		default:
			d.Moot(nil, st, draft.IsProcess)
		}
	}
}

// foreign says why a kind of section is not carried over.
func foreign(kind string) (why string, moot bool) {
	switch kind {
	case "peers":
		return "tables of clients are not shared between nodes; scheduler: sh chooses the same server on every node", false
	case "mailers":
		return "no mail is sent; a hook can run a program on backend-down: hooks: [{on: [backend-down], exec: [/path]}]", false
	case "program":
		return "no program is started", false
	case "resolvers":
		return draft.IsDNS, true
	case "userlist":
		return "nobody logs in over HTTP; admin.users may see the page", true
	case "ring", "log-forward", "log-profile", "traces":
		return draft.IsLogging, true
	case "crt-store", "acme":
		return draft.IsTLS, true
	}
	return draft.IsHTTP, true
}

// take makes the statements of a backend part of the load balancer s, which
// its frontend began.
func take(s *draft.LB, b *draft.LB) {
	s.Scheduler, s.Servers, s.Check = b.Scheduler, b.Servers, b.Check
	s.Persistence, s.Retries = b.Persistence, b.Retries
	s.Connect, s.Server, s.Queue, s.QueueAt = b.Connect, b.Server, b.Queue, b.QueueAt
	s.MaxFails, s.FailTimeout = b.MaxFails, b.FailTimeout
	s.SendProxy, s.OnMarkedDown, s.OnMarkedUp = b.SendProxy, b.OnMarkedDown, b.OnMarkedUp
	if s.Refused == "" {
		s.Refused = b.Refused
	}
	s.Allow, s.Deny = append(s.Allow, b.Allow...), append(s.Deny, b.Deny...)
	s.Joined = append(s.Joined, b)
}

// Grammar is the grammar of this format.
var Grammar = syntax.Grammar{Comments: "#", Inside: true, Escapes: true, Letters: true}

var units = draft.Units{Bare: time.Millisecond, Named: map[string]time.Duration{
	"us": time.Microsecond, "ms": time.Millisecond, "s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour,
}}

func itoa(port uint16) string { return strconv.Itoa(int(port)) }

// defaultHello is the time for a ClientHello where nobody says another, haproxyInter that between two checks.
const (
	defaultHello = 5 * time.Second
	defaultInter = 2 * time.Second
)
