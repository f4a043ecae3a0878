package configs

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Handling says how a load balancer's connections are treated. Zero is no
// limit, never, or off.
type Handling struct {
	MaxConn       int
	Persistence   time.Duration
	ClientTimeout time.Duration
	ServerTimeout time.Duration
	// QueueTimeout is zero where it is the time of a dial.
	QueueTimeout time.Duration
	Retries      int
	RequireTLS   time.Duration
	// AcceptProxyFrom is empty where no client sends a PROXY header.
	AcceptProxyFrom []netip.Prefix
	SendProxy       string
	Allow, Deny     []netip.Prefix
}

// handlingSettings are the keys of a load balancer's Handling, below prefix.
func handlingSettings(prefix string) []Setting {
	return []Setting{
		{Key: prefix + "persistence", Type: Duration, Default: "0s",
			Usage: "a client address comes back to the backend that it had less than this long ago (user space and ipvs)",
			Why:   "off: servers that share their state need none, and the load spreads better"},
		{Key: prefix + "maxconn", Type: Int, Default: "0",
			Usage: "open connections on each address of this node, at which further clients wait to be accepted; 0: no limit (user space)",
			Why:   "the limit of open files is one already"},
		{Key: prefix + "timeouts.connect", Type: Duration, Default: "1s",
			Usage: "patience of one dial before the next backend is tried (user space)",
			Why:   "a SYN that was lost is sent again after 1 s; another backend is the better second try"},
		{Key: prefix + "timeouts.client", Type: Duration, Default: "0s",
			Usage: "a connection on which nothing has moved to or from the client for so long is reset; 0s: never (user space)",
			Why:   "a watch may be silent for hours, and keepalive finds dead peers within two minutes"},
		{Key: prefix + "timeouts.server", Type: Duration, Default: "0s",
			Usage: "the same for the server's side (user space)",
			Why:   "as timeouts.client"},
		{Key: prefix + "timeouts.queue", Type: Duration,
			Usage: "how long a client waits for a backend that has room, see the backends' maxconn (user space)",
			Why:   "timeouts.connect"},
		{Key: prefix + "retries", Type: Int, Default: "3",
			Usage: "dials after the first that failed, each to another backend where there is one (user space)",
			Why:   "haproxy's; a group of three is tried as a whole"},
		{Key: prefix + "requireTLS", Type: Duration, Default: "0s",
			Usage: "a connection that does not begin with a TLS ClientHello within this time is reset before it reaches a backend; 0s: off (user space)",
			Why:   "off: not every server speaks TLS, and servers refuse the others themselves"},
		{Key: prefix + "acceptProxy", Type: Bool, Default: "false",
			Usage: "clients in acceptProxyFrom begin with a PROXY header, v1 or v2 (user space)",
			Why:   "a header that anybody may send would let anybody be anybody"},
		{Key: prefix + "acceptProxyFrom[]", Type: List,
			Usage: "the addresses or prefixes of the proxies before this one",
			Why:   "none: only the operator knows whom to believe"},
		{Key: prefix + "sendProxy", Type: String, Choices: []string{"v1", "v2"},
			Usage: "begin connections to backends with a PROXY header of that version (user space)",
			Why:   "none: a server that does not expect it breaks"},
		{Key: prefix + "allow[]", Type: List,
			Usage: "the client addresses or prefixes that may connect, in every data plane",
			Why:   "none: everybody whom deny does not name"},
		{Key: prefix + "deny[]", Type: List,
			Usage: "the client addresses or prefixes that may not, even if allow names them",
			Why:   "none"},
	}
}

// kernelSchedulers are those that only ipvs knows.
var kernelSchedulers = []string{"mh", "sed", "nq", "dh", "lblc", "lblcr", "ovf", "fo", "twos"}

// handling reads the keys of handlingSettings.
func (b *builder) handling(key func(string) string) Handling {
	const day = 24 * time.Hour
	h := Handling{
		Persistence:   b.duration(key("persistence"), 0, 31*day),
		MaxConn:       b.int(key("maxconn"), 0, 1_000_000),
		ClientTimeout: b.duration(key("timeouts.client"), 0, 365*day),
		ServerTimeout: b.duration(key("timeouts.server"), 0, 365*day),
		Retries:       b.int(key("retries"), 0, 100),
		RequireTLS:    b.duration(key("requireTLS"), 0, time.Hour),
		SendProxy:     b.text(key("sendProxy")),
		Allow:         b.prefixes(key("allow")),
		Deny:          b.prefixes(key("deny")),
	}
	if b.get(key("timeouts.queue")).value != "" {
		h.QueueTimeout = b.duration(key("timeouts.queue"), time.Millisecond, day)
	}
	accept, from := b.bool(key("acceptProxy")), b.prefixes(key("acceptProxyFrom"))
	switch {
	case accept && b.lists[key("acceptProxyFrom")] == 0:
		b.bad(key("acceptProxy"), "is true, but nobody is named who may send the header; write acceptProxyFrom: [192.0.2.5] with the addresses of the proxies before this one")
	case !accept && len(from) > 0:
		b.bad(key("acceptProxyFrom"), "has no effect without acceptProxy: true; write it, or remove the list")
	case accept:
		h.AcceptProxyFrom = from
	}
	for _, p := range h.Allow {
		if slices.Contains(h.Deny, p) {
			b.bad(key("deny"), "%s is in allow%s too, where it has no effect: deny wins; remove one of the two", p, b.line(key("allow")))
		}
	}
	return h
}

// prefixes reads a list of networks; an address alone is one of one.
func (b *builder) prefixes(key string) []netip.Prefix {
	var list []netip.Prefix
	for i := range b.lists[key] {
		at := fmt.Sprintf("%s[%d]", key, i)
		value := b.get(at).value
		if !strings.Contains(value, "/") {
			if a, err := netip.ParseAddr(value); err == nil {
				value = netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()).String()
			}
		}
		p, err := netip.ParsePrefix(value)
		switch {
		case err != nil:
			b.bad(at, "%s is neither an address nor a prefix; write one such as 192.0.2.0/24 or 2001:db8::/32", printable(value))
			continue
		case p.Addr().Is4In6():
			b.bad(at, "%s is an IPv4 address written as IPv6; write the IPv4 prefix", p)
			continue
		case p != p.Masked():
			b.bad(at, "%s has bits beyond its length; write %s, or %s for the one address", p, p.Masked(), p.Addr())
			continue
		case slices.Contains(list, p):
			b.bad(at, "%s is there twice; remove one of the two", p)
			continue
		}
		b.show(at, p.String(), b.at(at))
		list = append(list, p)
	}
	return list
}

// relateHandling holds a load balancer's wishes against its backends and its
// data plane.
func (b *builder) relateHandling(i int) {
	lb := b.cfg.LoadBalancers[i]
	limited := false
	for _, be := range lb.Backends {
		limited = limited || be.MaxConn > 0
		if be.MaxQueue > 0 && be.MaxConn == 0 {
			b.problem(be.Origin, b.lbKey(i, "backends"), "%s has maxqueue without maxconn, so nobody ever queues for it; write maxconn, or remove maxqueue", be.Address)
		}
	}
	if lb.Handling.QueueTimeout > 0 && !limited {
		b.bad(b.lbKey(i, "timeouts.queue"), "has no effect: no backend has maxconn, so nobody ever queues; write maxconn for the backends, or remove it")
	}
	if slices.Contains(kernelSchedulers, lb.Scheduler) && lb.DataPlane != "ipvs" && lb.DataPlane != "auto" {
		b.bad(b.lbKey(i, "scheduler"), "%s is the kernel's, which only the data plane ipvs asks; write dataPlane: ipvs, or another scheduler", lb.Scheduler)
	}
	if lb.DataPlane == "auto" || lb.DataPlane == "userspace" {
		return
	}
	for _, n := range b.userSpaceKeys(i) {
		if lb.DataPlane == "ipvs" && (n == "persistence" || n == "backends.maxconn") {
			continue
		}
		key, what := b.lbKey(i, n), ""
		if _, ok := setting(key); !ok { // a backend's
			key, what = b.lbKey(i, "dataPlane"), n+" "
		}
		b.bad(key, "%sis done by user space, but dataPlane is %s; write dataPlane: auto or userspace, or remove it", what, lb.DataPlane)
	}
}

// userSpaceKeys are the keys of load balancer i that only user space can
// heed.
func (b *builder) userSpaceKeys(i int) []string {
	lb := b.cfg.LoadBalancers[i]
	h := lb.Handling
	has := func(f func(Backend) bool) bool { return slices.ContainsFunc(lb.Backends, f) }
	var keys []string
	for _, k := range []struct {
		key string
		set bool
	}{
		{"persistence", h.Persistence > 0},
		{"maxconn", h.MaxConn > 0},
		{"timeouts.client", h.ClientTimeout > 0},
		{"timeouts.server", h.ServerTimeout > 0},
		{"requireTLS", h.RequireTLS > 0},
		{"acceptProxy", len(h.AcceptProxyFrom) > 0},
		{"sendProxy", h.SendProxy != ""},
		{"timeouts.queue", h.QueueTimeout > 0},
		{"backends.maxconn", has(func(be Backend) bool { return be.MaxConn > 0 })},
		{"backends.maxqueue", has(func(be Backend) bool { return be.MaxQueue > 0 })},
		{"backends.slowstart", has(func(be Backend) bool { return be.SlowStart > 0 })},
	} {
		if k.set {
			keys = append(keys, k.key)
		}
	}
	return keys
}
