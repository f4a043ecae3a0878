package ruleset

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// At every step, a chain comes after the chain that it replaces, in one of the two
// places that it may have.
func TestStaggerNeverPutsTheNewChainFirst(t *testing.T) {
	want := Table{}
	for name, h := range map[string]BaseHook{
		"prerouting":  {Kind: nftables.ChainTypeNAT, Num: unix.NF_INET_PRE_ROUTING, Priority: PriorityDNAT, Steps: NATSteps},
		"output":      {Kind: nftables.ChainTypeNAT, Num: unix.NF_INET_LOCAL_OUT, Priority: PriorityDNAT, Steps: NATSteps},
		"postrouting": {Kind: nftables.ChainTypeNAT, Num: unix.NF_INET_POST_ROUTING, Priority: PrioritySNAT, Steps: NATSteps},
		"input":       {Kind: nftables.ChainTypeFilter, Num: unix.NF_INET_LOCAL_IN, Priority: PriorityReject},
	} {
		want.Chains = append(want.Chains, Chain{Name: name, Hook: &h})
	}
	have := kernelTable{}
	for step := range 3 * int(NATSteps) {
		next := kernelTable{chains: map[string]kernelChain{}}
		for _, c := range want.stagger(have).Chains {
			if c.Hook != nil {
				next.chains[c.Name] = kernelChain{hook: true, num: c.Hook.Num, priority: c.Hook.Priority}
			}
		}
		for name, old := range have.chains {
			again, twice := next.chains[doubledPrefix+name]
			if _, is := next.chains[name]; !is || twice && again.num != old.num {
				t.Fatalf("step %d: %s is gone, or hooked elsewhere", step, name)
			}
			wanted := want.Chains[slices.IndexFunc(want.Chains, func(c Chain) bool { return c.Name == name })].Hook
			if wanted.Steps == 0 {
				continue
			}
			if next.chains[name].priority <= old.priority && (!twice || again.priority <= old.priority) {
				t.Errorf("step %d: %s at %d replaces one at %d", step, name, next.chains[name].priority, old.priority)
			}
			if most := wanted.Priority + wanted.Steps; next.chains[name].priority >= most || twice && again.priority > most {
				t.Errorf("step %d: %s leaves its range", step, name)
			}
		}
		for name := range next.chains {
			if strings.HasPrefix(name, doubledPrefix) {
				delete(next.chains, name)
			}
		}
		have = next
	}
}
