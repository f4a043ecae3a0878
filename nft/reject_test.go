package nft

import (
	"context"
	"errors"
	"net/netip"
	"syscall"
	"testing"

	"appliance/nft/ruleset"
)

func TestReject(t *testing.T) {
	w := newWorld(t)
	w.node.serve("node", ":6443")
	var open []*session
	for _, f := range ruleset.Families() {
		for _, c := range w.clients() {
			s, err := c.dial(vip(f, 6443))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			open = append(open, s)
		}
	}
	var r Rejecter
	refuse := func(frontends ...netip.AddrPort) int {
		t.Helper()
		var repaired int
		w.node.in(func() {
			var err error
			if repaired, err = r.Refuse(context.Background(), frontends); err != nil {
				t.Fatal(err)
			}
		})
		return repaired
	}
	refuse(vip(ruleset.IPv4(), 6443), vip(ruleset.IPv6(), 6443))
	for _, f := range ruleset.Families() {
		for _, c := range w.clients() {
			if _, err := c.dial(vip(f, 6443)); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s dials %v: got %v, want connection refused", c.name, vip(f, 6443), err)
			}
			if got := c.ask(netip.AddrPortFrom(w.node.addr(f), 6443)); got != "node" {
				t.Errorf("%s: %s answers the node's own address", c.name, got)
			}
		}
	}
	for _, s := range open {
		if err := s.echo(); err != nil {
			t.Errorf("open connection of %v: %v", s.LocalAddr(), err)
		}
	}
	w.node.run("nft", "flush", "ruleset")
	if n := refuse(vip(ruleset.IPv4(), 6443), vip(ruleset.IPv6(), 6443)); n != 1 {
		t.Errorf("after a flush: %d repaired, want 1", n)
	}
	refuse(vip(ruleset.IPv6(), 6443))
	if got := w.client.ask(vip(ruleset.IPv4(), 6443)); got != "node" {
		t.Errorf("no longer refused, but %s answers", got)
	}
	refuse()
	if rules := w.node.ruleset(); rules != "" {
		t.Errorf("nothing is refused, but there is\n%s", rules)
	}
}
