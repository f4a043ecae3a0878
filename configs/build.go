package configs

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// build reads the sheet from top to bottom, then holds the parts against
// each other.
func (b *builder) build() {
	c := b.cfg
	if c.role = b.get("role"); !c.role.origin.IsDefault() {
		c.role.value = b.text("role")
	}
	c.VIPs = b.vips()
	c.Interface = b.interfaceName()
	c.SingleNode = b.bool(keySingle)
	c.StartAsLeader = b.bool("startAsLeader")
	c.Group = b.group()
	before := len(b.problems)
	c.Join = b.join()
	c.Priority = b.int("priority", 0, 255)
	c.Group.Preempt = b.preempt()
	c.Peers = b.peers()
	b.halfRead = b.doubt || len(b.problems) > before
	if id := b.get(keySelf); id.value != "" && c.peersKey == keyPeers {
		c.ID, c.idOrigin = b.name(keySelf, ""), id.origin
	} else {
		c.ID, c.idOrigin = id.value, id.origin // read with the rest of localPeer
	}
	c.DataPlane = b.text("dataPlane")
	c.LoadBalancers = b.loadBalancers(b.bool("addPeersAsBackends"))
	c.Tracks = b.tracks()
	c.Hooks = b.hooks()
	c.DataDir = b.path("dataDir")
	c.Linger = b.duration("linger", 0, time.Hour)
	c.Socket = b.path("socket")
	c.Log = Log{Level: b.text("log.level"), Format: b.text("log.format")}
	c.Admin = b.admin()
	b.relate()
}

func (b *builder) vips() []netip.Addr {
	var keys []string
	if c := b.cells["vip"]; c.value != "" {
		keys = append(keys, "vip")
	}
	for i := range b.lists[keyVIPs] {
		keys = append(keys, fmt.Sprintf("%s[%d]", keyVIPs, i))
	}
	keys = slices.DeleteFunc(keys, func(key string) bool { _, ok := b.cells[key]; return !ok })
	if len(keys) == 0 && b.cfg.Worker() {
		return nil // it may listen on addresses of its own; see relateWorker
	}
	if len(keys) == 0 {
		b.missing(keyVIPs, "is missing; write vips: [192.0.2.10] with a free address of the network, or give --vip")
		return nil
	}
	var vips []netip.Addr
	b.vipAt = map[netip.Addr]Origin{}
	for _, key := range keys {
		v, ok := b.vip(key)
		if !ok {
			continue
		}
		b.show(key, v.String(), b.at(key))
		if first, dup := b.vipAt[v]; dup {
			b.bad(key, "%s is there twice%s; remove one of the two", v, seen(first, b.at(key)))
			continue
		}
		b.vipAt[v] = b.at(key)
		vips = append(vips, v)
	}
	return vips
}

// vip reads one virtual address; people copy it with the length of its
// subnet, which says nothing here: it is bound as a host address.
func (b *builder) vip(key string) (netip.Addr, bool) {
	value := b.cells[key].value
	if address, bits, ok := strings.Cut(value, "/"); ok {
		p, err := netip.ParsePrefix(value)
		if err != nil {
			if _, bad := netip.ParseAddr(address); bad == nil {
				b.bad(key, "/%s is not the length of a prefix; write %s", printable(bits), address)
				return netip.Addr{}, false
			}
		} else if !p.IsSingleIP() {
			b.warn(b.at(key), key, "/%s is ignored: a virtual address is bound as a host address; write %s", bits, p.Addr().Unmap())
		}
		value = address
	}
	a, ok := b.addr(key, value)
	if ok && a.IsLoopback() {
		b.bad(key, "%s is a loopback address, which no other machine can reach; write a free address of the network", a)
		return a, false
	}
	return a, ok
}

func (b *builder) interfaceName() string {
	c := b.get("interface")
	b.show("interface", c.value, c.origin)
	if len(c.value) > maxInterface || strings.ContainsAny(c.value, "/ :%") || c.value != "" && printable(c.value) != c.value {
		b.bad("interface", "%s cannot be an interface's name; write one that `ip link` shows, or nothing to have it found by the virtual address's subnet", printable(c.value))
	}
	return c.value
}

func (b *builder) group() Group {
	port := b.get("group.port")
	b.show("group.port", port.value, port.origin)
	g := Group{Port: b.port("group.port", false)}
	files := []string{"group.keyFile", "group.caFile", "group.certFile", "group.certKeyFile"}
	said := func(key string) bool { return b.get(key).value != "" }
	if !slices.ContainsFunc(files, said) && b.get("group.insecure").value != "true" && b.src.exists(DefaultKeyFile) {
		g.KeyFile = DefaultKeyFile
		b.show("group.keyFile", DefaultKeyFile, Origin{})
	} else {
		g.KeyFile = b.path("group.keyFile")
	}
	g.OldKeyFile = b.path("group.oldKeyFile")
	g.CAFile, g.CertFile, g.CertKeyFile = b.path("group.caFile"), b.path("group.certFile"), b.path("group.certKeyFile")
	g.Insecure = b.bool("group.insecure")
	// Below 50 ms the scheduler of a busy node looks like a death; above 10 s
	// nobody would call it high availability.
	g.Heartbeat = b.duration("group.heartbeat", 50*time.Millisecond, 10*time.Second)
	return g
}

// peers reads the members, in our form or in kube-vip's.
func (b *builder) peers() []Peer {
	var peers []Peer
	ours, theirs := b.lists[keyPeers], b.lists["remotePeers"]
	local := b.has("localPeer.address") && b.get("localPeer.address").value != ""
	switch {
	case ours > 0 && (theirs > 0 || local):
		other := "remotePeers"
		if theirs == 0 {
			other = "localPeer.address"
		}
		b.bad(other, "says again what peers%s says; keep peers, which can be the same on every node", b.line(keyPeers))
		return nil
	case ours > 0:
		b.cfg.peersKey = keyPeers
		for i := range ours {
			if p, ok := b.peer(fmt.Sprintf("%s[%d]", keyPeers, i)); ok {
				peers = append(peers, p)
			}
		}
		return peers
	}
	b.cfg.peersKey = "localPeer and remotePeers"
	if local {
		if p, ok := b.peer("localPeer"); ok {
			peers = append(peers, p)
		}
	} else if theirs > 0 {
		b.bad("localPeer.address", "is missing; write this node's own address, or list all nodes in peers")
	}
	for i := range theirs {
		if p, ok := b.peer(fmt.Sprintf("remotePeers[%d]", i)); ok {
			peers = append(peers, p)
		}
	}
	return peers
}

func (b *builder) peer(key string) (Peer, bool) {
	p := Peer{Role: RolePeer, Origin: b.at(key)}
	where := b.get(key + ".address")
	if where.value == "" {
		b.bad(key+".address", "is missing; write the peer's address")
		return p, false
	}
	p.Origin = where.origin
	// id=address is the short form of both, for the command line above all.
	if id, address, both := strings.Cut(where.value, "="); both {
		if own := b.get(key + ".id"); own.value != "" && own.value != id {
			b.bad(key+".id", "is %s, but the address says %s; write one of them", printable(own.value), printable(id))
		}
		where.value = address
		b.cells[key+".id"] = cell{id, where.origin}
	}
	// So is address+address, for a host of two families.
	address, further, _ := strings.Cut(where.value, "+")
	where.value = address
	a, port, ok := b.endpoint(key+".address", where.value)
	if !ok {
		return p, false
	}
	p.Address, p.Port = a, b.port(key+".port", false)
	switch {
	case port != 0 && p.Port != 0 && port != p.Port:
		b.bad(key+".port", "is %d, but the address says %d; write one of them", p.Port, port)
	case port != 0:
		p.Port = port
	case p.Port == 0:
		p.Port = b.cfg.Group.Port
	}
	b.show(key+".address", p.AddrPort().String(), where.origin)
	p.Further = b.further(key+".addresses", further, where.origin, a)
	p.ID = b.name(key+".id", a.String())
	if _, ok := setting(key + ".role"); ok {
		p.Role = Role(b.text(key + ".role"))
	}
	return p, true
}

// further reads a peer's other addresses, beside those that are joined to its
// first by +.
func (b *builder) further(key, joined string, o Origin, first netip.Addr) []netip.Addr {
	n := b.lists[key]
	if joined != "" {
		for text := range strings.SplitSeq(joined, "+") {
			b.cells[fmt.Sprintf("%s[%d]", key, n)] = cell{text, o}
			n++
		}
	}
	var list []netip.Addr
	for i := range n {
		key := fmt.Sprintf("%s[%d]", key, i)
		a, ok := b.addr(key, b.get(key).value)
		if !ok {
			continue
		}
		b.show(key, a.String(), b.at(key))
		if a == first || slices.Contains(list, a) {
			b.bad(key, "%s is there twice; remove one of the two", a)
			continue
		}
		list = append(list, a)
	}
	return list
}

// loadBalancers reads the list; without one, the VIP's port 6443 is spread
// over the peers.
func (b *builder) loadBalancers(addPeers bool) []LoadBalancer {
	n := b.lists[keyLBs]
	if n == 0 {
		lb := b.loadBalancer(0, "kube-apiserver", true)
		return []LoadBalancer{lb}
	}
	lbs := make([]LoadBalancer, n)
	for i := range n {
		// kube-vip's files have the Kubernetes API first, and want the peers
		// there; they would be wrong behind every other port as well.
		own := b.lists[b.lbKey(i, "backends")] > 0
		lbs[i] = b.loadBalancer(i, "", addPeers && (i == 0 || !own))
	}
	return lbs
}

func (b *builder) lbKey(i int, name string) string {
	return fmt.Sprintf("%s[%d].%s", keyLBs, i, name)
}

func (b *builder) loadBalancer(i int, name string, addPeers bool) LoadBalancer {
	key := func(name string) string { return b.lbKey(i, name) }
	lb := LoadBalancer{Origin: b.at(fmt.Sprintf("%s[%d]", keyLBs, i))}
	port := b.get(key("port"))
	if name == "" {
		name = "lb-" + port.value
	}
	lb.Name = b.name(key("name"), name)
	b.lbType(key("type"))
	b.show(key("port"), port.value, port.origin)
	lb.Port = b.port(key("port"), false)
	lb.BindToVIP = b.bool(key("bindToVip"))
	if lb.BindToVIP {
		lb.VIPs = b.cfg.VIPs
	}
	lb.Listen = b.listen(key("listen"))
	backendPort := b.port(key("backendPort"), true)
	if backendPort == 0 {
		backendPort = lb.Port
	}
	b.show(key("backendPort"), strconv.Itoa(int(backendPort)), b.get(key("backendPort")).origin)
	lb.Scheduler = b.text(key("scheduler"))
	lb.DataPlane = b.cfg.DataPlane
	if own := b.get(key("dataPlane")); own.value != "" {
		lb.DataPlane = b.text(key("dataPlane"))
	}
	lb.ConnectTimeout = b.duration(key("timeouts.connect"), time.Millisecond, 5*time.Minute)
	lb.Handling = b.handling(key)
	lb.MaxFails = b.int(key("maxFails"), 0, 1000)
	lb.FailTimeout = b.duration(key("failTimeout"), 100*time.Millisecond, 24*time.Hour)
	lb.TryDown = b.text(key("whenAllDown")) == "try"
	lb.KeepDown = b.text(key("onMarkedDown")) == "keep"
	lb.EndBackup = b.text(key("onMarkedUp")) == "shutdown-backup-sessions"
	lb.Check = b.check(key("check."))
	lb.Backends = b.backends(i, backendPort)
	if addPeers {
		lb.AddPeersAt = backendPort
		lb.Backends = b.withPeers(i, lb.Backends, backendPort)
	}
	return lb
}

func (b *builder) listen(key string) []netip.Addr {
	var list []netip.Addr
	for i := range b.lists[key] {
		key := fmt.Sprintf("%s[%d]", key, i)
		a, ok := b.addr(key, b.get(key).value)
		if !ok {
			continue
		}
		b.show(key, a.String(), b.at(key))
		switch {
		case slices.Contains(list, a):
			b.bad(key, "%s is there twice; remove one of the two", a)
		case slices.Contains(b.cfg.VIPs, a):
			b.bad(key, "%s is a virtual address, which bindToVip listens on; remove it here", a)
		default:
			list = append(list, a)
		}
	}
	return list
}

func (b *builder) lbType(key string) {
	c := b.get(key)
	if c.value == "http" {
		b.warn(b.at(key), key, "http is carried as tcp, unread; write tcp")
		b.show(key, "tcp", c.origin)
		return
	}
	b.text(key)
}

func (b *builder) backends(lb int, port uint16) []Backend {
	var list []Backend
	for i := range b.lists[b.lbKey(lb, "backends")] {
		key := b.lbKey(lb, fmt.Sprintf("backends[%d]", i))
		be, ok := b.backend(key, port)
		if !ok {
			continue
		}
		for _, other := range list {
			if other.Address == be.Address {
				b.bad(key, "%s is already a backend%s; remove one of the two, weight says how much it gets", be.Address, seen(other.Origin, be.Origin))
			}
			if be.Name != "" && other.Name == be.Name {
				b.bad(key+".name", "%s is already the name of %s; names are how you call them, write another", printable(be.Name), other.Address)
			}
		}
		list = append(list, be)
	}
	return list
}

func (b *builder) backend(key string, otherwise uint16) (Backend, bool) {
	be := Backend{Origin: b.at(key)}
	where, link := b.get(key+".address"), b.get(key+".url")
	var (
		a    netip.Addr
		port uint16
		ok   bool
	)
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
		b.bad(key+".port", "is %d, but %s says %d; write one of them", own, field[strings.LastIndexByte(field, '.')+1:], port)
	}
	for _, p := range []uint16{own, otherwise} {
		if port == 0 {
			port = p
		}
	}
	be.Address = netip.AddrPortFrom(a, port)
	b.show(field, be.Address.String(), b.at(field))
	if c := b.get(key + ".name"); c.value != "" {
		be.Name = b.name(key+".name", "")
	}
	be.Weight = b.int(key+".weight", 0, 256)
	be.Backup = b.bool(key + ".backup")
	be.MaxConn, be.MaxQueue = b.int(key+".maxconn", 0, 1_000_000), b.int(key+".maxqueue", 0, 1_000_000)
	be.SlowStart = b.duration(key+".slowstart", 0, time.Hour)
	return be, true
}

// withPeers adds the peers that can hold to list. One that is listed already
// keeps what its entry says.
func (b *builder) withPeers(lb int, list []Backend, port uint16) []Backend {
	for _, p := range b.cfg.Peers {
		for _, a := range ServersAt(p.Addrs(), b.cfg.VIPs) {
			at := netip.AddrPortFrom(a, port)
			if p.Role == RoleWitness || containsBackend(list, at) {
				continue
			}
			be := Backend{Address: at, Weight: 1, Origin: p.Origin}
			if p.ID != p.Address.String() {
				be.Name = p.ID
			}
			b.show(b.lbKey(lb, fmt.Sprintf("backends[%d].address", len(list))), at.String(), p.Origin)
			list = append(list, be)
		}
	}
	return list
}

func containsBackend(list []Backend, at netip.AddrPort) bool {
	for _, be := range list {
		if be.Address == at {
			return true
		}
	}
	return false
}

// line is " (line 7)" where key stands in the file, else nothing.
func (b *builder) line(key string) string {
	if o := b.place(key); o.Line > 0 {
		return fmt.Sprintf(" (line %d)", o.Line)
	}
	return ""
}

// seen says where the first of two equals stands, if that is another line.
func seen(first, second Origin) string {
	if first.Line == 0 || first.Line == second.Line {
		return ""
	}
	return fmt.Sprintf(" (line %d)", first.Line)
}
