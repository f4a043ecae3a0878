package nft

import "github.com/google/nftables"

// Where our chains sit among those of others. Several chains may hang in one
// hook; the lower number comes first.
const (
	// dnatPriority, with natSteps, ends just before dstnat (-100), where
	// kube-proxy (iptables and nftables mode), docker and iptables have theirs: the
	// first NAT rule that matches a connection decides, and no other program has
	// a claim on our frontends. The kernel runs all NAT chains of a hook at that
	// place, after conntrack (-200) and mangle (-150), so that marks for policy
	// routing are set; their own numbers say which of them comes first.
	dnatPriority nftables.ChainPriority = dstnat - 1 - natSteps
	// snatPriority, with natSteps, ends just before srcnat (100), for the same
	// reason: docker and kube-proxy masquerade there what they know; what we
	// match is ours.
	snatPriority nftables.ChainPriority = srcnat - 1 - natSteps
	// natSteps is how many priorities chains of NAT go through when they are
	// replaced. One more is for those that are there twice, see stagger.
	natSteps nftables.ChainPriority = 32

	dstnat nftables.ChainPriority = -100 // NF_IP_PRI_NAT_DST
	srcnat nftables.ChainPriority = 100  // NF_IP_PRI_NAT_SRC

	// manglePriority is that of mangle itself: marks are set before the
	// decisions that look at them, NAT at -110 and IPVS in the input hook.
	manglePriority nftables.ChainPriority = -150
	// latePriority is after srcnat and after IPVS (98 in the input hook, 99 in
	// the forward hook): packets look as those see them that they go to.
	latePriority nftables.ChainPriority = 110
	// rejectPriority is before the filters of iptables (0), firewalld (10)
	// and kube-proxy (0): a client of a service without backends is to be
	// refused at once, not dropped. An accept here is no promise: their
	// chains are run, too, and a drop there is final.
	rejectPriority nftables.ChainPriority = -10
)
