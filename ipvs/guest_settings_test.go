package ipvs_test

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/ndp"

	"appliance/balancer"
)

// The plane needs each parameter that it sets: without it, a client behind a router does not reach a backend on another
// host.
func testSettings(t *testing.T) {
	each(t, func(t *testing.T, ip6 bool) {
		p := newPlane(t, "node")
		s := service(ip6, 443, balancer.RoundRobin, all(ip6)[1])
		forward := "net.ipv4.ip_forward"
		if ip6 {
			forward = "net.ipv6.conf.all.forwarding"
		}
		for _, key := range []string{"net.ipv4.vs.conntrack", forward} {
			p.apply(s)
			if got := spread(t, "far", s.Frontend, 1); got["peer"] != 1 {
				t.Errorf("with every setting: %v", got)
			}
			command(t, "node", "sysctl", "-qw", key+"=0")
			in("far", func() {
				c, err := net.DialTimeout("tcp", s.Frontend.String(), 2*time.Second)
				if err == nil {
					c.Close()
					t.Errorf("%s is not needed: the connection opened without it", key)
				}
			})
		}
	})
}

// A host keeps the default route that it has from router advertisements, although the kernel drops such routes when it
// begins to forward.
func testAdvertisedRoutes(t *testing.T) {
	command(t, "node", "sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=1")
	has := func() bool {
		return strings.Contains(command(t, "node", "ip", "-6", "route", "show", "default"), "proto ra")
	}
	var err error
	in("router", func() { err = advertise("eth0") })
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); !has(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the kernel made no route of the advertisement")
		}
	}
	t.Cleanup(func() { command(t, "node", "ip", "-6", "route", "flush", "default") })

	p := newPlane(t, "node")
	p.apply(service(true, 443, balancer.RoundRobin, all(true)...))
	if sysctl(t, "node", "net/ipv6/conf/all/forwarding") != "1" {
		t.Error("the node does not forward")
	}
	if !has() {
		t.Error("the node has lost its default route")
	}
	p.close()
	if got := sysctl(t, "node", "net/ipv6/conf/eth0/accept_ra"); got != "1" || !has() {
		t.Errorf("after Close, accept_ra is %s, the route is there: %v", got, has())
	}
}

// advertise sends one router advertisement (RFC 4861, section 4.2).
func advertise(iface string) error {
	i, err := net.InterfaceByName(iface)
	if err != nil {
		return err
	}
	c, _, err := ndp.Listen(i, ndp.LinkLocal)
	if err != nil {
		return err
	}
	defer c.Close()
	ra := &ndp.RouterAdvertisement{CurrentHopLimit: 64, RouterLifetime: 30 * time.Minute}
	return c.WriteTo(ra, nil, netip.MustParseAddr("ff02::1"))
}
