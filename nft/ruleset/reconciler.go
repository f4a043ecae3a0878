package ruleset

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"golang.org/x/sys/unix"
)

// A Reconciler keeps one table of the kernel equal to what is wanted. The zero
// Reconciler is ready; it is safe for concurrent use.
type Reconciler struct {
	// Owner owns the table. It is set before the first use. Nil means that anybody may
	// change the table.
	Owner *Owner

	mu sync.Mutex
	// written is the digest that we wrote or found last. It tells a repair (we had
	// written this, and it is gone) from a change of what is wanted.
	written Digest
	// table is the table with that digest. doubled says that some of its chains are
	// hooked twice; see stagger.
	table   Table
	doubled bool
	// others are the transactions of others, as a number that changes with each, when the
	// table was found to be equal, at seenAt, or was written.
	others uint32
	seenAt time.Time
}

// lookAgain is how long a table is taken for equal while no transaction has changed any:
// the kernel removes chains without one when their interface goes.
const lookAgain = 30 * time.Second

// Apply makes the kernel's table equal to want, in one transaction, and sends nothing
// if it is equal already. repaired is 1 if a table that we had written was damaged or
// missing. A table without chains is removed.
func (k *Reconciler) Apply(want Table) (repaired int, err error) {
	if len(want.Chains) == 0 {
		_, err := k.Remove(want)
		return 0, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	is, err := want.Digest()
	if err != nil {
		return 0, err
	}
	now, own, err := k.Owner.progress()
	if err != nil {
		return 0, explain(err, want)
	}
	quiet := k.isQuiet(now, own)
	if quiet && k.written.Whole == is.Whole && k.isFresh() {
		return 0, nil
	}
	conn, err := k.Owner.dial()
	if err != nil {
		return 0, explain(err, want)
	}
	changes := k.written.Whole != "" && k.written.Whole != is.Whole
	if changes && !k.doubled && k.table.DiffersInRulesOnly(want) && rewrite(conn, k.table, k.written, want, is) == nil {
		k.written, k.table = is, want
		k.Owner.noteCommit(now)
		return 0, nil // the next call finds what others have done to the rest
	}
	// After a change of what is wanted, the kernel's table is known to differ.
	looks := 2
	if changes {
		looks = 1
	}
	// The kernel answers in several parts. Others may change their tables between
	// them and shift what comes next. A real difference is seen twice.
	var have kernelTable
	for range looks {
		if have, err = read(conn, want, !changes && !quiet); err != nil {
			return 0, explain(err, want)
		}
		if !changes && diff(have, want, is) == "" {
			adopted, err := k.Owner.adopt(conn, want, have)
			if err != nil {
				return 0, explainOwned(err, want, have.flags)
			}
			if !adopted {
				break
			}
			k.written, k.table, k.doubled = is, want, have.doubled
			k.others, k.seenAt = now-own, time.Now()
			return 0, nil
		}
	}
	// The kernel has not what is wanted. It is a repair if it has not what we wrote
	// last either.
	damaged := k.written.Whole != "" && !(changes && have.exists && have.allCarry(k.written))
	staggered := want.stagger(have)
	if err := replace(conn, staggered, is, have); err != nil {
		return 0, explainOwned(err, want, have.flags)
	}
	k.Owner.noteCommit(now)
	k.others, k.seenAt = now-own, time.Now()
	k.written, k.table, k.doubled = is, want, len(staggered.Chains) > len(want.Chains)
	if damaged {
		repaired = 1
	}
	return repaired, nil
}

// Undisturbed says that the kernel has the table that was applied last: nobody else has changed any table since.
func (k *Reconciler) Undisturbed() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	now, own, err := k.Owner.progress()
	return err == nil && k.isQuiet(now, own) && k.isFresh()
}

// isQuiet says that others have committed nothing since the table was found or written, by what Owner.progress tells.
// The caller holds mu.
func (k *Reconciler) isQuiet(generation, own uint32) bool {
	return k.written.Whole != "" && generation-own == k.others
}

// isFresh says that the table need not be looked at again by now. The caller holds mu.
func (k *Reconciler) isFresh() bool { return time.Since(k.seenAt) < lookAgain }

// stagger hooks each chain that may move one step behind the one it replaces.
//
// A transaction switches the rules of all chains at once, but a packet passes the
// hooks one by one, and at equal priority the kernel puts the new hook before the
// old. A packet between the two at that moment has passed the new chain before its
// rules came into force, and passes the old one when its rules are gone. With the old
// hook first, the packet passes the rules of one of them.
//
// Once in Steps replacements the priority wraps and the order is reversed. There a NAT
// chain is hooked twice, at the beginning and behind the old one: a connection that
// the first has translated does not reach the second.
func (t Table) stagger(have kernelTable) Table {
	chains := make([]Chain, 0, len(t.Chains))
	for _, c := range t.Chains {
		old, ok := have.chains[c.Name]
		if c.Hook == nil || c.Hook.Steps == 0 || !ok || !c.Hook.admits(old.priority) {
			chains = append(chains, c)
			continue
		}
		moved := *c.Hook
		moved.Priority += (old.priority - c.Hook.Priority + 1) % c.Hook.Steps
		if moved.Priority <= old.priority && c.Hook.Kind == nftables.ChainTypeNAT {
			again := *c.Hook
			again.Priority += again.Steps
			chains = append(chains, Chain{Name: doubledPrefix + c.Name, Hook: &again, Rules: c.Rules})
		}
		c.Hook = &moved
		chains = append(chains, c)
	}
	t.Chains = chains
	return t
}

// doubledPrefix begins the name of a chain that is hooked for the second time, and of
// no other chain of ours.
const doubledPrefix = "again_"

// admits says whether the hook may have priority p.
func (h *BaseHook) admits(p nftables.ChainPriority) bool {
	return p >= h.Priority && p < h.Priority+max(h.Steps, 1)
}

// Remove removes the table if it is there.
func (k *Reconciler) Remove(t Table) (removed bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.written, k.table, k.doubled, k.seenAt = Digest{}, Table{}, false, time.Time{}
	return remove(t, k.Owner)
}

// Remove removes a table if it is there and belongs to nobody.
func Remove(t Table) (removed bool, err error) { return remove(t, nil) }

func remove(t Table, owner *Owner) (removed bool, err error) {
	conn, err := owner.dial()
	if err != nil {
		return false, explain(err, t)
	}
	found, flags, err := exists(conn, t)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) {
		return false, nil // a kernel without nf_tables has no table of ours
	}
	if err != nil {
		return false, explain(err, t)
	}
	if !found {
		return false, nil
	}
	conn.DelTable(t.Kernel())
	if err := conn.Flush(); err != nil {
		return false, explainOwned(err, t, flags)
	}
	return true, nil
}

func exists(conn *nftables.Conn, t Table) (found bool, flags uint32, err error) {
	tables, err := conn.ListTablesOfFamily(t.Family)
	if err != nil {
		return false, 0, err
	}
	for _, have := range tables {
		if have.Name == t.Name {
			// The library has not turned the kernel's byte order. There are three flags.
			return true, have.Flags | bits.ReverseBytes32(have.Flags), nil
		}
	}
	return false, 0, nil
}

// Try asks the kernel whether it takes the table: the table is made and removed in
// one transaction, so nobody sees it and no packet passes it.
func Try(t Table) error {
	if len(t.Chains) == 0 {
		return nil
	}
	conn, err := Dial()
	if err != nil {
		return explain(err, t)
	}
	d, err := t.Digest()
	if err != nil {
		return err
	}
	// It has a name of its own, since the real table must stay.
	t.Name += "_probe"
	if err := add(conn, t, d, nil); err != nil {
		return err
	}
	conn.DelTable(t.Kernel())
	if err := conn.Flush(); err != nil {
		return explain(err, t)
	}
	return nil
}

// replace replaces the old table by want, in one transaction: no packet sees a moment
// between the two.
func replace(conn *nftables.Conn, want Table, d Digest, have kernelTable) error {
	// The deletion needs a table that exists. One that exists may have other flags, and
	// is not added again.
	if !have.exists {
		conn.AddTable(want.Kernel())
	}
	conn.DelTable(want.Kernel())
	if err := add(conn, want, d, have.counters); err != nil {
		return err
	}
	return conn.Flush()
}

// DiffersInRulesOnly says that other has the same sets, quotas and hooks: only rules,
// and chains without a hook, can be different.
func (t Table) DiffersInRulesOnly(other Table) bool {
	return len(t.Chains) > 0 && t.Family == other.Family && t.Name == other.Name &&
		slices.EqualFunc(t.Sets, other.Sets, func(a, b Set) bool { return bytes.Equal(a.content(), b.content()) }) &&
		slices.Equal(t.Quotas, other.Quotas) &&
		slices.EqualFunc(t.hooked(), other.hooked(), func(a, b Chain) bool { return a.Name == b.Name && *a.Hook == *b.Hook })
}

func (t Table) hooked() []Chain {
	return slices.DeleteFunc(slices.Clone(t.Chains), func(c Chain) bool { return c.Hook == nil })
}

// rewrite turns the chains of old that differ into those of want, in one transaction,
// and leaves hooks and sets as they are. A packet that is in a chain goes on by the
// rules that it began with. It takes a fraction of the time of replace, which counts
// when a host has just died. It fails, and changes nothing, if a chain of old is gone.
func rewrite(conn *nftables.Conn, old Table, was Digest, want Table, is Digest) error {
	kt := want.Kernel()
	for _, c := range old.Chains {
		if was.Chains[c.Name] != is.Chains[c.Name] {
			conn.FlushChain(&nftables.Chain{Table: kt, Name: c.Name})
		}
	}
	for _, c := range old.Chains {
		if is.Chains[c.Name] == "" {
			conn.DelChain(&nftables.Chain{Table: kt, Name: c.Name})
		}
	}
	for _, name := range old.Counters {
		if !slices.Contains(want.Counters, name) {
			conn.DeleteObject(&nftables.CounterObj{Table: kt, Name: name})
		}
	}
	for _, name := range want.Counters {
		if !slices.Contains(old.Counters, name) {
			conn.AddObj(&nftables.CounterObj{Table: kt, Name: name})
		}
	}
	for _, c := range want.Chains {
		if was.Chains[c.Name] == "" {
			conn.AddChain(&nftables.Chain{Table: kt, Name: c.Name})
		}
	}
	for _, c := range want.Chains {
		if was.Chains[c.Name] != is.Chains[c.Name] {
			addRules(conn, kt, c, is)
		}
	}
	return conn.Flush()
}

func addRules(conn *nftables.Conn, kt *nftables.Table, c Chain, d Digest) {
	kc := &nftables.Chain{Table: kt, Name: c.Name}
	for _, r := range c.Rules {
		conn.AddRule(&nftables.Rule{Table: kt, Chain: kc, Exprs: r.Exprs,
			UserData: r.comment(d.Chains[strings.TrimPrefix(c.Name, doubledPrefix)])})
	}
}

// add queues the messages that make the table. The order matters: chains before the
// maps whose verdicts name them, and maps before the rules that use them.
func add(conn *nftables.Conn, t Table, d Digest, counted map[string]uint64) error {
	kt := conn.AddTable(t.Kernel())
	for _, name := range t.Counters {
		conn.AddObj(&nftables.CounterObj{Table: kt, Name: name, Packets: counted[name]})
	}
	for _, q := range t.Quotas {
		conn.AddObj(&nftables.QuotaObj{Table: kt, Name: q.Name, Bytes: q.Bytes})
	}
	accept := nftables.ChainPolicyAccept
	for _, c := range t.Chains {
		kc := &nftables.Chain{Table: kt, Name: c.Name}
		if c.Hook != nil {
			kc.Type, kc.Hooknum, kc.Priority, kc.Device = c.Hook.Kind, &c.Hook.Num, &c.Hook.Priority, c.Hook.Device
			kc.Policy = &accept
		}
		conn.AddChain(kc)
	}
	for i, s := range t.Sets {
		elements := s.elements()
		ks := &nftables.Set{
			Table: kt,
			Name:  s.Name,
			// Without an ID the library takes one from a counter that all
			// connections of the process share without a lock.
			ID:         uint32(i + 1),
			KeyType:    s.Key,
			DataType:   s.Data,
			IsMap:      s.isMap(),
			Dynamic:    s.Dynamic,
			HasTimeout: s.Timeout > 0,
			Timeout:    s.Timeout,
			// The size lets the kernel take a fixed hash table.
			Size: max(s.Size, uint32(len(elements))),
		}
		if s.Key.Name == nftables.TypeInteger.Name {
			ks.KeyByteOrder = binaryutil.NativeEndian // for nft to show
		}
		if err := conn.AddSet(ks, nil); err != nil {
			return fmt.Errorf("encoding set %s of %v: %w", s.Name, t, err)
		}
		// A message holds a limited number of elements: the length of a netlink
		// attribute has 16 bits.
		const most = 256
		for rest := elements; len(rest) > 0; rest = rest[min(most, len(rest)):] {
			if err := conn.SetAddElements(ks, rest[:min(most, len(rest))]); err != nil {
				return fmt.Errorf("encoding elements of set %s of %v: %w", s.Name, t, err)
			}
		}
	}
	for _, c := range t.Chains {
		addRules(conn, kt, c, d)
	}
	return nil
}
