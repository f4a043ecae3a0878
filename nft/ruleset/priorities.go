package ruleset

import (
	"github.com/google/nftables"
)

// Priorities of our chains among those of others in the same hook: the lower number
// comes first.
const (
	// PriorityDNAT, with NATSteps, ends just before dstnat (-100), where kube-proxy
	// (iptables and nftables mode), docker and iptables have their chains: the first
	// NAT rule that matches a connection decides, and our frontends belong to no other
	// program. The kernel runs all NAT chains of a hook at that place, after conntrack
	// (-200) and mangle (-150), so marks for policy routing are set. Their own
	// priorities say which NAT chain comes first.
	PriorityDNAT nftables.ChainPriority = dstnat - 1 - NATSteps
	// PrioritySNAT, with NATSteps, ends just before srcnat (100), where docker and
	// kube-proxy masquerade, for the same reason.
	PrioritySNAT nftables.ChainPriority = srcnat - 1 - NATSteps
	// NATSteps is how many priorities NAT chains go through when they are replaced.
	// One more is for chains that are hooked twice; see stagger.
	NATSteps nftables.ChainPriority = 32

	dstnat nftables.ChainPriority = -100 // NF_IP_PRI_NAT_DST
	srcnat nftables.ChainPriority = 100  // NF_IP_PRI_NAT_SRC

	// PriorityTranslated is after dstnat: what NAT sends elsewhere has another destination
	// by then.
	PriorityTranslated = dstnat + 10
	// PriorityMangle is that of mangle itself: marks are set before NAT (-133) and
	// IPVS, in the input hook, look at them.
	PriorityMangle nftables.ChainPriority = -150
	// PriorityLate is after srcnat and after IPVS (98 in the input hook, 99 in the
	// forward hook): packets look as their receivers see them.
	PriorityLate nftables.ChainPriority = 110
	// PriorityReject is before the filters of iptables (0), firewalld (10) and
	// kube-proxy (0): a client of a service without backends must be refused at once,
	// and not dropped. Packets that are accepted here still pass their chains, where a
	// drop is final.
	PriorityReject nftables.ChainPriority = -10
)
