package ipvs

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cloudflare/ipvs"
	"golang.org/x/sys/unix"

	"appliance/balancer"
)

// rules records what the packet filter was asked for.
type rules struct {
	served, refused []netip.AddrPort
	err             error
}

func (r *rules) Masquerade(_ context.Context, frontends []netip.AddrPort) (int, error) {
	r.served = frontends
	return 0, r.err
}

func (r *rules) Refuse(_ context.Context, frontends []netip.AddrPort) (int, error) {
	r.refused = frontends
	return 0, nil
}

func testPlane(t *testing.T, k *fake) (*VirtualServer, *rules) {
	t.Helper()
	r := &rules{}
	p, err := New(Config{Masquerader: r, Refuser: r, Sysctls: tree(t, "net/ipv4/ip_forward=0",
		"net/ipv4/vs/conntrack=0", "net/ipv4/vs/expire_nodest_conn=0")})
	if err != nil {
		t.Fatal(err)
	}
	p.dial = func() (kernel, error) { return k, nil }
	p.loaded = func() bool { return true }
	return p, r
}

func to(port uint16, backends ...string) balancer.Service {
	s := balancer.Service{
		LoadBalancer: "api", Scheduler: "rr",
		Frontend: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.100"), port),
	}
	for _, b := range backends {
		s.Backends = append(s.Backends, balancer.Backend{Addr: netip.MustParseAddrPort(b), Weight: 1})
	}
	return s
}

func names(k *fake) (all []string) {
	for _, v := range k.list {
		all = append(all, name(v.service))
		for _, d := range v.destinations {
			all = append(all, destinationKey(d).String())
		}
	}
	return all
}

func TestApplyTouchesNothingThatIsRight(t *testing.T) {
	k := newFake()
	p, r := testPlane(t, k)
	s := to(1, "10.0.0.1:6443")
	if _, err := p.Apply(t.Context(), []balancer.Service{s}); err != nil {
		t.Fatal(err)
	}
	calls := k.calls
	if n, err := p.Apply(t.Context(), []balancer.Service{s}); n != 0 || err != nil || k.calls != calls {
		t.Errorf("again: repaired %d, %v, %d operations", n, err, k.calls-calls)
	}
	if !slices.Equal(r.served, []netip.AddrPort{s.Frontend}) || len(r.refused) != 0 {
		t.Errorf("rules: served %v, refused %v", r.served, r.refused)
	}
	if _, err := p.Apply(t.Context(), []balancer.Service{to(1)}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.refused, []netip.AddrPort{s.Frontend}) {
		t.Errorf("without backends, refused are %v", r.refused)
	}
	_, err := p.Apply(t.Context(), nil)
	if err != nil || len(k.list) != 0 || len(r.served) != 0 || len(r.refused) != 0 {
		t.Errorf("no services: %v, left %v, rules for %v and %v", err, names(k), r.served, r.refused)
	}
}

// A service that cannot be made in full is removed again, and the next round makes it.
func TestApplyRollsBack(t *testing.T) {
	k := newFake()
	p, _ := testPlane(t, k)
	k.refuse = func(o op) error {
		if o.verb == createDestination && o.service.Port == 1 && o.destination.Address.String() == "10.0.0.2" {
			return unix.ENOMEM
		}
		return nil
	}
	wanted := []balancer.Service{to(1, "10.0.0.1:6443", "10.0.0.2:6443", "10.0.0.3:6443"), to(2, "10.0.0.2:6443")}
	_, err := p.Apply(t.Context(), wanted)
	if !errors.Is(err, unix.ENOMEM) || !strings.Contains(err.Error(), "add backend 10.0.0.2:6443 of 10.0.0.100:1") {
		t.Errorf("got %v, want the operation that failed", err)
	}
	if want := []string{"10.0.0.100:2", "10.0.0.2:6443"}; !slices.Equal(names(k), want) {
		t.Errorf("the kernel has %v, want only %v", names(k), want)
	}
	k.refuse = nil
	if n, err := p.Apply(t.Context(), wanted); n != 0 || err != nil {
		t.Errorf("the next round: repaired %d, %v", n, err)
	}
	if len(names(k)) != 6 {
		t.Errorf("the next round left %v", names(k))
	}
}

// Without rules or parameters, nothing new is begun. Services that exist follow their backends: a dead one must leave.
func TestApplyWithoutRules(t *testing.T) {
	k := newFake()
	p, r := testPlane(t, k)
	if _, err := p.Apply(t.Context(), []balancer.Service{to(1, "10.0.0.1:1", "10.0.0.2:1")}); err != nil {
		t.Fatal(err)
	}
	r.err = errors.New("no nf_tables")
	_, err := p.Apply(t.Context(), []balancer.Service{to(1, "10.0.0.2:1"), to(2, "10.0.0.2:1")})
	if !errors.Is(err, r.err) {
		t.Errorf("got %v", err)
	}
	if want := []string{"10.0.0.100:1", "10.0.0.2:1"}; !slices.Equal(names(k), want) {
		t.Errorf("the kernel has %v, want %v", names(k), want)
	}
}

func TestApplyErrors(t *testing.T) {
	foreign := ipvs.Service{
		Family: ipvs.INET, Protocol: ipvs.TCP, Address: netip.MustParseAddr("10.0.0.100"), Port: 1, Scheduler: "wlc",
	}
	for _, tt := range []struct {
		name   string
		list   []balancer.Service
		refuse error
		says   string
		served int
	}{
		{"in use", []balancer.Service{to(1, "10.0.0.1:1"), to(2, "10.0.0.1:1")}, nil, "ipvsadm -D -t 10.0.0.100:1", 1},
		{"wanted twice", []balancer.Service{to(2, "10.0.0.1:1"), to(2, "10.0.0.2:1")}, nil, "another port", 1},
		{"unknown scheduler", []balancer.Service{to(2, "10.0.0.1:1")}, unix.ENOENT, `no scheduler "rr"`, 0},
		{"no permission", []balancer.Service{to(2, "10.0.0.1:1")}, unix.EPERM, "CAP_NET_ADMIN", 0},
		{"no IPv6", []balancer.Service{to(2, "10.0.0.1:1")}, unix.EAFNOSUPPORT, "CONFIG_IP_VS_IPV6", 0},
	} {
		k := newFake(virtual{service: foreign})
		k.refuse = func(op) error { return tt.refuse }
		p, _ := testPlane(t, k)
		_, err := p.Apply(t.Context(), tt.list)
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: got %v, want an error that says %q", tt.name, err, tt.says)
		}
		if len(k.list) != 1+tt.served || k.list[0].service != foreign {
			t.Errorf("%s: the kernel has %v", tt.name, names(k))
		}
	}
}

func TestWithoutIPVS(t *testing.T) {
	p, _ := testPlane(t, nil)
	p.dial = func() (kernel, error) { return nil, errNoIPVS }
	p.loaded = func() bool { return false }
	s := to(1, "10.0.0.1:1")
	lb := balancer.LoadBalancer{
		Name: "api", Scheduler: "rr", Frontends: []netip.AddrPort{s.Frontend}, Backends: s.Backends,
	}
	err := p.Usable(t.Context(), lb)
	if err == nil || !strings.Contains(err.Error(), "load balancer api") ||
		!strings.Contains(err.Error(), "modprobe ip_vs") {
		t.Errorf("Usable: got %v, want the remedy", err)
	}
	if _, err := p.Apply(t.Context(), []balancer.Service{to(1)}); err == nil {
		t.Error("Apply has served without IPVS")
	}
	if _, err := p.Apply(t.Context(), nil); err != nil {
		t.Errorf("Apply of nothing: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// Connections are cut when we take a backend out, and only then: those of backends that somebody flushed wait for the
// repair. Older kernels read the parameter later, so it stays set.
func TestApplyCuts(t *testing.T) {
	for _, atOnce := range []bool{true, false} {
		k := newFake()
		p, _ := testPlane(t, k)
		p.cutsAtOnce = atOnce
		apply := func(repaired int, backends ...string) string {
			t.Helper()
			if n, err := p.Apply(t.Context(), []balancer.Service{to(1, backends...)}); n != repaired || err != nil {
				t.Errorf("repaired %d, %v; want %d", n, err, repaired)
			}
			return content(t, p.sysctls.Root, expireNodest().Key)
		}
		got := []string{apply(0, "10.0.0.1:1", "10.0.0.2:1"), apply(0, "10.0.0.1:1"), apply(0, "10.0.0.1:1")}
		if atOnce {
			p.lastCut = p.lastCut.Add(-2 * cutsWithin)
		}
		k.list = nil
		got = append(got, apply(2, "10.0.0.1:1"), apply(0, "10.0.0.3:1"))
		want := []string{"0", "1", "1", "0", "1"}
		if !atOnce {
			want = []string{"1", "1", "1", "1", "1"}
		}
		if !slices.Equal(got, want) {
			t.Errorf("cuts at once %v: the parameter was %v, want %v", atOnce, got, want)
		}
		if err := p.Close(); err != nil || content(t, p.sysctls.Root, expireNodest().Key) != "0" {
			t.Errorf("Close has not put it back: %v", err)
		}
	}
}

// ipvsadm -E removes the label of a service. What this process has made stays ours; what it found is somebody else's.
func TestApplyKnowsItsOwn(t *testing.T) {
	k := newFake()
	p, _ := testPlane(t, k)
	s := []balancer.Service{to(1, "10.0.0.1:1")}
	if _, err := p.Apply(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	k.list[0].service.Flags = 0
	if n, err := p.Apply(t.Context(), s); n != 1 || err != nil || k.list[0].service.Flags&ours == 0 {
		t.Errorf("repaired %d, %v, the service is %+v", n, err, k.list[0].service)
	}
	k.list[0].service.Flags = 0
	next, _ := testPlane(t, k)
	if _, err := next.Apply(t.Context(), s); err == nil || !strings.Contains(err.Error(), "somebody else") {
		t.Errorf("another process: got %v", err)
	}
	if err := p.Close(); err != nil || len(k.list) != 0 {
		t.Errorf("Close: %v, left %v", err, names(k))
	}
}

// Somebody makes the service after we have read the list: it is not ours, now and in the next round.
func TestApplyLosesARace(t *testing.T) {
	k := newFake()
	p, _ := testPlane(t, k)
	foreign := v(t, 1, "wlc", 7)
	foreign.service.Flags = 0
	k.refuse = func(op) error {
		k.refuse = nil
		k.list = append(k.list, foreign)
		return nil
	}
	for range 2 {
		if _, err := p.Apply(t.Context(), []balancer.Service{to(1, "10.0.0.1:1")}); err == nil {
			t.Error("no error")
		}
		if len(k.list) != 1 || len(diff(k.list, []virtual{foreign})) != 0 {
			t.Errorf("the kernel has %v", names(k))
		}
	}
}

// A probe leaves nothing behind. Apply removes one whose process was killed.
func TestProbe(t *testing.T) {
	k := newFake()
	var made op
	k.refuse = func(o op) error {
		if o.verb == createService {
			made = o
		}
		return nil
	}
	if err := probe(k, ipvs.INET, "mh"); err != nil || len(k.list) != 0 {
		t.Errorf("%v, left %v", err, names(k))
	}
	if made.service.Scheduler != "mh" || made.service.FWMark == 0 {
		t.Errorf("tried %+v", made)
	}
	k = newFake(virtual{service: made.service})
	p, r := testPlane(t, k)
	if _, err := p.Apply(t.Context(), nil); err != nil || len(k.list) != 0 || len(r.served) != 0 {
		t.Errorf("after a killed probe: %v, left %v, rules for %v", err, names(k), r.served)
	}
	k.refuse = func(o op) error {
		if o.verb == createService {
			return unix.ENOENT
		}
		return nil
	}
	if err := probe(k, ipvs.INET6, "fastest"); err == nil || !strings.Contains(err.Error(), `"fastest"`) {
		t.Errorf("unknown scheduler: %v", err)
	}
}

// The running kernel's own error, where it has no ip_vs.
func TestDialWithoutIPVS(t *testing.T) {
	k, err := dial()
	if err == nil {
		closeKernel(k)
		t.Skip("this kernel has ip_vs")
	}
	if !errors.Is(err, errNoIPVS) {
		t.Errorf("got %v, want %v", err, errNoIPVS)
	}
}
