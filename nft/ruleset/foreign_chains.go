package ruleset

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// A ForeignChain is a base chain that somebody else made.
type ForeignChain struct {
	Family string // as nft writes it: ip, ip6, inet, arp, bridge, netdev
	Table  string
	Chain  string
	Hook   string // input, forward, output, prerouting, postrouting; empty for others
	Rules  int
	Drops  bool // packets that no rule decides on are dropped
}

// ForeignChains lists the base chains of tables that are not ours, in the order of their names.
func ForeignChains() ([]ForeignChain, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("list the chains of others: %w; give CAP_NET_ADMIN", err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list the chains of others: %w; see `nft list chains`", err)
	}
	var found []ForeignChain
	for _, c := range chains {
		if c.Hooknum == nil || strings.HasPrefix(c.Table.Name, "appliance_") {
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return nil, fmt.Errorf("list the rules of chain %s: %w; see `nft list ruleset`", c.Name, err)
		}
		found = append(found, ForeignChain{
			Family: FamilyName(c.Table.Family), Table: c.Table.Name, Chain: c.Name, Hook: hookWord(c.Table.Family, *c.Hooknum),
			Rules: len(rules), Drops: c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop,
		})
	}
	slices.SortFunc(found, func(a, b ForeignChain) int {
		return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Table, b.Table), cmp.Compare(a.Chain, b.Chain))
	})
	return found, nil
}

// hookWord is the name of a hook of the families ip, ip6, inet and bridge; others are empty.
func hookWord(f nftables.TableFamily, h nftables.ChainHook) string {
	if f == nftables.TableFamilyARP || f == nftables.TableFamilyNetdev {
		return ""
	}
	words := []string{"prerouting", "input", "forward", "output", "postrouting"} // enum nf_inet_hooks
	if int(h) < len(words) {
		return words[h]
	}
	return ""
}
