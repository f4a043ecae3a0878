package configs

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"appliance/balancer"
)

// A LoadBalancerEntry is one entry of loadBalancers: a port, spread over backends.
type LoadBalancerEntry struct {
	Name string
	Port uint16
	// BindToVIP listens on the VIPs only, otherwise on every address of the node.
	BindToVIP bool
	// VIPs are the addresses that it listens on; empty unless BindToVIP.
	VIPs []netip.Addr
	// OwnVIPs means that the entry names them; otherwise they are all.
	OwnVIPs bool
	// Listen are further addresses of the node, such as 127.0.0.1 and ::1.
	Listen    []netip.Addr
	Scheduler balancer.Scheduler
	// DataPlane is never empty: the entry's own or the global one.
	DataPlane      balancer.PlaneName
	ConnectTimeout time.Duration
	ConnOptions    balancer.ConnOptions
	Check          balancer.Check
	// MaxFails within FailTimeout keep a backend from new connections; 0 is off.
	MaxFails    int
	FailTimeout time.Duration
	// TryDown is whenAllDown: try.
	TryDown  bool
	Backends []BackendEntry
	// AddPeersAt is the port at which the peers that can hold are backends, or 0
	// if they are none. Backends has those peers that are listed.
	AddPeersAt uint16
	Origin     Origin
}

// A BackendEntry is one server of a load balancer.
type BackendEntry struct {
	balancer.Backend
	// Host is the name of a server that is given by name. Addr then has its port and no address, until an address
	// of the name is put there.
	Host string
	// MaxAddresses is how many addresses of Host are servers, in the order of addresses; 0: all.
	MaxAddresses int
	// Unresolved says why no address of Host is known.
	Unresolved string
	Origin     Origin
}

// Resolved reports whether the backend has an address.
func (be BackendEntry) Resolved() bool { return be.Addr.Addr().IsValid() }

// Where is the backend's address or name, with its port.
func (be BackendEntry) Where() string {
	if be.Host == "" {
		return be.Addr.String()
	}
	return net.JoinHostPort(be.Host, strconv.Itoa(int(be.Addr.Port())))
}

// CheckOf is how be, one of lb's backends, is checked.
func (lb LoadBalancerEntry) CheckOf(be BackendEntry) balancer.Check {
	if be.Check != nil {
		return *be.Check
	}
	return lb.Check
}

// CheckedAt is where the check of a backend connects to; a program connects to what it likes. A backend that is given by
// name has no address there, unless the check has one.
func (lb LoadBalancerEntry) CheckedAt(be BackendEntry) (at netip.AddrPort, ok bool) {
	c := lb.CheckOf(be)
	return c.At(be.Backend), c.Type != balancer.CheckNone && c.Type != balancer.CheckProgram
}

// Hosts are the names of all backends that are given by name.
func (c *Config) Hosts() (names []string) {
	for _, lb := range c.LoadBalancers {
		for _, be := range lb.Backends {
			if be.Host != "" && !slices.Contains(names, be.Host) {
				names = append(names, be.Host)
			}
		}
	}
	return names
}

// connSettings are the keys of a load balancer's connections, below prefix.
func connSettings(prefix string) []Setting {
	return []Setting{
		{Key: prefix + "persistence", Type: Duration, Default: "0s",
			Usage: "send a client address to the backend that it had less than this long ago; 0s: off (user space and ipvs)",
			Why:   "off: servers that share their state need none, and the load spreads better"},
		{Key: prefix + "maxconn", Type: Int, Default: "0",
			Usage: "open connections on each address of this node at which further clients wait; 0: no limit (user space)",
			Why:   "the limit of open files is a limit already"},
		{Key: prefix + "timeouts.connect", Type: Duration, Default: formatDuration(balancer.DefaultConnectTimeout),
			Usage: "time for one dial before the next backend is tried (user space)",
			Why:   "a lost SYN is sent again after 1 s; another backend is the better second try"},
		{Key: prefix + "timeouts.client", Type: Duration, Default: "0s",
			Usage: "reset a connection on which nothing has moved to or from the client for this long; 0s: never (user space)",
			Why:   "a watch may be silent for hours, and keepalive finds dead peers within two minutes"},
		{Key: prefix + "timeouts.server", Type: Duration, Default: "0s",
			Usage: "the same for the server's side (user space)",
			Why:   "as timeouts.client"},
		{Key: prefix + "timeouts.queue", Type: Duration,
			Usage: "how long a client waits for a backend below its maxconn (user space)",
			Why:   "timeouts.connect"},
		{Key: prefix + "retries", Type: Int, Default: strconv.Itoa(balancer.DefaultRetries),
			Usage: "dials after the first one failed, each to another backend where there is one (user space)",
			Why:   "haproxy's; a group of three is tried as a whole"},
		{Key: prefix + "requireTLS", Type: Duration, Default: "0s",
			Usage: "reset a connection that does not begin with a TLS ClientHello within this time; 0s: off (user space)",
			Why:   "off: not every server speaks TLS, and servers refuse the others themselves"},
		{Key: prefix + "acceptProxy", Type: Bool, Default: "false",
			Usage: "clients in acceptProxyFrom begin with a PROXY header, v1 or v2 (user space)",
			Why:   "a header that anybody may send lets anybody pretend to be anybody"},
		{Key: prefix + "acceptProxyFrom[]", Type: List,
			Usage: "addresses or prefixes of the proxies in front of this one",
			Why:   "none: only the operator knows whom to believe"},
		{Key: prefix + "sendProxy", Type: String, Choices: []string{"v1", "v2"},
			Usage: "begin connections to backends with a PROXY header of this version (user space)",
			Why:   "none: a server that does not expect it breaks"},
		{Key: prefix + "log", Type: String, Default: "off", Choices: []string{"off", "text", "json"},
			Usage: "log each connection when it ends: off, text (as haproxy's tcplog) or json (user space)",
			Why:   "off: the kernel's data planes see no end of a connection, and most ask for none"},
		{Key: prefix + "logBegin", Type: String, Default: "off", Choices: []string{"off", "text", "json"},
			Usage: "log each connection when it begins: off, text or json, in every data plane; needs nf_tables",
			Why:   "off: the server is not known then, and most ask for none"},
		{Key: prefix + "logEvery", Type: Int, Default: "1",
			Usage: "with log or logBegin, of so many connections one is logged",
			Why:   "1, each: who asks for a log wants to find every client"},
		{Key: prefix + "logRate", Type: Int, Default: "0",
			Usage: "with log or logBegin, lines of each in a second at most; further ones are counted and not written; " +
				"0: no limit",
			Why: "a reader that is slow holds up nobody, and what it loses is counted"},
		{Key: prefix + "allow[]", Type: List,
			Usage: "client addresses or prefixes that may connect, in every data plane",
			Why:   "none: everybody whom deny does not name"},
		{Key: prefix + "deny[]", Type: List,
			Usage: "client addresses or prefixes that may not connect, even if allow names them",
			Why:   "none"},
	}
}

// kernelSchedulers are the schedulers that only the data plane ipvs has.
var kernelSchedulers = []string{"mh", "sed", "nq", "dh", "lblc", "lblcr", "ovf", "fo", "twos"}

// loadBalancers reads the list. Without a list, port 6443 of the VIPs is spread
// over the peers; with an empty one, nothing is balanced.
func (b *builder) loadBalancers(addPeers bool) []LoadBalancerEntry {
	n := b.lists[keyLBs]
	switch {
	case b.hasEmpty(keyLBs):
		b.show(keyLBs, "[]", b.origin(keyLBs))
		if addPeers {
			b.bad("addPeersAsBackends", "is true, but loadBalancers%s is empty, which balances nothing; remove one of the two",
				b.lineOf(keyLBs))
		}
		return nil
	case n == 0:
		return []LoadBalancerEntry{b.loadBalancer(0, "kube-apiserver", true)}
	}
	lbs := make([]LoadBalancerEntry, n)
	for i := range n {
		// kube-vip's files have the Kubernetes API first, and want the peers
		// there; behind every other port they would be wrong.
		own := b.lists[b.lbKey(i, "backends")] > 0
		lbs[i] = b.loadBalancer(i, "", addPeers && (i == 0 || !own))
	}
	return lbs
}

func (b *builder) lbKey(i int, name string) string {
	return fmt.Sprintf("%s[%d].%s", keyLBs, i, name)
}

func (b *builder) loadBalancer(i int, name string, addPeers bool) LoadBalancerEntry {
	key := func(name string) string { return b.lbKey(i, name) }
	lb := LoadBalancerEntry{Origin: b.origin(fmt.Sprintf("%s[%d]", keyLBs, i))}
	port := b.get(key("port"))
	if name == "" {
		name = "lb-" + port.value
	}
	lb.Name = b.name(key("name"), name)
	b.lbType(key("type"))
	b.show(key("port"), port.value, port.origin)
	lb.Port = b.port(key("port"), false)
	lb.BindToVIP = b.bool(key("bindToVip"))
	b.lbVIPs(&lb, key)
	lb.Listen = b.addrs(key("listen"), b.cfg.VIPs, "is a virtual address, which bindToVip listens on; remove it here")
	backendPort := b.port(key("backendPort"), true)
	if backendPort == 0 {
		backendPort = lb.Port
	}
	b.show(key("backendPort"), strconv.Itoa(int(backendPort)), b.get(key("backendPort")).origin)
	lb.Scheduler = balancer.Scheduler(b.text(key("scheduler")))
	lb.DataPlane = b.cfg.DataPlane
	if own := b.get(key("dataPlane")); own.value != "" {
		lb.DataPlane = balancer.PlaneName(b.text(key("dataPlane")))
	}
	lb.ConnectTimeout = b.duration(key("timeouts.connect"), time.Millisecond, 5*time.Minute)
	lb.ConnOptions = b.connOptions(key)
	if lb.ConnOptions.LogBegin != "" && len(lb.VIPs) == 0 {
		b.bad(key("logBegin"), "is for virtual addresses, and %s is served on none; remove it, or write vips", lb.Name)
	}
	lb.MaxFails = b.int(key("maxFails"), 0, 1000)
	lb.FailTimeout = b.duration(key("failTimeout"), 100*time.Millisecond, day)
	lb.TryDown = b.text(key("whenAllDown")) == "try"
	lb.ConnOptions.KeepDown = b.text(key("onMarkedDown")) == balancer.KeepSessions
	lb.ConnOptions.EndBackup = b.text(key("onMarkedUp")) == "shutdown-backup-sessions"
	before := len(b.problems)
	lb.Check = b.check(key("check."))
	b.checkUnsure = len(b.problems) > before
	lb.Backends = b.backends(i, backendPort)
	if addPeers {
		lb.AddPeersAt = backendPort
		lb.Backends = b.withPeers(i, lb.Backends, backendPort)
	}
	return lb
}

// lbVIPs reads which of the VIPs lb listens on: all, some, or with off none.
func (b *builder) lbVIPs(lb *LoadBalancerEntry, keyOf func(name string) string) {
	key := keyOf("vips")
	if lb.OwnVIPs = b.lists[key] > 0; b.lists[key] == 1 && b.get(key+"[0]").value == "off" {
		b.show(key+"[0]", "off", b.origin(key))
		if !lb.BindToVIP {
			b.bad(key, "is off, and bindToVip: false listens on every address; remove one of the two")
		}
		if b.lists[keyOf("listen")] == 0 {
			b.bad(key, "is off, and no other address is named; write listen: [127.0.0.1], or remove it")
		}
		return
	}
	own := b.addrs(key, nil, "")
	switch {
	case !lb.BindToVIP && lb.OwnVIPs:
		b.bad(key, "has no effect with bindToVip: false, which listens on every address%s; remove one of the two",
			b.lineOf(keyOf("bindToVip")))
	case !lb.BindToVIP:
	case !lb.OwnVIPs:
		lb.VIPs = b.cfg.VIPs
	default:
		for at := range b.elements(key) {
			a, err := netip.ParseAddr(unbracket(b.get(at).value))
			if err == nil && slices.Contains(own, a.Unmap()) && !slices.Contains(b.cfg.VIPs, a.Unmap()) {
				b.bad(at, "%s is none of the virtual addresses; write one of vips%s, or add it there", a.Unmap(),
					b.lineOf(keyVIPs))
			}
		}
		lb.VIPs = own
	}
}

// sharesAddress reports whether lb and other would listen on one address and port, and on which; the zero address
// stands for every address.
func (lb LoadBalancerEntry) sharesAddress(other LoadBalancerEntry) (netip.Addr, bool) {
	if lb.Port != other.Port || lb.Port == 0 {
		return netip.Addr{}, false
	}
	if !lb.BindToVIP || !other.BindToVIP {
		return netip.Addr{}, true
	}
	for _, a := range slices.Concat(lb.VIPs, lb.Listen) {
		if slices.Contains(other.VIPs, a) || slices.Contains(other.Listen, a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// connOptions reads the keys of connSettings.
func (b *builder) connOptions(key func(string) string) balancer.ConnOptions {
	o := balancer.ConnOptions{
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
	if o.Log = b.text(key("log")); o.Log == "off" {
		o.Log = ""
	}
	if o.LogBegin = b.text(key("logBegin")); o.LogBegin == "off" {
		o.LogBegin = ""
	}
	o.LogRate = b.int(key("logRate"), 0, 1_000_000)
	if every := b.int(key("logEvery"), 1, 1_000_000); every > 1 {
		o.LogEvery = every
	}
	for _, bound := range []struct {
		key string
		n   int
	}{{"logEvery", o.LogEvery}, {"logRate", o.LogRate}} {
		if bound.n > 0 && o.Log == "" && o.LogBegin == "" {
			b.bad(key(bound.key), "has no effect without a log; write log: text, or remove it")
		}
	}
	if o.Retries == 0 {
		o.Retries = -1 // none: the balancer's zero is its default
	}
	if b.get(key("timeouts.queue")).value != "" {
		o.QueueTimeout = b.duration(key("timeouts.queue"), time.Millisecond, day)
	}
	accept, from := b.bool(key("acceptProxy")), b.prefixes(key("acceptProxyFrom"))
	switch {
	case accept && b.lists[key("acceptProxyFrom")] == 0:
		b.bad(key("acceptProxy"), "is true, but nobody is named who may send the header; "+
			"write acceptProxyFrom: [192.0.2.5] with the addresses of the proxies before this one")
	case !accept && len(from) > 0:
		b.bad(key("acceptProxyFrom"), "has no effect without acceptProxy: true; write it, or remove the list")
	case accept:
		o.AcceptProxyFrom = from
	}
	for _, p := range o.Allow {
		if slices.Contains(o.Deny, p) {
			b.bad(key("deny"), "%s is in allow%s too, where it has no effect: deny wins; remove one of the two",
				p, b.lineOf(key("allow")))
		}
	}
	return o
}

// prefixes reads a list of networks; a plain address is a network of one.
func (b *builder) prefixes(key string) []netip.Prefix {
	var list []netip.Prefix
	for at := range b.elements(key) {
		value := b.get(at).value
		if !strings.Contains(value, "/") {
			if a, err := netip.ParseAddr(value); err == nil {
				value = netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()).String()
			}
		}
		p, err := netip.ParsePrefix(value)
		switch {
		case err != nil:
			b.bad(at, "%s is neither an address nor a prefix; write one such as 192.0.2.0/24 or 2001:db8::/32",
				printable(value))
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
		b.show(at, p.String(), b.origin(at))
		list = append(list, p)
	}
	return list
}

func (b *builder) lbType(key string) {
	c := b.get(key)
	if c.value == "http" {
		b.warn(b.origin(key), key, "http is carried as tcp, unread; write tcp")
		b.show(key, "tcp", c.origin)
		return
	}
	b.text(key)
}

func (b *builder) backends(lb int, port uint16) []BackendEntry {
	var list []BackendEntry
	for key := range b.elements(b.lbKey(lb, "backends")) {
		be, ok := b.backend(key, b.lbKey(lb, "check."), port)
		if !ok {
			continue
		}
		for _, other := range list {
			if other.Addr == be.Addr && other.Host == be.Host {
				b.bad(key, "%s is already a backend%s; remove one of the two, weight says how much it gets",
					be.Where(), otherLine(other.Origin, be.Origin))
			}
			if be.Name != "" && other.Name == be.Name {
				b.bad(key+".name", "%s is already the name of %s; names are how you call them, write another",
					printable(be.Name), other.Where())
			}
		}
		list = append(list, be)
	}
	return list
}

// backend reads one backend; defaultPort is the port of one that names none, and usualCheck the prefix of its load
// balancer's check.
func (b *builder) backend(key, usualCheck string, defaultPort uint16) (BackendEntry, bool) {
	be := BackendEntry{Origin: b.origin(key)}
	where, link := b.get(key+".address"), b.get(key+".url")
	var (
		a    netip.Addr
		port uint16
		ok   bool
	)
	b.names = true
	defer func() { b.names = false }()
	field := key + ".address"
	switch {
	case where.value != "" && link.value != "":
		b.bad(key+".url", "says again what address says; keep one of the two")
		return be, false
	case where.value != "":
		a, port, ok = b.endpoint(field, where.value)
	case link.value != "":
		field = key + ".url"
		a, port, ok = b.fromURL(field, link.value)
	default:
		b.bad(field, "is missing; write the server's address, such as 192.0.2.11")
	}
	own := b.port(key+".port", true)
	if !ok {
		return be, false
	}
	if port != 0 && own != 0 && port != own {
		b.bad(key+".port", "is %d, but %s says %d; write one of them",
			own, field[strings.LastIndexByte(field, '.')+1:], port)
	}
	be.Addr, be.Host = netip.AddrPortFrom(a, cmp.Or(port, own, defaultPort)), b.host
	b.show(field, be.Where(), b.origin(field))
	if be.MaxAddresses = b.int(key+".maxAddresses", 0, maxList); be.MaxAddresses > 0 && be.Host == "" {
		b.bad(key+".maxAddresses", "is for a server by name, and %s is an address; remove it", be.Addr)
	}
	if c := b.get(key + ".name"); c.value != "" {
		be.Name = b.name(key+".name", "")
	}
	be.Weight = b.int(key+".weight", 0, 256)
	be.Backup = b.bool(key + ".backup")
	be.MaxConn, be.MaxQueue = b.int(key+".maxconn", 0, 1_000_000), b.int(key+".maxqueue", 0, 1_000_000)
	be.SlowStart = b.duration(key+".slowstart", 0, time.Hour)
	be.Disabled = b.bool(key + ".disabled")
	be.SendProxy = b.text(key + ".sendProxy")
	be.OnMarkedDown = b.text(key + ".onMarkedDown")
	if b.get(key+".maxFails").value != "" {
		if be.MaxFails = b.int(key+".maxFails", 0, 1000); be.MaxFails == 0 {
			be.MaxFails = balancer.NeverOut // zero is what the load balancer says
		}
	}
	if b.get(key+".failTimeout").value != "" {
		be.FailTimeout = b.duration(key+".failTimeout", 100*time.Millisecond, day)
	}
	be.Check = b.ownCheck(key+".check.", usualCheck)
	return be, true
}

// withPeers adds the peers that can hold to list. A peer that is listed already
// keeps what its entry says.
func (b *builder) withPeers(lb int, list []BackendEntry, port uint16) []BackendEntry {
	for _, p := range b.cfg.Peers {
		for _, a := range ServersAt(p.Addrs(), b.cfg.VIPs) {
			at := netip.AddrPortFrom(a, port)
			listed := slices.ContainsFunc(list, func(be BackendEntry) bool { return be.Addr == at })
			if p.Role == RoleWitness || listed {
				continue
			}
			be := BackendEntry{Backend: balancer.Backend{Addr: at, Weight: 1}, Origin: p.Origin}
			if p.ID != p.Address.String() {
				be.Name = p.ID
			}
			b.show(b.lbKey(lb, fmt.Sprintf("backends[%d].address", len(list))), at.String(), p.Origin)
			list = append(list, be)
		}
	}
	return list
}
