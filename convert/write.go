package convert

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

func addrs(values []netip.Addr) string {
	return draft.List(values, func(a netip.Addr) string { return draft.Scalar(a.String()) })
}

func prefixes(values []netip.Prefix) string {
	return draft.List(values, func(p netip.Prefix) string { return draft.Scalar(p.String()) })
}

// page is the text as it grows.
type page struct {
	bytes.Buffer
	d *draft.Draft
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
func (w *page) notes(s *draft.LB) {
	for _, n := range w.d.Notes {
		mine := n.Owner == s || slices.Contains(s.Joined, n.Owner)
		if mine && n.Owner != nil && !n.Moot && !n.Written {
			n.Written = true
			w.line("# %s", n)
		}
	}
}

// write makes the text.
func write(d *draft.Draft, p *plan, files []File) []byte {
	w := &page{d: d, p: p}
	file := func(n *draft.Note) int { return slices.IndexFunc(files, func(f File) bool { return f.Name == n.File }) }
	slices.SortStableFunc(d.Notes, func(a, b *draft.Note) int { return cmp.Or(cmp.Compare(file(a), file(b)), cmp.Compare(a.Line, b.Line)) })
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = syntax.Printable(f.Name)
	}
	w.line("# Made by `appliance convert` of %s.", strings.Join(names, ", "))
	w.line("# A comment with a file and a line is about something that was not carried over, or not as it was.")
	w.line("")
	if len(p.vips) > 0 {
		w.hint("", "vips")
		w.line("vips: %s", addrs(p.vips))
		if d.Interface != "" {
			w.line("interface: %s", draft.Scalar(d.Interface))
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
		if one.ID == "" && (one.Port == 0 || one.Port == peerPort) {
			w.line("- %s", draft.Scalar(one.Addr.String()))
			continue
		}
		var f draft.Flow
		f.Word("id", one.ID)
		f.Word("address", one.Addr.String())
		if one.Port != peerPort {
			f.Port("port", one.Port)
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
	a := w.d.Admin
	if len(a.Listen) == 0 && !a.Off {
		return
	}
	w.line("")
	w.hint("", "admin")
	w.line("admin:")
	if a.Off {
		w.line("  listen: [off]")
		return
	}
	w.line("  listen: %s", draft.List(a.Listen, func(at netip.AddrPort) string { return draft.Scalar(at.String()) }))
	if a.Path != "" {
		w.line("  path: %s", draft.Scalar(a.Path))
	}
	if a.HideVersion {
		w.line("  hideVersion: true")
	}
}

func (w *page) tracks() {
	if len(w.d.Tracks) == 0 {
		return
	}
	w.line("")
	w.line("tracks:")
	for _, t := range w.d.Tracks {
		w.line("- name: %s", draft.Scalar(t.Name))
		w.line("  exec: %s", draft.List(t.Exec, draft.Scalar))
		var f draft.Flow
		f.Span("inter", t.Inter)
		f.Span("timeout", t.Timeout)
		f.Count("rise", t.Rise)
		f.Count("fall", t.Fall)
		f.Count("weight", t.Weight)
		for _, pair := range f {
			w.line("  %s", pair)
		}
	}
}

func (w *page) hooks() {
	if len(w.d.Hooks) == 0 {
		return
	}
	w.line("")
	w.line("hooks:")
	for _, h := range w.d.Hooks {
		w.line("- {on: [%s], exec: %s}", h.On, draft.List(h.Exec, draft.Scalar))
	}
}

func (w *page) balancer(b *portBalancer) {
	w.notes(b.LB)
	w.line("- name: %s", draft.Scalar(b.name))
	w.line("  port: %d", b.port)
	if b.everywhere {
		w.line("  bindToVip: false")
	}
	if len(b.listen) > 0 {
		w.line("  listen: %s", addrs(b.listen))
	}
	written := b.servers
	if w.p.peersAsBackends {
		written = slices.DeleteFunc(slices.Clone(written), func(srv draft.ServerEntry) bool { return srv.Peer })
		if b.PeersAsBackends && b.BackendPort != 0 && b.BackendPort != b.port {
			w.line("  backendPort: %d", b.BackendPort)
		}
	}
	var f draft.Flow
	f.Word("scheduler", b.scheduler)
	f.Word("dataPlane", b.plane)
	f.Span("persistence", b.Persistence)
	f.Count("maxconn", b.MaxConn)
	f.Count("retries", b.Retries)
	f.Count("maxFails", b.MaxFails)
	f.Span("failTimeout", b.FailTimeout)
	f.Span("requireTLS", b.RequireTLS)
	if b.AcceptProxy {
		from := b.AcceptProxyFrom
		if len(from) == 0 {
			from = draft.Everybody()
		}
		f.Add("acceptProxy", "true")
		f.Add("acceptProxyFrom", prefixes(from))
	}
	f.Word("sendProxy", b.SendProxy)
	f.Word("onMarkedDown", b.OnMarkedDown)
	f.Word("onMarkedUp", b.OnMarkedUp)
	f.Word("whenAllDown", b.WhenAllDown)
	if len(b.Allow) > 0 {
		f.Add("allow", prefixes(b.Allow))
	}
	if len(b.Deny) > 0 {
		f.Add("deny", prefixes(b.Deny))
	}
	var t draft.Flow
	t.Span("connect", b.Connect)
	t.Span("client", b.Client)
	t.Span("server", b.Server)
	if slices.ContainsFunc(b.servers, func(srv draft.ServerEntry) bool { return srv.MaxConn.Value > 0 }) {
		t.Span("queue", b.Queue)
	}
	if len(t) > 0 {
		f.Add("timeouts", t.String())
	}
	for _, pair := range f {
		w.line("  %s", pair)
	}
	c := b.Check
	if !slices.ContainsFunc(b.servers, func(srv draft.ServerEntry) bool { return srv.Port != c.Port }) {
		c.Port = 0 // it is the servers' own
	}
	w.check(c)
	if len(written) > 0 {
		w.line("  backends:")
	}
	for _, srv := range written {
		w.line("  - %s", backend(srv, b.port))
	}
}

func backend(srv draft.ServerEntry, port uint16) string {
	var f draft.Flow
	f.Word("name", srv.Name)
	f.Word("address", srv.Addr.String())
	if srv.Port != port {
		f.Port("port", srv.Port)
	}
	f.Count("weight", srv.Weight)
	if srv.Backup {
		f.Add("backup", "true")
	}
	f.Count("maxconn", srv.MaxConn)
	f.Count("maxqueue", srv.MaxQueued)
	f.Span("slowstart", srv.SlowStart)
	return f.String()
}

func (w *page) check(c draft.HealthCheck) {
	var f draft.Flow
	f.Word("type", c.Type)
	f.Span("inter", c.Inter)
	f.Span("fastinter", c.FastInter)
	f.Span("downinter", c.DownInter)
	f.Span("timeout", c.Timeout)
	f.Count("rise", c.Rise)
	f.Count("fall", c.Fall)
	f.Port("port", c.Port)
	f.Word("method", c.Method)
	f.Word("path", c.Path)
	f.Word("host", c.Host)
	var headers, expect, tls draft.Flow
	for _, h := range c.Headers {
		headers.Add(draft.Scalar(h[0]), draft.Scalar(h[1]))
	}
	if len(headers) > 0 {
		f.Add("headers", headers.String())
	}
	if len(c.Status) > 0 {
		expect.Add("status", draft.List(c.Status, draft.Scalar))
	}
	expect.Word("contains", c.Contains)
	expect.Word("matches", c.Matches)
	if len(expect) > 0 {
		f.Add("expect", expect.String())
	}
	if c.Verify != "" {
		tls.Add("verify", c.Verify)
	}
	tls.Word("caFile", c.CAFile)
	tls.Word("serverName", c.ServerName)
	tls.Word("certFile", c.CertFile)
	tls.Word("keyFile", c.KeyFile)
	if len(tls) > 0 {
		f.Add("tls", tls.String())
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
	for _, n := range w.d.Notes {
		if n.Written || n.Moot != moot {
			continue
		}
		n.Written = true
		if first {
			w.line("")
			w.line("# %s", title)
			first = false
		}
		w.line("# %s", n)
	}
}
