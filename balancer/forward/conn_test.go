package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"appliance/balancer"
)

// reports counts what the forwarder reports.
type reports struct {
	mu  sync.Mutex
	got map[netip.AddrPort][]error
}

func (r *reports) take(t balancer.Target, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.got == nil {
		r.got = make(map[netip.AddrPort][]error)
	}
	r.got[t.Backend] = append(r.got[t.Backend], err)
}

func (r *reports) of(at netip.AddrPort) []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got[at]
}

// No client loses its connection to a backend that refuses or hangs, and few clients meet it
// at all. The connect timeout is a minute: waiting for it once would fail the test.
func TestDeadBackendCostsNothing(t *testing.T) {
	tests := []struct {
		name string
		dead func(testing.TB) netip.AddrPort
		err  error
	}{
		{"refuses", refusing, unix.ECONNREFUSED},
		{"hangs", hanging, balancer.ErrSlow},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dead := tt.dead(t)
			alive := backend(t, name("alive"))
			at := frontend()
			var seen reports
			start(t, Config{Report: seen.take}, to(at, dead, alive))
			began := time.Now()
			const n = 200
			for i := range n {
				if got, err := word(at); err != nil || got != "alive" {
					t.Fatalf("connection %d: %q, %v", i, got, err)
				}
			}
			took := time.Since(began)
			if took > timeout/2 {
				t.Errorf("%d connections took %v", n, took)
			}
			errs := seen.of(dead)
			if len(errs) == 0 || !errors.Is(errs[0], tt.err) {
				t.Errorf("reported %v, want %v first", errs, tt.err)
			}
			// Round robin alone would give it half. On a busy machine the other one
			// may look slow too at times.
			if len(errs) > n/4 {
				t.Errorf("the dead backend was tried %d times in %v", len(errs), took)
			}
		})
	}
}

// When every backend is dead, the client is reset at once.
func TestNoBackend(t *testing.T) {
	one, two := refusing(t), refusing(t)
	at := frontend()
	draining := backend(t, echo)
	weightless := to(at, backend(t, echo))
	weightless.Backends[0].Weight = 0
	none := to(at)
	none.Draining = []balancer.Backend{{Addr: draining, Weight: 1}}
	for what, s := range map[string]balancer.Service{
		"none in rotation": none, "weight 0": weightless, "all refuse": to(at, one, two),
	} {
		t.Run(what, func(t *testing.T) {
			start(t, Config{}, s)
			c, err := dialErr(at)
			if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ECONNRESET) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			wantReset(t, c)
		})
	}
}

// A backend that comes back is used again by itself.
func TestShunnedBackendIsTriedAgain(t *testing.T) {
	at := frontend()
	dead := refusing(t)
	f := start(t, Config{}, to(at, dead, backend(t, name("other"))))
	for range 4 {
		if _, err := word(at); err != nil {
			t.Fatal(err)
		}
	}
	f.mu.Lock()
	x := f.services[at].targets[balancer.Target{LoadBalancer: "lb", Backend: dead}]
	f.mu.Unlock()
	now := nanotime()
	if !x.avoided(now) || x.mayTry(now) {
		t.Error("a backend that refused is not passed over")
	}
	later := now + 2*int64(avoidFor)
	if !x.mayTry(later) || x.mayTry(later) {
		t.Error("after a while one connection, and only one, should try it")
	}
	x.answered(time.Millisecond)
	if x.avoided(now) {
		t.Error("a backend that answered is still passed over")
	}
}

// Where checks alone say who the first is, clients whose connection to it fails move no others to the next one.
func TestFirstThatFailsStaysFirst(t *testing.T) {
	for _, tt := range []struct {
		what          string
		maxFails, own int
		retries       int
		moved         int // clients at least; none means none
	}{
		{"checks decide", 0, 0, -1, 0},
		{"checks decide about this one", 3, balancer.NeverOut, -1, 0},
		{"each client tries the next one", 0, 0, 1, 6},
		{"failures count", 3, 0, -1, 1},
		{"failures of this one count", 0, 3, -1, 1},
	} {
		t.Run(tt.what, func(t *testing.T) {
			at := frontend()
			s := to(at, refusing(t), backend(t, name("next")))
			s.Scheduler, s.MaxFails, s.ConnOptions.Retries = balancer.First, tt.maxFails, tt.retries
			s.Backends[0].MaxFails = tt.own
			start(t, Config{}, s)
			moved := 0
			for range 6 {
				if got, _ := word(at); got == "next" {
					moved++
				}
			}
			if moved < tt.moved || tt.moved == 0 && moved > 0 {
				t.Errorf("%d of 6 clients reached the next one, want %d or more", moved, tt.moved)
			}
		})
	}
}

func TestRemovedBackendIsResetAndDrainingIsKept(t *testing.T) {
	stays, leaves, drains := backend(t, echo), backend(t, echo), backend(t, echo)
	at := frontend()
	f := start(t, Config{}, to(at, stays, leaves, drains))
	byBackend := make(map[netip.AddrPort]*net.TCPConn)
	for range 3 { // round robin: one each
		c := dial(t, at)
		if err := ask(c, "x"); err != nil {
			t.Fatal(err)
		}
		for id, n := range f.Stats() {
			if n.Open > 0 && byBackend[id.Backend] == nil {
				byBackend[id.Backend] = c
			}
		}
	}
	if len(byBackend) != 3 {
		t.Fatalf("three connections went to %d backends", len(byBackend))
	}
	next := to(at, stays)
	next.Draining = []balancer.Backend{{Addr: drains, Weight: 1}}
	apply(t, f, next)
	wantReset(t, byBackend[leaves])
	for _, b := range []netip.AddrPort{stays, drains} {
		if err := ask(byBackend[b], "after"); err != nil {
			t.Errorf("connection to a backend that is kept: %v", err)
		}
	}
	for range 6 { // new ones go to the one in rotation
		if err := ask(dial(t, at), "new"); err != nil {
			t.Fatal(err)
		}
	}
	if got := f.Stats()[balancer.Target{LoadBalancer: "lb", Backend: drains}]; got.Total != 1 {
		t.Errorf("a draining backend got %d new connections", got.Total-1)
	}
	apply(t, f, to(at, stays))
	wantReset(t, byBackend[drains])
}

// Reloads do not touch connections whose backend stays.
func TestReloadUnderLoad(t *testing.T) {
	stays, comes := backend(t, echo), backend(t, echo)
	at, other := frontend(), frontend()
	f := start(t, Config{}, to(at, stays))
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	var asked, opened atomic.Uint64
	for i := range 100 {
		c := dial(t, at)
		load.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				if err := ask(c, fmt.Sprintf("%d/%d", i, n)); err != nil {
					t.Errorf("open connection %d: %v", i, err)
					return
				}
				asked.Add(1)
			}
		})
	}
	for range 4 {
		load.Go(func() {
			for ctx.Err() == nil {
				c, err := dialErr(at)
				if err == nil {
					err = ask(c, "new")
					c.Close()
				}
				if err != nil {
					t.Errorf("new connection: %v", err)
					return
				}
				opened.Add(1)
			}
		})
	}
	for i := 0; i < 300 || asked.Load() < 1000 || opened.Load() < 100; i++ {
		s := to(at, stays)
		s.Scheduler = []balancer.Scheduler{balancer.RoundRobin, balancer.WeightedLeastConn, balancer.SourceHash}[i%3]
		if i%2 == 0 {
			s.Backends = append(s.Backends, balancer.Backend{Addr: comes, Weight: 1 + i%4})
		} else {
			s.Draining = []balancer.Backend{{Addr: comes, Weight: 1}}
		}
		if i%5 == 0 {
			apply(t, f, s, to(other, comes))
		} else {
			apply(t, f, s)
		}
		if t.Failed() {
			break
		}
		time.Sleep(time.Millisecond)
	}
	stop()
	load.Wait()
}

// exhaust lets the process open only n further files, until more is called.
func exhaust(t *testing.T, n int) (more func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	few := limit
	few.Cur = 200
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	var held []int
	for {
		fd, err := unix.Dup(2)
		if err != nil {
			break
		}
		held = append(held, fd)
	}
	more = sync.OnceFunc(func() {
		for _, fd := range held {
			unix.Close(fd)
		}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(more)
	if len(held) < n {
		t.Skip("nearly 200 files are open already")
	}
	for range n {
		unix.Close(held[len(held)-1])
		held = held[:len(held)-1]
	}
	return more
}

// Without a free file descriptor clients wait in the queue. They are served as soon as there
// is one again.
func TestOutOfFiles(t *testing.T) {
	at := frontend()
	var log lines
	start(t, Config{Shortages: &balancer.Shortages{Log: log.logger()}}, to(at, backend(t, echo)))
	more := exhaust(t, 1) // for the client; the forwarder gets none
	c, err := dialErr(at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	eventually(t, "the shortage is logged", func() bool { return log.count("short of files") == 1 })
	more()
	if err := ask(c, "late, but served"); err != nil {
		t.Error(err)
	}
	if n := log.count("short of files"); n != 1 {
		t.Errorf("logged %d times", n)
	}
}

// A bulk transfer that gets no pipe goes on without one.
func TestBulkWithoutPipes(t *testing.T) {
	at := frontend()
	f := start(t, Config{}, to(at, backend(t, echo)))
	c := dial(t, at)
	if err := ask(c, "before"); err != nil {
		t.Fatal(err)
	}
	more := exhaust(t, 0)
	defer more()
	text := strings.Repeat("0123456789abcdef", 256<<10) // 4 MiB
	var out sync.WaitGroup
	defer out.Wait()
	out.Go(func() { io.WriteString(c, text) })
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != text {
		t.Errorf("the echo differs, or %v", err)
	}
	if n := f.pools.spliced.Load(); n != 0 {
		t.Errorf("%d bytes were spliced: this test tests nothing", n)
	}
}

// A client that sends nothing must still get the server's first bytes, and each server its
// share.
func TestServerSpeaksFirstAndTurns(t *testing.T) {
	at := frontend()
	start(t, Config{}, to(at, backend(t, name("a")), backend(t, name("b")), backend(t, name("c"))))
	got := make(map[string]int)
	for range 30 {
		w, err := word(at)
		if err != nil {
			t.Fatal(err)
		}
		got[w]++
	}
	for _, w := range []string{"a", "b", "c"} {
		if got[w] != 10 {
			t.Errorf("%s served %d of 30", w, got[w])
		}
	}
}
