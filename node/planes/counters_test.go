package planes

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"appliance/balancer"
)

type plain struct{ balancer.Plane }

func (plain) Apply(context.Context, []balancer.Service) (int, error) { return 7, nil }

func TestMetered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		front := netip.MustParseAddrPort("192.0.2.10:6443")
		to := balancer.Target{LoadBalancer: "a", Backend: netip.MustParseAddrPort("192.0.2.11:6443")}
		reads, broken := 0, error(nil)
		m := &counted{
			Plane: plain{},
			read: func(names map[netip.AddrPort]string) (map[balancer.Target]balancer.Traffic, error) {
				reads++
				return map[balancer.Target]balancer.Traffic{
					{LoadBalancer: names[front], Backend: to.Backend}: {Total: uint64(reads)},
				}, broken
			},
		}
		if m.Stats() != nil || reads != 0 {
			t.Error("the kernel is asked for what it does not have")
		}
		if n, err := m.Apply(t.Context(), []balancer.Service{{LoadBalancer: "a", Frontend: front}}); n != 7 || err != nil {
			t.Errorf("Apply: %d, %v", n, err)
		}
		for range 10 {
			if got := m.Stats()[to].Total; got != 1 {
				t.Errorf("%d connections", got)
			}
		}
		time.Sleep(readEvery)
		if got := m.Stats()[to].Total; got != 2 || reads != 2 {
			t.Errorf("%d connections after %d reads", got, reads)
		}
		broken = errors.New("no")
		time.Sleep(readEvery)
		if got := m.Stats()[to].Total; got != 2 {
			t.Errorf("%d connections where none can be read", got)
		}
		broken = nil
		m.Apply(t.Context(), []balancer.Service{{LoadBalancer: "b", Frontend: front}})
		if got := m.Stats(); got[to].Total != 0 || len(got) != 1 {
			t.Errorf("a load balancer of another name: %v", got)
		}
	})
}
