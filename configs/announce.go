package configs

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// An AnnounceWay is how clients' networks learn where a virtual address is.
type AnnounceWay string

// The ways.
const (
	ByARP    AnnounceWay = "arp"    // the holder answers on the link, by ARP and NDP
	ByBGP    AnnounceWay = "bgp"    // routers are told by BGP
	ByRoutes AnnounceWay = "routes" // a route in the kernel, which another daemon of this host announces
)

// AnnounceSettings say who announces the virtual addresses that are not answered for on the link, and to whom.
type AnnounceSettings struct {
	// HolderOnly has the holder alone announce; otherwise every node does that serves.
	HolderOnly bool
	// Standby has the other nodes announce, too, with a longer path, by BGP.
	Standby bool
	// NeedsMajority takes back the addresses of a node that has lost the group's majority.
	NeedsMajority bool
	// Grace is how long routers have to move clients to other nodes before an address is withdrawn.
	Grace time.Duration
	// TunnelPort is where nodes behind different routers take what they hand each other in data plane direct; 0: nowhere.
	TunnelPort uint16
	BGP        BGPSettings
	Routes     RouteSettings
}

// BGPSettings are this node's side of its BGP sessions.
type BGPSettings struct {
	AS uint32
	// RouterID names this node to its neighbours (RFC 4271, section 4.2); invalid means its first IPv4 address.
	RouterID netip.Addr
	// Port is where neighbours connect to; 0: nowhere.
	Port     uint16
	HoldTime time.Duration
	// NextHops are this node's addresses that routers send clients' packets to, one of a family at most.
	NextHops   []netip.Addr
	Path       PathSettings
	Neighbours []NeighbourEntry
}

// PathSettings are the path attributes with which a virtual address is announced.
type PathSettings struct {
	Communities      []string // in the form of RFC 1997, 64512:100, or a well-known name
	LargeCommunities []string // in the form of RFC 8092, 64512:1:2
	MED, LocalPref   *uint32  // nil: not sent
	Prepend          int      // how often the own AS number stands before the path once more
}

// A NeighbourEntry is one router to which this node has a BGP session.
type NeighbourEntry struct {
	Addr         netip.Addr
	AS           uint32
	Port         uint16
	PasswordFile string
	Passive      bool // wait for the router to connect
	Hops         int  // how far it may be away, 1: on the link
	TTLSecurity  bool
	// BFDInterval is the time between two packets of BFD; 0: there is no BFD.
	BFDInterval   time.Duration
	BFDMultiplier int
	Origin        Origin
}

// RouteSettings are the kernel's routes for other daemons.
type RouteSettings struct{ Table, Protocol, Metric int }

const (
	keyBGP        = "announce.bgp"
	keyNeighbours = "announce.bgp.neighbours"
)

// defaultBGPPort is that of RFC 4271, section 4.
const defaultBGPPort = "179"

var announceWays = words(ByARP, ByBGP, ByRoutes)

// pathSettings are the keys below prefix that say with what a virtual address is announced.
func pathSettings(prefix, why string) []Setting {
	return []Setting{
		{Key: prefix + "communities[]", Type: List,
			Usage: "BGP communities, as 64512:100, no-export or no-advertise", Why: why},
		{Key: prefix + "largeCommunities[]", Type: List,
			Usage: "large BGP communities, as 64512:1:2", Why: why},
		{Key: prefix + "med", Type: Int,
			Usage: "the metric (MULTI_EXIT_DISC) that neighbours of another AS compare; lower is better", Why: why},
		{Key: prefix + "localPreference", Type: Int,
			Usage: "the preference that neighbours of the same AS compare; higher is better", Why: why},
		{Key: prefix + "prepend", Type: Int,
			Usage: "how often the own AS number is put before the path once more, 0 to 10: longer is worse", Why: why},
	}
}

// announceSettings are the keys of announce.
func announceSettings() []Setting {
	list := []Setting{
		{Key: "announce.by", Type: String, Default: string(ByARP), Choices: announceWays,
			Usage: "arp: the holder answers on the link; bgp: routers are told; " +
				"routes: a kernel route, for a routing daemon of this host",
			Why: "ARP and NDP need nothing of the network but one link"},
		{Key: "announce.who", Type: String, Default: "all", Choices: []string{"all", "holder"},
			Usage: "all: every node that is proved to serve announces (ECMP); holder: one at a time",
			Why:   "routers spread clients over the nodes, and the loss of one takes its share only"},
		{Key: "announce.standby", Type: Bool, Default: "false",
			Usage: "with who: holder, the other nodes announce by BGP, too, with a longer path, which routers take when the " +
				"holder's is gone",
			Why: "between the loss of a holder and its successor, routers would send clients to several nodes"},
		{Key: "announce.withoutMajority", Type: String, Default: "keep", Choices: []string{"keep", "withdraw"},
			Usage: "what a node does that has lost the group's majority, with who: all or standby",
			Why: "nothing is exclusive there: a node that serves is better than none, " +
				"and a fault between the nodes would take away all of them"},
		{Key: "announce.grace", Type: Duration, Default: "1s",
			Usage: "the time that routers have to move clients away before an address is withdrawn on purpose",
			Why:   "routers with graceful shutdown (RFC 8326) choose other paths within it"},
		{Key: "announce.tunnelPort", Type: Port, Default: "10002",
			Usage: "the UDP port of the tunnel (VXLAN) between peers behind different routers, for data plane direct; " +
				"0: there is none",
			Why: "container networks have 4789 and 8472; the group has 10000"},
		{Key: "announce.bgp.as", Type: Int,
			Usage: "this node's AS number, 1 to 4294967294; the routers' own number means iBGP",
			Why:   "only the operator knows it"},
		{Key: "announce.bgp.routerID", Type: String,
			Usage: "the node's BGP identifier, in the form of an IPv4 address",
			Why:   "this node's first IPv4 address in peers; it must differ between nodes"},
		{Key: "announce.bgp.port", Type: Port, Default: defaultBGPPort,
			Usage: "where neighbours connect to; 0: this node connects only",
			Why:   "BGP's (RFC 4271); 0 where another BGP daemon of the host has it"},
		{Key: "announce.bgp.holdTime", Type: Duration, Default: "9s",
			Usage: "how long a neighbour may be silent, 3s to 18h in whole seconds",
			Why:   "without BFD it is how long clients of a lost host wait; a busy router may be late by a second or two"},
		{Key: "announce.bgp.nextHops[]", Type: List,
			Usage: "this node's addresses that routers send packets to, one of each family at most",
			Why: "the address of the session, and the first one of the other family on the same interface; " +
				"for a router that takes next hops of IPv6 for IPv4 (RFC 8950), the session's for both"},
	}
	list = append(list, pathSettings("announce.bgp.", "none: routes are equal unless the operator says otherwise")...)
	return append(list, []Setting{
		{Key: "announce.bgp.neighbours[].address", Type: String,
			Usage: "a router's address; both families are announced over a session of either",
			Why:   "only the operator knows it"},
		{Key: "announce.bgp.neighbours[].as", Type: Int,
			Usage: "its AS number",
			Why:   "only the operator knows it"},
		{Key: "announce.bgp.neighbours[].port", Type: Port, Default: defaultBGPPort,
			Usage: "the port that it listens on",
			Why:   "BGP's (RFC 4271)"},
		{Key: "announce.bgp.neighbours[].passwordFile", Type: Path,
			Usage: "a file with the password of the session (TCP MD5, RFC 2385)",
			Why:   "none: many routers on the same link have none"},
		{Key: "announce.bgp.neighbours[].passive", Type: Bool, Default: "false",
			Usage: "wait for the router to connect",
			Why:   "whoever connects first is sooner there"},
		{Key: "announce.bgp.neighbours[].hops", Type: Int, Default: "1",
			Usage: "how many hops it may be away, 1 to 255 (multihop)",
			Why:   "a router on the link; packets from further away are no business of it"},
		{Key: "announce.bgp.neighbours[].ttlSecurity", Type: Bool, Default: "false",
			Usage: "refuse packets that came further than hops (GTSM, RFC 5082)",
			Why:   "the router has to do the same"},
		{Key: "announce.bgp.neighbours[].bfd.on", Type: Bool, Default: "false",
			Usage: "watch the router by BFD (RFC 5880), which ends the session when it falls silent",
			Why:   "the router has to do the same"},
		{Key: "announce.bgp.neighbours[].bfd.interval", Type: Duration, Default: "50ms",
			Usage: "the time between two packets, in both directions, 10ms to 10s",
			Why:   "with multiplier 3 a lost host is noticed within 150 ms"},
		{Key: "announce.bgp.neighbours[].bfd.multiplier", Type: Int, Default: "3",
			Usage: "how many packets may be missing, 2 to 255",
			Why:   "one lost packet is no reason"},
		{Key: "announce.routes.table", Type: Int, Default: "254",
			Usage: "the kernel's routing table with a route for each virtual address that is announced by routes",
			Why:   "main, which routing daemons read"},
		{Key: "announce.routes.protocol", Type: Int, Default: "86",
			Usage: "the protocol number of these routes, 5 to 255, by which a daemon and clean-up know them",
			Why:   "nobody else's; 0x56 marks the virtual addresses on lo, too"},
		{Key: "announce.routes.metric", Type: Int, Default: "0",
			Usage: "the metric of these routes; 0: the kernel's own choice",
			Why:   "there is no other route to a virtual address"},
	}...)
}

// announce reads who is told of the virtual addresses.
func (b *builder) announce() AnnounceSettings {
	b.text("announce.by")
	a := AnnounceSettings{
		HolderOnly:    b.text("announce.who") == "holder",
		Standby:       b.bool("announce.standby"),
		NeedsMajority: b.text("announce.withoutMajority") == "withdraw",
		Grace:         b.duration("announce.grace", 0, time.Minute),
	}
	b.show("announce.tunnelPort", b.get("announce.tunnelPort").value, b.get("announce.tunnelPort").origin)
	a.TunnelPort = b.port("announce.tunnelPort", true)
	a.BGP = BGPSettings{AS: b.as(keyBGP + ".as"), RouterID: b.routerID()}
	b.show(keyBGP+".port", b.get(keyBGP+".port").value, b.get(keyBGP+".port").origin)
	a.BGP.Port = b.port(keyBGP+".port", true)
	// RFC 4271, section 4.2: less than three seconds is not allowed; two octets hold at most 65535.
	if a.BGP.HoldTime = b.duration(keyBGP+".holdTime", 3*time.Second, 18*time.Hour); a.BGP.HoldTime%time.Second != 0 {
		b.bad(keyBGP+".holdTime", "%s is not a whole number of seconds, which is all that BGP can say; write %s",
			formatDuration(a.BGP.HoldTime), formatDuration(a.BGP.HoldTime.Round(time.Second)))
	}
	a.BGP.NextHops = b.addrs(keyBGP+".nextHops", b.cfg.VIPs, "is a virtual address, which routers would look for here; "+
		"write this node's own address")
	a.BGP.Path = b.pathOf(keyBGP + ".")
	for key := range b.elements(keyNeighbours) {
		if n, ok := b.neighbour(key); ok {
			a.BGP.Neighbours = append(a.BGP.Neighbours, n)
		}
	}
	a.Routes = RouteSettings{
		Table: b.int("announce.routes.table", 1, 1<<31-1), Protocol: b.int("announce.routes.protocol", 5, 255),
		Metric: b.int("announce.routes.metric", 0, 1<<31-1),
	}
	return a
}

func (b *builder) neighbour(at string) (n NeighbourEntry, ok bool) {
	key := func(name string) string { return at + "." + name }
	n.Origin = b.origin(at)
	if b.get(key("address")).value == "" {
		b.missing(at, "has no address; write address: 192.0.2.1 with the router's")
		return n, false
	}
	if n.Addr, ok = b.addr(key("address"), b.get(key("address")).value); !ok {
		return n, false
	}
	b.show(key("address"), n.Addr.String(), b.origin(key("address")))
	switch {
	case n.Addr.Zone() != "":
		b.bad(key("address"), "%s is link-local; write the router's global or unique local address", n.Addr)
	case slices.Contains(b.cfg.VIPs, n.Addr):
		b.bad(key("address"), "%s is a virtual address; write the router's own", n.Addr)
	case slices.Contains(peerAddrs(b.cfg.Peers), n.Addr):
		b.bad(key("address"), "%s is a peer of this group; write a router's", n.Addr)
	}
	if n.AS = b.as(key("as")); n.AS == 0 && b.get(key("as")).value == "" {
		b.missing(at, "has no AS number; write as: 64512 with the router's")
	}
	b.show(key("port"), b.get(key("port")).value, b.get(key("port")).origin)
	n.Port = b.port(key("port"), false)
	n.PasswordFile = b.path(key("passwordFile"))
	n.Passive, n.Hops = b.bool(key("passive")), b.int(key("hops"), 1, 255)
	n.TTLSecurity = b.bool(key("ttlSecurity"))
	interval := b.duration(key("bfd.interval"), 10*time.Millisecond, 10*time.Second)
	n.BFDMultiplier = b.int(key("bfd.multiplier"), 2, 255)
	if b.bool(key("bfd.on")) {
		n.BFDInterval = interval
	} else if b.isSet(key("bfd.interval")) || b.isSet(key("bfd.multiplier")) {
		b.bad(key("bfd"), "has timers, but is not on; write on: true beside them, or remove them")
	}
	if n.Passive && b.get(keyBGP+".port").value == "0" {
		b.bad(key("passive"), "waits for the router, but announce.bgp.port is 0, so it cannot connect; "+
			"write passive: false, or another port")
	}
	return n, true
}

// as reads an AS number. It is 0 if there is none.
func (b *builder) as(key string) uint32 {
	c := b.get(key)
	b.show(key, c.value, c.origin)
	if c.value == "" {
		return 0
	}
	n, err := strconv.ParseUint(c.value, 10, 32)
	// 0, the last of two octets, and the last of four are reserved (RFC 7607, RFC 7300); 23456 stands for numbers
	// that two octets cannot hold (RFC 6793).
	switch {
	case err != nil || strconv.FormatUint(n, 10) != c.value || n < 1 || n > 4294967294:
		b.bad(key, "%s is not an AS number; write one from 1 to 4294967294, of your own from 64512 to 65534",
			printable(c.value))
	case n == 23456 || n == 65535:
		b.bad(key, "%d is reserved and nobody's AS number; write one of your own, from 64512 to 65534", n)
	default:
		return uint32(n)
	}
	return 0
}

func (b *builder) routerID() netip.Addr {
	const key = keyBGP + ".routerID"
	c := b.get(key)
	b.show(key, c.value, c.origin)
	if c.value == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(c.value)
	if err != nil || !a.Is4() || a.IsUnspecified() || a.IsMulticast() {
		b.bad(key, "%s is not a BGP identifier; write this node's IPv4 address, or another one that no router has",
			printable(c.value))
		return netip.Addr{}
	}
	return a
}

// pathOf reads the path attributes below prefix.
func (b *builder) pathOf(prefix string) (p PathSettings) {
	for key := range b.elements(prefix + "communities") {
		p.Communities = append(p.Communities, b.community(key, 2, 1<<16-1, "64512:100"))
	}
	for key := range b.elements(prefix + "largeCommunities") {
		p.LargeCommunities = append(p.LargeCommunities, b.community(key, 3, 1<<32-1, "64512:1:2"))
	}
	// An attribute holds 255 of them without the extended length, and no network gives meaning to so many.
	for _, list := range []string{"communities", "largeCommunities"} {
		if b.lists[prefix+list] > 32 {
			b.bad(prefix+list, "has %d entries; write 32 at most", b.lists[prefix+list])
		}
	}
	p.MED, p.LocalPref = b.uint32(prefix+"med"), b.uint32(prefix+"localPreference")
	if b.get(prefix+"prepend").value != "" {
		p.Prepend = b.int(prefix+"prepend", 0, 10)
	}
	return p
}

// wellKnownCommunities are those that may be written by name (RFC 1997).
var wellKnownCommunities = []string{"no-export", "no-advertise"}

func (b *builder) community(key string, parts int, most uint64, example string) string {
	value := b.get(key).value
	b.show(key, value, b.origin(key))
	if parts == 2 && slices.Contains(wellKnownCommunities, value) {
		return value
	}
	fields := strings.Split(value, ":")
	ok := len(fields) == parts
	for _, f := range fields {
		n, err := strconv.ParseUint(f, 10, 64)
		ok = ok && err == nil && n <= most
	}
	if !ok {
		b.bad(key, "%s is not a community of %d numbers up to %d; write one such as %s",
			printable(value), parts, most, example)
	}
	return value
}

// uint32 reads a number of four octets; nil if it is not set.
func (b *builder) uint32(key string) *uint32 {
	c := b.get(key)
	if c.value == "" {
		return nil
	}
	b.show(key, c.value, c.origin)
	n, err := strconv.ParseUint(c.value, 10, 32)
	if err != nil {
		b.bad(key, "%s is not a number from 0 to 4294967295; write one", printable(c.value))
		return nil
	}
	v := uint32(n)
	return &v
}

// A vipAnnounce is how one virtual address is announced.
type vipAnnounce struct {
	way  AnnounceWay
	path PathSettings
}

// vipAnnounce reads how the virtual address at the key at, which may be empty, is announced.
func (b *builder) vipAnnounce(at string) vipAnnounce {
	general := AnnounceWay(b.get("announce.by").value)
	v := vipAnnounce{way: general}
	if !slices.Contains(announceWays, string(general)) {
		v.way = ByARP // announce reports it
	}
	v.path = b.quietly(func(q *builder) PathSettings { return q.pathOf(keyBGP + ".") })
	if at == "" {
		return v
	}
	if b.get(at+".announce").value != "" {
		v.way = AnnounceWay(b.text(at + ".announce"))
	}
	own := b.pathOf(at + ".")
	if own.Communities != nil {
		v.path.Communities = own.Communities
	}
	if own.LargeCommunities != nil {
		v.path.LargeCommunities = own.LargeCommunities
	}
	if own.MED != nil {
		v.path.MED = own.MED
	}
	if own.LocalPref != nil {
		v.path.LocalPref = own.LocalPref
	}
	if b.isSet(at + ".prepend") {
		v.path.Prepend = own.Prepend
	}
	if v.way != ByBGP {
		for _, name := range []string{"communities", "largeCommunities", "med", "localPreference", "prepend"} {
			if b.isSet(at + "." + name) {
				b.bad(at+"."+name, "is for BGP, but the virtual address is announced by %s; write announce: bgp, or remove it",
					v.way)
			}
		}
	}
	return v
}

// quietly has read read what is read, shown and reported elsewhere.
func (b *builder) quietly(read func(*builder) PathSettings) PathSettings {
	return read(&builder{report: &report{}, rawConfig: b.rawConfig, file: b.file, src: b.src, cfg: &Config{}})
}

// AnnouncedBy says how vip is announced.
func (c *Config) AnnouncedBy(vip netip.Addr) AnnounceWay {
	if v, ok := c.vipAnnounces[vip]; ok {
		return v.way
	}
	return ByARP
}

// PathOf is with what vip is announced by BGP.
func (c *Config) PathOf(vip netip.Addr) PathSettings { return c.vipAnnounces[vip].path }

// announcedBy are the virtual addresses that are announced by one of ways.
func (c *Config) announcedBy(ways ...AnnounceWay) (vips []netip.Addr) {
	for _, vip := range c.VIPs {
		if slices.Contains(ways, c.AnnouncedBy(vip)) {
			vips = append(vips, vip)
		}
	}
	return vips
}

// RoutedVIPs are the virtual addresses that are announced to routers, by whatever way.
func (c *Config) RoutedVIPs() []netip.Addr { return c.announcedBy(ByBGP, ByRoutes) }

// Routed reports whether there are RoutedVIPs.
func (c *Config) Routed() bool { return len(c.RoutedVIPs()) > 0 }

// SpeaksBGP reports whether some virtual address is announced by BGP.
func (c *Config) SpeaksBGP() bool { return len(c.announcedBy(ByBGP)) > 0 }

// validateAnnounce checks the settings of announce against each other.
func (b *builder) validateAnnounce() {
	c, bgp := b.cfg, b.cfg.Announce.BGP
	vips := c.announcedBy(ByBGP)
	if len(vips) == 0 {
		if bgp.AS != 0 || len(bgp.Neighbours) > 0 {
			b.warn(b.origin(keyBGP), keyBGP, "has no effect: no virtual address is announced by BGP; "+
				"write announce: {by: bgp, …}, or announce: bgp for one of vips")
		}
		if !c.Routed() && c.Announce.HolderOnly {
			b.warn(b.origin("announce.who"), "announce.who", "has no effect: the virtual addresses are answered for on "+
				"the link, by the holder alone; write by: bgp or by: routes beside it, or remove it")
		}
	}
	if c.Announce.Standby && (!c.Announce.HolderOnly || len(vips) == 0) {
		b.warn(b.origin("announce.standby"), "announce.standby", "has no effect: it is for addresses that the holder alone "+
			"announces by BGP; write who: holder and by: bgp beside it, or remove it")
	}
	changed := func(name string) bool { k := "announce.routes." + name; return b.get(k).value != b.defaultOf(k) }
	if len(c.announcedBy(ByRoutes)) == 0 && (changed("table") || changed("protocol") || changed("metric")) {
		b.warn(b.origin("announce.routes"), "announce.routes", "has no effect: no virtual address is announced by routes; "+
			"write announce: {by: routes, …}, or announce: routes for one of vips")
	}
	b.validateNeighbours()
	if len(vips) == 0 {
		return
	}
	if bgp.AS == 0 && b.get(keyBGP+".as").value == "" {
		b.missing(keyBGP+".as", "is missing, and %s is announced by BGP; write this node's AS number, such as 64512",
			vips[0])
	}
	if len(bgp.Neighbours) == 0 && b.lists[keyNeighbours] == 0 {
		b.missing(keyNeighbours, "is missing, and %s is announced by BGP; "+
			"list the routers: - {address: 192.0.2.1, as: 64500}", vips[0])
	}
	for i, a := range bgp.NextHops {
		if !slices.ContainsFunc(vips, func(vip netip.Addr) bool { return vip.Is4() == a.Is4() }) {
			b.warn(b.origin(keyBGP+".nextHops"), keyBGP+".nextHops", "%s has no effect: no virtual address of its family is "+
				"announced by BGP; remove it, or write such an address", a)
		}
		for _, o := range bgp.NextHops[:i] {
			if a.Is4() == o.Is4() {
				b.bad(keyBGP+".nextHops", "%s and %s are of one family, and a route has one next hop; "+
					"remove one of the two", o, a)
			}
		}
	}
	if !bgp.RouterID.IsValid() && len(c.Peers) > 0 && !slices.ContainsFunc(peerAddrs(c.Peers), netip.Addr.Is4) {
		b.missing(keyBGP+".routerID", "is missing, and the peers have no IPv4 address to take; "+
			"write one of four octets for each node, such as 10.0.0.1, which no other has")
	}
	internal := func(n NeighbourEntry) bool { return n.AS == bgp.AS }
	external := func(n NeighbourEntry) bool { return !internal(n) }
	for _, vip := range vips {
		p := c.PathOf(vip)
		if c.Announce.Standby && p.LocalPref != nil && *p.LocalPref == 0 {
			b.bad("announce.standby", "announces %s with less preference than the holder does, and the holder's is 0; "+
				"write a localPreference of 1 or more", vip)
		}
		if p.LocalPref != nil && !slices.ContainsFunc(bgp.Neighbours, internal) {
			b.warn(b.vipOrigins[vip], keyVIPs, "%s has a localPreference, which is told to neighbours of the same AS only, "+
				"and there is none; write med or prepend", vip)
		}
		if p.Prepend > 0 && !slices.ContainsFunc(bgp.Neighbours, external) {
			b.warn(b.vipOrigins[vip], keyVIPs, "%s has a prepend, which neighbours of the same AS are not told, "+
				"and there are no others; write localPreference", vip)
		}
	}
}

func (b *builder) validateNeighbours() {
	ns := b.cfg.Announce.BGP.Neighbours
	for i, n := range ns {
		for _, o := range ns[:i] {
			if o.Addr == n.Addr {
				b.problem(n.Origin, keyNeighbours, "%s is there twice%s; remove one of the two", n.Addr,
					otherLine(o.Origin, n.Origin))
			}
		}
	}
}
