package balancer

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// slow is a plane that takes a second to find out what the network carries.
type slow struct{ plain }

type plain struct{ err error }

func (plain) Name() PlaneName                               { return UserSpace }
func (p plain) Usable(context.Context, LoadBalancer) error  { return p.err }
func (plain) Apply(context.Context, []Service) (int, error) { return 0, nil }
func (plain) Stats() map[Target]Traffic                     { return nil }
func (plain) Close() error                                  { return nil }
func (slow) Name() PlaneName                                { return Direct }
func (s slow) Usable(ctx context.Context, _ LoadBalancer) error {
	time.Sleep(time.Second)
	return s.err
}

// However many load balancers there are, they wait for the network together, and those that any plane can serve do not
// wait for it before the start.
func TestCheckWaitsOnce(t *testing.T) {
	for _, c := range []struct {
		name   string
		forced PlaneName
		takes  time.Duration
	}{
		{"forced to the slow plane", Direct, time.Second},
		{"any plane", Auto, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var lbs []LoadBalancer
				for i := range 200 {
					lb := lbOf(fmt.Sprint("lb", i), 1)
					lb.Frontends = []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(1000+i))}
					lb.Plane = c.forced
					lbs = append(lbs, lb)
				}
				b, err := New(Config{Planes: []Plane{slow{}, plain{}}, LoadBalancers: lbs})
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				if err := b.Check(t.Context()); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took != c.takes {
					t.Errorf("took %v, want %v", took, c.takes)
				}
				began = time.Now()
				if err := b.Change(t.Context(), lbs[:100]); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took > time.Second {
					t.Errorf("the change took %v", took)
				}
			})
		})
	}
}

// What no plane can serve is still refused, with what each of them says.
func TestCheckNamesEveryPlane(t *testing.T) {
	b, err := New(Config{LoadBalancers: []LoadBalancer{lbOf("api", 1)},
		Planes: []Plane{slow{plain{errors.New("no path")}}, plain{errors.New("no room")}}})
	if err != nil {
		t.Fatal(err)
	}
	const want = "load balancer api: no data plane can serve it (direct: no path; userspace: no room): " +
		"mend one of these reasons"
	if err := b.Check(t.Context()); err == nil || err.Error() != want {
		t.Errorf("error %v\nwant  %s", err, want)
	}
}
