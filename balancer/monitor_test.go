package balancer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errRefused = errors.New("connection refused")

// servers is a Checker whose answers a test sets. It records when it was called.
type servers struct {
	mu     sync.Mutex
	err    map[netip.AddrPort]error
	hangs  map[netip.AddrPort]bool // until the check's timeout
	checks map[netip.AddrPort][]time.Time
}

func newServers() *servers {
	return &servers{
		err: make(map[netip.AddrPort]error), hangs: make(map[netip.AddrPort]bool),
		checks: make(map[netip.AddrPort][]time.Time),
	}
}

func (s *servers) Check(ctx context.Context, b Backend) error {
	s.mu.Lock()
	s.checks[b.Addr] = append(s.checks[b.Addr], time.Now())
	err, hangs := s.err[b.Addr], s.hangs[b.Addr]
	s.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

func (s *servers) set(at netip.AddrPort, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err[at] = err
}

func (s *servers) hang(at netip.AddrPort, hangs bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hangs[at] = hangs
}

func (s *servers) asked(at netip.AddrPort) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.checks[at])
}

func (s *servers) checker(Check) (Checker, error) { return s, nil }

func addr(n int) netip.AddrPort { return netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:6443", n)) }

// usual is a check with round numbers.
var usual = Check{Type: "tcp", Inter: 2 * time.Second, Timeout: time.Second, FastInter: 100 * time.Millisecond,
	Rise: 2, Fall: 3}

// watch runs a monitor over n backends in a synctest bubble.
func watch(
	t *testing.T, s *servers, c Check, n int, test func(m *monitor, changes func() []string), setUp ...func(*monitor),
) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var log []string
		m := &monitor{checker: s.checker, probes: make(map[Target]*probe)}
		m.changed = func(c healthChange) {
			mu.Lock()
			defer mu.Unlock()
			log = append(log, fmt.Sprintf("%s: %s to %s", c.target.Backend.Addr(), c.before.State, c.after.State))
		}
		m.vanished = func(_ netip.Addr, cs []healthChange) {
			for _, c := range cs {
				m.changed(c)
			}
		}
		for _, f := range setUp {
			f(m)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer m.wait()
		defer cancel()
		lb := LoadBalancer{Name: "lb", Check: c}
		for i := range n {
			lb.Backends = append(lb.Backends, Backend{Addr: addr(i + 1), Weight: 1})
		}
		if err := m.set(ctx, []LoadBalancer{lb}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		test(m, func() []string {
			mu.Lock()
			defer mu.Unlock()
			got := log
			log = nil
			return got
		})
	})
}

func state(t *testing.T, m *monitor, n int) Health {
	t.Helper()
	r, ok := m.record(Target{"lb", addr(n)})
	if !ok {
		t.Fatalf("nobody watches backend %d", n)
	}
	return r.Health
}

func TestFirstCheckDecidesAtOnce(t *testing.T) {
	s := newServers()
	s.set(addr(2), errRefused)
	watch(t, s, usual, 2, func(m *monitor, _ func() []string) {
		if h := state(t, m, 1); h.State != Up {
			t.Errorf("a server that answers is %s with no time passed", h.State)
		}
		if h := state(t, m, 2); h.State != Down || h.Reason != errRefused.Error() {
			t.Errorf("a server that refuses is %s (%s)", h.State, h.Reason)
		}
	})
}

func TestRiseAndFall(t *testing.T) {
	s := newServers()
	watch(t, s, usual, 1, func(m *monitor, changes func() []string) {
		began := time.Now()
		if h := state(t, m, 1); !h.Since.Equal(began) {
			t.Errorf("up since %v, want %v", h.Since, began)
		}
		changes()
		// next waits for the next check and says how long it took to come.
		next := func() time.Duration {
			from := time.Now()
			for n := s.asked(addr(1)); s.asked(addr(1)) == n; {
				time.Sleep(time.Millisecond)
			}
			synctest.Wait()
			return time.Since(from)
		}
		steps := []struct {
			err  error
			want BackendState
			slow bool // the check comes after the usual interval
		}{
			{nil, Up, true},
			{errRefused, Up, true}, {errRefused, Up, false}, {nil, Up, false}, // two failures of three
			{errRefused, Up, true}, {errRefused, Up, false}, {errRefused, Down, false},
			{errRefused, Down, true},
			{nil, Down, true}, {errRefused, Down, false}, // one success of two
			{nil, Down, true}, {nil, Up, false},
			{nil, Up, true},
		}
		for i, step := range steps {
			s.set(addr(1), step.err)
			took := next()
			if h := state(t, m, 1); h.State != step.want {
				t.Fatalf("step %d: %s (%s), want %s", i, h.State, h.Reason, step.want)
			}
			low, high := 95*time.Millisecond, 105*time.Millisecond
			if step.slow {
				low, high = 1790*time.Millisecond, 2210*time.Millisecond
			}
			if took < low || took > high {
				t.Errorf("step %d came after %v, want %v to %v", i, took, low, high)
			}
		}
		if h := state(t, m, 1); h.Since.Sub(began) < 10*time.Second || h.Checked.Before(h.Since) {
			t.Errorf("up since %v, checked %v", h.Since, h.Checked)
		}
		if got := changes(); len(got) != 2 {
			t.Errorf("changes %q, want down and up", got)
		}
	})
}

// A single slow answer does not remove a server.
func TestOneSlowAnswer(t *testing.T) {
	s := newServers()
	watch(t, s, usual, 1, func(m *monitor, changes func() []string) {
		changes()
		s.hang(addr(1), true)
		time.Sleep(2500 * time.Millisecond) // one check is waiting
		s.hang(addr(1), false)
		time.Sleep(10 * time.Second)
		if got := changes(); len(got) != 0 {
			t.Errorf("changes %q", got)
		}
	})
}

// A server that hangs does not delay the checks of others.
func TestChecksAreParallel(t *testing.T) {
	s := newServers()
	s.hang(addr(1), true)
	c := usual
	c.Timeout = time.Hour
	watch(t, s, c, 20, func(m *monitor, _ func() []string) {
		time.Sleep(100 * time.Second)
		if n := s.asked(addr(1)); n != 1 {
			t.Errorf("the hanging server was asked %d times", n)
		}
		starts := make(map[time.Time]int)
		for i := 2; i <= 20; i++ {
			if n := s.asked(addr(i)); n < 45 || n > 56 {
				t.Errorf("backend %d was asked %d times in 100 s, want about 50", i, n)
			}
			starts[s.checks[addr(i)][30]]++
		}
		if n := len(starts); n < 4 || n > 5 {
			t.Errorf("19 checks began at %d times, want those of four backends at one: %v", n, starts)
		}
	})
}

func TestReportChecksAtOnce(t *testing.T) {
	s := newServers()
	watch(t, s, usual, 1, func(m *monitor, _ func() []string) {
		time.Sleep(500 * time.Millisecond)
		s.set(addr(1), errRefused)
		// Real connections fail all the time; checks are still FastInter apart.
		began := time.Now()
		for state(t, m, 1).State == Up {
			m.report(Target{"lb", addr(1)}, errRefused)
			m.report(Target{"lb", addr(9)}, errRefused) // nobody
			time.Sleep(time.Millisecond)
		}
		if took := time.Since(began); took > 250*time.Millisecond {
			t.Errorf("out after %v, want about 200 ms", took)
		}
		if n := s.asked(addr(1)); n != 4 {
			t.Errorf("asked %d times, want the first and three", n)
		}
		m.report(Target{"lb", addr(1)}, nil)
		synctest.Wait()
	})
}

// A backend that refuses clients and one check is out at once. Its open connections wait
// for the confirmation, and one success brings it back.
func TestRefusedTwiceIsOutAtOnce(t *testing.T) {
	s := newServers()
	watch(t, s, usual, 1, func(m *monitor, _ func() []string) {
		target := Target{"lb", addr(1)}
		refused := fmt.Errorf("refuses the connection: %w", unix.ECONNREFUSED)
		for _, confirmed := range []bool{false, true} {
			time.Sleep(500 * time.Millisecond)
			s.set(addr(1), refused)
			m.report(target, refused)
			synctest.Wait()
			if r, _ := m.record(target); r.State != Down || !r.suspect {
				t.Fatalf("after one report and one check: %+v", r)
			}
			if !confirmed {
				s.set(addr(1), nil)
			}
			time.Sleep(250 * time.Millisecond)
			r, _ := m.record(target)
			if !confirmed && (r.State != Up || r.suspect || !r.refused.IsZero()) || confirmed && (r.State != Down || r.suspect) {
				t.Errorf("confirmed: %v, then %+v", confirmed, r)
			}
		}
	})
}

// A server that refuses only the check, or that is only slow, is out after Fall checks.
func TestOtherFailuresTakeTheirChecks(t *testing.T) {
	refused := fmt.Errorf("refuses the connection: %w", unix.ECONNREFUSED)
	for _, c := range []struct{ client, check error }{{errors.New("slow"), refused}, {refused, errors.New("slow")}} {
		s := newServers()
		watch(t, s, usual, 1, func(m *monitor, _ func() []string) {
			time.Sleep(500 * time.Millisecond)
			s.set(addr(1), c.check)
			m.report(Target{"lb", addr(1)}, c.client)
			synctest.Wait()
			if r, _ := m.record(Target{"lb", addr(1)}); r.State != Up || r.bad != 1 {
				t.Errorf("client %v, check %v: %+v", c.client, c.check, r)
			}
		})
	}
}

// A failure that the check does not confirm changes nothing.
func TestReportAloneIsNoVerdict(t *testing.T) {
	s := newServers()
	watch(t, s, usual, 1, func(m *monitor, changes func() []string) {
		changes()
		for range 2000 {
			m.report(Target{"lb", addr(1)}, errRefused)
			time.Sleep(time.Millisecond)
		}
		if got := changes(); len(got) != 0 {
			t.Errorf("changes %q", got)
		}
		if n := s.asked(addr(1)); n > 23 {
			t.Errorf("asked %d times in 2 s", n)
		}
	})
}

func TestPeerDown(t *testing.T) {
	t.Run("server alive", func(t *testing.T) {
		s := newServers()
		watch(t, s, usual, 2, func(m *monitor, changes func() []string) {
			time.Sleep(500 * time.Millisecond)
			changes()
			m.peerDown(addr(1).Addr())
			if h := state(t, m, 1); h.State != Down {
				t.Errorf("%s, want down with no check", h.State)
			}
			synctest.Wait() // the check that it caused has succeeded
			if h := state(t, m, 1); h.State != Up {
				t.Errorf("%s after one success, want up", h.State)
			}
			if got := fmt.Sprint(changes()); got != "[192.0.2.1: up to down 192.0.2.1: down to up]" {
				t.Errorf("changes %s", got)
			}
		})
	})
	t.Run("server dead", func(t *testing.T) {
		s := newServers()
		watch(t, s, usual, 1, func(m *monitor, changes func() []string) {
			changes()
			s.set(addr(1), errRefused)
			time.Sleep(50 * time.Millisecond)
			m.peerDown(addr(1).Addr())
			if r, _ := m.record(Target{"lb", addr(1)}); !r.suspect {
				t.Error("confirmed before a check")
			}
			time.Sleep(400 * time.Millisecond)
			r, _ := m.record(Target{"lb", addr(1)})
			if r.suspect || r.State != Down || r.Reason != errRefused.Error() {
				t.Errorf("%+v, want it confirmed by checks", r)
			}
			s.set(addr(1), nil)
			m.peerUp(addr(1).Addr())
			time.Sleep(200 * time.Millisecond)
			if h := state(t, m, 1); h.State != Up {
				t.Errorf("%s after the peer came back", h.State)
			}
		})
	})
	t.Run("a check that began before does not count", func(t *testing.T) {
		now := time.Now()
		r := record{Health: Health{State: Up, Since: now}}.lost(now)
		if got := r.after(usual, result{started: now.Add(-time.Millisecond)}, false); got.State != Down {
			t.Errorf("%s by an old check", got.State)
		}
		if got := r.after(usual, result{started: now.Add(time.Millisecond)}, false); got.State != Up {
			t.Errorf("%s by a new check", got.State)
		}
	})
	t.Run("this node is cut off", func(t *testing.T) {
		now := time.Now()
		failed := result{started: now.Add(time.Millisecond), err: errRefused}
		for was, suspect := range map[BackendState]bool{Up: true, Draining: true, Down: false, Unknown: false} {
			r := record{Health: Health{State: was, Since: now}}
			for range 3 * usual.Fall {
				r = r.after(usual, failed, true)
			}
			if r.State != Down || r.suspect != suspect {
				t.Errorf("was %s: %s, suspect is %v", was, r.State, r.suspect)
			}
			for range usual.Fall {
				if r.suspect != suspect {
					t.Errorf("was %s: confirmed too early after the node is back", was)
				}
				r = r.after(usual, failed, false)
			}
			if r.State != Down || r.suspect {
				t.Errorf("was %s: %s, suspect is %v after the node is back", was, r.State, r.suspect)
			}
		}
		r := record{Health: Health{State: Up, Since: now}}.lost(now)
		for range usual.Fall {
			r = r.after(usual, failed, true)
		}
		if r = r.after(usual, result{started: now.Add(2 * time.Millisecond)}, false); r.State != Up || r.suspect {
			t.Errorf("%s, suspect is %v after a check that succeeds", r.State, r.suspect)
		}
	})
	t.Run("not checked", func(t *testing.T) {
		c := usual
		c.Type = "none"
		watch(t, newServers(), c, 1, func(m *monitor, _ func() []string) {
			m.peerDown(addr(1).Addr())
			time.Sleep(time.Minute)
			if h := state(t, m, 1); h.State != Down {
				t.Errorf("%s, want down until the peer is back", h.State)
			}
			m.peerUp(addr(1).Addr())
			synctest.Wait()
			if h := state(t, m, 1); h.State != Up {
				t.Errorf("%s, want up", h.State)
			}
		})
	})
}

func TestDrainingServer(t *testing.T) {
	s := newServers()
	watch(t, s, usual, 1, func(m *monitor, _ func() []string) {
		s.set(addr(1), fmt.Errorf("/readyz answers 500: %w", ErrDraining))
		time.Sleep(3 * time.Second)
		if h := state(t, m, 1); h.State != Draining {
			t.Errorf("%s, want draining at once", h.State)
		}
		s.set(addr(1), errRefused)
		time.Sleep(3 * time.Second)
		if h := state(t, m, 1); h.State != Down {
			t.Errorf("%s, want down", h.State)
		}
	})
}

// A reload keeps what is known, checks new backends, and leaves unchanged ones alone.
func TestSetKeepsHealth(t *testing.T) {
	s := newServers()
	watch(t, s, usual, 2, func(m *monitor, changes func() []string) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		changes()
		first := s.asked(addr(1))
		other := usual
		other.Fall = 5
		set := func(c Check, ns ...int) {
			lb := LoadBalancer{Name: "lb", Check: c}
			for _, n := range ns {
				lb.Backends = append(lb.Backends, Backend{Name: "renamed", Addr: addr(n), Weight: 7})
			}
			if err := m.set(ctx, []LoadBalancer{lb}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		set(usual, 1, 3)
		if n := s.asked(addr(1)); n != first {
			t.Error("an unchanged backend was checked again")
		}
		if state(t, m, 3).State != Up {
			t.Error("a new backend was not checked at once")
		}
		if _, ok := m.record(Target{"lb", addr(2)}); ok {
			t.Error("a backend that left is watched")
		}
		if got := fmt.Sprint(changes()); got != "[192.0.2.3: unknown to up]" {
			t.Errorf("changes %s", got)
		}
		set(other, 1, 3)
		if got := changes(); len(got) != 0 {
			t.Errorf("changes %q by another check of the same health", got)
		}
		if n := s.asked(addr(1)); n != first+1 {
			t.Error("a changed check did not begin at once")
		}
		gone := s.asked(addr(2))
		time.Sleep(10 * time.Second)
		if s.asked(addr(2)) != gone {
			t.Error("a backend that left is checked")
		}
		cancel()
		m.wait()
	})
}

func TestTCPCheck(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	for range 20 {
		if err := (TCP{}).Check(t.Context(), Backend{Addr: at}); err != nil {
			t.Fatal(err)
		}
	}
	// Only this connection reaches the server.
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	first, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if first.RemoteAddr().String() != c.LocalAddr().String() {
		t.Error("the server was handed the connection of a check")
	}
	l.Close()
	if err := (TCP{}).Check(t.Context(), Backend{Addr: at}); err == nil {
		t.Error("a closed port passes the check")
	}
	if _, err := NewChecker(Check{Type: "ping"}); err == nil {
		t.Error("an unknown check type is taken")
	}
}
