package ipvs_test

import (
	"context"
	"errors"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/nft"
)

// A backend that refuses is reported, wherever it and the client are. If there is another one, the client gets there.
func testRefusals(t *testing.T) {
	reported := make(chan balancer.Target, 100)
	r := nft.NewResetMonitor(func(t balancer.Target) { reported <- t }, nil, nil)
	p := r.Monitor(newPlane(t, "node").VirtualServer, nft.RetryByIPVS)
	ctx, cancel := context.WithCancel(t.Context())
	done, started := make(chan error, 1), make(chan struct{})
	go in("node", func() {
		close(started)
		done <- r.Run(ctx)
	})
	<-started
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		in("node", func() {
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}()
	apply := func(services ...balancer.Service) {
		t.Helper()
		in("node", func() {
			if _, err := p.Apply(t.Context(), services); err != nil {
				t.Fatal(err)
			}
		})
	}
	each(t, func(t *testing.T, ip6 bool) {
		for _, host := range []string{"1", "3"} {
			// Nobody listens on this port.
			dead := balancer.Backend{Addr: netip.AddrPortFrom(address(ip6, host), serverPort+1), Weight: 1}
			s := service(ip6, 446, balancer.RoundRobin, dead)
			for _, from := range []string{"client", "far", "node"} {
				apply() // a new quota
				apply(s)
				if c, err := dial(from, s.Frontend); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("from %s: %v, %v; want refused", from, c, err)
				}
				report := func() {
					t.Helper()
					select {
					case got := <-reported:
						if want := (balancer.Target{LoadBalancer: "api", Backend: dead.Addr}); got != want {
							t.Errorf("reported %v, want %v", got, want)
						}
					case <-time.After(10 * time.Second):
						t.Errorf("from %s: refused by %v, and it was not reported", from, dead.Addr)
					}
				}
				report()
				apply()
				apply(service(ip6, 446, balancer.RoundRobin, dead, backend(ip6, "2")))
				for range 4 {
					if c, err := dial(from, s.Frontend); err != nil || c.host != "peer" {
						t.Errorf("from %s: %v, %v; want peer", from, c, err)
					} else {
						c.Close()
					}
				}
				report()
			}
		}
	})
}
