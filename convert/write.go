package convert

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// A writer is our configuration as it grows.
type writer struct {
	*plan
	text    bytes.Buffer
	written map[*draft.Note]bool
}

// write makes the configuration of a plan.
func write(p *plan, files []File) []byte {
	w := &writer{plan: p, written: map[*draft.Note]bool{}}
	file := func(n *draft.Note) int {
		return slices.IndexFunc(files, func(f File) bool { return f.Name == n.File })
	}
	slices.SortStableFunc(p.Notes, func(a, b *draft.Note) int {
		return cmp.Or(cmp.Compare(file(a), file(b)), cmp.Compare(a.Line, b.Line))
	})
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = syntax.Printable(f.Name)
	}
	w.line("# Made by `appliance convert` of %s.", strings.Join(names, ", "))
	if refused := p.refused(); refused > 0 {
		w.line("# %d OF %d LOAD BALANCERS WERE NOT CARRIED OVER: see below.", refused, len(p.LoadBalancers))
	}
	w.line("# A comment with a file and a line is about something that was not carried over, or not as it was.")
	w.line("")
	if len(p.vips) > 0 {
		w.writeHints("", "vips")
		w.writeVIPs()
	}
	if p.worker {
		w.writeHints("", "role")
		w.line("role: worker")
	} else {
		w.writePeers()
	}
	w.writeAdmin()
	w.writeTracks()
	w.writeHooks()
	w.line("")
	w.writeHints("", "loadBalancers")
	switch {
	case len(p.balancers) > 0:
		w.line("loadBalancers:")
	case p.Alone:
		w.line("loadBalancers: []")
	}
	for i, b := range p.balancers {
		if i > 0 {
			w.line("")
		}
		w.writeBalancer(b)
	}
	w.writeResolver()
	w.writeLog()
	w.writeRest("Not carried over, or not as it was. Decide about these:", false)
	w.writeRest("Without a meaning here. Nobody has to do anything about these:", true)
	return w.text.Bytes()
}

func (w *writer) line(format string, args ...any) { fmt.Fprintf(&w.text, format+"\n", args...) }

// lines writes the pairs of a mapping, each in a line of its own.
func (w *writer) lines(indent string, f draft.Flow) {
	for _, pair := range f {
		w.line("%s%s", indent, pair)
	}
}

// writeHints writes what there is to say about a key.
func (w *writer) writeHints(indent, key string) {
	for _, h := range w.hints[key] {
		w.line("%s# %s", indent, h)
	}
}

// writeNotes writes the notes of a kind that were not written yet.
func (w *writer) writeNotes(title string, moot bool, which func(n *draft.Note) bool) {
	for _, n := range w.Notes {
		if w.written[n] || n.Moot != moot || !which(n) {
			continue
		}
		w.written[n] = true
		if title != "" {
			w.line("")
			w.line("# %s", title)
			title = ""
		}
		w.line("# %s", n)
	}
}

// writeRest writes what belongs to no load balancer.
func (w *writer) writeRest(title string, moot bool) {
	w.writeNotes(title, moot, func(*draft.Note) bool { return true })
}

// writeVIPs writes the virtual addresses, each with its interface if they are not all on one.
func (w *writer) writeVIPs() {
	on := map[string]bool{}
	for _, a := range w.vips {
		on[w.interfaces[a]] = true
	}
	if len(on) == 1 {
		w.line("vips: %s", addrs(w.vips))
		if name := w.interfaces[w.vips[0]]; name != "" {
			w.line("interface: %s", draft.Scalar(name))
		}
		return
	}
	w.line("vips:")
	for _, a := range w.vips {
		if w.interfaces[a] == "" {
			w.line("- %s", draft.Scalar(a.String()))
			continue
		}
		var f draft.Flow
		f.Word("address", a.String())
		f.Word("interface", w.interfaces[a])
		w.line("- %s", f)
	}
}

func (w *writer) writePeers() {
	if w.Single {
		w.line("singleNode: true")
	}
	w.writeHints("", "peers")
	if len(w.peers) > 0 {
		w.line("peers:")
	}
	for _, one := range w.peers {
		if one.Port == peerPort {
			one.Port = 0
		}
		joined := one.Addr.String()
		for _, a := range one.Further {
			joined += "+" + a.String()
		}
		if one.ID == "" && one.Port == 0 {
			w.line("- %s", draft.Scalar(joined))
			continue
		}
		var f draft.Flow
		f.Word("id", one.ID)
		f.Word("address", joined)
		f.Port("port", one.Port)
		w.line("- %s", f)
	}
	if len(w.peers) > 1 {
		w.line("group:")
		w.writeHints("  ", "group")
		w.line("  keyFile: /etc/appliance/group.key")
	}
	if w.peersAsBackends {
		w.line("addPeersAsBackends: true")
	}
}

func (w *writer) writeAdmin() {
	if len(w.Admin.Listen) == 0 && !w.Admin.Off {
		return
	}
	w.line("")
	w.writeHints("", "admin")
	w.line("admin:")
	if w.Admin.Off {
		w.line("  listen: [off]")
		return
	}
	w.line("  listen: %s", list(w.Admin.Listen, func(at netip.AddrPort) string { return draft.Scalar(at.String()) }))
	if w.Admin.Path != "" {
		w.line("  path: %s", draft.Scalar(w.Admin.Path))
	}
	if w.Admin.HideVersion {
		w.line("  hideVersion: true")
	}
}

// writeResolver writes how names are looked up, if there are any.
func (w *writer) writeResolver() {
	byName := func(srv draft.ServerEntry) bool { return srv.Host != "" }
	if !slices.ContainsFunc(w.balancers, func(b *balancer) bool { return slices.ContainsFunc(b.servers, byName) }) {
		return
	}
	var f draft.Flow
	if len(w.Nameservers) > 0 {
		f.Add("nameservers", list(w.Nameservers, func(at netip.AddrPort) string { return draft.Scalar(at.String()) }))
	}
	if w.MaxTTL.Set && w.MaxTTL.Value < usualMinTTL {
		f.Span("minTTL", w.MaxTTL)
	}
	f.Span("maxTTL", w.MaxTTL)
	w.section("resolver", f)
}

// section writes a key of the top with what is in it, if there is anything.
func (w *writer) section(key string, f draft.Flow) {
	if len(f) == 0 {
		return
	}
	w.line("")
	w.line("%s:", key)
	w.lines("  ", f)
}

// writeLog writes where connections are logged, if any are.
func (w *writer) writeLog() {
	if !slices.ContainsFunc(w.balancers, func(b *balancer) bool { return b.Log != "" }) {
		return
	}
	var f draft.Flow
	f.Word("connections", w.LogTo)
	f.Word("facility", w.LogFacility)
	w.section("log", f)
}

// usualMinTTL is the default of resolver.minTTL.
const usualMinTTL = 5 * time.Second

func (w *writer) writeTracks() {
	if len(w.Tracks) == 0 {
		return
	}
	w.line("")
	w.line("tracks:")
	for _, t := range w.Tracks {
		w.line("- name: %s", draft.Scalar(t.Name))
		w.line("  exec: %s", list(t.Exec, draft.Scalar))
		var f draft.Flow
		f.Word("user", t.User)
		f.Span("inter", t.Inter)
		f.Span("timeout", t.Timeout)
		f.Number("rise", t.Rise)
		f.Number("fall", t.Fall)
		f.Number("weight", t.Weight)
		w.lines("  ", f)
	}
}

func (w *writer) writeHooks() {
	if len(w.Hooks) == 0 {
		return
	}
	w.line("")
	w.line("hooks:")
	for _, h := range w.Hooks {
		var f draft.Flow
		f.Add("on", "["+h.On+"]")
		f.Add("exec", list(h.Exec, draft.Scalar))
		f.Word("user", h.User)
		w.line("- %s", f)
	}
}

func (w *writer) writeBalancer(b *balancer) {
	w.writeNotes("", false, func(n *draft.Note) bool {
		return n.Owner != nil && (n.Owner == b.LB || slices.Contains(b.Joined, n.Owner))
	})
	w.line("- name: %s", draft.Scalar(b.name))
	w.line("  port: %d", b.port)
	if b.everywhere {
		w.line("  bindToVip: false")
	}
	if len(w.vips) > 0 && !b.everywhere && !w.onAll(b) {
		if len(b.vips) == 0 {
			w.line("  vips: [off]")
		} else {
			w.line("  vips: %s", addrs(b.vips))
		}
	}
	if len(b.listen) > 0 {
		w.line("  listen: %s", addrs(b.listen))
	}
	if w.peersAsBackends && b.PeersAsBackends && b.BackendPort != 0 && b.BackendPort != b.port {
		w.line("  backendPort: %d", b.BackendPort)
	}
	w.lines("  ", b.settings())
	usual := w.writeCheck(b)
	first := true
	for _, srv := range b.servers {
		if srv.Peer && w.peersAsBackends {
			continue
		}
		if first {
			w.line("  backends:")
			first = false
		}
		w.line("  - %s", serverFlow(srv, b.port, usual))
	}
}

// settings are the keys of a load balancer that are one line each.
func (b *balancer) settings() draft.Flow {
	var f, timeouts draft.Flow
	f.Word("scheduler", b.scheduler)
	f.Word("dataPlane", b.plane)
	f.Span("persistence", b.Persistence)
	f.Number("maxconn", b.MaxConn)
	f.Number("retries", b.Retries)
	f.Number("maxFails", b.MaxFails)
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
	f.Word("log", b.Log)
	f.Number("logEvery", b.LogEvery)
	f.Word("onMarkedDown", b.OnMarkedDown)
	f.Word("onMarkedUp", b.OnMarkedUp)
	if len(b.Allow) > 0 {
		f.Add("allow", prefixes(b.Allow))
	}
	if deny := slices.Concat(b.Deny, b.closed); len(deny) > 0 {
		f.Add("deny", prefixes(deny))
	}
	timeouts.Span("connect", b.Connect)
	timeouts.Span("client", b.Client)
	timeouts.Span("server", b.Server)
	if b.limited() {
		timeouts.Span("queue", b.Queue)
	}
	if len(timeouts) > 0 {
		f.Add("timeouts", timeouts.String())
	}
	return f
}

func serverFlow(srv draft.ServerEntry, port uint16, usual draft.HealthCheck) draft.Flow {
	var f draft.Flow
	f.Word("name", srv.Name)
	f.Word("address", srv.Where())
	if srv.MaxAddresses > 0 {
		f.Add("maxAddresses", strconv.Itoa(srv.MaxAddresses))
	}
	if srv.Port != port {
		f.Port("port", srv.Port)
	}
	f.Number("weight", srv.Weight)
	if srv.Backup {
		f.Add("backup", "true")
	}
	f.Number("maxconn", srv.MaxConn)
	f.Number("maxqueue", srv.MaxQueued)
	f.Span("slowstart", srv.SlowStart)
	if srv.Disabled {
		f.Add("disabled", "true")
	}
	f.Word("sendProxy", srv.SendProxy)
	f.Word("onMarkedDown", srv.OnMarkedDown)
	f.Number("maxFails", srv.MaxFails)
	f.Span("failTimeout", srv.FailTimeout)
	if srv.Check != nil {
		if own := checkDifference(usual, *srv.Check); len(own) > 0 {
			f.Add("check", own.String())
		}
	}
	return f
}

// writeCheck writes the check of a load balancer, and returns it.
func (w *writer) writeCheck(b *balancer) draft.HealthCheck {
	c := b.Check
	if !slices.ContainsFunc(b.servers, func(srv draft.ServerEntry) bool { return srv.Port != c.Port }) {
		c.Port = 0 // it is the servers' own
	}
	if f := flowOf(checkWords(c)); len(f) > 0 {
		w.line("  check:")
		w.lines("    ", f)
	}
	return c
}

// list is a YAML sequence in one line.
func list[T any](values []T, text func(T) string) string {
	words := make([]string, len(values))
	for i, v := range values {
		words[i] = text(v)
	}
	return "[" + strings.Join(words, ", ") + "]"
}

func addrs(values []netip.Addr) string {
	return list(values, func(a netip.Addr) string { return draft.Scalar(a.String()) })
}

func prefixes(values []netip.Prefix) string {
	return list(values, func(p netip.Prefix) string { return draft.Scalar(p.String()) })
}
