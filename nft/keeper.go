package nft

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"golang.org/x/sys/unix"
)

// A keeper keeps one table of the kernel equal to what is wanted. The zero
// keeper is ready; it is safe for concurrent use.
type keeper struct {
	mu sync.Mutex
	// applied is the digest that we wrote or found last. It tells a repair
	// (we had it, it is gone) from a change of mind.
	applied digest
	// kept is the table of that digest. twice says that some of its chains are
	// hooked for the second time, see stagger.
	kept  table
	twice bool
}

// apply makes the kernel's table equal to want, in one transaction, and sends
// nothing if it is so already. repaired is 1 if a table that we had written
// was found damaged or missing. A table without chains is none: it is removed.
func (k *keeper) apply(want table) (repaired int, err error) {
	if len(want.chains) == 0 {
		_, err := k.remove(want)
		return 0, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	is, err := want.digest()
	if err != nil {
		return 0, err
	}
	conn, err := dial()
	if err != nil {
		return 0, explain(err, want)
	}
	changes := k.applied.whole != "" && k.applied.whole != is.whole
	if changes && !k.twice && k.kept.framesLike(want) && rewrite(conn, k.kept, k.applied, want, is) == nil {
		k.applied, k.kept = is, want
		return 0, nil // what somebody else has done to the rest is found by the next round
	}
	// Who has changed its mind need not be told that the kernel has another table.
	looks := 2
	if changes {
		looks = 1
	}
	// The kernel answers in several parts, between which others may change
	// tables of theirs and shift what comes next. A difference that is real
	// is seen twice.
	var have found
	for range looks {
		if have, err = read(conn, want, !changes); err != nil {
			return 0, explain(err, want)
		}
		if !changes && diff(have, want, is) == "" {
			k.applied, k.kept, k.twice = is, want, have.twice
			return 0, nil
		}
	}
	// What is there is not what we want. It is a repair if it is not what we
	// wrote last either.
	damaged := k.applied.whole != "" && !(changes && have.exists && have.allCarry(k.applied))
	staggered := want.stagger(have)
	if err := replace(conn, staggered, is, have.counters); err != nil {
		return 0, explain(err, want)
	}
	k.applied, k.kept, k.twice = is, want, len(staggered.chains) > len(want.chains)
	if damaged {
		repaired = 1
	}
	return repaired, nil
}

// stagger hooks each chain that may move one step behind the one it replaces.
//
// A transaction switches the rules of all chains at once, but a packet passes
// the hooks one by one, and at equal priority the kernel puts the new hook
// before the old. A packet between the two at that moment has met the new
// chain before its rules were in force, and meets the old one when its rules
// are not any more. With the old hook first it meets one of them.
//
// At the wrap, once in steps replacements, the order is the other one. There a
// chain of NAT is hooked twice, at the beginning and behind the old one: a
// connection that the first has translated does not meet the second.
func (t table) stagger(have found) table {
	chains := make([]chain, 0, len(t.chains))
	for _, c := range t.chains {
		old, ok := have.chains[c.name]
		if c.hook == nil || c.hook.steps == 0 || !ok || !c.hook.admits(old.priority) {
			chains = append(chains, c)
			continue
		}
		moved := *c.hook
		moved.priority += (old.priority - c.hook.priority + 1) % c.hook.steps
		if moved.priority <= old.priority && c.hook.kind == nftables.ChainTypeNAT {
			again := *c.hook
			again.priority += again.steps
			chains = append(chains, chain{name: twicePrefix + c.name, hook: &again, rules: c.rules})
		}
		c.hook = &moved
		chains = append(chains, c)
	}
	t.chains = chains
	return t
}

// twicePrefix begins the name of a chain that is hooked for the second time. No
// other chain of ours begins so.
const twicePrefix = "again_"

// admits says whether the hook may have priority p.
func (h *hook) admits(p nftables.ChainPriority) bool {
	return p >= h.priority && p < h.priority+max(h.steps, 1)
}

// remove takes the table away if it is there.
func (k *keeper) remove(t table) (removed bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.applied, k.kept, k.twice = digest{}, table{}, false
	return remove(t)
}

func remove(t table) (removed bool, err error) {
	conn, err := dial()
	if err != nil {
		return false, explain(err, t)
	}
	exists, err := has(conn, t)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) {
		return false, nil // a kernel without nf_tables has no table of ours
	}
	if err != nil {
		return false, explain(err, t)
	}
	if !exists {
		return false, nil
	}
	conn.DelTable(t.kernel())
	if err := conn.Flush(); err != nil {
		return false, explain(err, t)
	}
	return true, nil
}

func has(conn *nftables.Conn, t table) (bool, error) {
	tables, err := conn.ListTablesOfFamily(t.family)
	if err != nil {
		return false, err
	}
	for _, have := range tables {
		if have.Name == t.name {
			return true, nil
		}
	}
	return false, nil
}

// try asks the kernel whether it takes the table: the table is made and
// removed in one transaction, so nobody ever sees it and no packet passes it.
func try(t table) error {
	if len(t.chains) == 0 {
		return nil
	}
	conn, err := dial()
	if err != nil {
		return explain(err, t)
	}
	d, err := t.digest()
	if err != nil {
		return err
	}
	// A name of its own: the real table must stay.
	t.name += "_probe"
	if err := add(conn, t, d, nil); err != nil {
		return err
	}
	conn.DelTable(t.kernel())
	if err := conn.Flush(); err != nil {
		return explain(err, t)
	}
	return nil
}

// replace puts want where the old table was, in one transaction: no packet
// sees the moment between the two.
func replace(conn *nftables.Conn, want table, d digest, counted map[string]uint64) error {
	// The deletion needs a table that exists, so one is made (or found) first.
	conn.AddTable(want.kernel())
	conn.DelTable(want.kernel())
	if err := add(conn, want, d, counted); err != nil {
		return err
	}
	return conn.Flush()
}

// framesLike says that other has the same sets, quotas and hooks, so that only
// rules, and chains that are gone to, can be different.
func (t table) framesLike(other table) bool {
	return len(t.chains) > 0 && t.family == other.family && t.name == other.name &&
		slices.EqualFunc(t.sets, other.sets, func(a, b set) bool { return bytes.Equal(a.content(), b.content()) }) && slices.Equal(t.quotas, other.quotas) &&
		slices.EqualFunc(t.hooked(), other.hooked(), func(a, b chain) bool { return a.name == b.name && *a.hook == *b.hook })
}

func (t table) hooked() []chain {
	return slices.DeleteFunc(slices.Clone(t.chains), func(c chain) bool { return c.hook == nil })
}

// rewrite makes the chains of old that are others those of want, in one
// transaction, and leaves the hooks and the sets as they are. A packet that is in
// a chain meanwhile goes on by the rules that it began with. It takes a fraction
// of the time of replace, and counts when a host has just died. It fails, and
// changes nothing, if a chain of old is not there any more.
func rewrite(conn *nftables.Conn, old table, was digest, want table, is digest) error {
	kt := want.kernel()
	for _, c := range old.chains {
		if was.chains[c.name] != is.chains[c.name] {
			conn.FlushChain(&nftables.Chain{Table: kt, Name: c.name})
		}
	}
	for _, c := range old.chains {
		if is.chains[c.name] == "" {
			conn.DelChain(&nftables.Chain{Table: kt, Name: c.name})
		}
	}
	for _, name := range old.counters {
		if !slices.Contains(want.counters, name) {
			conn.DeleteObject(&nftables.CounterObj{Table: kt, Name: name})
		}
	}
	for _, name := range want.counters {
		if !slices.Contains(old.counters, name) {
			conn.AddObj(&nftables.CounterObj{Table: kt, Name: name})
		}
	}
	for _, c := range want.chains {
		if was.chains[c.name] == "" {
			conn.AddChain(&nftables.Chain{Table: kt, Name: c.name})
		}
	}
	for _, c := range want.chains {
		if was.chains[c.name] != is.chains[c.name] {
			addRules(conn, kt, c, is)
		}
	}
	return conn.Flush()
}

func addRules(conn *nftables.Conn, kt *nftables.Table, c chain, d digest) {
	kc := &nftables.Chain{Table: kt, Name: c.name}
	for _, r := range c.rules {
		conn.AddRule(&nftables.Rule{Table: kt, Chain: kc, Exprs: r.exprs, UserData: r.comment(d.chains[strings.TrimPrefix(c.name, twicePrefix)])})
	}
}

// add queues the messages that make the table. The order matters: chains
// before the maps whose verdicts name them, maps before the rules that look
// things up in them.
func add(conn *nftables.Conn, t table, d digest, counted map[string]uint64) error {
	kt := conn.AddTable(t.kernel())
	for _, name := range t.counters {
		conn.AddObj(&nftables.CounterObj{Table: kt, Name: name, Packets: counted[name]})
	}
	for _, q := range t.quotas {
		conn.AddObj(&nftables.QuotaObj{Table: kt, Name: q.name, Bytes: q.bytes})
	}
	accept := nftables.ChainPolicyAccept
	for _, c := range t.chains {
		kc := &nftables.Chain{Table: kt, Name: c.name}
		if c.hook != nil {
			kc.Type, kc.Hooknum, kc.Priority, kc.Device = c.hook.kind, &c.hook.num, &c.hook.priority, c.hook.device
			kc.Policy = &accept
		}
		conn.AddChain(kc)
	}
	for i, s := range t.sets {
		ks := &nftables.Set{
			Table: kt,
			Name:  s.name,
			// Without an ID the library takes one from a counter that all
			// connections of the process share without a lock.
			ID:         uint32(i + 1),
			KeyType:    s.key,
			DataType:   s.data,
			IsMap:      s.isMap(),
			Dynamic:    s.dynamic,
			HasTimeout: s.timeout > 0,
			Timeout:    s.timeout,
			// The size lets the kernel take a fixed hash table.
			Size: max(s.size, uint32(len(s.elements))),
		}
		if s.key.Name == nftables.TypeInteger.Name {
			ks.KeyByteOrder = binaryutil.NativeEndian // for nft to show
		}
		if err := conn.AddSet(ks, nil); err != nil {
			return fmt.Errorf("encoding set %s of %v: %w", s.name, t, err)
		}
		// A message holds a limited number of elements: the length of a
		// netlink attribute is 16 bits.
		const most = 256
		for rest := s.elements; len(rest) > 0; rest = rest[min(most, len(rest)):] {
			if err := conn.SetAddElements(ks, rest[:min(most, len(rest))]); err != nil {
				return fmt.Errorf("encoding elements of set %s of %v: %w", s.name, t, err)
			}
		}
	}
	for _, c := range t.chains {
		addRules(conn, kt, c, d)
	}
	return nil
}
