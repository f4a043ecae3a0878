package balancer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Which backends get new connections, and which keep their open ones.
func TestRotation(t *testing.T) {
	weight := 0
	for _, tt := range []struct {
		name    string
		backups []int  // of five
		states  string // u up, d down, r draining (asks for it), x barred
		change  func(*LoadBalancer)
		orders  map[int]Override
		want    string
	}{
		{name: "all up", states: "uuuuu", want: "[1,2,3,4,5|]"},
		{name: "some down", states: "uudud", want: "[1,2,4|]"},
		{name: "backups wait", backups: []int{4, 5}, states: "uuduu", want: "[1,2|4,5]"},
		{name: "backups serve", backups: []int{4, 5}, states: "ddduu", want: "[4,5|]"},
		{name: "backups are ended", backups: []int{4, 5}, states: "uuuuu",
			change: func(lb *LoadBalancer) { lb.ConnOptions.EndBackup = true }, want: "[1,2,3|]"},
		{name: "draining", states: "uruuu", want: "[1,3,4,5|2]"},
		{name: "backups before draining ones", backups: []int{5}, states: "rrddu", want: "[5|1,2]"},
		{name: "all draining", states: "rrddd", want: "[1,2|]"},
		{name: "barred", states: "xuuuu", want: "[2,3,4,5|1]"},
		{name: "never bar the last", states: "xdddd", want: "[1|]"},
		{name: "all down", states: "ddddd", want: "[|]"},
		{name: "all down, try", states: "ddddd", change: func(lb *LoadBalancer) { lb.TryDown = true }, want: "[1,2,3,4,5|]"},
		{name: "try is for all only", states: "ddddu", change: func(lb *LoadBalancer) { lb.TryDown = true }, want: "[5|]"},
		{name: "keep those of the dead", states: "udddd", change: func(lb *LoadBalancer) { lb.ConnOptions.KeepDown = true },
			want: "[1|2,3,4,5]"},
		{name: "keep those of one of the dead", states: "udddd", change: func(lb *LoadBalancer) {
			lb.Backends[2].OnMarkedDown = KeepSessions
		}, want: "[1|3]"},
		{name: "end those of one of the dead", states: "uuddd", change: func(lb *LoadBalancer) {
			lb.ConnOptions.KeepDown, lb.Backends[2].OnMarkedDown = true, EndSessions
		}, orders: map[int]Override{3: {Out: Drain}, 4: {Out: Drain}}, want: "[1,2|4,5]"},
		{name: "drained", states: "uuuuu", orders: map[int]Override{2: {Out: Drain}}, want: "[1,3,4,5|2]"},
		{name: "disabled", states: "uuuuu", orders: map[int]Override{2: {Out: Disable}}, want: "[1,3,4,5|]"},
		{name: "disabled in the configuration", states: "uuuuu", change: func(lb *LoadBalancer) {
			lb.Backends[1].Disabled, lb.Backends[2].Disabled = true, true
		}, orders: map[int]Override{3: {Out: Enable}, 4: {Weight: &weight}}, want: "[1,3,5|4]"},
		{name: "weight 0", states: "uuuuu", orders: map[int]Override{2: {Weight: &weight}}, want: "[1,3,4,5|2]"},
		{name: "drained are not a last resort", states: "uuddd", orders: map[int]Override{1: {Out: Drain}, 2: {Out: Drain}},
			want: "[|1,2]"},
		{name: "disabled are not tried", states: "ddddd", orders: map[int]Override{1: {Out: Disable}},
			change: func(lb *LoadBalancer) { lb.TryDown = true }, want: "[2,3,4,5|]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lb := lbOf("api", 5)
			lb.MaxFails, lb.FailTimeout = 3, time.Hour
			for _, n := range tt.backups {
				lb.Backends[n-1].Backup = true
			}
			if tt.change != nil {
				tt.change(&lb)
			}
			run(t, []LoadBalancer{lb}, func(b *bench) {
				orders := make(map[Target]Override)
				for n, o := range tt.orders {
					orders[Target{"api", addr(n)}] = o
				}
				b.b.SetOverrides(orders)
				for i, c := range tt.states {
					switch c {
					case 'd':
						b.s.set(addr(i+1), errRefused)
					case 'r':
						b.s.set(addr(i+1), ErrDraining)
					}
				}
			}, func(b *bench) {
				for i, c := range tt.states {
					for range 3 {
						if c == 'x' {
							b.b.Report(Target{"api", addr(i + 1)}, errRefused)
						}
					}
				}
				if got := b.planes[Direct].serves(); got != "api"+tt.want {
					t.Errorf("served %s, want %s", got, tt.want)
				}
			})
		})
	}
}

// As with nginx's max_fails and fail_timeout: after so many failures within that time there
// are no new connections for that time, whatever the checks say.
func TestPassive(t *testing.T) {
	lb := lbOf("api", 2)
	lb.MaxFails, lb.FailTimeout = 3, 10*time.Second
	run(t, []LoadBalancer{lb}, nil, func(b *bench) {
		fail := func() { b.b.Report(Target{"api", addr(1)}, errors.New("timeout")) }
		for range 5 {
			b.b.Report(Target{"api", addr(1)}, ErrSlow) // no failure
		}
		fail()
		fail()
		time.Sleep(10 * time.Second) // the two are forgotten
		fail()
		fail()
		if got := b.planes[Direct].serves(); got != "api[1,2|]" {
			t.Errorf("two failures: %s", got)
		}
		fail()
		if got := b.planes[Direct].serves(); got != "api[2|1]" {
			t.Errorf("three failures: %s", got)
		}
		if s := b.b.Status().LoadBalancers[0].Backends[0]; s.State != Draining || s.Reason == "" {
			t.Errorf("shown as %+v", s)
		}
		time.Sleep(9900 * time.Millisecond)
		if got := b.planes[Direct].serves(); got != "api[2|1]" {
			t.Errorf("before the time is over: %s", got)
		}
		time.Sleep(200 * time.Millisecond)
		if got := b.planes[Direct].serves(); got != "api[1,2|]" {
			t.Errorf("after it: %s", got)
		}
		if n := b.logged("backend is draining"); n != 1 {
			t.Errorf("logged %d times", n)
		}
		// A backend that is down stays down when the time is over.
		b.s.set(addr(1), errRefused)
		for range 3 {
			fail()
		}
		time.Sleep(30 * time.Second)
		if got := b.planes[Direct].serves(); got != "api[2|]" {
			t.Errorf("dead: %s", got)
		}
	})
}

// A backend may say itself how many failures take it out and for how long, or that none do.
func TestPassiveOfABackend(t *testing.T) {
	lb := lbOf("api", 3)
	lb.MaxFails, lb.FailTimeout = 1, 10*time.Second
	lb.Backends[0].MaxFails = NeverOut
	lb.Backends[1].MaxFails, lb.Backends[1].FailTimeout = 2, time.Second
	run(t, []LoadBalancer{lb}, nil, func(b *bench) {
		fail := func(n int) { b.b.Report(Target{"api", addr(n)}, errors.New("timeout")) }
		for n := range 3 {
			fail(n + 1)
		}
		if got := b.planes[Direct].serves(); got != "api[1,2|3]" {
			t.Errorf("after one failure of each: %s", got)
		}
		fail(1)
		fail(2)
		if got := b.planes[Direct].serves(); got != "api[1|2,3]" {
			t.Errorf("after two: %s", got)
		}
		time.Sleep(1100 * time.Millisecond)
		if got := b.planes[Direct].serves(); got != "api[1,2|3]" {
			t.Errorf("a second later: %s", got)
		}
	})
}

// For a server without a check only clients' connections count.
func TestPassiveAlone(t *testing.T) {
	lb := lbOf("api", 2)
	lb.Check = Check{Type: CheckNone}
	lb.MaxFails, lb.FailTimeout = 1, 10*time.Second
	run(t, []LoadBalancer{lb}, nil, func(b *bench) {
		b.b.Report(Target{"api", addr(1)}, errRefused)
		if got := b.planes[Direct].serves(); got != "api[2|1]" {
			t.Errorf("a failure: %s", got)
		}
		time.Sleep(11 * time.Second)
		if got := b.planes[Direct].serves(); got != "api[1,2|]" {
			t.Errorf("later: %s", got)
		}
	})
}

func TestOverridesAreShownAndEnd(t *testing.T) {
	lb := lbOf("api", 2)
	run(t, []LoadBalancer{lb}, nil, func(b *bench) {
		five := 5
		b.b.SetOverrides(map[Target]Override{{"api", addr(1)}: {Out: Drain}, {"api", addr(2)}: {Weight: &five},
			{"etcd", addr(2)}: {Out: Disable}})
		synctest.Wait()
		s := b.b.Status().LoadBalancers[0].Backends
		if s[0].State != Draining || s[0].Override != "drain" || s[1].State != Up || s[1].Weight != 5 ||
			s[1].Override != "weight 5" {
			t.Errorf("shown as %+v", s)
		}
		b.b.SetOverrides(nil)
		if got := b.planes[Direct].serves(); got != "api[1,2|]" {
			t.Errorf("after the end: %s", got)
		}
		if n := b.logged("the operator's order"); n != 4 {
			t.Errorf("logged %d times, want 4\n%s", n, b.out.String())
		}
	})
}

// downinter is for backends that are down, fastinter for those in doubt, inter for others.
func TestIntervals(t *testing.T) {
	c := usual
	c.DownInter = 20 * time.Second
	s := newServers()
	watch(t, s, c, 1, func(m *monitor, _ func() []string) {
		time.Sleep(20 * time.Second)
		if n := s.asked(addr(1)); n < 9 || n > 12 {
			t.Errorf("checked %d times in 20 s, want about 10", n)
		}
		s.set(addr(1), errRefused)
		time.Sleep(10 * time.Second)
		if h := state(t, m, 1); h.State != Down {
			t.Fatalf("%+v", h)
		}
		n := s.asked(addr(1))
		time.Sleep(100 * time.Second)
		if n = s.asked(addr(1)) - n; n < 4 || n > 6 {
			t.Errorf("a dead one was checked %d times in 100 s, want about 5", n)
		}
		s.set(addr(1), nil)
		time.Sleep(23 * time.Second) // one slow, one fast
		if h := state(t, m, 1); h.State != Up {
			t.Errorf("%+v", h)
		}
	})
}

// A server that first refused, and then turns out to speak something else, is one more
// line in the log, with what to write.
func TestMismatchIsLogged(t *testing.T) {
	lb := lbOf("api", 1)
	run(t, []LoadBalancer{lb}, func(b *bench) { b.s.set(addr(1), errRefused) }, func(b *bench) {
		time.Sleep(10 * time.Second)
		b.s.set(addr(1), &Mismatch{"answers in plain HTTP", "check: {type: http}"})
		time.Sleep(20 * time.Second)
		if n := b.logged("check: {type: http}"); n != 1 {
			t.Errorf("logged %d times\n%s", n, b.out.String())
		}
	})
}

// TestDisabledIsShown: status says who keeps a backend out, and an order goes before the configuration.
func TestDisabledIsShown(t *testing.T) {
	lb := lbOf("api", 3)
	lb.Backends[0].Disabled, lb.Backends[1].Disabled = true, true
	run(t, []LoadBalancer{lb}, func(b *bench) {
		b.b.SetOverrides(map[Target]Override{{"api", addr(2)}: {Out: Enable}, {"api", addr(3)}: {Out: Disable}})
	}, func(b *bench) {
		var got []string
		for _, be := range b.b.Health()[0].Backends {
			got = append(got, fmt.Sprint(be.State, " ", be.Disabled, " ", be.Reason, " ", be.Override))
		}
		want := []string{"down true disabled in the configuration ", "up false the check succeeds enable",
			"down true disabled by the operator disable"}
		if !slices.Equal(got, want) {
			t.Errorf("shown as %q, want %q", got, want)
		}
	})
}

// TestOwnCheck: a backend with a check of its own is checked in that way, the others as the load balancer says.
func TestOwnCheck(t *testing.T) {
	open, closed := raw(t, func(net.Conn) {}), closedPort(t)
	at := open.Addr
	lb := LoadBalancer{Name: "api", Check: Check{Type: CheckTCP, Port: closed.Addr.Port()}, Backends: []Backend{
		{Addr: at, Weight: 1, Check: &Check{Type: CheckTCP}},
		{Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), at.Port()), Weight: 1,
			Check: &Check{Type: CheckTCP, Port: at.Port(), Address: at.Addr()}},
		{Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.3"), at.Port()), Weight: 1},
	}}
	b, err := New(Config{LoadBalancers: []LoadBalancer{lb}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	defer func() { cancel(); <-done }()
	want := []BackendState{Up, Up, Down}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var got []BackendState
		for _, be := range b.Health()[0].Backends {
			got = append(got, be.State)
		}
		if slices.Equal(got, want) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("states %v, want %v", got, want)
		}
	}
	lb.Backends[1].Check = &Check{Type: "ping"}
	if err := b.Set([]LoadBalancer{lb}); err == nil || !strings.Contains(err.Error(), `backend 127.0.0.2`) {
		t.Errorf("error %v", err)
	}
}

// TestCheckSendsProxy: a check begins with the header that the server waits for.
func TestCheckSendsProxy(t *testing.T) {
	for version, want := range map[string]string{
		"v1": "PROXY UNKNOWN\r\nGET ", "v2": "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00GET ", "": "GET /readyz HTTP",
	} {
		server := raw(t, func(c net.Conn) {
			got := make([]byte, len(want))
			if _, err := io.ReadFull(c, got); err == nil && string(got) == want {
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}
			c.Close()
		})
		if err := probeOnce(t, Check{Type: CheckHTTP, SendProxy: version}, server); err != nil {
			t.Errorf("%q: %v", version, err)
		}
	}
}

// TestCheckInWords: people are told what is checked and where, and no secret of a query.
func TestCheckInWords(t *testing.T) {
	host := netip.MustParseAddr("192.0.2.99")
	for want, c := range map[string]Check{
		"https GET /readyz":                 {},
		"http HEAD /up?... at port 8080":    {Type: CheckHTTP, Method: "HEAD", Path: "/up?token=x", Port: 8080},
		"none":                              {Type: CheckNone, Port: 8080},
		"tcp at 192.0.2.99":                 {Type: CheckTCP, Address: host},
		"redis over TLS at 192.0.2.99:6380": {Type: CheckRedis, Address: host, Port: 6380, TLS: TLSOptions{On: true}},
		"program /bin/check at 192.0.2.99":  {Type: CheckProgram, Exec: []string{"/bin/check", "secret"}, Address: host},
		"exchange of 2 steps":               {Type: CheckExchange, Steps: []CheckStep{{Send: "a"}, {Expect: "b"}}},
	} {
		if c, err := c.withDefaults(); err != nil || c.String() != want {
			t.Errorf("%q, want %q, %v", c, want, err)
		}
	}
}

// TestOwnCheckIsShown: status names the check of the load balancer, and that of a backend only if it is another.
func TestOwnCheckIsShown(t *testing.T) {
	lb := lbOf("api", 2)
	lb.Check, lb.Backends[1].Check = Check{}, &Check{Type: CheckTCP}
	run(t, []LoadBalancer{lb}, nil, func(b *bench) {
		s := b.b.Health()[0]
		if s.Check != "https GET /readyz" || s.Backends[0].Check != "" || s.Backends[1].Check != "tcp" {
			t.Errorf("%q, %q, %q", s.Check, s.Backends[0].Check, s.Backends[1].Check)
		}
	})
}
