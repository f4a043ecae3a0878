package direct

import (
	"fmt"
	"strconv"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"appliance/nft/ruleset"
)

// maxKinds is how many kinds of slots may have chains of their own: five backends
// have at most 120 kinds.
const maxKinds = 128

// addSlots adds a map with this name from slot to verdict. Slots without a verdict by
// choose lead nowhere; the result says whether any slot leads somewhere.
//
// The map itself leads to the kind of a slot, which depends on who is configured and
// not on who is alive. A chain for each kind has the verdict. So a backend that dies
// changes a few rules instead of thousands of elements. If there are too many kinds,
// the map has the verdicts.
func (s service) addSlots(t *ruleset.Table, name string, choose func(slot) (expr.Verdict, bool)) (leads bool) {
	if len(s.hops) == 0 {
		return false
	}
	if len(s.slots.kinds) > maxKinds {
		m := slotMap(name)
		for i := range s.slots.len() {
			if v, ok := choose(s.slots.at(i)); ok {
				m.Elements = append(m.Elements, nftables.SetElement{Key: ruleset.Native(uint32(i)), VerdictData: &v})
			}
		}
		if len(m.Elements) > 0 {
			t.Sets = append(t.Sets, m)
		}
		return len(m.Elements) > 0
	}
	t.Sets = append(t.Sets, s.preference.jump(name))
	for kind, slot := range s.slots.kinds {
		c := ruleset.Chain{Name: kindChain(name, kind)}
		if v, ok := choose(slot); ok {
			leads = true
			c.Rules = []ruleset.Rule{ruleset.NewRule(fmt.Sprint("slots of kind ", kind), []expr.Any{&v})}
		}
		t.Chains = append(t.Chains, c)
	}
	return leads
}

// jump is the map with this name from slot to the chain of its kind.
func (p preference) jump(name string) ruleset.Set {
	if m, ok := p.jumps[name]; ok {
		return m
	}
	m := slotMap(name)
	m.Make = func() []nftables.SetElement {
		verdicts := make([]*expr.Verdict, len(p.orders))
		for kind := range verdicts {
			verdicts[kind] = &expr.Verdict{Kind: expr.VerdictJump, Chain: kindChain(name, kind)}
		}
		elements := make([]nftables.SetElement, len(p.kind))
		for i, kind := range p.kind {
			elements[i] = nftables.SetElement{Key: ruleset.Native(uint32(i)), VerdictData: verdicts[kind]}
		}
		return elements
	}
	p.jumps[name] = m.Summed()
	return p.jumps[name]
}

func slotMap(name string) ruleset.Set {
	return ruleset.Set{Name: name, Key: nftables.TypeMark, Data: nftables.TypeVerdict}
}

func kindChain(slotMap string, kind int) string { return slotMap + "_" + strconv.Itoa(kind) }

// lookup goes where the map leads the slot of the client, whose address and port are
// in reg1 and PortReg.
func (s service) lookup(slotMap string) []expr.Any {
	return []expr.Any{
		&expr.Hash{
			SourceRegister: reg1, DestRegister: reg1,
			// The address, and the port padded to a word.
			Length:  s.family().AddrLen + 4,
			Modulus: uint32(s.slots.len()),
			Seed:    slotSeed,
			Type:    expr.HashTypeJenkins,
		},
		ruleset.InMap(slotMap, ruleset.RegVerdict),
	}
}
