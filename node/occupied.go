package node

import (
	"net/netip"
	"slices"

	"appliance/nft"
)

// unoccupied refuses addresses that somebody else's rules translate: whose come
// first would be a matter of priorities, and the other's clients would wonder.
func (n *node) unoccupied() error {
	if !n.nftables {
		return nil
	}
	var frontends []netip.AddrPort
	for _, lb := range loadBalancers(n.cfg) {
		for _, f := range lb.Frontends {
			if slices.Contains(n.cfg.VIPs, f.Addr()) {
				frontends = append(frontends, f)
			}
		}
	}
	return nft.Occupied(frontends)
}
