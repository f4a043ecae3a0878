package configs

import (
	"net/netip"
	"strings"
	"testing"
)

func TestSelf(t *testing.T) {
	const named = "vip: 2001:db8::10\npeers:\n- {id: a, address: 2001:db8::11}\n- {id: b, address: 'fe80::12%eth0'}\n" +
		"- {id: w, address: 192.0.2.13, role: witness}\n" +
		"addPeersAsBackends: true\n"
	const theirs = "vip: 192.0.2.10\nlocalPeer: {id: me, address: 192.0.2.11}\n" +
		"remotePeers: [{id: b, address: 192.0.2.12}, {id: c, address: 192.0.2.13}]\n"
	const dual = "vips: [192.0.2.10, '2001:db8::10']\npeers:\n- 192.0.2.11+2001:db8::11\n" +
		"- {id: b, address: 192.0.2.12, addresses: ['2001:db8::12']}\n- 192.0.2.13+2001:db8::13\n"
	tests := []struct {
		name  string
		file  string
		local string
		id    string
		want  string // id role address
		err   string
	}{
		{"by address", good, "127.0.0.1 192.0.2.12 2001:db8::5", "", "192.0.2.12 peer 192.0.2.12:10000", ""},
		{"by IPv4-mapped address", good, "::ffff:192.0.2.12", "", "192.0.2.12 peer 192.0.2.12:10000", ""},
		{"by IPv6 address", named, "2001:db8::11", "", "a peer [2001:db8::11]:10000", ""},
		{"by link-local address", named, "fe80::12%eth0", "", "b peer [fe80::12%eth0]:10000", ""},
		{"by link-local address, zone unknown", named, "fe80::12", "", "b peer [fe80::12%eth0]:10000", ""},
		{"link-local of another link", named, "fe80::12%eth1", "", "", "none is this host"},
		{"by a further address", dual, "192.0.2.99 2001:db8::12", "", "b peer 192.0.2.12:10000", ""},
		{"by both addresses", dual, "192.0.2.11 2001:db8::11", "", "192.0.2.11 peer 192.0.2.11:10000", ""},
		{"by addresses of two", dual, "192.0.2.11 2001:db8::12", "", "",
			"f:4: peers: this host has the addresses of several peers (192.0.2.11, b)"},
		{"witness", named, "192.0.2.13", "", "w witness 192.0.2.13:10000", ""},
		{"by id", named, "198.51.100.1", "b", "b peer [fe80::12%eth0]:10000", ""},
		{"by localPeer.id", named + "localPeer: {id: a}\n", "192.0.2.13", "", "a peer [2001:db8::11]:10000", ""},
		{"id before localPeer.id", named + "localPeer: {id: a}\n", "", "b", "b peer [fe80::12%eth0]:10000", ""},
		{"kube-vip's form needs no address", theirs, "198.51.100.1", "", "me peer 192.0.2.11:10000", ""},
		{"own role", good + "role: witness\n", "192.0.2.12", "", "192.0.2.12 witness 192.0.2.12:10000", ""},
		{"alone", "vip: 192.0.2.10\nsingleNode: true\nloadBalancers:\n- backends: [192.0.2.21]\n",
			"127.0.0.1 192.0.2.10 192.0.2.11", "", "192.0.2.11 peer 192.0.2.11:10000", ""},
		{"none", good, "127.0.0.1 ::1 198.51.100.7 2001:db8::7", "",
			"", "f:2: peers: none is this host, which has 198.51.100.7, 2001:db8::7, while the peers are 192.0.2.11, " +
				"192.0.2.12, 192.0.2.13; add this host's address, or say which peer it is with --id"},
		{"no address at all", good, "127.0.0.1", "", "", "which has none, while"},
		{"two", good, "192.0.2.11 192.0.2.13", "",
			"", "f:2: peers: this host has the addresses of several peers (192.0.2.11, 192.0.2.13); " +
				"say which it is with --id or localPeer.id, or list each host once"},
		{"unknown id", good, "192.0.2.11", "x", "", "localPeer.id: x is none of the peers; " +
			"write one of 192.0.2.11, 192.0.2.12, 192.0.2.13"},
		{"alone without address", "vip: 192.0.2.10\nsingleNode: true\nloadBalancers:\n- backends: [192.0.2.21]\n",
			"127.0.0.1 fe80::1%eth0", "",
			"", "peers: this host has no address of its own (it has fe80::1%eth0); list its address in peers"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse("f", []byte(tt.file), source(nil, nil))
			if err != nil {
				t.Fatal(err)
			}
			var local []netip.Addr
			for s := range strings.FieldsSeq(tt.local) {
				local = append(local, addr(s))
			}
			p, err := c.Self(local, tt.id)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error is %v\nwant     %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := p.ID + " " + string(p.Role) + " " + p.AddrPort().String(); got != tt.want {
				t.Errorf("this node is %s, want %s", got, tt.want)
			}
		})
	}
}

// A host that lacks one of its peer's addresses gets an error before it starts.
func TestFurtherAddressesAreAtHome(t *testing.T) {
	c, err := Parse("f", []byte("vip: 192.0.2.10\npeers: [a=192.0.2.11+2001:db8::11, 192.0.2.12, 192.0.2.13]\n"),
		source(nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CheckSelfAddrs([]netip.Addr{addr("2001:db8::11"), addr("192.0.2.11")}, c.Peers[0]); err != nil {
		t.Error(err)
	}
	want := "f:2: peers: 2001:db8::11 is an address of a, which is this host, but it has 192.0.2.11, 2001:db8::1; " +
		"correct it, or remove it"
	if err := c.CheckSelfAddrs([]netip.Addr{addr("192.0.2.11"), addr("2001:db8::1")}, c.Peers[0]); err == nil ||
		err.Error() != want {
		t.Errorf("error %v\nwant  %s", err, want)
	}
}
