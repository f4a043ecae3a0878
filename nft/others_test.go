package nft

import (
	"errors"
	"syscall"
	"testing"

	"appliance/nft/ruleset"
)

// Others have rules in the same hooks: a service proxy that takes the port of every
// local address, as kube-proxy does for node ports, and a firewall that drops what it
// does not know. Our rules come first, and do not touch theirs.
func TestNATBesideOthers(t *testing.T) {
	w := newWorld(t)
	n := w.newNAT()
	w.node.run("nft", `add table inet proxy
add chain inet proxy pre { type nat hook prerouting priority dstnat; }
add rule inet proxy pre fib daddr type local tcp dport 6443 redirect to :9
add chain inet proxy out { type nat hook output priority -100; }
add rule inet proxy out fib daddr type local tcp dport 6443 redirect to :9
add chain inet proxy post { type nat hook postrouting priority srcnat; }
add rule inet proxy post meta mark & 0x4000 == 0x4000 masquerade
add table inet firewall
add chain inet firewall in { type filter hook input priority filter; }
add rule inet firewall in tcp dport 6444 drop
`)
	others := w.node.ruleset()
	for _, b := range w.backends {
		b.serve(b.name, ":6443")
	}
	for _, f := range ruleset.Families() {
		empty := w.service(f)
		empty.Frontend = vip(f, 6444)
		w.apply(n, w.service(f, w.backends...), empty)
		for _, c := range w.clients() {
			got := make(map[string]int)
			for range 3 {
				got[c.ask(vip(f, 6443))]++
			}
			if len(got) != 3 {
				t.Errorf("IPv%s: %s gets answers from %v, want one of each backend", f.Name, c.name, got)
			}
			if _, err := c.dial(vip(f, 6444)); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("IPv%s: %s is not refused by the service without backends: %v", f.Name, c.name, err)
			}
		}
	}
	w.node.in(func() {
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	})
	if left := w.node.ruleset(); left != others {
		t.Errorf("others have\n%s\nand had\n%s", left, others)
	}
}
