package configs

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const routed = `vips:
- 198.51.100.10
- {address: "2001:db8:1::10", announce: arp}
- {address: 198.51.100.11, med: 5, prepend: 2}
peers: [192.0.2.11, 192.0.2.12, 192.0.2.13]
group: {insecure: true}
announce:
  by: bgp
  who: holder
  standby: true
  grace: 500ms
  bgp:
    as: 4200000001
    holdTime: 3s
    communities: ["64512:100", no-export]
    med: 10
    neighbours:
    - {address: 192.0.2.1, as: 64500, bfd: true, ttlSecurity: true}
    - {address: "2001:db8::1", as: 4200000001, hops: 3, passive: true, bfd: {on: true, interval: 100ms, multiplier: 5}}
`

func TestAnnounce(t *testing.T) {
	cfg, err := Parse("f", []byte(routed), Source{})
	if err != nil {
		t.Fatal(err)
	}
	want := AnnounceSettings{
		HolderOnly: true, Standby: true, Grace: 500 * time.Millisecond, TunnelPort: 10002,
		Routes: RouteSettings{Table: 254, Protocol: 86},
		BGP: BGPSettings{
			AS: 4200000001, Port: 179, HoldTime: 3 * time.Second,
			Path: PathSettings{Communities: []string{"64512:100", "no-export"}, MED: new(uint32(10))},
			Neighbours: []NeighbourEntry{
				{Addr: netip.MustParseAddr("192.0.2.1"), AS: 64500, Port: 179, Hops: 1, TTLSecurity: true,
					BFDInterval: 50 * time.Millisecond, BFDMultiplier: 3},
				{Addr: netip.MustParseAddr("2001:db8::1"), AS: 4200000001, Port: 179, Hops: 3, Passive: true,
					BFDInterval: 100 * time.Millisecond, BFDMultiplier: 5},
			},
		},
	}
	addrs := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if diff := cmp.Diff(want, cfg.Announce, addrs, cmpopts.IgnoreFields(NeighbourEntry{}, "Origin")); diff != "" {
		t.Error(diff)
	}
	for vip, want := range map[string]AnnounceWay{
		"198.51.100.10": ByBGP, "2001:db8:1::10": ByARP, "198.51.100.11": ByBGP,
	} {
		if got := cfg.AnnouncedBy(netip.MustParseAddr(vip)); got != want {
			t.Errorf("%s is announced by %s, want %s", vip, got, want)
		}
	}
	own := cfg.PathOf(netip.MustParseAddr("198.51.100.11"))
	wantOwn := PathSettings{Communities: []string{"64512:100", "no-export"}, MED: new(uint32(5)), Prepend: 2}
	if diff := cmp.Diff(wantOwn, own); diff != "" {
		t.Error(diff)
	}
	plain, err := Parse("f", []byte("vips: [192.0.2.10]\npeers: [192.0.2.11]\nsingleNode: true\n"), Source{})
	if err != nil || plain.Routed() || plain.SpeaksBGP() {
		t.Errorf("without announce: routed %v, by BGP %v, %v", plain.Routed(), plain.SpeaksBGP(), err)
	}
}

// Each mistake is named with its line, its key, and what to write instead.
func TestAnnounceErrors(t *testing.T) {
	const head = "vips: [198.51.100.10]\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]\ngroup: {insecure: true}\n"
	const neighbours = "    neighbours: [{address: 192.0.2.1, as: 64500}]\n"
	bgp := func(lines string) string { return head + "announce:\n  by: bgp\n  bgp:\n" + lines }
	for _, tt := range []struct{ name, file, want string }{
		{"unknown way", head + "announce: ospf\n",
			"f:4: announce.by: ospf is not known; write arp, bgp or routes"},
		{"no AS number", bgp(neighbours), "f:6: announce.bgp.as: is missing, and 198.51.100.10 is announced by BGP; " +
			"write this node's AS number, such as 64512"},
		{"no neighbours", bgp("    as: 64512\n"), "f:6: announce.bgp.neighbours: is missing, and 198.51.100.10 is " +
			"announced by BGP; list the routers: - {address: 192.0.2.1, as: 64500}"},
		{"AS_TRANS", bgp("    as: 23456\n" + neighbours),
			"f:7: announce.bgp.as: 23456 is reserved and nobody's AS number; write one of your own, from 64512 to 65534"},
		{"AS number too large", bgp("    as: 4294967295\n" + neighbours), "f:7: announce.bgp.as: 4294967295 is not an AS " +
			"number; write one from 1 to 4294967294, of your own from 64512 to 65534"},
		{"neighbour without AS number", bgp("    as: 64512\n    neighbours: [{address: 192.0.2.1}]\n"),
			"f:8: announce.bgp.neighbours[0]: has no AS number; write as: 64512 with the router's"},
		{"neighbour without address", bgp("    as: 64512\n    neighbours: [{as: 64500}]\n"),
			"f:8: announce.bgp.neighbours[0]: has no address; write address: 192.0.2.1 with the router's"},
		{"neighbour is a peer", bgp("    as: 64512\n    neighbours: [{address: 192.0.2.12, as: 1}]\n"),
			"f:8: announce.bgp.neighbours[0].address: 192.0.2.12 is a peer of this group; write a router's"},
		{"neighbour is a virtual address", bgp("    as: 64512\n    neighbours: [{address: 198.51.100.10, as: 1}]\n"),
			"f:8: announce.bgp.neighbours[0].address: 198.51.100.10 is a virtual address; write the router's own"},
		{"neighbour twice", bgp("    as: 64512\n    neighbours:\n    - {address: 192.0.2.1, as: 1}\n" +
			"    - {address: 192.0.2.1, as: 2}\n"),
			"f:10: announce.bgp.neighbours: 192.0.2.1 is there twice (line 9); remove one of the two"},
		{"link-local neighbour", bgp("    as: 64512\n    neighbours: [{address: 'fe80::1%eth0', as: 1}]\n"),
			"f:8: announce.bgp.neighbours[0].address: fe80::1%eth0 is link-local; " +
				"write the router's global or unique local address"},
		{"hold time too short", bgp("    as: 64512\n    holdTime: 1s\n" + neighbours),
			"f:8: announce.bgp.holdTime: 1s is out of range; write a duration from 3s to 18h"},
		{"hold time not whole", bgp("    as: 64512\n    holdTime: 3500ms\n" + neighbours), "f:8: announce.bgp.holdTime: " +
			"3.5s is not a whole number of seconds, which is all that BGP can say; write 4s"},
		{"router ID", bgp("    as: 64512\n    routerID: '::1'\n" + neighbours), "f:8: announce.bgp.routerID: ::1 is not a " +
			"BGP identifier; write this node's IPv4 address, or another one that no router has"},
		{"community", bgp("    as: 64512\n    communities: ['64512:70000']\n" + neighbours), "f:8: " +
			"announce.bgp.communities[0]: 64512:70000 is not a community of 2 numbers up to 65535; write one such as 64512:100"},
		{"large community", bgp("    as: 64512\n    largeCommunities: ['1:2']\n" + neighbours),
			"f:8: announce.bgp.largeCommunities[0]: 1:2 is not a community of 3 numbers up to 4294967295; " +
				"write one such as 64512:1:2"},
		{"two next hops of one family", bgp("    as: 64512\n    nextHops: [192.0.2.11, 192.0.2.12]\n" + neighbours),
			"f:8: announce.bgp.nextHops: 192.0.2.11 and 192.0.2.12 are of one family, and a route has one next hop; " +
				"remove one of the two"},
		{"passive without a port", bgp("    as: 64512\n    port: 0\n" +
			"    neighbours: [{address: 192.0.2.1, as: 1, passive: true}]\n"),
			"f:9: announce.bgp.neighbours[0].passive: waits for the router, but announce.bgp.port is 0, so it cannot " +
				"connect; write passive: false, or another port"},
		{"timers without BFD", bgp("    as: 64512\n    neighbours: [{address: 192.0.2.1, as: 1, bfd: {interval: 1s}}]\n"),
			"f:8: announce.bgp.neighbours[0].bfd: has timers, but is not on; write on: true beside them, or remove them"},
		{"standby without room", head + "announce:\n  by: bgp\n  who: holder\n  standby: true\n  bgp:\n    as: 64512\n" +
			"    localPreference: 0\n" + neighbours,
			"f:7: announce.standby: announces 198.51.100.10 with less preference than the holder does, and the holder's is " +
				"0; write a localPreference of 1 or more"},
		{"MED of an answered address", strings.Replace(head, "198.51.100.10", "{address: 198.51.100.10, med: 1}", 1),
			"f:1: vips[0].med: is for BGP, but the virtual address is announced by arp; write announce: bgp, or remove it"},
		{"no IPv4 for the router ID", "vips: ['2001:db8:1::10']\npeers: ['2001:db8::11']\nsingleNode: true\n" +
			"announce:\n  by: bgp\n  bgp: {as: 64512, neighbours: [{address: '2001:db8::1', as: 1}]}\n",
			"f:6: announce.bgp.routerID: is missing, and the peers have no IPv4 address to take; " +
				"write one of four octets for each node, such as 10.0.0.1, which no other has"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("f", []byte(tt.file), Source{})
			if err == nil || err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

// What has no effect is said, and does no harm.
func TestAnnounceWarnings(t *testing.T) {
	const head = "vips: [198.51.100.10]\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]\ngroup: {insecure: true}\n"
	for name, tt := range map[string]struct{ more, want string }{
		"bgp without by: bgp": {"announce: {bgp: {as: 64512}}\n", "announce.bgp: has no effect"},
		"who with arp":        {"announce: {who: holder}\n", "announce.who: has no effect"},
		"standby with who: all": {"announce: {by: bgp, standby: true, bgp: {as: 64512, " +
			"neighbours: [{address: 192.0.2.1, as: 1}]}}\n", "announce.standby: has no effect"},
		"routes with arp": {"announce: {routes: {table: 100}}\n", "announce.routes: has no effect"},
		"localPreference, eBGP": {"announce: {by: bgp, bgp: {as: 64512, localPreference: 5, " +
			"neighbours: [{address: 192.0.2.1, as: 1}]}}\n", "localPreference, which is told to neighbours of the same AS only"},
		"next hop of the other family": {"announce: {by: bgp, bgp: {as: 64512, nextHops: ['2001:db8::11'], " +
			"neighbours: [{address: 192.0.2.1, as: 1}]}}\n",
			"announce.bgp.nextHops: 2001:db8::11 has no effect: no virtual address of its family"},
		"prepend, iBGP": {"announce: {by: bgp, bgp: {as: 64512, prepend: 5, " +
			"neighbours: [{address: 192.0.2.1, as: 64512}]}}\n", "prepend, which neighbours of the same AS are not told"},
	} {
		cfg, err := Parse("f", []byte(head+tt.more), Source{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		said := ""
		for _, w := range cfg.Warnings {
			said += w.String() + "\n"
		}
		if !strings.Contains(said, tt.want) {
			t.Errorf("%s: no warning has %q:\n%s", name, tt.want, said)
		}
	}
}
