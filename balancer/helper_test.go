package balancer

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
)

// recorder is a Plane that writes down what it is asked to do.
type recorder struct {
	name PlaneName
	log  *journal

	mu       sync.Mutex
	unusable error
	err      error
	repaired int
	hang     chan struct{} // Apply waits for it, if not nil
	last     []Service
	calls    int
}

func (r *recorder) Name() PlaneName { return r.name }
func (r *recorder) Close() error    { return nil }

func (r *recorder) Usable(context.Context, LoadBalancer) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.unusable
}

func (r *recorder) Apply(ctx context.Context, services []Service) (int, error) {
	r.mu.Lock()
	r.calls++
	hang, err, repaired := r.hang, r.err, r.repaired
	r.repaired = 0
	if err == nil {
		r.last = services
	}
	r.mu.Unlock()
	r.log.add("%s %s", r.name, show(services))
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	return repaired, err
}

func (r *recorder) Stats() map[Target]Traffic {
	return map[Target]Traffic{{"api", addr(1)}: {Open: 3, Total: 9, Failed: 1, In: 100, Out: 2000, Queued: 2},
		{LoadBalancer: "api"}: {Queued: 1}}
}

// PassedOver has a reason for both backends; the second may be down.
func (r *recorder) PassedOver() map[Target]string {
	return map[Target]string{{"api", addr(1)}: "no path for " + string(r.name), {"api", addr(2)}: "no path either"}
}

// count is the number of calls of Apply.
func (r *recorder) count() int {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls
}

// serves is the set that was applied last.
func (r *recorder) serves() string {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	return show(r.last)
}

func (r *recorder) do(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

// show writes a set of services as "api[1,2|3]": up and draining backends by
// the last number of their address.
func show(services []Service) string {
	numbers := func(bs []Backend) string {
		var ns []string
		for _, b := range bs {
			ns = append(ns, fmt.Sprint(b.Addr.Addr().As4()[3]))
		}
		return strings.Join(ns, ",")
	}
	var out []string
	for _, s := range services {
		out = append(out, fmt.Sprintf("%s[%s|%s]", s.LoadBalancer, numbers(s.Backends), numbers(s.Draining)))
	}
	return strings.Join(out, " ")
}

// journal is what happened, in order and without repetition.
type journal struct {
	mu  sync.Mutex
	got []string
}

func (j *journal) add(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if line := fmt.Sprintf(format, args...); len(j.got) == 0 || j.got[len(j.got)-1] != line {
		j.got = append(j.got, line)
	}
}

func (j *journal) take() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	got := strings.Join(j.got, "; ")
	j.got = nil
	return got
}

// text is a log that may be read while it is written.
type text struct {
	mu sync.Mutex
	b  strings.Builder
}

func (t *text) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.Write(p)
}

func (t *text) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.String()
}

type bench struct {
	*testing.T
	b       *Balancer
	s       *servers
	planes  map[PlaneName]*recorder
	journal journal
	events  journal
	out     text
}

// logged counts lines with what. It waits until all goroutines are idle, as count and
// serves do.
func (b *bench) logged(what string) int {
	synctest.Wait()
	return strings.Count(b.out.String(), what)
}

func (b *bench) expect(want string) {
	b.Helper()
	synctest.Wait()
	// Planes are called in parallel, so only the order of the calls of one plane counts.
	got := strings.Split(b.journal.take(), "; ")
	slices.SortStableFunc(got, func(x, y string) int {
		return strings.Compare(strings.SplitN(x, " ", 2)[0], strings.SplitN(y, " ", 2)[0])
	})
	if got := strings.Join(slices.Compact(got), "; "); got != want {
		b.Errorf("calls of the planes:\n     %s\nwant %s", got, want)
	}
}

// lbOf is a load balancer over backends 1 to n.
func lbOf(name string, n int, frontends ...string) LoadBalancer {
	lb := LoadBalancer{Name: name, Scheduler: RoundRobin, Check: usual, Plane: Auto}
	for _, f := range frontends {
		lb.Frontends = append(lb.Frontends, netip.MustParseAddrPort(f))
	}
	if len(frontends) == 0 {
		lb.Frontends = []netip.AddrPort{netip.MustParseAddrPort(fmt.Sprintf("198.51.100.%d:6443", len(name)))}
	}
	for i := range n {
		lb.Backends = append(lb.Backends, Backend{Name: fmt.Sprint("cp", i+1), Addr: addr(i + 1), Weight: 1})
	}
	return lb
}

// run runs a balancer in a bubble with the planes direct, ipvs and userspace.
func run(t *testing.T, lbs []LoadBalancer, prepare, test func(*bench)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bench{T: t, s: newServers(), planes: make(map[PlaneName]*recorder)}
		cfg := Config{LoadBalancers: lbs, Checker: b.s.checker, Log: slog.New(slog.NewTextHandler(&b.out, nil)),
			OnEvent: func(e LoadBalancerEvent) {
				b.events.add("%s %s %s>%s", e.LoadBalancer, e.Backend, e.From, e.To)
			}}
		for _, name := range []PlaneName{Direct, IPVS, UserSpace} {
			p := &recorder{name: name, log: &b.journal}
			b.planes[name] = p
			cfg.Planes = append(cfg.Planes, p)
		}
		var err error
		if b.b, err = New(cfg); err != nil {
			t.Fatal(err)
		}
		if prepare != nil {
			prepare(b)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- b.b.Run(ctx) }()
		synctest.Wait()
		test(b)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

func (b *bench) ready() bool {
	select {
	case <-b.b.Ready():
		return true
	default:
		return false
	}
}
