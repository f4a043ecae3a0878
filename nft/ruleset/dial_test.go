package ruleset

import (
	"errors"
	"io"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A transaction of thousands of rules has as many answers. After an error, none of
// them is taken for an answer to the next request.
func TestDial(t *testing.T) {
	m := newNamespace(t)
	m.in(func() {
		conn, err := Dial()
		if err != nil {
			t.Fatal(err)
		}
		const many = 5000
		table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "many"})
		c := conn.AddChain(&nftables.Chain{Table: table, Name: "c"})
		for range many {
			conn.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}})
		}
		if err := conn.Flush(); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			conn.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "none"})
			conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "never"})
			if err := conn.Flush(); !errors.Is(err, unix.ENOENT) {
				t.Errorf("deleting what is not there: %v", err)
			}
			// A dump of several parts.
			rules, err := conn.GetRules(table, c)
			if err != nil || len(rules) != many {
				t.Errorf("%d rules, want %d: %v", len(rules), many, err)
			}
			if tables, err := conn.ListTables(); err != nil || len(tables) != 1 {
				t.Errorf("tables %v, want one: %v", tables, err)
			}
		}
	})
}

func TestSocketOpensAgain(t *testing.T) {
	m := newNamespace(t)
	m.in(func() {
		l := newSocket()
		conn, err := nftables.New(nftables.WithTestDial(l.exchange))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "t"})
			if err := conn.Flush(); err != nil {
				t.Fatal(err)
			}
			l.expire()
			l.expire() // the timer of a socket that an error has closed
		}
		if _, err := l.exchange(nil); err != io.EOF || l.fd >= 0 {
			t.Errorf("asked nothing, got %v, socket %d", err, l.fd)
		}
	})
}
