package ipvs_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/ipvs"
)

func testFlush(t *testing.T) {
	each(t, func(t *testing.T, ip6 bool) {
		p := newPlane(t, "node")
		s := service(ip6, 443, balancer.RoundRobin, all(ip6)...)
		if n := p.apply(s); n != 0 {
			t.Errorf("the first Apply repaired %d", n)
		}
		if n := p.apply(s); n != 0 {
			t.Errorf("an Apply with nothing to do repaired %d", n)
		}
		c := mustDial(t, "client", s.Frontend)
		command(t, "node", "ipvsadm", "-C")
		if n := p.apply(s); n != 4 {
			t.Errorf("after ipvsadm -C: repaired %d, want the service and 3 backends", n)
		}
		if got := spread(t, "client", s.Frontend, 3); len(got) != 3 {
			t.Errorf("after the repair: %v", got)
		}
		if err := c.echo(5 * time.Second); err != nil {
			t.Errorf("a connection that is older than the flush: %v", err)
		}
		backend := netip.AddrPortFrom(address(ip6, "1"), serverPort).String()
		command(t, "node", "ipvsadm", "-e", "-t", s.Frontend.String(), "-r", backend, "-m", "-w", "0")
		if n := p.apply(s); n != 1 {
			t.Errorf("after a foreign change of a weight: repaired %d, want 1", n)
		}
		command(t, "node", "ipvsadm", "-E", "-t", s.Frontend.String(), "-s", "lc")
		if n := p.apply(s); n != 1 {
			t.Errorf("after a foreign change of the scheduler: repaired %d, want 1", n)
		}
		command(t, "node", "sysctl", "-qw", "net.ipv4.vs.conntrack=0")
		if n := p.apply(s); n != 1 || sysctl(t, "node", "net/ipv4/vs/conntrack") != "1" {
			t.Errorf("after a foreign change of a setting: repaired %d", n)
		}
	})
}

func testForeign(t *testing.T) {
	command(t, "node", "sh", "-c", `ipvsadm -A -t 10.1.0.100:9000 -s lc &&
		ipvsadm -a -t 10.1.0.100:9000 -r 10.1.0.3:6443 -m -w 7 &&
		ipvsadm -A -t 10.9.9.9:443 && ipvsadm -A -f 5 && ipvsadm -A -u 10.1.0.100:443`)
	t.Cleanup(func() { command(t, "node", "ipvsadm", "-C") })
	before := command(t, "node", "ipvsadm", "-Sn")

	p := newPlane(t, "node")
	_, err := p.try(service(false, 443, "rr", all(false)...), service(false, 9000, "rr", all(false)...))
	if err == nil || !strings.Contains(err.Error(), "10.1.0.100:9000") || !strings.Contains(err.Error(), "ipvsadm -D") {
		t.Errorf("an occupied address: got %v", err)
	}
	if got := spread(t, "client", netip.AddrPortFrom(vip(false), 443), 3); len(got) != 3 {
		t.Errorf("the service beside the occupied one: %v", got)
	}
	p.close()
	if after := command(t, "node", "ipvsadm", "-Sn"); after != before {
		t.Errorf("services of others were\n%s\nand are\n%s", before, after)
	}
}

func testDeadBackend(t *testing.T) {
	each(t, func(t *testing.T, ip6 bool) {
		p := newPlane(t, "node")
		bs := all(ip6)
		s := service(ip6, 443, balancer.RoundRobin, bs...)
		p.apply(s)
		for _, from := range []string{"client", "far", "node"} {
			open := map[string]*conn{}
			for range 3 {
				c := mustDial(t, from, s.Frontend)
				open[c.host] = c
			}
			p.apply(service(ip6, 443, balancer.RoundRobin, bs[1], bs[2]))
			time.Sleep(50 * time.Millisecond) // the kernel cuts connections one jiffy later
			start := time.Now()
			err := open["node"].echo(10 * time.Second)
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("from %s: the connection to the backend that is gone: %v, want a reset", from, err)
			}
			t.Logf("from %s: reset after %v", from, time.Since(start).Round(time.Millisecond))
			for _, host := range []string{"peer", "third"} {
				if err := open[host].echo(5 * time.Second); err != nil {
					t.Errorf("from %s: the connection to %s, which stays: %v", from, host, err)
				}
			}
			p.apply(s)
		}
	})
}

func testDraining(t *testing.T) {
	each(t, func(t *testing.T, ip6 bool) {
		p := newPlane(t, "node")
		bs := all(ip6)
		s := service(ip6, 443, balancer.RoundRobin, bs...)
		p.apply(s)
		open := map[string]*conn{}
		for range 3 {
			c := mustDial(t, "client", s.Frontend)
			open[c.host] = c
		}
		s.Backends, s.Draining = bs[1:], bs[:1]
		p.apply(s)
		if got := spread(t, "client", s.Frontend, 4); got["node"] != 0 || got["peer"] != 2 || got["third"] != 2 {
			t.Errorf("with node draining: %v", got)
		}
		// All drain: new clients are refused, open connections go on.
		s.Backends, s.Draining = nil, bs
		p.apply(s)
		if c, err := dial("client", s.Frontend); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("with all draining: %v, %v; want refused", c, err)
		}
		for host, c := range open {
			if err := c.echo(5 * time.Second); err != nil {
				t.Errorf("the open connection to %s: %v", host, err)
			}
		}
	})
}

// A new process takes over what a killed one left, and connections go on.
func testNextProcess(t *testing.T) {
	killed := newPlane(t, "node")
	s := service(false, 443, balancer.RoundRobin, all(false)...)
	old := service(false, 444, balancer.RoundRobin, all(false)...)
	killed.apply(s, old)
	c := mustDial(t, "client", s.Frontend)
	both := command(t, "node", "ipvsadm", "-Sn")
	var before string
	for line := range strings.Lines(both) {
		if strings.Contains(line, s.Frontend.String()+" ") {
			before += line
		}
	}

	next := newPlane(t, "node")
	if n := next.apply(s); n != 0 {
		t.Errorf("a new process repaired %d, but had nothing before", n)
	}
	if err := c.echo(5 * time.Second); err != nil {
		t.Errorf("the open connection: %v", err)
	}
	if after := command(t, "node", "ipvsadm", "-Sn"); after != before {
		t.Errorf("services were\n%s\nand are\n%s", before, after)
	}
}

func testTraces(t *testing.T) {
	command(t, "node", "ipvsadm", "-A", "-t", "10.9.9.9:443")
	t.Cleanup(func() { command(t, "node", "ipvsadm", "-C") })
	traces := func() string {
		var b strings.Builder
		fmt.Fprintln(&b, command(t, "node", "ipvsadm", "-Sn"), command(t, "node", "nft", "list", "ruleset"))
		for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/vs/conntrack",
			"net/ipv4/vs/expire_nodest_conn", "net/ipv4/vs/expire_quiescent_template"} {
			fmt.Fprintln(&b, key, sysctl(t, "node", key))
		}
		return b.String()
	}
	before := traces()
	p := newPlane(t, "node", tuned(ipvs.Tuning{Persistence: time.Minute}))
	p.apply(service(false, 443, "wrr", all(false)...), service(true, 443, "wrr", all(true)...))
	if traces() == before {
		t.Error("Apply left no trace, so this test would miss some")
	}
	c := mustDial(t, "client", netip.AddrPortFrom(vip(false), 443))
	p.close()
	if after := traces(); after != before {
		t.Errorf("before:\n%s\nafter Close:\n%s", before, after)
	}
	time.Sleep(50 * time.Millisecond) // the kernel cuts connections one jiffy later
	if err := c.echo(10 * time.Second); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("an open connection after Close: %v, want a reset", err)
	}

	p.apply(service(false, 443, "wrr", all(false)...), service(true, 443, "wrr", all(true)...))
	c = mustDial(t, "client", netip.AddrPortFrom(vip(false), 443))
	var removed []string
	var err error
	in("node", func() { removed, err = ipvs.Cleanup() })
	slices.Sort(removed)
	want := []string{"ipvs service 10.1.0.100:443", "ipvs service [fd00:1::100]:443"}
	if err != nil || !slices.Equal(removed, want) {
		t.Errorf("Cleanup: %q, %v; want %q", removed, err, want)
	}
	time.Sleep(50 * time.Millisecond)
	if err := c.echo(10 * time.Second); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("an open connection after Cleanup: %v, want a reset", err)
	}
	if out := strings.TrimSpace(command(t, "node", "ipvsadm", "-Sn")); out != "-A -t 10.9.9.9:443 -s wlc" {
		t.Errorf("after Cleanup there is\n%s", out)
	}
}
