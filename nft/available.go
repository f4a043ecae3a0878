package nft

import (
	"errors"
	"net/netip"

	"appliance/balancer"
	"appliance/nft/ruleset"
)

// Available tries whether the kernel takes our rules. Every table is made and
// removed in one transaction, so nobody sees it. The error says what is missing and
// what to do.
func Available() error {
	// Documentation addresses, RFC 5737 and RFC 3849.
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	s, err := arpTable([]FilteredVIP{{VIP: v4}})
	if err != nil {
		return err
	}
	from4, from6 := netip.AddrPortFrom(v4, 1), netip.AddrPortFrom(v6, 1)
	r, err := redirect(map[netip.AddrPort]netip.AddrPort{
		from4: netip.AddrPortFrom(v4, 2), from6: netip.AddrPortFrom(v6, 2),
	}, translatedOnly)
	if err != nil {
		return err
	}
	m, err := masquerade([]netip.AddrPort{from4, from6})
	if err != nil {
		return err
	}
	n, err := natTables([]balancer.Service{{Frontend: from4}, {Frontend: from6}}, false)
	if err != nil {
		return err
	}
	for _, t := range append(n, s, r, m) {
		if err := ruleset.Try(t); err != nil {
			return err
		}
	}
	return nil
}

// Cleanup removes every table of ours, whichever process made it, and says which
// there were.
func Cleanup() (removed []string, err error) {
	var errs []error
	for _, t := range ruleset.Ours() {
		was, err := ruleset.Remove(t)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if was {
			removed = append(removed, "nf_tables table "+t.String())
		}
	}
	return removed, errors.Join(errs...)
}
