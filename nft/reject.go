package nft

import (
	"context"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"appliance/nft/ruleset"
)

// A Rejecter resets new connections to frontends without a backend, for data planes
// that are slow to refuse them. The zero Rejecter is ready.
type Rejecter struct{ reconciler ruleset.Reconciler }

// NewRejecter returns a Rejecter whose table belongs to the owner.
func NewRejecter(owner *ruleset.Owner) *Rejecter {
	return &Rejecter{ruleset.Reconciler{Owner: owner}}
}

// Refuse makes frontends the whole set of what is rejected, for clients anywhere. An
// empty set removes the rules. Open connections go on.
func (r *Rejecter) Refuse(_ context.Context, frontends []netip.AddrPort) (repaired int, err error) {
	want, err := rejectTable(frontends)
	if err != nil {
		return 0, err
	}
	return r.reconciler.Apply(want)
}

// Close removes the rules.
func (r *Rejecter) Close() error {
	_, err := r.reconciler.Remove(ruleset.Table{Family: nftables.TableFamilyINet, Name: ruleset.RejectTable})
	return err
}

func rejectTable(frontends []netip.AddrPort) (ruleset.Table, error) {
	t := ruleset.Table{Family: nftables.TableFamilyINet, Name: ruleset.RejectTable}
	rules, err := addFrontends(&t, frontends, "no backend", ruleset.SYN(), []expr.Any{ruleset.Reset()})
	if err != nil || len(rules) == 0 {
		return t, err
	}
	// IPVS takes packets of local clients in the output hook at -99
	// (NF_IP_PRI_NAT_DST + 1), and those of others in the input hook at 98.
	t.Chains = []ruleset.Chain{
		ruleset.FilterChain("input", unix.NF_INET_LOCAL_IN, ruleset.PriorityMangle, rules...),
		ruleset.FilterChain("output", unix.NF_INET_LOCAL_OUT, ruleset.PriorityMangle, rules...),
	}
	return t, nil
}
