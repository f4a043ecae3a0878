package convert

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// String is a note as it stands in a comment.
func (n *note) String() string {
	words := n.words
	if len(words) > maxQuote {
		words = words[:maxQuote] + "..."
	}
	return oneLine(fmt.Sprintf("%s: %s: %s", n.place, words, n.text))
}

// maxQuote keeps one endless line from making another.
const maxQuote = 300

// oneLine is s without what would end a comment or disturb a terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// plain are the words that mean in YAML what they are, also within [] and {}.
var plain = regexp.MustCompile(`^[A-Za-z0-9/][A-Za-z0-9/._-]*$`)

// scalar is a word as YAML has it. JSON's strings are YAML's.
func scalar(s string) string {
	if plain.MatchString(s) && !strings.EqualFold(s, "null") {
		return s
	}
	quoted, _ := json.Marshal(s) // a string always can be
	return string(quoted)
}

// pairs of a mapping that is written in one line.
type flow []string

func (f *flow) add(key, value string) { *f = append(*f, key+": "+value) }

func (f *flow) word(key, value string) {
	if value != "" {
		f.add(key, scalar(value))
	}
}

func (f *flow) span(key string, v span) {
	if v.said {
		f.add(key, short(v.d))
	}
}

func (f *flow) count(key string, v count) {
	if v.said {
		f.add(key, strconv.Itoa(v.n))
	}
}

func (f *flow) port(key string, port uint16) {
	if port != 0 {
		f.add(key, strconv.Itoa(int(port)))
	}
}

func (f flow) String() string { return "{" + strings.Join(f, ", ") + "}" }

func list[T any](values []T, text func(T) string) string {
	words := make([]string, len(values))
	for i, v := range values {
		words[i] = text(v)
	}
	return "[" + strings.Join(words, ", ") + "]"
}

func addrs(values []netip.Addr) string {
	return list(values, func(a netip.Addr) string { return scalar(a.String()) })
}

func prefixes(values []netip.Prefix) string {
	return list(values, func(p netip.Prefix) string { return scalar(p.String()) })
}

// page is the text as it grows.
type page struct {
	bytes.Buffer
	d *draft
	p *plan
}

func (w *page) line(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }

// hint writes what is to be said about a key.
func (w *page) hint(indent, key string) {
	for _, h := range w.p.hints[key] {
		w.line("%s# %s", indent, h)
	}
}

// notes writes what is to be decided about a load balancer and about what
// became part of it.
func (w *page) notes(s *service) {
	for _, n := range w.d.notes {
		mine := n.owner == s || slices.Contains(s.joined, n.owner)
		if mine && n.owner != nil && !n.moot && !n.written {
			n.written = true
			w.line("# %s", n)
		}
	}
}

// write makes the text.
func write(d *draft, p *plan, files []File) []byte {
	w := &page{d: d, p: p}
	file := func(n *note) int { return slices.IndexFunc(files, func(f File) bool { return f.Name == n.file }) }
	slices.SortStableFunc(d.notes, func(a, b *note) int { return cmp.Or(cmp.Compare(file(a), file(b)), cmp.Compare(a.line, b.line)) })
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = printable(f.Name)
	}
	w.line("# Made by `appliance convert` of %s.", strings.Join(names, ", "))
	w.line("# A comment with a file and a line is about something that was not carried over, or not as it was.")
	w.line("")
	if len(p.vips) > 0 {
		w.hint("", "vips")
		w.line("vips: %s", addrs(p.vips))
		if d.iface != "" {
			w.line("interface: %s", scalar(d.iface))
		}
	}
	if p.worker {
		w.hint("", "role")
		w.line("role: worker")
	} else {
		w.peers()
	}
	w.admin()
	w.tracks()
	w.hooks()
	w.line("")
	w.hint("", "loadBalancers")
	if len(p.balancers) > 0 {
		w.line("loadBalancers:")
	}
	for i, b := range p.balancers {
		if i > 0 {
			w.line("")
		}
		w.balancer(b)
	}
	w.rest("Not carried over, or not as it was. Decide about these:", false)
	w.rest("Without a meaning here. Nobody has to do anything about these:", true)
	return w.Bytes()
}

func (w *page) peers() {
	if w.p.single {
		w.line("singleNode: true")
	}
	w.hint("", "peers")
	if len(w.p.peers) > 0 {
		w.line("peers:")
	}
	for _, one := range w.p.peers {
		if one.id == "" && (one.port == 0 || one.port == peerPort) {
			w.line("- %s", scalar(one.addr.String()))
			continue
		}
		var f flow
		f.word("id", one.id)
		f.word("address", one.addr.String())
		if one.port != peerPort {
			f.port("port", one.port)
		}
		w.line("- %s", f)
	}
	if len(w.p.peers) > 1 {
		w.line("group:")
		w.hint("  ", "group")
		w.line("  keyFile: /etc/appliance/group.key")
	}
	if w.p.peersAsBackends {
		w.line("addPeersAsBackends: true")
	}
}

func (w *page) admin() {
	a := w.d.admin
	if len(a.listen) == 0 && !a.off {
		return
	}
	w.line("")
	w.hint("", "admin")
	w.line("admin:")
	if a.off {
		w.line("  listen: [off]")
		return
	}
	w.line("  listen: %s", list(a.listen, func(at netip.AddrPort) string { return scalar(at.String()) }))
	if a.path != "" {
		w.line("  path: %s", scalar(a.path))
	}
	if a.hideVersion {
		w.line("  hideVersion: true")
	}
}

func (w *page) tracks() {
	if len(w.d.tracks) == 0 {
		return
	}
	w.line("")
	w.line("tracks:")
	for _, t := range w.d.tracks {
		w.line("- name: %s", scalar(t.name))
		w.line("  exec: %s", list(t.exec, scalar))
		var f flow
		f.span("inter", t.inter)
		f.span("timeout", t.timeout)
		f.count("rise", t.rise)
		f.count("fall", t.fall)
		f.count("weight", t.weight)
		for _, pair := range f {
			w.line("  %s", pair)
		}
	}
}

func (w *page) hooks() {
	if len(w.d.hooks) == 0 {
		return
	}
	w.line("")
	w.line("hooks:")
	for _, h := range w.d.hooks {
		w.line("- {on: [%s], exec: %s}", h.on, list(h.exec, scalar))
	}
}

func (w *page) balancer(b *balancer) {
	w.notes(b.service)
	w.line("- name: %s", scalar(b.name))
	w.line("  port: %d", b.port)
	if b.everywhere {
		w.line("  bindToVip: false")
	}
	if len(b.listen) > 0 {
		w.line("  listen: %s", addrs(b.listen))
	}
	written := b.servers
	if w.p.peersAsBackends {
		written = slices.DeleteFunc(slices.Clone(written), func(srv server) bool { return srv.peer })
		if b.peersAsBackends && b.backendPort != 0 && b.backendPort != b.port {
			w.line("  backendPort: %d", b.backendPort)
		}
	}
	var f flow
	f.word("scheduler", b.scheduler)
	f.word("dataPlane", b.plane)
	f.span("persistence", b.persistence)
	f.count("maxconn", b.maxconn)
	f.count("retries", b.retries)
	f.count("maxFails", b.maxFails)
	f.span("failTimeout", b.failTimeout)
	f.span("requireTLS", b.requireTLS)
	if b.acceptProxy {
		from := b.acceptProxyFrom
		if len(from) == 0 {
			from = everybody()
		}
		f.add("acceptProxy", "true")
		f.add("acceptProxyFrom", prefixes(from))
	}
	f.word("sendProxy", b.sendProxy)
	f.word("onMarkedDown", b.onMarkedDown)
	f.word("onMarkedUp", b.onMarkedUp)
	f.word("whenAllDown", b.whenAllDown)
	if len(b.allow) > 0 {
		f.add("allow", prefixes(b.allow))
	}
	if len(b.deny) > 0 {
		f.add("deny", prefixes(b.deny))
	}
	var t flow
	t.span("connect", b.connect)
	t.span("client", b.client)
	t.span("server", b.server)
	if slices.ContainsFunc(b.servers, func(srv server) bool { return srv.maxconn.n > 0 }) {
		t.span("queue", b.queue)
	}
	if len(t) > 0 {
		f.add("timeouts", t.String())
	}
	for _, pair := range f {
		w.line("  %s", pair)
	}
	c := b.check
	if !slices.ContainsFunc(b.servers, func(srv server) bool { return srv.port != c.port }) {
		c.port = 0 // it is the servers' own
	}
	w.check(c)
	if len(written) > 0 {
		w.line("  backends:")
	}
	for _, srv := range written {
		w.line("  - %s", backend(srv, b.port))
	}
}

func backend(srv server, port uint16) string {
	var f flow
	f.word("name", srv.name)
	f.word("address", srv.addr.String())
	if srv.port != port {
		f.port("port", srv.port)
	}
	f.count("weight", srv.weight)
	if srv.backup {
		f.add("backup", "true")
	}
	f.count("maxconn", srv.maxconn)
	f.count("maxqueue", srv.maxqueue)
	f.span("slowstart", srv.slowstart)
	return f.String()
}

func (w *page) check(c check) {
	var f flow
	f.word("type", c.kind)
	f.span("inter", c.inter)
	f.span("fastinter", c.fastinter)
	f.span("downinter", c.downinter)
	f.span("timeout", c.timeout)
	f.count("rise", c.rise)
	f.count("fall", c.fall)
	f.port("port", c.port)
	f.word("method", c.method)
	f.word("path", c.path)
	f.word("host", c.host)
	var headers, expect, tls flow
	for _, h := range c.headers {
		headers.add(scalar(h[0]), scalar(h[1]))
	}
	if len(headers) > 0 {
		f.add("headers", headers.String())
	}
	if len(c.status) > 0 {
		expect.add("status", list(c.status, scalar))
	}
	expect.word("contains", c.contains)
	expect.word("matches", c.matches)
	if len(expect) > 0 {
		f.add("expect", expect.String())
	}
	if c.verify != "" {
		tls.add("verify", c.verify)
	}
	tls.word("caFile", c.caFile)
	tls.word("serverName", c.serverName)
	tls.word("certFile", c.certFile)
	tls.word("keyFile", c.keyFile)
	if len(tls) > 0 {
		f.add("tls", tls.String())
	}
	if len(f) == 0 {
		return
	}
	w.line("  check:")
	for _, pair := range f {
		w.line("    %s", pair)
	}
}

// rest writes what belongs to no load balancer.
func (w *page) rest(title string, moot bool) {
	first := true
	for _, n := range w.d.notes {
		if n.written || n.moot != moot {
			continue
		}
		n.written = true
		if first {
			w.line("")
			w.line("# %s", title)
			first = false
		}
		w.line("# %s", n)
	}
}
