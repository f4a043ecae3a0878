package nft

import (
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nltest"
	"golang.org/x/sys/unix"
)

// found is a table as the kernel has it now.
type found struct {
	exists   bool
	chains   map[string]foundChain
	sets     map[string]int // number of elements
	counters map[string]uint64
	// twice says that chains are hooked for the second time, see stagger. They
	// are not among chains.
	twice bool
}

type foundChain struct {
	hook     bool
	num      nftables.ChainHook
	priority nftables.ChainPriority
	rules    [][]byte // userdata
}

// allCarry tells whether every rule of the table is one of the table with this digest.
func (f found) allCarry(d digest) bool {
	for name, c := range f.chains {
		for _, r := range c.rules {
			if !carries(r, d.chains[name]) {
				return false
			}
		}
	}
	return true
}

// diff says in what the kernel's table is not what we want, or "" if it is.
// The contents of rules are compared by the digest in their comments: who
// replaces one of our rules does not write our comment.
func diff(have found, want table, d digest) string {
	if !have.exists {
		return fmt.Sprintf("table %v is missing", want)
	}
	if len(have.chains) != len(want.chains) {
		return fmt.Sprintf("table %v has %d chains and not %d", want, len(have.chains), len(want.chains))
	}
	for _, c := range want.chains {
		h, ok := have.chains[c.name]
		if !ok {
			return fmt.Sprintf("chain %s of %v is missing", c.name, want)
		}
		if h.hook != (c.hook != nil) {
			return fmt.Sprintf("chain %s of %v is hooked otherwise", c.name, want)
		}
		if c.hook != nil && (h.num != c.hook.num || !c.hook.admits(h.priority)) {
			return fmt.Sprintf("chain %s of %v is hooked elsewhere", c.name, want)
		}
		if len(h.rules) != len(c.rules) {
			return fmt.Sprintf("chain %s of %v has %d rules and not %d", c.name, want, len(h.rules), len(c.rules))
		}
		for i, r := range h.rules {
			if !carries(r, d.chains[c.name]) {
				return fmt.Sprintf("rule %d in chain %s of %v is another", i+1, c.name, want)
			}
		}
	}
	if len(have.sets) != len(want.sets) {
		return fmt.Sprintf("table %v has %d sets and not %d", want, len(have.sets), len(want.sets))
	}
	for _, s := range want.sets {
		n, ok := have.sets[s.name]
		if !ok {
			return fmt.Sprintf("set %s of %v is missing", s.name, want)
		}
		if !s.dynamic && n != len(s.elements) {
			return fmt.Sprintf("set %s of %v has %d elements and not %d", s.name, want, n, len(s.elements))
		}
	}
	return ""
}

// read asks the kernel for the table that has the family and name of want. The
// elements of its sets, which are most of the work, are counted if asked for.
func read(conn *nftables.Conn, want table, elements bool) (found, error) {
	exists, err := has(conn, want)
	if err != nil || !exists {
		return found{}, err
	}
	f := found{
		exists:   true,
		chains:   make(map[string]foundChain),
		sets:     make(map[string]int),
		counters: make(map[string]uint64),
	}
	kt := want.kernel()
	chains, err := conn.ListChainsOfTableFamily(want.family)
	if err != nil {
		return found{}, err
	}
	for _, c := range chains {
		if c.Table.Name != want.name {
			continue
		}
		fc := foundChain{hook: c.Hooknum != nil}
		if fc.hook {
			fc.num, fc.priority = *c.Hooknum, *c.Priority
		}
		f.chains[c.Name] = fc
	}
	if err := f.readRules(want); err != nil {
		return found{}, err
	}
	for name := range f.chains {
		if strings.HasPrefix(name, twicePrefix) {
			f.twice = true
			delete(f.chains, name)
		}
	}
	if f.counters, err = readCounters(conn, kt); err != nil || !elements {
		return f, err
	}
	sets, err := conn.GetSets(kt)
	if err != nil {
		return found{}, err
	}
	dynamic := make(map[string]bool)
	for _, s := range want.sets {
		dynamic[s.name] = s.dynamic
	}
	for _, s := range sets {
		if dynamic[s.Name] {
			f.sets[s.Name] = 0
			continue
		}
		elements, err := conn.GetSetElements(s)
		if err != nil {
			return found{}, err
		}
		f.sets[s.Name] = len(elements)
	}
	return f, nil
}

// readRules adds the userdata of all rules of the table, from one dump. The
// library's own reader asks chain by chain, and fails at the direction of a ct
// expression, which the kernel sends as one byte.
func (f found) readRules(t table) error {
	conn := nltest.Dial(newLine().exchange)
	attrs := netlink.NewAttributeEncoder()
	attrs.String(unix.NFTA_RULE_TABLE, t.name)
	data, err := attrs.Encode()
	if err != nil {
		return err
	}
	messages, err := conn.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE,
			Flags: netlink.Request | netlink.Dump,
		},
		Data: append([]byte{byte(t.family), unix.NFNETLINK_V0, 0, 0}, data...),
	})
	if err != nil {
		return err
	}
	for _, m := range messages {
		ad, err := netlink.NewAttributeDecoder(m.Data[nfgenmsgLen:])
		if err != nil {
			return err
		}
		var chain string
		var userData []byte
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_RULE_CHAIN:
				chain = ad.String()
			case unix.NFTA_RULE_USERDATA:
				userData = ad.Bytes()
			}
		}
		if err := ad.Err(); err != nil {
			return err
		}
		fc := f.chains[chain]
		fc.rules = append(fc.rules, userData)
		f.chains[chain] = fc
	}
	return nil
}

// nfgenmsgLen is the length of struct nfgenmsg, which starts every message.
const nfgenmsgLen = 4

func readCounters(conn *nftables.Conn, kt *nftables.Table) (map[string]uint64, error) {
	objects, err := conn.GetObjects(kt)
	if err != nil {
		return nil, err
	}
	counters := make(map[string]uint64)
	for _, o := range objects {
		if c, ok := o.(*nftables.CounterObj); ok {
			counters[c.Name] = c.Packets
		}
	}
	return counters, nil
}
