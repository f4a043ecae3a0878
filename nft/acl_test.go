package nft

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/nft/ruleset"
)

// plain is a plane that serves nothing: what is behind it belongs to the world.
type plain struct{ applied int }

func (*plain) Name() balancer.PlaneName { return balancer.Direct }

func (*plain) Usable(context.Context, balancer.LoadBalancer) error { return nil }

func (*plain) Close() error { return nil }

func (p *plain) Apply(context.Context, []balancer.Service) (int, error) {
	p.applied++
	return 0, nil
}

// persisting is a plane that knows persistence.
type persisting struct{ plain }

func (*persisting) Name() balancer.PlaneName { return balancer.IPVS }

func TestACL(t *testing.T) {
	w := newWorld(t)
	w.node.serve("node", ":6443")
	var a ACL
	p := a.Guard(&plain{})
	apply := func(h balancer.ConnOptions) (repaired int) {
		t.Helper()
		w.node.in(func() {
			var services []balancer.Service
			for _, f := range ruleset.Families() {
				services = append(services, balancer.Service{LoadBalancer: "lb", Frontend: vip(f, 6443), ConnOptions: h})
			}
			var err error
			if repaired, err = p.Apply(context.Background(), services); err != nil {
				t.Fatal(err)
			}
		})
		return repaired
	}
	want := func(c *machine, f ruleset.IPFamily, welcome bool) {
		t.Helper()
		s, err := c.dial(vip(f, 6443))
		if err == nil {
			s.Close()
		}
		if welcome && err != nil || !welcome && !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s over IPv%s: %v, want it welcome: %v", c.name, f.Name, err, welcome)
		}
	}
	for _, f := range ruleset.Families() {
		own := w.client.addr(f)
		single, err := own.Prefix(own.BitLen())
		if err != nil {
			t.Fatal(err)
		}
		around, _ := own.Prefix(own.BitLen() - 8)
		apply(balancer.ConnOptions{})
		open, err := w.client.dial(vip(f, 6443))
		if err != nil {
			t.Fatal(err)
		}
		defer open.Close()
		for _, tt := range []struct {
			h       balancer.ConnOptions
			welcome bool
		}{
			{balancer.ConnOptions{}, true},
			{balancer.ConnOptions{Deny: []netip.Prefix{single}}, false},
			{balancer.ConnOptions{Allow: []netip.Prefix{around}}, true},
			{balancer.ConnOptions{Allow: []netip.Prefix{around}, Deny: []netip.Prefix{single}}, false},
			{balancer.ConnOptions{Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"),
				netip.MustParsePrefix("2001:db8:ffff::/48")}}, false},
		} {
			apply(tt.h)
			want(w.client, f, tt.welcome)
		}
		if err := open.echo(); err != nil {
			t.Errorf("a connection that was open before: %v", err)
		}
	}
	w.node.run("nft", "flush", "ruleset")
	if n := apply(balancer.ConnOptions{Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}); n != 1 {
		t.Errorf("after a flush: %d repaired, want 1", n)
	}
	// The node's own clients pass the output hook, with the node's address.
	want(w.node, ruleset.IPv4(), false)
	w.node.in(func() {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	})
	if rules := w.node.ruleset(); rules != "" {
		t.Errorf("after close there is\n%s", rules)
	}
}

func TestGuardRejectsWhatNeedsUserSpace(t *testing.T) {
	needRoot(t)
	var a ACL
	lb := balancer.LoadBalancer{Name: "lb"}
	lb.ConnOptions = balancer.ConnOptions{RequireTLS: time.Second, Persistence: time.Minute}
	err := a.Guard(&plain{}).Usable(context.Background(), lb)
	if err == nil || !strings.Contains(err.Error(), "needs user space: persistence, requireTLS; set dataPlane") {
		t.Errorf("error is %v", err)
	}
	lb.ConnOptions.RequireTLS = 0
	if err := a.Guard(&persisting{}).Usable(context.Background(), lb); err != nil {
		t.Errorf("a plane that can persist: %v", err)
	}
}
