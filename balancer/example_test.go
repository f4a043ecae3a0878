package balancer_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"

	"appliance/balancer"
)

// plane is a data plane that serves nothing.
type plane struct{}

func (plane) Name() balancer.PlaneName                               { return balancer.UserSpace }
func (plane) Usable(context.Context, balancer.LoadBalancer) error    { return nil }
func (plane) Apply(context.Context, []balancer.Service) (int, error) { return 0, nil }
func (plane) Close() error                                           { return nil }

// A Balancer checks the backends and hands those that can serve to a data plane.
func Example() {
	b, err := balancer.New(balancer.Config{
		Planes: []balancer.Plane{plane{}},
		LoadBalancers: []balancer.LoadBalancer{{
			Name:      "api",
			Frontends: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.10:6443")},
			Backends:  []balancer.Backend{{Addr: netip.MustParseAddrPort("192.0.2.11:6443"), Weight: 1}},
			Check:     balancer.Check{Type: balancer.CheckNone},
		}},
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- b.Run(ctx) }()
	<-b.Ready()
	for _, lb := range b.Health() {
		fmt.Println(lb.Name, "is served by", lb.Plane)
		for _, be := range lb.Backends {
			fmt.Println(be.Name, "is", be.State)
		}
	}
	cancel()
	<-done
	// Output:
	// api is served by userspace
	// 192.0.2.11:6443 is up
}
