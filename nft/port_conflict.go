package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"appliance/nft/ruleset"
)

// PortConflicts returns an error that names the frontends which somebody else's rule translates already. Such a rule
// names the address and the port. A rule for all addresses of the host is no conflict, since our rules come first.
//
// It understands rules as nft and iptables-nft make them, with subnets, ranges, negations, and the sets of nf_tables.
// It sees neither rules of iptables-legacy, which the kernel keeps elsewhere, nor what is in an ipset, nor that a
// rule jumps to a chain whose rules do not name the address.
func PortConflicts(frontends []netip.AddrPort) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("looking for rules of others: %w; give the container the capability NET_ADMIN", err)
	}
	defer conn.Close()
	var errs []error
	families := []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6, nftables.TableFamilyINet}
	for _, family := range families {
		messages, err := conn.Execute(netlink.Message{
			Header: netlink.Header{
				Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE,
				Flags: netlink.Request | netlink.Dump,
			},
			Data: []byte{byte(family), unix.NFNETLINK_V0, 0, 0},
		})
		if err != nil {
			return fmt.Errorf("looking for rules of others: %w; see `nft list ruleset`", err)
		}
		for _, m := range messages {
			var r foreignRule
			if err := r.parse(m.Data[ruleset.NfgenmsgLen:]); err != nil {
				return fmt.Errorf("looking for rules of others: %w", err)
			}
			if slices.ContainsFunc(ruleset.Ours(), func(t ruleset.Table) bool { return t.Name == r.table }) {
				continue
			}
			for _, f := range frontends {
				f = netip.AddrPortFrom(f.Addr().Unmap(), f.Port())
				if f.Addr().Is4() && family == nftables.TableFamilyIPv6 || f.Addr().Is6() && family == nftables.TableFamilyIPv4 {
					continue
				}
				if r.translates(f, elementsIn(family, r.table)) {
					errs = append(errs, fmt.Errorf("%v is taken: a rule of somebody else in chain %s of table %s %s translates it; "+
						"remove that rule (nft -a list chain %s %s %s), or take another port",
						f, r.chain, ruleset.FamilyName(family), r.table, ruleset.FamilyName(family), r.table, r.chain))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// elementsIn reads the sets of a table. A set that cannot be read was replaced in between, together with its rule, and
// counts as empty.
func elementsIn(family nftables.TableFamily, table string) func(set string) []nftables.SetElement {
	return func(set string) []nftables.SetElement {
		conn, err := nftables.New()
		if err != nil {
			return nil
		}
		elements, _ := conn.GetSetElements(&nftables.Set{Table: &nftables.Table{Name: table, Family: family}, Name: set})
		return elements
	}
}
