package configs

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

const twoVIPs = "vips: [192.0.2.10, {address: 198.51.100.10, interface: eth1}, '2001:db8::10']\n" +
	"interface: eth0\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]\ngroup: {insecure: true}\nloadBalancers:\n"

// One port of two virtual addresses leads to different servers.
func TestLoadBalancerNamesItsVIPs(t *testing.T) {
	cfg, err := Parse("f", []byte(twoVIPs+
		"- {name: shop, port: 443, vips: [192.0.2.10, '2001:db8::10'], backends: [192.0.2.21]}\n"+
		"- {name: admin, port: 443, vips: [198.51.100.10], backends: [192.0.2.22]}\n"+
		"- {name: all, port: 80, backends: [192.0.2.23]}\n"), Source{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{} // frontend → load balancer
	for _, lb := range cfg.ForBalancer() {
		for _, f := range lb.Frontends {
			if other, ok := got[f.String()]; ok {
				t.Errorf("%s is served by %s and %s", f, other, lb.Name)
			}
			got[f.String()] = strings.TrimSuffix(lb.Name, "-ipv6")
		}
	}
	want := map[string]string{
		"192.0.2.10:443": "shop", "[2001:db8::10]:443": "shop", "198.51.100.10:443": "admin",
		"192.0.2.10:80": "all", "[2001:db8::10]:80": "all", "198.51.100.10:80": "all",
	}
	for at, name := range want {
		if got[at] != name {
			t.Errorf("%s is served by %q, not %s", at, got[at], name)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d addresses are served, not %d: %v", len(got), len(want), got)
	}
	for vip, name := range map[string]string{"192.0.2.10": "eth0", "198.51.100.10": "eth1"} {
		if got := cfg.InterfaceOf(netip.MustParseAddr(vip)); got != name {
			t.Errorf("%s is on %q, not %s", vip, got, name)
		}
	}
	next, err := Parse("f", []byte(twoVIPs+"- {port: 443, vips: [198.51.100.10], backends: [192.0.2.22]}\n"), Source{})
	if err != nil {
		t.Fatal(err)
	}
	live := cfg.WithLive(next).LoadBalancers[0].VIPs
	if !slices.Equal(live, []netip.Addr{netip.MustParseAddr("198.51.100.10")}) {
		t.Errorf("after a reload it is served on %v", live)
	}
}

// A node joins with the file of the group that it is not in yet.
func TestJoinWithTheGroupsFile(t *testing.T) {
	cfg, err := Parse("f", []byte(strings.TrimSuffix(twoVIPs, "loadBalancers:\n")+"join: [192.0.2.12]\n"), Source{})
	if err != nil {
		t.Fatal(err)
	}
	for local, want := range map[string]string{"192.0.2.14": "192.0.2.14", "192.0.2.13": "192.0.2.13"} {
		self, err := cfg.Self([]netip.Addr{netip.MustParseAddr(local)}, "")
		if err != nil || self.Address.String() != want {
			t.Errorf("the host with %s is %s, error %v", local, self.Address, err)
		}
	}
	if _, err := Parse("f", []byte(twoVIPs+"- port: 1\njoin: [192.0.2.12]\nstartAsLeader: true\n"), Source{}); err == nil {
		t.Error("a node joins a group and begins one")
	}
}

func TestMistakesOfTheHand(t *testing.T) {
	for text, want := range map[string]string{
		"vips: [192.0.2.10]\npeers:\n\t- 192.0.2.11\n":   "f:3: is indented with a TAB, which YAML does not allow",
		"group:\n\tinsecure: true\nvips: [192.0.2.10]\n": "f:2: is indented with a TAB, which YAML does not allow",
		twoVIPs + "- port: 1\nsocket: /" + strings.Repeat("x", 107) + "\n": "socket: is a path of 108 bytes, " +
			"and the kernel takes 107",
	} {
		if _, err := Parse("f", []byte(text), Source{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

func TestWrongVIPsOfLoadBalancers(t *testing.T) {
	const rest = ", backends: [192.0.2.21]}\n"
	tests := []struct{ name, lbs, want string }{
		{"none of them", "- {port: 1, vips: [192.0.2.99]" + rest,
			"f:6: loadBalancers[0].vips[0]: 192.0.2.99 is none of the virtual addresses; write one of vips (line 1)"},
		{"one address, two load balancers", "- {port: 1, name: a" + rest + "- {port: 1, name: b, vips: [192.0.2.10]" + rest,
			"f:7: loadBalancers[1].port: 192.0.2.10:1 is already that of a (line 6)"},
		{"every address", "- {port: 1, bindToVip: false, vips: [192.0.2.10]" + rest, "has no effect with bindToVip: false"},
		{"twice", "- {port: 1, vips: [192.0.2.10, 192.0.2.10]" + rest, "192.0.2.10 is there twice"},
		{"a name", "- {port: 1, vips: [here]" + rest, "loadBalancers[0].vips[0]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("f", []byte(twoVIPs+tt.lbs), Source{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
	const withoutAddress = "vips: [{interface: eth1}, 192.0.2.10]\nsingleNode: true\npeers: [192.0.2.11]\n"
	_, err := Parse("f", []byte(withoutAddress), Source{})
	if err == nil || !strings.Contains(err.Error(), "vips[0]: has no address") {
		t.Errorf("error %v", err)
	}
}

// TestNothingBalanced: an empty list is none, and one without a value, or not there, is the usual one.
func TestNothingBalanced(t *testing.T) {
	for text, want := range map[string]int{"loadBalancers: []\n": 0, "loadBalancers:\n": 1, "": 1} {
		cfg, err := Parse("f", []byte(good+"group: {insecure: true}\n"+text), Source{})
		if err != nil {
			t.Fatal(err)
		}
		shown := slices.ContainsFunc(cfg.Show(), func(v Value) bool { return v.Key == keyLBs && v.Value == "[]" })
		if len(cfg.LoadBalancers) != want || shown != (want == 0) {
			t.Errorf("%q: %+v, shown %v", text, cfg.LoadBalancers, shown)
		}
	}
}
