package ipvs

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cloudflare/ipvs"
	"github.com/cloudflare/ipvs/netmask"
	"github.com/google/go-cmp/cmp"

	"appliance/balancer"
)

func TestTranslate(t *testing.T) {
	four, six := netip.MustParseAddrPort("10.0.0.1:6443"), netip.MustParseAddrPort("[fd00::1]:6443")
	s := balancer.Service{
		Frontend:  netip.MustParseAddrPort("[fd00::100]:443"),
		Scheduler: "sh",
		Backends:  []balancer.Backend{{Addr: six, Weight: 256}, {Addr: four, Weight: 1}},
		Draining: []balancer.Backend{
			{Addr: netip.MustParseAddrPort("[fd00::2]:6443"), Weight: 5, MaxConn: 7}, {Addr: six, Weight: 256},
		},
	}
	got, err := translate(s, Tuning{
		Persistence: 1500 * time.Millisecond, PersistencePrefix4: 24, PersistencePrefix6: 64,
		MaxConns: 100, MinConns: 80,
	})
	if err != nil {
		t.Fatal(err)
	}
	destination := ipvs.Destination{Family: ipvs.INET6, Port: 6443, UpperThreshold: 100, LowerThreshold: 80}
	first, second := destination, destination
	first.Address, first.Weight = six.Addr(), 256 // in both sets: it serves
	second.Address, second.Weight = netip.MustParseAddr("fd00::2"), 0
	second.UpperThreshold, second.LowerThreshold = 7, 0 // its own
	want := virtual{
		service: ipvs.Service{
			Family: ipvs.INET6, Protocol: ipvs.TCP, Address: s.Frontend.Addr(), Port: 443, Scheduler: "sh",
			Timeout: 2, Netmask: netmask.MaskFrom(64, 128),
			Flags: ours | ipvs.ServicePersistent | ipvs.ServiceSchedulerOpt1,
		},
		destinations: []ipvs.Destination{first, second}, // the IPv4 one is another frontend's
	}
	d := cmp.Diff(want, got, cmp.AllowUnexported(virtual{}),
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netmask.Mask) bool { return a == b }))
	if d != "" {
		t.Errorf("- wanted + got:\n%s", d)
	}
}

// What cannot be served is an error with the remedy.
func TestRefused(t *testing.T) {
	for _, tt := range []struct {
		frontend string
		tuning   Tuning
		says     string
	}{
		{"0.0.0.0:443", Tuning{}, "dataPlane: userspace"},
		{"[::]:443", Tuning{}, "dataPlane: userspace"},
		{"127.0.0.1:443", Tuning{}, "loopback"},
		{"[::1]:443", Tuning{}, "loopback"},
		{"[fe80::1%eth0]:443", Tuning{}, "link-local"},
		{"[::ffff:10.0.0.1]:443", Tuning{}, "write 10.0.0.1:443"},
		{"10.0.0.1:0", Tuning{}, "write address:port"},
		{"10.0.0.1:443", Tuning{Persistence: -1}, "persistence"},
		{"10.0.0.1:443", Tuning{Persistence: 32 * 24 * time.Hour}, "744h"},
		{"10.0.0.1:443", Tuning{PersistencePrefix4: 33}, "write 1 to 32"},
		{"10.0.0.1:443", Tuning{PersistencePrefix6: 129}, "write 1 to 128"},
		{"10.0.0.1:443", Tuning{MaxConns: -1}, "negative"},
		{"10.0.0.1:443", Tuning{MaxConns: 1, MinConns: 2}, "above the upper"},
	} {
		s := balancer.Service{Frontend: netip.MustParseAddrPort(tt.frontend), Scheduler: "rr"}
		_, err := translate(s, tt.tuning)
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s with %+v: got %v, want an error that says %q", tt.frontend, tt.tuning, err, tt.says)
		}
	}
}

func TestFamilies(t *testing.T) {
	for _, tt := range []struct {
		frontends, backends string
		says                string // empty: it can be served
	}{
		{"10.0.0.100:443", "10.0.0.1:1 10.0.0.2:1", ""},
		{"10.0.0.100:443 [fd00::100]:443", "10.0.0.1:1 [fd00::1]:1", ""},
		{"[fd00::100]:443", "10.0.0.1:1 [fd00::1]:1", ""},
		{"", "10.0.0.1:1", "no frontend"},
		{"10.0.0.100:443 [fd00::100]:443", "10.0.0.1:1", "frontend [fd00::100]:443 has no backend"},
		{"10.0.0.100:443", "[fd00::1]:1", "frontend 10.0.0.100:443 has no backend"},
		{"[fd00::100]:443", "[fe80::1%eth0]:1", "link-local"},
		{"10.0.0.100:443", "[::ffff:10.0.0.1]:1", "write 10.0.0.1"},
	} {
		var lb balancer.LoadBalancer
		for _, f := range strings.Fields(tt.frontends) {
			lb.Frontends = append(lb.Frontends, netip.MustParseAddrPort(f))
		}
		for _, b := range strings.Fields(tt.backends) {
			lb.Backends = append(lb.Backends, balancer.Backend{Addr: netip.MustParseAddrPort(b)})
		}
		_, err := families(lb)
		if tt.says == "" && err != nil || tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)) {
			t.Errorf("frontends %q, backends %q: got %v, want %q", tt.frontends, tt.backends, err, tt.says)
		}
	}
}
