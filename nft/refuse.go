package nft

import (
	"context"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A Refuser resets new connections to frontends that have no backend, for data
// planes whose own refusal is slow. The zero Refuser is ready.
type Refuser struct{ keep keeper }

// Refuse makes frontends the whole set of what is refused, to clients anywhere.
// An empty set removes the rules. Open connections go on.
func (r *Refuser) Refuse(_ context.Context, frontends []netip.AddrPort) (repaired int, err error) {
	want, err := refuse(frontends)
	if err != nil {
		return 0, err
	}
	return r.keep.apply(want)
}

// Close removes the rules.
func (r *Refuser) Close() error {
	_, err := r.keep.remove(table{family: nftables.TableFamilyINet, name: refuseTable})
	return err
}

func refuse(frontends []netip.AddrPort) (table, error) {
	t := table{family: nftables.TableFamilyINet, name: refuseTable}
	rules, err := t.addFrontends(frontends, "no backend", tcpSYN(), []expr.Any{resetTCP()})
	if err != nil || len(rules) == 0 {
		return t, err
	}
	// IPVS takes local clients' packets in the output hook at -99
	// (NF_IP_PRI_NAT_DST + 1) and others' in the input hook at 98.
	t.chains = []chain{
		{name: "input", hook: &hook{kind: nftables.ChainTypeFilter, num: unix.NF_INET_LOCAL_IN, priority: manglePriority}, rules: rules},
		{name: "output", hook: &hook{kind: nftables.ChainTypeFilter, num: unix.NF_INET_LOCAL_OUT, priority: manglePriority}, rules: rules},
	}
	return t, nil
}
