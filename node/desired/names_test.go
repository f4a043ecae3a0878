package desired

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"appliance/configs"
	"appliance/dns"
)

// TestNames: a name stands for a server for each of its addresses, and for a missing one while it has none.
func TestNames(t *testing.T) {
	cfg, err := configs.Parse("f", []byte(`
vips: [192.0.2.10, "2001:db8::10"]
singleNode: true
peers: [192.0.2.11]
loadBalancers:
- name: api
  port: 6443
  backends:
  - api.example.org
  - {address: "db.example.org:5432", name: db, maxAddresses: 2, weight: 3}
  - never.example.org
  - circle.example.org
  - 192.0.2.21
`), configs.Source{})
	if err != nil {
		t.Fatal(err)
	}
	addrs := func(list ...string) (a dns.NameAnswer) {
		for _, s := range list {
			a.Addrs = append(a.Addrs, netip.MustParseAddr(s))
		}
		return a
	}
	never := addrs()
	never.Error = "i/o timeout"
	known := map[string]dns.NameAnswer{
		"api.example.org": addrs("192.0.2.21", "192.0.2.22", "2001:db8::22"), "db.example.org": addrs("0.0.0.0",
			"192.0.2.31", "192.0.2.32", "192.0.2.33"),
		"never.example.org": never, "circle.example.org": addrs("192.0.2.10"),
	}
	state := Compute(Known{Config: cfg, Self: "192.0.2.11", Names: known})
	var names []string
	for _, be := range state.Config.LoadBalancers[0].Backends {
		names = append(names, be.String())
	}
	want := []string{"api.example.org/192.0.2.22", "api.example.org/2001:db8::22", "db/192.0.2.31", "db/192.0.2.32"}
	if !slices.Equal(names[:4], want) || len(names) != 7 || names[6] != "192.0.2.21:6443" {
		t.Errorf("backends %q, want %q", names, want)
	}
	four, six := state.LoadBalancers[0], state.LoadBalancers[1]
	if len(four.Backends) != 4 || len(six.Backends) != 1 || len(four.Missing) != 2 {
		t.Fatalf("%+v, %+v", four, six)
	}
	if four.Backends[1].Weight != 3 || four.Backends[1].Addr != netip.MustParseAddrPort("192.0.2.31:5432") {
		t.Errorf("%+v", four.Backends[1])
	}
	for i, reason := range []string{
		"no address of never.example.org is known: i/o timeout",
		"no address of circle.example.org is known: its address 192.0.2.10 is a virtual address, " +
			"so connections would go in circles",
	} {
		if four.Missing[i].Reason != reason {
			t.Errorf("missing %+v, want %s", four.Missing[i], reason)
		}
	}
	// An order for the name is one for all its addresses.
	change, err := Override(state.Config, nil, "drain", "db.example.org", "")
	if err != nil || len(change.Set) != 2 {
		t.Errorf("%+v, %v", change, err)
	}
}

// TestNamesOfItself: a name that stands for where the load balancer listens is no server.
func TestNamesOfItself(t *testing.T) {
	cfg, err := configs.Parse("f", []byte(`
vips: [192.0.2.10]
singleNode: true
peers: [192.0.2.11]
loadBalancers:
- {name: a, port: 80, listen: [127.0.0.1], backends: ["localhost:80", "localhost:81"]}
- {name: b, port: 82, bindToVip: false, backends: [localhost, node, other]}
`), configs.Source{})
	if err != nil {
		t.Fatal(err)
	}
	at := func(a string) dns.NameAnswer { return dns.NameAnswer{Addrs: []netip.Addr{netip.MustParseAddr(a)}} }
	state := Compute(Known{Config: cfg, Self: "192.0.2.11", Names: map[string]dns.NameAnswer{
		"localhost": at("127.0.0.1"), "node": at("192.0.2.11"), "other": at("192.0.2.21"),
	}})
	for i, want := range []int{1, 2} {
		missing := 0
		for _, be := range state.Config.LoadBalancers[i].Backends {
			if strings.Contains(be.Unresolved, "this load balancer itself listens, so connections would go in circles") {
				missing++
			}
		}
		if missing != want {
			t.Errorf("%s: %d of %+v are missing, want %d", state.Config.LoadBalancers[i].Name, missing,
				state.Config.LoadBalancers[i].Backends, want)
		}
	}
}
