package nft

import (
	"encoding/binary"
	"net/netip"
	"os/exec"
	"reflect"
	"strings"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

func TestPortConflicts(t *testing.T) {
	needRoot(t)
	four, six := netip.MustParseAddrPort("10.0.0.200:6443"), netip.MustParseAddrPort("[fd00::200]:6443")
	for _, tt := range []struct {
		name, family, rule string
		iptables           string // the program that makes the rule; empty is nft
		taken              []netip.AddrPort
	}{
		{name: "DNAT", family: "ip", rule: "ip daddr 10.0.0.200 tcp dport 6443 dnat to 10.0.0.9:1",
			taken: []netip.AddrPort{four}},
		{name: "DNAT of IPv6", family: "ip6", rule: "ip6 daddr fd00::200 tcp dport 6443 counter dnat to [fd00::9]:1",
			taken: []netip.AddrPort{six}},
		{name: "redirect in inet", family: "inet", rule: "ip6 daddr fd00::200 tcp dport 6443 redirect to :1",
			taken: []netip.AddrPort{six}},
		{name: "every port", family: "ip", rule: "ip daddr 10.0.0.200 dnat to 10.0.0.9", taken: []netip.AddrPort{four}},
		{name: "another port", family: "ip", rule: "ip daddr 10.0.0.200 tcp dport 6444 dnat to 10.0.0.9:1"},
		{name: "another address", family: "ip", rule: "ip daddr 10.0.0.201 tcp dport 6443 dnat to 10.0.0.9:1"},
		{name: "every address of the host", family: "ip", rule: "tcp dport 6443 redirect to :1"},
		{name: "a firewall", family: "ip", rule: "ip daddr 10.0.0.200 tcp dport 6443 accept"},
		{name: "from that address", family: "ip", rule: "ip saddr 10.0.0.200 tcp sport 6443 redirect to :1"},
		{name: "but not that port", family: "ip", rule: "ip daddr 10.0.0.200 tcp dport != 6443 redirect to :1"},
		{name: "other ports", family: "ip", rule: "ip daddr 10.0.0.200 tcp dport { 1, 6444 } redirect to :1"},
		{name: "these and other ports", family: "ip", rule: "ip daddr 10.0.0.200 tcp dport { 1, 6443 } redirect to :1",
			taken: []netip.AddrPort{four}},
		{name: "a range of ports", family: "ip", rule: "ip daddr 10.0.0.200 tcp dport 6000-7000 redirect to :1",
			taken: []netip.AddrPort{four}},
		{name: "but not these ports", family: "ip",
			rule: "ip daddr 10.0.0.200 tcp dport != { 22, 6000-7000 } redirect to :1"},
		{name: "but not those ports", family: "ip",
			rule:  "ip daddr 10.0.0.200 tcp dport != { 22, 7000-8000 } redirect to :1",
			taken: []netip.AddrPort{four}},
		{name: "UDP", family: "ip", rule: "ip daddr 10.0.0.200 udp dport 6443 redirect to :1"},
		{name: "TCP and UDP", family: "ip",
			rule:  "ip daddr 10.0.0.200 meta l4proto { tcp, udp } th dport 6443 redirect to :1",
			taken: []netip.AddrPort{four}},
		{name: "a subnet", family: "ip", rule: "ip daddr 10.0.0.0/20 tcp dport 6443 redirect to :1"},
		{name: "a subnet of whole bytes", family: "ip", rule: "ip daddr 10.0.0.0/24 tcp dport 6443 redirect to :1"},
		{name: "another subnet", family: "ip", rule: "ip daddr 10.0.16.0/20 tcp dport 6443 redirect to :1"},
		{name: "all but a subnet", family: "ip", rule: "ip daddr != 10.0.16.0/20 tcp dport 6443 redirect to :1"},
		{name: "addresses", family: "ip", rule: "ip daddr { 10.0.0.1, 10.0.0.200 } tcp dport 6443 redirect to :1",
			taken: []netip.AddrPort{four}},
		{name: "a range of addresses", family: "ip",
			rule: "ip daddr { 10.0.0.1, 10.0.0.190-10.0.0.210 } tcp dport 6443 redirect to :1"},
		{name: "other addresses", family: "ip",
			rule: "ip daddr { 10.0.0.1, 10.0.0.201-10.0.0.210 } tcp dport 6443 redirect to :1"},
		{name: "pairs", family: "ip", rule: "ip daddr . tcp dport { 10.0.0.1 . 1, 10.0.0.200 . 6443 } redirect to :1",
			taken: []netip.AddrPort{four}},
		{name: "other pairs", family: "ip",
			rule: "ip daddr . tcp dport { 10.0.0.1 . 6443, 10.0.0.200 . 1 } redirect to :1"},
		{name: "all but pairs", family: "ip", rule: "ip daddr . tcp dport != { 10.0.0.1 . 6443 } redirect to :1"},
		{name: "pairs of ranges", family: "ip6",
			rule: "ip6 daddr . tcp dport { fd00::1-fd00::fff . 6000-7000, fd01::/64 . 1 } redirect to :1"},
		{name: "other pairs of ranges", family: "ip6",
			rule: "ip6 daddr . tcp dport { fd00::1-fd00::fff . 7000-8000, fd01::/64 . 6443 } redirect to :1"},
		{name: "a map", family: "ip", rule: "dnat ip to ip daddr . tcp dport map { 10.0.0.200 . 6443 : 10.0.0.9 . 1 }",
			taken: []netip.AddrPort{four}},
		{name: "from a client", family: "ip",
			rule:  "ip saddr 10.0.0.1 ip daddr 10.0.0.200 tcp sport 1 tcp dport 6443 redirect to :1",
			taken: []netip.AddrPort{four}},
		{name: "from a client to another", family: "ip",
			rule: "ip saddr 10.0.0.1 ip daddr 10.0.0.201 tcp dport 6443 redirect to :1"},
		{name: "from an interface", family: "inet",
			rule:  "iifname \"eth0\" ct state new fib daddr type local ip daddr 10.0.0.200 tcp dport 6443 redirect to :1",
			taken: []netip.AddrPort{four}},
		{name: "iptables", iptables: "iptables-nft",
			rule:  "-d 10.0.0.200/32 -p tcp --dport 6443 -j DNAT --to-destination 10.0.0.9:1",
			taken: []netip.AddrPort{four}},
		{name: "iptables, ports", iptables: "iptables-nft",
			rule: "-d 10.0.0.200/32 -p tcp --dport 6000:7000 -j REDIRECT --to-ports 1", taken: []netip.AddrPort{four}},
		{name: "iptables, other ports", iptables: "iptables-nft",
			rule: "-d 10.0.0.200/32 -p tcp --dport 7000:8000 -j REDIRECT --to-ports 1"},
		{name: "iptables, not the port", iptables: "iptables-nft",
			rule: "-d 10.0.0.200/32 -p tcp ! --dport 6443 -j REDIRECT --to-ports 1"},
		{name: "iptables, not another port", iptables: "iptables-nft",
			rule: "-d 10.0.0.200/32 -p tcp ! --dport 22 -j REDIRECT --to-ports 1", taken: []netip.AddrPort{four}},
		{name: "iptables, not these ports", iptables: "iptables-nft",
			rule: "-d 10.0.0.200/32 -p tcp ! --dport 6000:7000 -j REDIRECT --to-ports 1"},
		{name: "iptables, not other ports", iptables: "iptables-nft",
			rule:  "-d 10.0.0.200/32 -p tcp ! --dport 7000:8000 -j DNAT --to-destination 10.0.0.9",
			taken: []netip.AddrPort{four}},
		{name: "iptables, multiport", iptables: "iptables-nft",
			rule:  "-d 10.0.0.200/32 -p tcp -m multiport --dports 22,6443 -j REDIRECT --to-ports 1",
			taken: []netip.AddrPort{four}},
		{name: "iptables, multiport with a range", iptables: "iptables-nft",
			rule:  "-d 10.0.0.200/32 -p tcp -m multiport --dports 22,6000:7000,9000 -j REDIRECT --to-ports 1",
			taken: []netip.AddrPort{four}},
		{name: "iptables, multiport of others", iptables: "iptables-nft",
			rule: "-d 10.0.0.200/32 -p tcp -m multiport --dports 22,6000:6442,7000 -j REDIRECT --to-ports 1"},
		{name: "iptables, not multiport", iptables: "iptables-nft",
			rule: "-d 10.0.0.200/32 -p tcp -m multiport ! --dports 22,6000:7000 -j REDIRECT --to-ports 1"},
		{name: "iptables, not multiport of others", iptables: "iptables-nft",
			rule:  "-d 10.0.0.200/32 -p tcp -m multiport ! --dports 22,7000:8000 -j REDIRECT --to-ports 1",
			taken: []netip.AddrPort{four}},
		{name: "iptables, multiport of the source", iptables: "iptables-nft",
			rule:  "-d 10.0.0.200/32 -p tcp -m multiport --sports 22,23 -j REDIRECT --to-ports 1",
			taken: []netip.AddrPort{four}},
		{name: "iptables, multiport of either", iptables: "iptables-nft",
			rule:  "-d 10.0.0.200/32 -p tcp -m multiport --ports 22,23 -j REDIRECT --to-ports 1",
			taken: []netip.AddrPort{four}},
		{name: "iptables, not multiport of either", iptables: "iptables-nft",
			rule: "-d 10.0.0.200/32 -p tcp -m multiport ! --ports 22,6443 -j REDIRECT --to-ports 1"},
		{name: "iptables, a subnet", iptables: "iptables-nft",
			rule: "-d 10.0.0.0/24 -p tcp --dport 6443 -j REDIRECT --to-ports 1"},
		{name: "iptables, a subnet of odd length", iptables: "iptables-nft",
			rule: "-d 10.0.0.0/20 -p tcp --dport 6443 -j REDIRECT --to-ports 1"},
		{name: "iptables, another subnet", iptables: "iptables-nft",
			rule: "-d 10.0.16.0/20 -p tcp --dport 6443 -j REDIRECT --to-ports 1"},
		{name: "iptables, all but an address", iptables: "iptables-nft",
			rule: "! -d 10.0.0.1 -p tcp --dport 6443 -j REDIRECT --to-ports 1"},
		{name: "iptables, addresses", iptables: "iptables-nft",
			rule: "-p tcp -m iprange --dst-range 10.0.0.190-10.0.0.210 --dport 6443 -j REDIRECT --to-ports 1"},
		{name: "iptables, other addresses", iptables: "iptables-nft",
			rule: "-p tcp -m iprange --dst-range 10.0.0.201-10.0.0.210 --dport 6443 -j REDIRECT --to-ports 1"},
		{name: "iptables, all but addresses", iptables: "iptables-nft",
			rule: "-p tcp -m iprange ! --dst-range 10.0.0.1-10.0.0.9 --dport 6443 -j REDIRECT --to-ports 1"},
		{name: "iptables, UDP", iptables: "iptables-nft",
			rule: "-d 10.0.0.200/32 -p udp --dport 6000:7000 -j REDIRECT --to-ports 1"},
		{name: "iptables, all but UDP", iptables: "iptables-nft",
			rule: "-d 10.0.0.200/32 ! -p udp -j DNAT --to-destination 10.0.0.9", taken: []netip.AddrPort{four}},
		{name: "iptables, a network", iptables: "iptables-nft",
			rule: "-d 10.0.0.0/24 -j NETMAP --to 10.1.0.0/24"},
		{name: "iptables, a firewall", iptables: "iptables-nft",
			rule: "-d 10.0.0.200/32 -p tcp --dport 6443 -j ACCEPT"},
		{name: "ip6tables", iptables: "ip6tables-nft",
			rule:  "-d fd00::200 -p tcp --dport 6443 -j DNAT --to-destination [fd00::9]:1",
			taken: []netip.AddrPort{six}},
		{name: "ip6tables, ports", iptables: "ip6tables-nft",
			rule: "-d fd00::200 -p tcp --dport 6000:7000 -j REDIRECT --to-ports 1", taken: []netip.AddrPort{six}},
		{name: "ip6tables, not these ports", iptables: "ip6tables-nft",
			rule: "-d fd00::200 -p tcp ! --dport 6000:7000 -j REDIRECT --to-ports 1"},
		{name: "ip6tables, multiport", iptables: "ip6tables-nft",
			rule:  "-d fd00::200 -p tcp -m multiport --dports 22,6000:7000 -j REDIRECT --to-ports 1",
			taken: []netip.AddrPort{six}},
		{name: "ip6tables, addresses", iptables: "ip6tables-nft",
			rule: "-p tcp -m iprange --dst-range fd00::1-fd00::fff --dport 6443 -j REDIRECT --to-ports 1"},
		{name: "ip6tables, another subnet", iptables: "ip6tables-nft",
			rule: "-d fd00:1::/60 -p tcp --dport 6443 -j REDIRECT --to-ports 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t, "host")
			m.in(func() {
				cmd := exec.Command("nft", "-f", "-")
				cmd.Stdin = strings.NewReader("table " + tt.family + " theirs {\nchain pre {\n" +
					"type nat hook prerouting priority -100\n" + tt.rule + "\n}\n}\n")
				if tt.iptables != "" {
					if _, err := exec.LookPath(tt.iptables); err != nil {
						t.Skip("no iptables-nft; install iptables")
					}
					cmd = exec.Command(tt.iptables, append([]string{"-t", "nat", "-A", "PREROUTING"}, strings.Fields(tt.rule)...)...)
				}
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				for _, f := range []netip.AddrPort{four, six} {
					err := PortConflicts([]netip.AddrPort{f})
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

// Older versions of iptables-nft than the one that the tests run leave ports to
// an extension, and an ipset is seldom there.
func TestForeignRuleWithExtension(t *testing.T) {
	frontend := netip.MustParseAddrPort("10.0.0.200:6443")
	tcp := func(low, high uint16, inverse byte) []byte {
		info := make([]byte, 12)
		binary.NativeEndian.PutUint16(info[4:], low)
		binary.NativeEndian.PutUint16(info[6:], high)
		info[11] = inverse
		return info
	}
	for _, tt := range []struct {
		name, match string
		info        []byte
		want        bool
	}{
		{"the port", "tcp", tcp(6443, 6443, 0), true},
		{"ports", "tcp", tcp(6000, 7000, 0), true},
		{"other ports", "tcp", tcp(7000, 8000, 0), false},
		{"not these ports", "tcp", tcp(6000, 7000, 2), false},
		{"not other ports", "tcp", tcp(7000, 8000, 2), true},
		{"not other ports of the source", "tcp", tcp(6000, 7000, 1), true},
		{"a set of clients", "set", []byte{0, 0, 1, 2}, true},
		{"a set of addresses", "set", []byte{0, 0, 1, 0}, false},
		{"a set of clients and ports", "set", []byte{0, 0, 2, 2}, false},
		{"anything else", "comment", []byte("x"), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := foreignRule{expressions: []expression{
				{"payload", map[uint16][]byte{
					unix.NFTA_PAYLOAD_DREG: {0, 0, 0, 1}, unix.NFTA_PAYLOAD_BASE: {0, 0, 0, 1},
					unix.NFTA_PAYLOAD_OFFSET: {0, 0, 0, 16}, unix.NFTA_PAYLOAD_LEN: {0, 0, 0, 4},
				}},
				{"cmp", map[uint16][]byte{
					unix.NFTA_CMP_SREG: {0, 0, 0, 1}, unix.NFTA_CMP_OP: {0, 0, 0, 0},
					unix.NFTA_CMP_DATA: {8, 0, 1, 0, 10, 0, 0, 200},
				}},
				{"match", map[uint16][]byte{
					unix.NFTA_MATCH_NAME: []byte(tt.match + "\x00"), unix.NFTA_MATCH_INFO: tt.info,
				}},
				{"target", map[uint16][]byte{unix.NFTA_TARGET_NAME: []byte("DNAT\x00")}},
			}}
			if got := r.translates(frontend, nil); got != tt.want {
				t.Errorf("got %t, want %t", got, tt.want)
			}
		})
	}
}

func TestSpans(t *testing.T) {
	begin := func(key byte) nftables.SetElement { return nftables.SetElement{Key: []byte{0, key}} }
	end := func(key byte) nftables.SetElement { return nftables.SetElement{Key: []byte{0, key}, IntervalEnd: true} }
	for _, tt := range []struct {
		name     string
		elements []nftables.SetElement
		want     []span
	}{
		{"values", []nftables.SetElement{begin(2), begin(1)},
			[]span{{[]byte{0, 1}, []byte{0, 1}}, {[]byte{0, 2}, []byte{0, 2}}}},
		{"an interval", []nftables.SetElement{end(0), begin(1), end(3)}, []span{{[]byte{0, 1}, []byte{0, 2}}}},
		{"one behind the other", []nftables.SetElement{begin(3), end(3), begin(1), end(5)},
			[]span{{[]byte{0, 1}, []byte{0, 2}}, {[]byte{0, 3}, []byte{0, 4}}}},
		{"up to the highest", []nftables.SetElement{end(0), begin(7)}, []span{{[]byte{0, 7}, []byte{0xff, 0xff}}}},
		{"fields", []nftables.SetElement{{Key: []byte{1, 2}, KeyEnd: []byte{3, 4}}}, []span{{[]byte{1, 2}, []byte{3, 4}}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := spans(tt.elements); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}
