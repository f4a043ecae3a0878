package ipvs

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/cloudflare/ipvs"
	"github.com/google/go-cmp/cmp"

	"appliance/balancer"
)

// v makes a service as translate does: with a frontend's port, a scheduler, and the weights of the backends 10.0.0.1,
// 10.0.0.2 and so on; -1 leaves one out.
func v(t *testing.T, port uint16, scheduler balancer.Scheduler, weights ...int) virtual {
	t.Helper()
	s := balancer.Service{
		Frontend:  netip.AddrPortFrom(netip.MustParseAddr("10.0.0.100"), port),
		Scheduler: scheduler,
	}
	for i, w := range weights {
		if w >= 0 {
			at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 6443)
			s.Backends = append(s.Backends, balancer.Backend{Addr: at, Weight: w})
		}
	}
	got, err := translate(s, Tuning{})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestDiff(t *testing.T) {
	hashed := v(t, 1, "rr", 1)
	hashed.service.Flags |= ipvs.ServiceHashed
	direct := v(t, 1, "rr", 1)
	direct.destinations[0].FwdMethod = ipvs.DirectRoute

	for _, tt := range []struct {
		name       string
		have, want []virtual
		ops        []string
	}{
		{name: "nothing"},
		{
			name: "as wanted, with the kernel's own flag",
			have: []virtual{hashed},
			want: []virtual{v(t, 1, "rr", 1)},
		},
		{
			name: "new",
			want: []virtual{v(t, 1, "rr", 1, 0)},
			ops: []string{"create service 10.0.0.100:1",
				"add backend 10.0.0.1:6443 of 10.0.0.100:1", "add backend 10.0.0.2:6443 of 10.0.0.100:1"},
		},
		{
			name: "gone",
			have: []virtual{v(t, 1, "rr", 1, 1)},
			ops:  []string{"remove service 10.0.0.100:1"},
		},
		{
			name: "another scheduler",
			have: []virtual{v(t, 1, "rr", 1)},
			want: []virtual{v(t, 1, "sh", 1)},
			ops:  []string{"change service 10.0.0.100:1"},
		},
		{
			name: "one drains",
			have: []virtual{v(t, 1, "rr", 1, 1)},
			want: []virtual{v(t, 1, "rr", 1, 0)},
			ops:  []string{"change backend 10.0.0.2:6443 of 10.0.0.100:1"},
		},
		{
			name: "a backend is replaced: the new one comes first",
			have: []virtual{v(t, 1, "rr", 1)},
			want: []virtual{v(t, 1, "rr", -1, 1)},
			ops: []string{"add backend 10.0.0.2:6443 of 10.0.0.100:1",
				"take out backend 10.0.0.1:6443 of 10.0.0.100:1"},
		},
		{
			name: "another way of forwarding",
			have: []virtual{direct},
			want: []virtual{v(t, 1, "rr", 1)},
			ops:  []string{"change backend 10.0.0.1:6443 of 10.0.0.100:1"},
		},
		{
			name: "the last backend leaves: the service stays, to refuse",
			have: []virtual{v(t, 1, "rr", 1)},
			want: []virtual{v(t, 1, "rr")},
			ops:  []string{"take out backend 10.0.0.1:6443 of 10.0.0.100:1"},
		},
		{
			name: "one service goes, one comes, one stays: what ends is last",
			have: []virtual{v(t, 1, "rr", 1), v(t, 2, "rr", 1)},
			want: []virtual{v(t, 2, "rr", 1), v(t, 3, "rr", 1)},
			ops: []string{"create service 10.0.0.100:3", "add backend 10.0.0.1:6443 of 10.0.0.100:3",
				"remove service 10.0.0.100:1"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var ops []string
			for _, o := range diff(tt.have, tt.want) {
				ops = append(ops, o.String())
			}
			if d := cmp.Diff(tt.ops, ops); d != "" {
				t.Errorf("operations, - wanted + got:\n%s", d)
			}
		})
	}
}

// The operations lead from any state to any other, each of them is needed, and afterwards there is nothing to do.
func TestDiffLeadsToWant(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	random := func() []virtual {
		var vs []virtual
		for port := range uint16(4) {
			if r.IntN(3) > 0 {
				s := []balancer.Scheduler{"rr", "sh"}[r.IntN(2)]
				vs = append(vs, v(t, port+1, s, r.IntN(3)-1, r.IntN(3)-1, r.IntN(3)-1))
			}
		}
		return vs
	}
	for range 500 {
		have, want := random(), random()
		k := newFake(have...)
		ops := diff(have, want)
		if _, err := perform(k, ops); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		got, _, err := read(k, nil)
		if err != nil {
			t.Fatal(err)
		}
		if left := diff(got, want); len(left) > 0 {
			t.Fatalf("seed %d: after %v there is still to do: %v", seed, ops, left)
		}
		for i := range ops {
			// A creation may be followed by operations that fail without it.
			if o := ops[i]; o.verb != createService && o.verb != createDestination {
				k := newFake(have...)
				if _, err := perform(k, slices.Delete(slices.Clone(ops), i, i+1)); err != nil {
					t.Fatal(err)
				}
				if got, _, _ := read(k, nil); len(diff(got, want)) == 0 {
					t.Fatalf("seed %d: %v is not needed", seed, o)
				}
			}
		}
	}
}

func TestDeviations(t *testing.T) {
	full := []virtual{v(t, 1, "rr", 1, 1)}
	probe := virtual{service: ipvs.Service{Family: ipvs.INET, FWMark: probeMark, Flags: ours}}
	extra := []virtual{v(t, 1, "rr", 1, 1, 1)}
	for _, tt := range []struct {
		name             string
		have, last, want []virtual
		n                int
	}{
		{name: "nothing happened", have: full, last: full, want: full},
		{name: "only the wanted set changed", have: full, last: full, want: []virtual{v(t, 1, "wrr", 2, 1)}},
		{name: "flushed", last: full, want: full, n: 3},
		{name: "flushed, and one backend left meanwhile", last: full, want: []virtual{v(t, 1, "rr", 1)}, n: 2},
		{name: "flushed, and not wanted any more", last: full},
		{name: "a probe is running", have: append([]virtual{probe}, full...), last: full, want: full},
		{name: "somebody added a backend", have: extra, last: full, want: full, n: 1},
	} {
		if n := deviations(tt.have, tt.last, tt.want); n != tt.n {
			t.Errorf("%s: %d, want %d", tt.name, n, tt.n)
		}
	}
}
