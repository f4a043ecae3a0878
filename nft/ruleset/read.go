package ruleset

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nltest"
	"golang.org/x/sys/unix"
)

// A kernelTable is a table as the kernel has it now.
type kernelTable struct {
	exists   bool
	flags    uint32
	chains   map[string]kernelChain
	sets     map[string]int // number of elements; nil if they were not counted
	counters map[string]uint64
	// doubled says that chains are hooked for the second time; see stagger. These are
	// not in chains.
	doubled bool
}

type kernelChain struct {
	hook     bool
	num      nftables.ChainHook
	priority nftables.ChainPriority
	rules    [][]byte // userdata
}

// allCarry says whether every rule belongs to the table with this digest.
func (f kernelTable) allCarry(d Digest) bool {
	for name, c := range f.chains {
		for _, r := range c.rules {
			if !carries(r, d.Chains[name]) {
				return false
			}
		}
	}
	return true
}

// diff says how the kernel's table differs from what is wanted, or "" if it does not.
// The contents of rules are compared by the digests in their comments: nobody who
// replaces a rule of ours writes our comment.
func diff(have kernelTable, want Table, d Digest) string {
	if !have.exists {
		return fmt.Sprintf("table %v is missing", want)
	}
	if len(have.chains) != len(want.Chains) {
		return fmt.Sprintf("table %v has %d chains and not %d", want, len(have.chains), len(want.Chains))
	}
	for _, c := range want.Chains {
		h, ok := have.chains[c.Name]
		if !ok {
			return fmt.Sprintf("chain %s of %v is missing", c.Name, want)
		}
		if h.hook != (c.Hook != nil) {
			return fmt.Sprintf("chain %s of %v is hooked otherwise", c.Name, want)
		}
		if c.Hook != nil && (h.num != c.Hook.Num || !c.Hook.admits(h.priority)) {
			return fmt.Sprintf("chain %s of %v is hooked elsewhere", c.Name, want)
		}
		if len(h.rules) != len(c.Rules) {
			return fmt.Sprintf("chain %s of %v has %d rules and not %d", c.Name, want, len(h.rules), len(c.Rules))
		}
		for i, r := range h.rules {
			if !carries(r, d.Chains[c.Name]) {
				return fmt.Sprintf("rule %d in chain %s of %v is another", i+1, c.Name, want)
			}
		}
	}
	if have.sets == nil {
		return ""
	}
	if len(have.sets) != len(want.Sets) {
		return fmt.Sprintf("table %v has %d sets and not %d", want, len(have.sets), len(want.Sets))
	}
	for _, s := range want.Sets {
		n, ok := have.sets[s.Name]
		if !ok {
			return fmt.Sprintf("set %s of %v is missing", s.Name, want)
		}
		if !s.Dynamic && n != s.len() {
			return fmt.Sprintf("set %s of %v has %d elements and not %d", s.Name, want, n, s.len())
		}
	}
	return ""
}

// read asks the kernel for the table with the family and name of want. If elements is
// set, it counts the elements of its sets, which is most of the work.
func read(conn *nftables.Conn, want Table, elements bool) (kernelTable, error) {
	ok, flags, err := exists(conn, want)
	if err != nil || !ok {
		return kernelTable{}, err
	}
	f := kernelTable{
		exists:   true,
		flags:    flags,
		chains:   make(map[string]kernelChain),
		counters: make(map[string]uint64),
	}
	kt := want.Kernel()
	chains, err := conn.ListChainsOfTableFamily(want.Family)
	if err != nil {
		return kernelTable{}, err
	}
	for _, c := range chains {
		if c.Table.Name != want.Name {
			continue
		}
		fc := kernelChain{hook: c.Hooknum != nil}
		if fc.hook {
			fc.num, fc.priority = *c.Hooknum, *c.Priority
		}
		f.chains[c.Name] = fc
	}
	if err := f.readRules(want); err != nil {
		return kernelTable{}, err
	}
	for name := range f.chains {
		if strings.HasPrefix(name, doubledPrefix) {
			f.doubled = true
			delete(f.chains, name)
		}
	}
	if f.counters, err = readCounters(conn, kt); err != nil || !elements {
		return f, err
	}
	sets, err := conn.GetSets(kt)
	if err != nil {
		return kernelTable{}, err
	}
	f.sets = make(map[string]int)
	dynamic, counting := make(map[string]bool), nltest.Dial(newSocket().exchange)
	for _, s := range want.Sets {
		dynamic[s.Name] = s.Dynamic
	}
	for _, s := range sets {
		if dynamic[s.Name] {
			f.sets[s.Name] = 0
			continue
		}
		if f.sets[s.Name], err = countElements(counting, want, s.Name); err != nil {
			return kernelTable{}, err
		}
	}
	return f, nil
}

// HasChain says whether the kernel has a table with the family and name of t, and
// in it a chain with this name.
func HasChain(t Table, chain string) (bool, error) {
	conn, err := Dial()
	if err != nil {
		return false, explain(err, t)
	}
	have, err := read(conn, t, false)
	if err != nil {
		return false, explain(err, t)
	}
	_, ok := have.chains[chain]
	return ok, nil
}

// readRules adds the userdata of all rules of the table, from one dump. The
// library's own reader asks chain by chain, and fails at the direction of a ct
// expression, which the kernel sends as one byte.
func (f kernelTable) readRules(t Table) error {
	messages, err := request(nltest.Dial(newSocket().exchange), unix.NFT_MSG_GETRULE, netlink.Dump, byte(t.Family),
		func(e *netlink.AttributeEncoder) { e.String(unix.NFTA_RULE_TABLE, t.Name) })
	if err != nil {
		return err
	}
	for _, m := range messages {
		ad, err := netlink.NewAttributeDecoder(m.Data[NfgenmsgLen:])
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

// request sends one message to nf_tables and returns the answers.
func request(conn *netlink.Conn, kind int, flags netlink.HeaderFlags, family byte,
	attrs func(*netlink.AttributeEncoder)) ([]netlink.Message, error) {
	e := netlink.NewAttributeEncoder()
	attrs(e)
	data, err := e.Encode()
	if err != nil {
		return nil, err
	}
	return conn.Execute(netlink.Message{
		Header: netlink.Header{
			Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: netlink.Request | flags,
		},
		Data: append([]byte{family, unix.NFNETLINK_V0, 0, 0}, data...),
	})
}

// countElements counts the elements of a set. The library's own reader decodes each, of thousands.
func countElements(conn *netlink.Conn, t Table, set string) (n int, err error) {
	messages, err := request(conn, unix.NFT_MSG_GETSETELEM, netlink.Dump, byte(t.Family),
		func(e *netlink.AttributeEncoder) {
			e.String(unix.NFTA_SET_ELEM_LIST_TABLE, t.Name)
			e.String(unix.NFTA_SET_ELEM_LIST_SET, set)
		})
	if err != nil {
		return 0, err
	}
	for _, m := range messages {
		ad, err := netlink.NewAttributeDecoder(m.Data[NfgenmsgLen:])
		if err != nil {
			return 0, err
		}
		for ad.Next() {
			if ad.Type() == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				ad.Nested(func(elements *netlink.AttributeDecoder) error {
					n += elements.Len()
					return nil
				})
			}
		}
		if err := ad.Err(); err != nil {
			return 0, err
		}
	}
	return n, nil
}

func generation(conn *netlink.Conn) (uint32, error) {
	messages, err := request(conn, unix.NFT_MSG_GETGEN, 0, unix.NFPROTO_UNSPEC,
		func(*netlink.AttributeEncoder) {})
	if err != nil {
		return 0, err
	}
	for _, m := range messages {
		ad, err := netlink.NewAttributeDecoder(m.Data[NfgenmsgLen:])
		if err != nil {
			return 0, err
		}
		ad.ByteOrder = binary.BigEndian
		for ad.Next() {
			if ad.Type() == unix.NFTA_GEN_ID {
				return ad.Uint32(), nil
			}
		}
	}
	return 0, errors.New("nf_tables does not say which generation of its tables is in force")
}

// NfgenmsgLen is the length of struct nfgenmsg, which starts every message.
const NfgenmsgLen = 4
