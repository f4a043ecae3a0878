package ipvs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/ipvs"
)

// TestGuest runs everything that needs a kernel with ip_vs.
func TestGuest(t *testing.T) {
	if os.Getenv(guest) == "" {
		t.Skip("needs a kernel with ip_vs; TestVM runs it in a virtual machine")
	}
	build(t)
	for _, tt := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"positions", testPositions},
		{"schedulers", testSchedulers},
		{"usable", testUsable},
		{"persistence", testPersistence},
		{"access", testAccess},
		{"thresholds", testThresholds},
		{"flush", testFlush},
		{"foreign", testForeign},
		{"dead backend", testDeadBackend},
		{"draining", testDraining},
		{"no backends", testNoBackends},
		{"refusals", testRefusals},
		{"next process", testNextProcess},
		{"traces", testTraces},
		{"kube-proxy", testKubeProxy},
		{"stats", testStats},
		{"container", testContainer},
		{"settings", testSettings},
		{"advertised routes", testAdvertisedRoutes},
	} {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Now()
			tt.run(t)
			t.Logf("%s took %v", tt.name, time.Since(start).Round(time.Millisecond))
		})
	}
}

func each(t *testing.T, f func(t *testing.T, ip6 bool)) {
	t.Run("IPv4", func(t *testing.T) { f(t, false) })
	t.Run("IPv6", func(t *testing.T) { f(t, true) })
}

// Clients in every position, to the port of a local wildcard listener and to another, must reach the local backend and
// the remote ones.
func testPositions(t *testing.T) {
	each(t, func(t *testing.T, ip6 bool) {
		for _, host := range []string{"node", "peer"} {
			newPlane(t, host).apply(
				service(ip6, serverPort, balancer.RoundRobin, all(ip6)...),
				service(ip6, 8443, balancer.RoundRobin, all(ip6)...))
		}
		for _, from := range []string{"client", "far", "node", "peer"} {
			for _, port := range []uint16{serverPort, 8443} {
				got := spread(t, from, netip.AddrPortFrom(vip(ip6), port), 6)
				for _, host := range []string{"node", "peer", "third"} {
					if got[host] != 2 {
						t.Errorf("from %s to port %d: %v, want each host twice", from, port, got)
						break
					}
				}
			}
		}
	})
}

func testSchedulers(t *testing.T) {
	p := newPlane(t, "node")
	at := netip.AddrPortFrom(vip(false), 443)
	heavy := all(false)
	heavy[0].Weight = 3

	p.apply(service(false, 443, balancer.WeightedRoundRobin, heavy...))
	if got := spread(t, "client", at, 10); got["node"] != 6 || got["peer"] != 2 || got["third"] != 2 {
		t.Errorf("wrr 3:1:1 over 10 connections: %v", got)
	}

	// Open connections count: the backend with fewer of them gets the next.
	p.apply(service(false, 443, balancer.LeastConn, all(false)...))
	time.Sleep(100 * time.Millisecond)
	open := map[string][]*conn{}
	for range 6 {
		c := mustDial(t, "client", at)
		open[c.host] = append(open[c.host], c)
	}
	for host, cs := range open {
		if len(cs) > 3 {
			t.Errorf("lc gave %d of 6 open connections to %s", len(cs), host)
		}
	}

	// A client stays with its server, and goes to another one when that drains.
	for _, s := range []balancer.Scheduler{balancer.SourceHash, "mh"} {
		p.apply(service(false, 443, s, all(false)...))
		got := spread(t, "client", at, 4)
		if len(got) != 1 {
			t.Errorf("%s spread one client over %v", s, got)
		}
		drained := service(false, 443, s)
		var first string
		for first = range got {
		}
		for i, b := range all(false) {
			if []string{"node", "peer", "third"}[i] == first {
				drained.Draining = append(drained.Draining, b)
			} else {
				drained.Backends = append(drained.Backends, b)
			}
		}
		p.apply(drained)
		if got := spread(t, "client", at, 3); got[first] != 0 || len(got) == 0 {
			t.Errorf("%s with %s draining: %v", s, first, got)
		}
	}

	// The kernel loads the module of each name.
	for _, s := range []balancer.Scheduler{
		"rr", "wrr", "lc", "wlc", "sh", "mh", "sed", "nq", "fo", "ovf", "lblc", "lblcr", "dh",
	} {
		var services []balancer.Service
		for _, ip6 := range []bool{false, true} {
			roomy := all(ip6)
			for i := range roomy {
				roomy[i].Weight = 100 // for ovf, weight is how many connections fit
			}
			services = append(services, service(ip6, 443, s, roomy...))
		}
		p.apply(services...)
		out := command(t, "node", "ipvsadm", "-Sn")
		if len(regexp.MustCompile(`(?m) -s `+string(s)+`\b`).FindAllString(out, -1)) != 2 {
			t.Errorf("the kernel does not have two services with scheduler %s:\n%s", s, out)
		}
		for _, svc := range services {
			if c, err := dial("client", svc.Frontend); err != nil {
				t.Errorf("scheduler %s at %v: %v", s, svc.Frontend, err)
			} else {
				c.Close()
			}
		}
	}

	_, err := p.try(service(false, 443, "fastest", all(false)...), service(false, 444, "rr", all(false)...))
	if err == nil || !strings.Contains(err.Error(), `"fastest"`) {
		t.Errorf("an unknown scheduler: got %v, want an error that names it", err)
	}
	if got := spread(t, "client", netip.AddrPortFrom(vip(false), 444), 3); len(got) != 3 {
		t.Errorf("the service beside the bad one: %v", got)
	}
}

func testUsable(t *testing.T) {
	p := newPlane(t, "node")
	lb := func(s balancer.Scheduler) balancer.LoadBalancer {
		return balancer.LoadBalancer{
			Name: "api", Scheduler: s,
			Frontends: []netip.AddrPort{netip.AddrPortFrom(vip(false), 443), netip.AddrPortFrom(vip(true), 443)},
			Backends:  append(all(false), all(true)...),
		}
	}
	usable := func(l balancer.LoadBalancer) (err error) {
		in("node", func() { err = p.Usable(context.Background(), l) })
		return err
	}
	for _, s := range []balancer.Scheduler{"rr", "wlc", "sed"} {
		if err := usable(lb(s)); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	if err := usable(lb(balancer.Random)); err == nil || !strings.Contains(err.Error(), `"random"`) {
		t.Errorf("random: got %v, want an error that names it", err)
	}
	if out := command(t, "node", "ipvsadm", "-Sn"); strings.TrimSpace(out) != "" {
		t.Errorf("Usable left behind: %s", out)
	}
	if got := sysctl(t, "node", "net/ipv4/vs/conntrack"); got != "0" {
		t.Errorf("Usable changed vs.conntrack to %s", got)
	}
	command(t, "node", "ipvsadm", "-A", "-t", "10.1.0.100:443")
	err := usable(lb("rr"))
	command(t, "node", "ipvsadm", "-C")
	if err == nil || !strings.Contains(err.Error(), "somebody else") {
		t.Errorf("an occupied address: got %v", err)
	}

	// A container that may not write /proc/sys gets the line to write.
	in("node", func() {
		ro := t.TempDir()
		err = syscall.Unshare(syscall.CLONE_NEWNS)
		err = errors.Join(err, syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""))
		err = errors.Join(err, syscall.Mount("/proc/sys", ro, "", syscall.MS_BIND, ""))
		err = errors.Join(err, syscall.Mount("", ro, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
		if err != nil {
			return
		}
		var q *ipvs.VirtualServer
		if q, err = ipvs.New(ipvs.Config{Masquerader: none{}, Sysctls: ro}); err == nil {
			err = q.Usable(context.Background(), lb("rr"))
		}
		syscall.Unmount(ro, 0)
	})
	for _, line := range []string{
		`"net.ipv4.vs.conntrack = 1"`, `"net.ipv4.ip_forward = 1"`, `"net.ipv6.conf.all.forwarding = 1"`,
		"/etc/sysctl.d/",
	} {
		if err == nil || !strings.Contains(err.Error(), line) {
			t.Errorf("read-only settings: no %s in %v", line, err)
		}
	}
}

type none struct{}

func (none) Masquerade(context.Context, []netip.AddrPort) (int, error) { return 0, nil }

func tuned(tuning ipvs.Tuning) func(*ipvs.Config) {
	return func(c *ipvs.Config) { c.Tuning = func(string) ipvs.Tuning { return tuning } }
}

func testPersistence(t *testing.T) {
	each(t, func(t *testing.T, ip6 bool) {
		p := newPlane(t, "node", tuned(ipvs.Tuning{Persistence: 5 * time.Minute}))
		at := netip.AddrPortFrom(vip(ip6), 443)
		p.apply(service(ip6, 443, balancer.RoundRobin, all(ip6)...))
		got := spread(t, "client", at, 6)
		if len(got) != 1 {
			t.Errorf("one client was spread over %v", got)
		}
		if out := command(t, "node", "ipvsadm", "-Sn"); !strings.Contains(out, " -p 300") {
			t.Errorf("the kernel does not persist for 300 s: %s", out)
		}
		// Its backend drains: persistence must not hold the client there.
		s := service(ip6, 443, balancer.RoundRobin)
		for i, b := range all(ip6) {
			if got[[]string{"node", "peer", "third"}[i]] > 0 {
				s.Draining = append(s.Draining, b)
			} else {
				s.Backends = append(s.Backends, b)
			}
		}
		p.apply(s)
		if after := spread(t, "client", at, 3); len(after) != 1 || sameKeys(after, got) {
			t.Errorf("bound to %v, with that one draining to %v", got, after)
		}
	})
}

func sameKeys(a, b map[string]int) bool {
	for k := range a {
		if b[k] == 0 {
			return false
		}
	}
	return true
}

// A backend at its threshold gets no more connections. When all are at theirs, clients are refused.
func testThresholds(t *testing.T) {
	each(t, func(t *testing.T, ip6 bool) {
		// A port of its own: the kernel remembers the counts of a backend that it knew.
		p := newPlane(t, "node", tuned(ipvs.Tuning{MaxConns: 2, MinConns: 1}))
		s := service(ip6, 444, balancer.RoundRobin, all(ip6)...)
		s.Backends[2].MaxConn = 3
		p.apply(s)
		open := map[string]int{}
		for range 7 {
			open[mustDial(t, "client", s.Frontend).host]++
		}
		if open["node"] != 2 || open["peer"] != 2 || open["third"] != 3 {
			t.Errorf("open connections by host: %v, want 2, 2 and 3", open)
		}
		if c, err := dial("client", s.Frontend); err == nil {
			t.Errorf("the eighth connection was served by %s, with room for seven", c.host)
			c.Close()
		}
		// A full backend is no damage.
		if n := p.apply(s); n != 0 {
			t.Errorf("an Apply with nothing to do repaired %d", n)
		}
		// Another threshold is in force at once.
		s.Backends[2].MaxConn = 8
		p.apply(s)
		if c := mustDial(t, "client", s.Frontend); c.host != "third" {
			t.Errorf("the eighth connection is served by %s, and only third has room", c.host)
		}
	})
}

func testNoBackends(t *testing.T) {
	each(t, func(t *testing.T, ip6 bool) {
		p := newPlane(t, "node")
		// A local server listens on the same port, and must not answer.
		s := service(ip6, serverPort, balancer.RoundRobin)
		p.apply(s)
		for _, from := range []string{"client", "far", "node"} {
			// More than the kernel's limit on ICMP errors allows.
			for range 15 {
				start := time.Now()
				if c, err := dial(from, s.Frontend); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("from %s: %v, %v; want refused", from, c, err)
				}
				if took := time.Since(start); took > slow {
					t.Errorf("from %s: refused only after %v", from, took)
				}
			}
		}
		// The other way: the last backend leaves, and one comes back.
		s.Backends = all(ip6)[1:2]
		p.apply(s)
		if got := spread(t, "far", s.Frontend, 2); got["peer"] != 2 {
			t.Errorf("with a backend again: %v", got)
		}
	})

	// Without a Refuser, IPVS refuses by itself, if not always at once.
	p := newPlane(t, "node", func(c *ipvs.Config) { c.Refuser = nil })
	s := service(false, serverPort, balancer.RoundRobin)
	p.apply(s)
	if c, err := dial("client", s.Frontend); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("without a Refuser: %v, %v; want refused", c, err)
	}
}

func testKubeProxy(t *testing.T) {
	command(t, "node", "ip", "link", "add", "kube-ipvs0", "type", "dummy")
	t.Cleanup(func() { command(t, "node", "ip", "link", "del", "kube-ipvs0") })
	var log bytes.Buffer
	p := newPlane(t, "node", func(c *ipvs.Config) { c.Log = slog.New(slog.NewJSONHandler(&log, nil)) })
	for range 3 {
		p.apply(service(false, 443, "rr", all(false)...),
			service(true, 443, "rr", all(true)...), service(true, 444, "rr", all(true)...))
	}
	var said struct{ Line string }
	if err := json.Unmarshal(log.Bytes(), &said); err != nil {
		t.Fatalf("not one line: %v\n%s", err, log.String())
	}
	if want := `ipvs: {excludeCIDRs: ["10.1.0.100/32", "fd00:1::100/128"], strictARP: true}`; said.Line != want {
		t.Errorf("the line is %s, want %s", said.Line, want)
	}
}

func testStats(t *testing.T) {
	p := newPlane(t, "node")
	s := service(true, 445, balancer.RoundRobin, all(true)...)
	p.apply(s)
	c := mustDial(t, "client", s.Frontend)
	if err := c.echo(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	// The kernel sums up its counters every two seconds.
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(500 * time.Millisecond) {
		var stats []ipvs.ServiceStats
		var err error
		in("node", func() { stats, err = p.Stats() })
		if err != nil || len(stats) != 1 || len(stats[0].Backends) != 3 {
			t.Fatalf("got %+v, %v", stats, err)
		}
		st := stats[0]
		active := 0
		for _, b := range st.Backends {
			active += b.Active
		}
		if st.Frontend == s.Frontend && st.Connections == 1 && active == 1 && st.BytesIn > 0 && st.BytesOut > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after one open connection: %+v", st)
		}
	}
}
