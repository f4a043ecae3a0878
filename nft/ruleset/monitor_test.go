package ruleset

import (
	"context"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

var vip = netip.MustParseAddr("10.0.0.200")

func TestMonitor(t *testing.T) {
	m := newNamespace(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	fired := make(chan struct{}, 1)
	var theirs atomic.Bool
	ended := make(chan error, 1)
	go func() {
		m.in(func() {
			ended <- Monitor(ctx, func() {
				select {
				case fired <- struct{}{}:
				default:
				}
			}, func() { theirs.Store(true) })
		})
	}()
	// Events are lost until the monitor listens.
	for end := time.Now().Add(patience); len(fired) == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("Monitor sees nothing")
		}
		m.apply(new(Reconciler), dropRequests(vip))
		m.run("nft", "flush", "ruleset")
	}
	if theirs.Load() {
		t.Error("our own changes count as those of others")
	}
	for end := time.Now().Add(patience); !theirs.Load(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("Monitor does not see what others change")
		}
		m.run("nft", "add table inet other; add chain inet other c { type filter hook forward priority 0; policy drop; }; "+
			"delete table inet other")
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("Monitor does not end with its context")
	}
}

// Each step is one transaction of a real kernel, seen by a listener that is there from
// the beginning.
func TestTransaction(t *testing.T) {
	m := newNamespace(t)
	var conn *netlink.Conn
	m.in(func() {
		var err error
		if conn, err = netlink.Dial(unix.NETLINK_NETFILTER, nil); err != nil {
			t.Fatal(err)
		}
		if err := conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
			t.Fatal(err)
		}
	})
	defer conn.Close()
	var first, second Reconciler
	drop := func(target netip.Addr) func() { return func() { m.apply(&first, dropRequests(target)) } }
	rewritten := func(why string) func() {
		return func() {
			m.apply(&second, Table{Family: nftables.TableFamilyARP, Name: ARPFilterTable, Chains: []Chain{
				{Name: "c", Rules: []Rule{NewRule(why, Verdict(expr.VerdictAccept))}},
			}})
		}
	}
	nft := func(command string) func() { return func() { m.run("nft", command) } }
	ours := drop(vip)
	steps := []struct {
		what   string
		do     func()
		harmed bool
	}{
		{"we make a table", ours, false},
		{"we replace it", drop(vip.Next()), false},
		{"others make and remove theirs", nft("add table inet other; add chain inet other c; delete table inet other"),
			false},
		{"others have a table of our name in another family",
			nft("add table inet appliance_silence; delete table inet appliance_silence"), false},
		{"a rule is added", nft("add rule arp appliance_silence input accept"), false},
		{"a chain is flushed", nft("flush chain arp appliance_silence input"), true},
		{"we repair it", ours, false},
		{"the table is flushed", nft("flush table arp appliance_silence"), true},
		{"we repair it", ours, false},
		{"all is flushed", nft("flush ruleset"), true},
		{"we repair it", ours, false},
		{"the table is deleted", nft("delete table arp appliance_silence"), true},
		{"another reconciler makes it", rewritten("one"), false},
		{"it writes another rule", rewritten("two"), false},
		{"others write another rule", nft("flush chain arp appliance_silence c; add rule arp appliance_silence c accept " +
			"comment \"two [too short]\""), true},
	}
	var got, want []bool
	var tr transaction
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	for _, step := range steps {
		step.do()
		want = append(want, step.harmed)
		for seen := len(got); len(got) == seen; {
			messages, err := conn.Receive()
			if err != nil {
				t.Fatalf("%s: %v", step.what, err)
			}
			for _, msg := range messages {
				harmed := tr.add(msg)
				if msg.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
					got = append(got, harmed)
				}
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%s: harmed is %v, want %v", step.what, got, want)
		}
	}
}

func TestOursOfTakesGarbage(t *testing.T) {
	for _, data := range [][]byte{nil, {3}, {3, 0, 0, 0}, {3, 0, 0, 0, 1}, {3, 0, 0, 0, 0xff, 0xff, 1, 0, 'x'}} {
		m := netlink.Message{Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELTABLE}, Data: data}
		if name, ok := oursOf(m); ok {
			t.Errorf("% x is taken for table %s", data, name)
		}
	}
}
