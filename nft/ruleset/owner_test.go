package ruleset

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

func ownedTable(verdict expr.VerdictKind) Table {
	return Table{Family: nftables.TableFamilyINet, Name: ACLTable, Chains: []Chain{
		FilterChain("input", unix.NF_INET_LOCAL_IN, PriorityMangle, NewRule("rule", Verdict(verdict)))}}
}

// Nobody flushes or deletes a table that has an owner. When the owner's process has
// ended, it stays until the next process adopts it, and cleanup can remove it. A table
// that a version without owners has left gets one.
func TestOwner(t *testing.T) {
	newNamespace(t).in(func() {
		owner := NewOwner()
		if !owner.owns() {
			t.Skip("the kernel is older than Linux 6.9: tables have no owner that outlives it")
		}
		has := func(when string, want bool) {
			t.Helper()
			if got, err := HasChain(ownedTable(expr.VerdictAccept), "input"); got != want || err != nil {
				t.Fatalf("%s the table is there: %v (%v), want %v", when, got, err, want)
			}
		}
		apply := func(k *Reconciler, v expr.VerdictKind, want int) {
			t.Helper()
			if n, err := k.Apply(ownedTable(v)); n != want || err != nil {
				t.Fatalf("%d repaired (%v), want %d", n, err, want)
			}
		}
		withstands := func() {
			t.Helper()
			if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
				t.Fatalf("nft flush ruleset: %v: %s", err, out)
			}
			has("after a flush", true)
			if err := exec.Command("nft", "delete", "table", "inet", ACLTable).Run(); err == nil {
				t.Error("somebody has deleted the table")
			}
			_, err := Remove(ownedTable(expr.VerdictAccept))
			if err == nil || !strings.Contains(err.Error(), "another process") {
				t.Errorf("somebody else removes it: %v", err)
			}
			has("after that", true)
		}
		var old Reconciler
		apply(&old, expr.VerdictAccept, 0)
		first := &Reconciler{Owner: owner}
		apply(first, expr.VerdictAccept, 0)
		withstands()
		apply(first, expr.VerdictDrop, 0)
		apply(first, expr.VerdictDrop, 0)
		withstands()

		owner.Close() // as the end of the process does
		has("after its owner", true)
		next := &Reconciler{Owner: NewOwner()}
		apply(next, expr.VerdictDrop, 0)
		withstands()
		if _, err := first.Apply(ownedTable(expr.VerdictAccept)); err == nil || !strings.Contains(err.Error(), "still runs") {
			t.Errorf("two owners: %v", err)
		}
		if removed, err := next.Remove(ownedTable(expr.VerdictDrop)); !removed || err != nil {
			t.Errorf("the owner removes it: %v, %v", removed, err)
		}
		has("after that", false)

		apply(next, expr.VerdictDrop, 0)
		next.Owner.Close()
		if removed, err := Remove(ownedTable(expr.VerdictDrop)); !removed || err != nil {
			t.Errorf("cleanup after a process that was killed: %v, %v", removed, err)
		}
	})
}

// A table is read again when others have changed any, and not because its owner has; and what others damage is repaired
// at once, between any of the owner's own changes.
func TestOwnChangesAreNoReasonToRead(t *testing.T) {
	newNamespace(t).in(func() {
		owner := NewOwner()
		owner.once.Do(func() {}) // as on a kernel where tables have no owner, so that others can damage them
		defer owner.Close()
		one, two := &Reconciler{Owner: owner}, &Reconciler{Owner: owner}
		table := func(name string, v expr.VerdictKind) Table {
			t := ownedTable(v)
			t.Name = name
			return t
		}
		apply := func(k *Reconciler, name string, v expr.VerdictKind, repairs int) {
			t.Helper()
			if n, err := k.Apply(table(name, v)); n != repairs || err != nil {
				t.Fatalf("%d repaired (%v), want %d", n, err, repairs)
			}
		}
		nft := func(args ...string) {
			t.Helper()
			if out, err := exec.Command("nft", args...).CombinedOutput(); err != nil {
				t.Fatalf("nft %v: %v: %s", args, err, out)
			}
		}
		apply(one, "one", expr.VerdictAccept, 0)
		apply(two, "two", expr.VerdictAccept, 0)
		for range 3 {
			read := one.seenAt
			apply(two, "two", expr.VerdictDrop, 0)
			apply(one, "one", expr.VerdictAccept, 0)
			apply(two, "two", expr.VerdictAccept, 0)
			apply(one, "one", expr.VerdictDrop, 0)
			apply(one, "one", expr.VerdictAccept, 0)
			if one.seenAt != read {
				t.Error("the table is read although nobody else has changed any")
			}
			nft("flush", "chain", "inet", "one", "input")
			apply(two, "two", expr.VerdictDrop, 0)
			apply(one, "one", expr.VerdictAccept, 1)
			nft("delete", "table", "inet", "two")
			apply(one, "one", expr.VerdictDrop, 0)
			apply(two, "two", expr.VerdictDrop, 1)
			nft("add", "table", "inet", "strange")
			read = one.seenAt
			apply(one, "one", expr.VerdictDrop, 0)
			if one.seenAt == read {
				t.Error("the table is not read although somebody has changed one")
			}
			apply(one, "one", expr.VerdictAccept, 0)
		}
	})
}
