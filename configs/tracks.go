package configs

import (
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"appliance/balancer"
	"appliance/mask"
)

// A TrackEntry is one entry of tracks: a program or a check that says whether this
// node is fit to hold.
type TrackEntry struct {
	Name string
	// Exec is the program with its arguments. It is empty where Check is meant,
	// which goes to Address.
	Exec []string
	// User is who Exec runs as; empty means nobody where that is possible.
	User           string
	Check          balancer.Check
	Address        netip.AddrPort
	Inter, Timeout time.Duration
	Rise, Fall     int
	// Weight is what a failure takes off this node's fitness to hold; 0 bars the
	// node from holding.
	Weight int
	Origin Origin
}

// A HookEntry is one entry of hooks: a program, or a web server at URL, that gets
// the events in On.
type HookEntry struct {
	On      []string
	Exec    []string
	User    string // who Exec runs as, as in a TrackEntry
	URL     string
	Timeout time.Duration
	Origin  Origin
}

// ProgramsOfOthers reports whether checks, tracks or hooks run programs as another user than root, which takes
// capabilities.
func (c *Config) ProgramsOfOthers() bool {
	return c.programs(func(user string) bool { return !isRoot(user) })
}

// ProgramsOfRoot reports whether some of them are to run as root.
func (c *Config) ProgramsOfRoot() bool { return c.programs(isRoot) }

func isRoot(user string) bool { return user == "root" || user == "0" }

// programs reports whether there is a program whose user satisfies of.
func (c *Config) programs(of func(user string) bool) bool {
	has := func(exec []string, user string) bool { return len(exec) > 0 && of(user) }
	for _, lb := range c.LoadBalancers {
		checks := func(be BackendEntry) bool { return be.Check != nil && has(be.Check.Exec, be.Check.User) }
		if has(lb.Check.Exec, lb.Check.User) || slices.ContainsFunc(lb.Backends, checks) {
			return true
		}
	}
	return slices.ContainsFunc(c.Tracks, func(t TrackEntry) bool { return has(t.Exec, t.User) }) ||
		slices.ContainsFunc(c.Hooks, func(h HookEntry) bool { return has(h.Exec, h.User) })
}

const (
	keyTracks = "tracks"
	keyHooks  = "hooks"
)

// trackConnectTime bounds connection and handshake of a track's check.
const trackConnectTime = 2 * time.Second

var hookEvents = []string{"holder", "released", "fault", "recovered", "stopped", "backend-up", "backend-down"}

// trackSettings are the keys of tracks and hooks.
func trackSettings() []Setting {
	list := []Setting{
		{Key: "tracks[].name", Type: String,
			Usage: "the name in logs and status",
			Why:   "the program's or the checked address"},
		{Key: "tracks[].exec[]", Type: List,
			Usage: "a program and its arguments; exit code 0 means that this node is fit to hold",
			Why:   "none: a check needs no program"},
		{Key: "tracks[].user", Type: String,
			Usage: "the user that the program runs as, by name or number",
			Why:   "nobody where this process may change users, else its own: a program seldom needs more"},
		{Key: "tracks[].check.address", Type: String,
			Usage: "what is checked instead, address:port",
			Why:   "none: only the operator knows it"},
	}
	list = append(list, requestSettings("tracks[].check.", "")...)
	return append(list, []Setting{
		{Key: "tracks[].inter", Type: Duration, Default: "2s",
			Usage: "time between two runs",
			Why:   "a node's fitness changes seldom"},
		{Key: "tracks[].timeout", Type: Duration,
			Usage: "time for one run, at most inter; then the program is killed with all that it started",
			Why:   "inter: the longest without two runs at once"},
		{Key: "tracks[].rise", Type: Int, Default: "2",
			Usage: "successes in a row that end a failure",
			Why:   "what has just come back may fail again"},
		{Key: "tracks[].fall", Type: Int, Default: "2",
			Usage: "failures in a row that count",
			Why:   "one lost packet is no reason to move"},
		{Key: "tracks[].weight", Type: Int,
			Usage: "what a failure takes off this node's fitness to hold, 1 to 1000",
			Why:   "none: a failure bars this node from holding while another can"},
		{Key: "hooks[].on[]", Type: List, Choices: hookEvents,
			Usage: "the events: holder, released, fault, recovered, stopped, backend-up, backend-down",
			Why:   "none: only the operator knows which events matter"},
		{Key: "hooks[].exec[]", Type: List,
			Usage: "a program and its arguments; it finds the event in APPLIANCE_EVENT and the variables beside it",
			Why:   "none"},
		{Key: "hooks[].user", Type: String,
			Usage: "the user that the program runs as, by name or number",
			Why:   "nobody where this process may change users, else its own: a program seldom needs more"},
		{Key: "hooks[].url", Type: String,
			Usage: "a web server that gets the events by POST as JSON, instead of a program",
			Why:   "none"},
		{Key: "hooks[].timeout", Type: Duration, Default: "10s",
			Usage: "time for one event; up to 100 further events wait",
			Why:   "longer than a slow web server takes"},
	}...)
}

func (b *builder) tracks() []TrackEntry {
	var list []TrackEntry
	for at, i := range b.elements(keyTracks) {
		key := func(name string) string { return at + "." + name }
		t := TrackEntry{Origin: b.origin(at), Exec: b.program(key("exec")), User: b.user(key, "exec")}
		defaultName := fmt.Sprintf("track-%d", i+1)
		checks := b.isSet(key("check"))
		switch {
		case checks && len(t.Exec) > 0:
			b.bad(key("exec"), "and check are two ways to ask; keep one of them")
		case checks:
			t.Check = b.checkRequest(key("check."))
			t.Check.Inter = trackConnectTime
			t.Address = b.trackAddress(key("check."), t.Check.Port)
			defaultName = t.Address.String()
		case len(t.Exec) > 0:
			defaultName = filepath.Base(t.Exec[0])
		case b.lists[key("exec")] == 0:
			b.missing(key("exec"), "is missing; write exec: [/path/of/a/program] or check: {address: ...}")
		}
		t.Name = b.name(key("name"), defaultName)
		for _, other := range list {
			if other.Name == t.Name {
				b.bad(key("name"), "%s is the name of two tracks%s; write another",
					printable(t.Name), otherLine(other.Origin, t.Origin))
			}
		}
		t.Inter = b.duration(key("inter"), 100*time.Millisecond, day)
		if t.Timeout = b.optionalDuration(key("timeout"), 10*time.Millisecond, day); t.Timeout == 0 {
			t.Timeout = t.Inter
			b.show(key("timeout"), formatDuration(t.Timeout), Origin{})
		}
		t.Rise, t.Fall = b.int(key("rise"), 1, 1000), b.int(key("fall"), 1, 1000)
		if b.get(key("weight")).value != "" {
			t.Weight = b.int(key("weight"), 1, 1000)
		}
		if t.Timeout > t.Inter {
			inter := formatDuration(t.Inter)
			b.bad(key("timeout"), "%s is longer than inter, %s, so runs would pile up; write at most %s",
				formatDuration(t.Timeout), inter, inter)
		}
		if time.Duration(max(t.Rise, t.Fall)) > day/max(t.Inter, 1) {
			b.bad(key("fall"), "and rise have to be reached within a day, at one run each %s; write less",
				formatDuration(t.Inter))
		}
		list = append(list, t)
	}
	return list
}

// trackAddress is where a track's check goes.
func (b *builder) trackAddress(prefix string, port uint16) netip.AddrPort {
	value := b.get(prefix + "address").value
	if value == "" {
		b.missing(prefix+"address", "is missing; write what is checked, such as 127.0.0.1:6443")
		return netip.AddrPort{}
	}
	a, own, ok := b.endpoint(prefix+"address", value)
	switch {
	case !ok:
		return netip.AddrPort{}
	case own != 0 && port != 0 && own != port:
		b.bad(prefix+"port", "is %d, but address says %d; write one of them", port, own)
	case own == 0 && port == 0 && b.get(prefix+"type").value != balancer.CheckNone:
		b.bad(prefix+"address", "%s lacks a port; write %s", printable(value), netip.AddrPortFrom(a, 6443))
	}
	at := netip.AddrPortFrom(a, max(own, port))
	b.show(prefix+"address", at.String(), b.origin(prefix+"address"))
	return at
}

// program reads the path of a program and its arguments.
func (b *builder) program(key string) []string {
	var argv, keys []string
	for key, i := range b.elements(key) {
		value := b.get(key).value
		keys = append(keys, key)
		if i == 0 && !filepath.IsAbs(value) {
			b.bad(key, "%s is not an absolute path; begin it with /, and write arguments as further elements",
				printable(value))
		}
		if strings.ContainsRune(value, 0) {
			b.bad(key, "has a zero byte, which no program can be given; remove it")
		}
		argv = append(argv, value)
	}
	for i, shown := range mask.Arguments(argv) {
		b.showMasked(keys[i], shown, argv[i], b.origin(keys[i]))
	}
	return argv
}

// user reads who a program runs as.
func (b *builder) user(key func(string) string, exec string) string {
	name := b.text(key("user"))
	switch {
	case name == "":
	case b.lists[key(exec)] == 0:
		b.bad(key("user"), "is who a program runs as, and there is none; remove it, or write exec")
	case strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == ':' || r == 0x7f }):
		b.bad(key("user"), "%s is not the name of a user; write one that /etc/passwd has, or a number", printable(name))
	}
	return name
}

func (b *builder) hooks() []HookEntry {
	var list []HookEntry
	for at := range b.elements(keyHooks) {
		key := func(name string) string { return at + "." + name }
		h := HookEntry{
			Origin: b.origin(at), Exec: b.program(key("exec")), User: b.user(key, "exec"), URL: b.get(key("url")).value,
		}
		b.showMasked(key("url"), mask.URL(h.URL), h.URL, b.get(key("url")).origin)
		for at := range b.elements(key("on")) {
			event := b.text(at)
			if slices.Contains(h.On, event) {
				b.bad(at, "%s is there twice; remove one of the two", printable(event))
			}
			h.On = append(h.On, event)
		}
		if len(h.On) == 0 {
			b.missing(key("on"), "is missing; write on: [%s], or some of them", orList(hookEvents))
		}
		u, err := url.Parse(h.URL)
		switch {
		case h.URL != "" && b.lists[key("exec")] > 0:
			b.bad(key("url"), "and exec are two ways to tell; keep one of them, or write two hooks")
		case h.URL == "" && b.lists[key("exec")] == 0:
			b.missing(key("exec"), "is missing; write exec: [/path/of/a/program] or url: https://...")
		case h.URL != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https"):
			b.bad(key("url"), "%s is not the URL of a web server; write https://host/path", printable(mask.URL(h.URL)))
		}
		h.Timeout = b.duration(key("timeout"), 100*time.Millisecond, 5*time.Minute)
		list = append(list, h)
	}
	return list
}
