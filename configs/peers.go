package configs

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// A Role is what a peer may do.
type Role string

// The roles. A witness votes and never holds. A worker is outside the group: it has
// the VIPs and load balancers for its own clients and never answers for anybody else.
const (
	RolePeer    Role = "peer"
	RoleWitness Role = "witness"
	RoleWorker  Role = "worker"
)

// A PeerEntry is one entry of peers: a voting member of the group.
type PeerEntry struct {
	// ID is unique in the group. It is the address if the operator gave none.
	ID      string
	Address netip.Addr
	// Further are the other addresses of its host, of either family. Backends and
	// the direct data plane use them; the group does not.
	Further []netip.Addr
	Port    uint16
	Role    Role
	// Origin is where it was written.
	Origin Origin
}

// Addrs are all known addresses of the peer's host, Address first.
func (p PeerEntry) Addrs() []netip.Addr { return append([]netip.Addr{p.Address}, p.Further...) }

// ServersAt are those of a peer's addresses at which its server is a backend by
// default: one of each family that vips have, so that no client gets a server twice;
// if there is none, the first address.
func ServersAt(addrs, vips []netip.Addr) []netip.Addr {
	var at []netip.Addr
	for i, a := range addrs {
		same := func(b netip.Addr) bool { return a.Is4() == b.Is4() }
		if slices.ContainsFunc(vips, same) && !slices.ContainsFunc(addrs[:i], same) {
			at = append(at, a)
		}
	}
	if len(at) == 0 {
		return addrs[:min(1, len(addrs))]
	}
	return at
}

// AddrPort is where the peer talks to the group.
func (p PeerEntry) AddrPort() netip.AddrPort { return netip.AddrPortFrom(p.Address, p.Port) }

// peers reads the members of the group, in our form or in kube-vip's.
func (b *builder) peers() []PeerEntry {
	var peers []PeerEntry
	ours, theirs := b.lists[keyPeers], b.lists["remotePeers"]
	local := b.isSet("localPeer.address") && b.get("localPeer.address").value != ""
	switch {
	case ours > 0 && (theirs > 0 || local):
		other := "remotePeers"
		if theirs == 0 {
			other = "localPeer.address"
		}
		b.bad(other, "says again what peers%s says; keep peers, which can be the same on every node", b.lineOf(keyPeers))
		return nil
	case ours > 0:
		b.cfg.peersKey = keyPeers
		for key := range b.elements(keyPeers) {
			if p, ok := b.peer(key); ok {
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
	for key := range b.elements("remotePeers") {
		if p, ok := b.peer(key); ok {
			peers = append(peers, p)
		}
	}
	return peers
}

func (b *builder) peer(key string) (PeerEntry, bool) {
	p := PeerEntry{Role: RolePeer, Origin: b.origin(key)}
	where := b.get(key + ".address")
	if where.value == "" {
		b.bad(key+".address", "is missing; write the peer's address")
		return p, false
	}
	p.Origin = where.origin
	// id=address is the short form of both, mainly for the command line.
	if id, address, both := strings.Cut(where.value, "="); both {
		if own := b.get(key + ".id"); own.value != "" && own.value != id {
			b.bad(key+".id", "is %s, but the address says %s; write one of them", printable(own.value), printable(id))
		}
		where.value = address
		b.values[key+".id"] = rawValue{id, where.origin}
	}
	// address+address is the short form for a host of two families.
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

// further reads a peer's other addresses: those in the list, and those that + joins
// to its first address.
func (b *builder) further(key, joined string, o Origin, first netip.Addr) []netip.Addr {
	n := b.lists[key]
	if joined != "" {
		for text := range strings.SplitSeq(joined, "+") {
			b.values[fmt.Sprintf("%s[%d]", key, n)] = rawValue{text, o}
			n++
		}
	}
	b.lists[key] = n
	return b.addrs(key, []netip.Addr{first}, "is there twice; remove one of the two")
}

// Self finds which of the peers this node is: by id, if one is given or in the file,
// otherwise by the addresses of the host, local.
func (c *Config) Self(local []netip.Addr, id string) (PeerEntry, error) {
	if c.Worker() {
		return c.selfOutsideList(local, cmp.Or(id, c.ID))
	}
	if id = cmp.Or(id, c.ID); id != "" && len(c.Peers) > 0 {
		for _, p := range c.Peers {
			if p.ID == id {
				return c.withRole(p)
			}
		}
		if len(c.Join) > 0 { // the list is that of the group before this node joins
			return c.selfOutsideList(local, id)
		}
		return PeerEntry{}, Problem{c.idOrigin, keySelf,
			printable(id) + " is none of the peers; write one of " + peerIDs(c.Peers)}
	}
	if len(c.Peers) == 0 {
		return c.selfOutsideList(local, id)
	}
	if c.peersKey != keyPeers { // localPeer is this node, and stands first
		return c.withRole(c.Peers[0])
	}
	var found []PeerEntry
	for _, p := range c.Peers {
		if len(missing(local, p)) < len(p.Addrs()) {
			found = append(found, p)
		}
	}
	switch {
	case len(found) == 1:
		return c.withRole(found[0])
	case len(found) > 1:
		return PeerEntry{}, Problem{found[1].Origin, c.peersKey,
			"this host has the addresses of several peers (" + peerIDs(found) +
				"); say which it is with --id or localPeer.id, or list each host once"}
	case len(c.Join) > 0:
		return c.selfOutsideList(local, id)
	}
	return PeerEntry{}, Problem{c.Peers[0].Origin, c.peersKey,
		"none is this host, which has " + addresses(local) + ", while the peers are " + addresses(peerAddrs(c.Peers)) +
			"; add this host's address, or say which peer it is with --id"}
}

// missing are the addresses of p that are not among local.
func missing(local []netip.Addr, p PeerEntry) []netip.Addr {
	return slices.DeleteFunc(p.Addrs(), func(own netip.Addr) bool {
		return slices.ContainsFunc(local, func(a netip.Addr) bool { return sameHost(a, own) })
	})
}

// CheckSelfAddrs returns an error if this host lacks one of the further addresses of
// self. Opening the peer port finds out about the first address.
func (c *Config) CheckSelfAddrs(local []netip.Addr, self PeerEntry) error {
	for _, a := range missing(local, self) {
		if a != self.Address {
			return Problem{self.Origin, c.peersKey, fmt.Sprintf("%s is an address of %s, which is this host, but it has %s; "+
				"correct it, or remove it",
				a, printable(self.ID), addresses(local))}
		}
	}
	return nil
}

// selfOutsideList is this node where the file lists no peers, or where it is a worker,
// which is in no group, or where it joins a group whose list it is not in yet.
func (c *Config) selfOutsideList(local []netip.Addr, id string) (PeerEntry, error) {
	for _, a := range local {
		a = a.Unmap()
		if a.IsGlobalUnicast() && !slices.Contains(c.VIPs, a) {
			return c.withRole(PeerEntry{ID: cmp.Or(id, a.String()), Address: a, Port: c.Group.Port, Role: RolePeer})
		}
	}
	return PeerEntry{}, Problem{Origin{}, keyPeers,
		"this host has no address of its own (it has " + addresses(local) + "); list its address in peers"}
}

// withRole gives p the role that this node's own file sets apart from the list.
func (c *Config) withRole(p PeerEntry) (PeerEntry, error) {
	if !c.role.origin.IsDefault() {
		p.Role = Role(c.role.value)
	}
	return p, nil
}

// sameHost compares addresses. It ignores the zone of a link-local address if only one
// of the two has one.
func sameHost(a, b netip.Addr) bool {
	a, b = a.Unmap(), b.Unmap()
	if a.Zone() == "" || b.Zone() == "" {
		return a.WithZone("") == b.WithZone("")
	}
	return a == b
}

func hasPeer(peers []PeerEntry, id string) bool {
	return slices.ContainsFunc(peers, func(p PeerEntry) bool { return p.ID == id })
}

func peerIDs(peers []PeerEntry) string {
	ids := make([]string, len(peers))
	for i, p := range peers {
		ids[i] = printable(p.ID)
	}
	return strings.Join(ids, ", ")
}

func peerAddrs(peers []PeerEntry) []netip.Addr {
	var list []netip.Addr
	for _, p := range peers {
		list = append(list, p.Addrs()...)
	}
	return list
}

// addresses lists what can be a peer's address. It leaves out loopback addresses, which
// would hide the mistake.
func addresses(list []netip.Addr) string {
	var words []string
	for _, a := range list {
		if word := a.Unmap().String(); !a.IsLoopback() && !slices.Contains(words, word) {
			words = append(words, word)
		}
	}
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ", ")
}
