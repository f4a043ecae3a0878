package configs

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Self finds which of the peers this node is: by id if one is given or in
// the file, else by the addresses that the host has.
func (c *Config) Self(local []netip.Addr, id string) (Peer, error) {
	if c.Worker() {
		return c.alone(local, cmp.Or(id, c.ID))
	}
	if id = cmp.Or(id, c.ID); id != "" && len(c.Peers) > 0 {
		for _, p := range c.Peers {
			if p.ID == id {
				return c.withRole(p)
			}
		}
		return Peer{}, Problem{c.idOrigin, keySelf, printable(id) + " is none of the peers; write one of " + peerIDs(c.Peers)}
	}
	if len(c.Peers) == 0 {
		return c.alone(local, id)
	}
	if c.peersKey != keyPeers { // localPeer says it, and stands first
		return c.withRole(c.Peers[0])
	}
	var found []Peer
	for _, p := range c.Peers {
		if len(missing(local, p)) < len(p.Addrs()) {
			found = append(found, p)
		}
	}
	switch {
	case len(found) == 1:
		return c.withRole(found[0])
	case len(found) > 1:
		return Peer{}, Problem{found[1].Origin, c.peersKey, "this host has the addresses of several peers (" + peerIDs(found) +
			"); say which it is with --id or localPeer.id, or list each host once"}
	}
	return Peer{}, Problem{c.Peers[0].Origin, c.peersKey, "none is this host, which has " + addresses(local) +
		", while the peers are " + addresses(peerAddrs(c.Peers)) + "; add this host's address, or say which peer it is with --id"}
}

// missing are the addresses of p that are not among local.
func missing(local []netip.Addr, p Peer) []netip.Addr {
	return slices.DeleteFunc(p.Addrs(), func(own netip.Addr) bool {
		return slices.ContainsFunc(local, func(a netip.Addr) bool { return sameHost(a, own) })
	})
}

// AtHome says whether this host has the further addresses of self, which it was
// found to be. The first is for the peer port to find out.
func (c *Config) AtHome(local []netip.Addr, self Peer) error {
	for _, a := range missing(local, self) {
		if a != self.Address {
			return Problem{self.Origin, c.peersKey, fmt.Sprintf("%s is an address of %s, which is this host, but it has %s; correct it, or remove it",
				a, printable(self.ID), addresses(local))}
		}
	}
	return nil
}

// alone is the only peer of a group whose file names none, or a worker, which
// is in no group.
func (c *Config) alone(local []netip.Addr, id string) (Peer, error) {
	for _, a := range local {
		a = a.Unmap()
		if a.IsGlobalUnicast() && !slices.Contains(c.VIPs, a) {
			return c.withRole(Peer{ID: cmp.Or(id, a.String()), Address: a, Port: c.Group.Port, Role: RolePeer})
		}
	}
	return Peer{}, Problem{Origin{}, keyPeers, "this host has no address of its own (it has " + addresses(local) + "); list its address in peers"}
}

// withRole lets this node's own file say its role apart from the list.
func (c *Config) withRole(p Peer) (Peer, error) {
	if !c.role.origin.IsDefault() {
		p.Role = Role(c.role.value)
	}
	return p, nil
}

// sameHost compares without the zone of link-local addresses, which the host
// may know by an interface's number.
func sameHost(a, b netip.Addr) bool {
	a, b = a.Unmap(), b.Unmap()
	if a.Zone() == "" || b.Zone() == "" {
		return a.WithZone("") == b.WithZone("")
	}
	return a == b
}

func hasPeer(peers []Peer, id string) bool {
	return slices.ContainsFunc(peers, func(p Peer) bool { return p.ID == id })
}

func peerIDs(peers []Peer) string {
	ids := make([]string, len(peers))
	for i, p := range peers {
		ids[i] = printable(p.ID)
	}
	return strings.Join(ids, ", ")
}

func peerAddrs(peers []Peer) []netip.Addr {
	var list []netip.Addr
	for _, p := range peers {
		list = append(list, p.Addrs()...)
	}
	return list
}

// addresses lists what can be a peer's address; loopback ones would only be
// in the way of seeing the mistake.
func addresses(list []netip.Addr) string {
	var words []string
	for _, a := range list {
		if !a.IsLoopback() {
			words = append(words, a.Unmap().String())
		}
	}
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ", ")
}
