package nft

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"appliance/nft/ruleset"
)

func TestMasquerade(t *testing.T) {
	needRoot(t)
	n := newMachine(t, "node")
	var m IPVSMasquerade
	masquerade := func(frontends ...netip.AddrPort) int {
		t.Helper()
		var repaired int
		n.in(func() {
			var err error
			if repaired, err = m.Masquerade(context.Background(), frontends); err != nil {
				t.Fatal(err)
			}
		})
		return repaired
	}
	all := []netip.AddrPort{vip(ruleset.IPv4(), 6443), vip(ruleset.IPv6(), 6443), vip(ruleset.IPv4(), 80),
		vip(ruleset.IPv4(), 80)}
	masquerade(all...)
	rules := n.ruleset()
	for _, want := range []string{
		"table inet appliance_ipvs",
		"10.0.0.200 . 80",
		"elements = { fd00::200 . 6443 }",
		"type filter hook prerouting priority mangle",
		"type filter hook output priority mangle",
		fmt.Sprintf("type nat hook postrouting priority %d", ruleset.PrioritySNAT),
		"ip daddr . tcp dport @frontends4 meta mark set mark or 0x1000",
		"meta mark & 0x00001000 != 0x00000000 masquerade",
	} {
		if !strings.Contains(strings.ReplaceAll(rules, "meta mark set meta mark | 0x00001000",
			"meta mark set mark or 0x1000"), want) {
			t.Errorf("no %q in\n%s", want, rules)
		}
	}
	before := n.generation()
	if r := masquerade(all...); r != 0 || n.generation() != before {
		t.Errorf("the same again: %d repaired, and generation %d became %d", r, before, n.generation())
	}
	n.run("nft", "flush", "ruleset")
	if r := masquerade(all...); r != 1 {
		t.Errorf("after a flush: %d repaired, want 1", r)
	}
	// The kernel lists elements in its own order.
	words := func(s string) []string {
		return slices.Sorted(strings.FieldsFuncSeq(s, func(r rune) bool { return strings.ContainsRune(" ,\t\n", r) }))
	}
	if again := n.ruleset(); !slices.Equal(words(again), words(rules)) {
		t.Errorf("repaired to\n%s\nwant\n%s", again, rules)
	}
	masquerade()
	if rules := n.ruleset(); rules != "" {
		t.Errorf("without frontends there is\n%s", rules)
	}
	if _, err := m.Masquerade(context.Background(), []netip.AddrPort{netip.MustParseAddrPort("[::]:80")}); err == nil {
		t.Error("no error for an unspecified address")
	}
}
