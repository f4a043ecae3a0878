package ipvs_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/ipvs"
	"appliance/nft"
)

// A client that may not connect is reset before IPVS sees its packets, wherever it is. Others are balanced as usual.
func testAccess(t *testing.T) {
	each(t, func(t *testing.T, ip6 bool) {
		t.Run("spread", func(t *testing.T) { testAccessWith(t, ip6, 0) })
		t.Run("persistent", func(t *testing.T) { testAccessWith(t, ip6, 5*time.Minute) })
	})
}

func testAccessWith(t *testing.T, ip6 bool, persistence time.Duration) {
	// A client on the node itself has the address that it connects to.
	clients := map[string]netip.Addr{"client": address(ip6, "10"), "far": farAddress(ip6), "node": vip(ip6)}
	// The port of a local server, and another.
	ports := []uint16{serverPort, 446}
	virtual, err := ipvs.New(ipvs.Config{Masquerader: &nft.IPVSMasquerade{}, Refuser: &nft.Rejecter{}})
	if err != nil {
		t.Fatal(err)
	}
	var access nft.ACL
	p := access.Guard(virtual)
	t.Cleanup(func() {
		in("node", func() {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
	})
	apply := func(allow, deny []netip.Prefix) (repaired int) {
		t.Helper()
		h := balancer.ConnOptions{Allow: allow, Deny: deny, Persistence: persistence}
		var services []balancer.Service
		for _, port := range ports {
			s := service(ip6, port, balancer.RoundRobin, all(ip6)...)
			s.ConnOptions = h
			services = append(services, s)
		}
		var err error
		in("node", func() {
			lb := balancer.LoadBalancer{Name: "api", Scheduler: balancer.RoundRobin, Backends: all(ip6), ConnOptions: h}
			for _, s := range services {
				lb.Frontends = append(lb.Frontends, s.Frontend)
			}
			err = p.Usable(context.Background(), lb)
			if err == nil {
				repaired, err = p.Apply(context.Background(), services)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		return repaired
	}
	welcome := func(list string, want ...string) {
		t.Helper()
		for from := range clients {
			wanted := slices.Contains(want, from)
			for _, port := range ports {
				at := netip.AddrPortFrom(vip(ip6), port)
				start := time.Now()
				c, err := dial(from, at)
				took := time.Since(start)
				switch {
				case err == nil && !wanted:
					t.Errorf("%s: %s is served by %s at port %d", list, from, c.host, port)
				case err != nil && wanted:
					t.Errorf("%s: %s at port %d: %v", list, from, port, err)
				case err != nil && (!errors.Is(err, syscall.ECONNREFUSED) || took > slow):
					t.Errorf("%s: %s at port %d: %v after %v, want refused at once", list, from, port, err, took)
				}
				if err == nil {
					c.Close()
				}
			}
		}
	}

	apply(nil, nil)
	open := map[string]*conn{}
	for from := range clients {
		open[from] = mustDial(t, from, netip.AddrPortFrom(vip(ip6), 446))
	}
	single := func(from string) netip.Prefix { return netip.PrefixFrom(clients[from], clients[from].BitLen()) }
	link := netip.PrefixFrom(address(ip6, "1"), 24).Masked()
	if ip6 {
		link = netip.PrefixFrom(address(ip6, "1"), 64).Masked()
	}
	apply(nil, []netip.Prefix{single("client")})
	welcome("client denied", "far", "node")
	apply(nil, []netip.Prefix{single("node")})
	welcome("node denied", "client", "far")
	apply([]netip.Prefix{link}, nil)
	welcome("the link allowed", "client", "node")
	apply([]netip.Prefix{link, single("far")}, []netip.Prefix{single("client"), single("node")})
	welcome("all allowed and two denied", "far")
	// Lists of the other family alone: this family is open to all, or to nobody.
	other := netip.PrefixFrom(vip(!ip6), vip(!ip6).BitLen())
	apply(nil, []netip.Prefix{other})
	welcome("another family denied", "client", "far", "node")
	apply([]netip.Prefix{other}, nil)
	welcome("another family allowed")
	for from, c := range open {
		if err := c.echo(5 * time.Second); err != nil {
			t.Errorf("the connection of %s that is older than the lists: %v", from, err)
		}
	}
	command(t, "node", "nft", "flush", "ruleset")
	if n := apply([]netip.Prefix{other}, nil); n < 2 {
		t.Errorf("after a flush of the rules: repaired %d, want those of access and of masquerade", n)
	}
	welcome("another family allowed, after a flush")
	apply(nil, nil)
	welcome("no lists", "client", "far", "node")
	for from := range clients {
		got := spread(t, from, netip.AddrPortFrom(vip(ip6), 446), 3)
		if persistence == 0 && len(got) != 3 {
			t.Errorf("%s is spread over %v", from, got)
		}
		if persistence > 0 && (len(got) != 1 || got[open[from].host] != 3) {
			t.Errorf("%s was bound to %s, and is served by %v", from, open[from].host, got)
		}
	}
}

func farAddress(ip6 bool) netip.Addr {
	if ip6 {
		return netip.MustParseAddr("fd00:2::10")
	}
	return netip.MustParseAddr("10.2.0.10")
}
