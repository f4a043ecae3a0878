package nft

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"
)

func TestOccupied(t *testing.T) {
	needRoot(t)
	four, six := netip.MustParseAddrPort("10.0.0.200:6443"), netip.MustParseAddrPort("[fd00::200]:6443")
	for _, tt := range []struct {
		name, family, rule string
		iptables           bool
		taken              []netip.AddrPort
	}{
		{name: "DNAT", family: "ip", rule: "ip daddr 10.0.0.200 tcp dport 6443 dnat to 10.0.0.9:1", taken: []netip.AddrPort{four}},
		{name: "DNAT of IPv6", family: "ip6", rule: "ip6 daddr fd00::200 tcp dport 6443 counter dnat to [fd00::9]:1", taken: []netip.AddrPort{six}},
		{name: "redirect in inet", family: "inet", rule: "ip6 daddr fd00::200 tcp dport 6443 redirect to :1", taken: []netip.AddrPort{six}},
		{name: "every port", family: "ip", rule: "ip daddr 10.0.0.200 dnat to 10.0.0.9", taken: []netip.AddrPort{four}},
		{name: "another port", family: "ip", rule: "ip daddr 10.0.0.200 tcp dport 6444 dnat to 10.0.0.9:1"},
		{name: "another address", family: "ip", rule: "ip daddr 10.0.0.201 tcp dport 6443 dnat to 10.0.0.9:1"},
		{name: "every address of the host", family: "ip", rule: "tcp dport 6443 redirect to :1"},
		{name: "a firewall", family: "ip", rule: "ip daddr 10.0.0.200 tcp dport 6443 accept"},
		{name: "from that address", family: "ip", rule: "ip saddr 10.0.0.200 tcp sport 6443 redirect to :1"},
		{name: "but not that port", family: "ip", rule: "ip daddr 10.0.0.200 tcp dport != 6443 redirect to :1"},
		{name: "other ports", family: "ip", rule: "ip daddr 10.0.0.200 tcp dport { 1, 6444 } redirect to :1"},
		{name: "a subnet", family: "ip", rule: "ip daddr 10.0.0.0/20 tcp dport 6443 redirect to :1"},
		{name: "iptables", iptables: true, rule: "-d 10.0.0.200/32 -p tcp --dport 6443 -j DNAT --to-destination 10.0.0.9:1", taken: []netip.AddrPort{four}},
		{name: "iptables, ports", iptables: true, rule: "-d 10.0.0.200/32 -p tcp --dport 6000:7000 -j REDIRECT --to-ports 1", taken: []netip.AddrPort{four}},
		{name: "iptables, other ports", iptables: true, rule: "-d 10.0.0.200/32 -p tcp --dport 7000:8000 -j REDIRECT --to-ports 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t, "host")
			m.in(func() {
				cmd := exec.Command("nft", "-f", "-")
				cmd.Stdin = strings.NewReader("table " + tt.family + " theirs {\nchain pre {\ntype nat hook prerouting priority -100\n" + tt.rule + "\n}\n}\n")
				if tt.iptables {
					if _, err := exec.LookPath("iptables-nft"); err != nil {
						t.Skip("no iptables-nft; install iptables")
					}
					cmd = exec.Command("iptables-nft", append([]string{"-t", "nat", "-A", "PREROUTING"}, strings.Fields(tt.rule)...)...)
				}
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				for _, f := range []netip.AddrPort{four, six} {
					err := Occupied([]netip.AddrPort{f})
					want := len(tt.taken) > 0 && tt.taken[0] == f
					if (err != nil) != want {
						t.Errorf("%v: got %v, want an error: %t", f, err, want)
					}
					if err != nil && !strings.Contains(err.Error(), f.String()) {
						t.Errorf("%v does not name %v", err, f)
					}
				}
			})
		})
	}
}
