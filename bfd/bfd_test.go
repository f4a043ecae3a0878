package bfd

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestPackets(t *testing.T) {
	p := packet{diag: diagExpired, state: Up, poll: true, mult: 3, mine: 7, yours: 9,
		minTx: 50 * time.Millisecond, minRx: 60 * time.Millisecond}
	got, err := decode(p.encode())
	if err != nil || got != p {
		t.Errorf("%+v became %+v, %v", p, got, err)
	}
	for name, change := range map[string]func(b []byte) []byte{
		"short":            func(b []byte) []byte { return b[:23] },
		"length too short": func(b []byte) []byte { b[3] = 23; return b },
		"length too long":  func(b []byte) []byte { b[3] = 25; return b },
		"version":          func(b []byte) []byte { b[0] = 2 << 5; return b },
		"multiplier":       func(b []byte) []byte { b[2] = 0; return b },
		"multipoint":       func(b []byte) []byte { b[1] |= flagMultipoint; return b },
		"authentication":   func(b []byte) []byte { b[1] |= flagAuth; return b },
		"no discriminator": func(b []byte) []byte { copy(b[4:8], make([]byte, 4)); return b },
		"none of ours":     func(b []byte) []byte { copy(b[8:12], make([]byte, 4)); return b },
	} {
		if p, err := decode(change(p.encode())); err == nil {
			t.Errorf("%s: it was taken as %+v", name, p)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(packet{state: Down, mult: 3, mine: 1}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decode(b)
		if err != nil {
			return
		}
		if again, err := decode(p.encode()); err != nil || again != p {
			t.Errorf("%+v became %+v, %v", p, again, err)
		}
		m := newMachine(50*time.Millisecond, 3, 1)
		m.receive(p, time.Unix(1, 0))
		m.expire(time.Unix(1e6, 0))
		m.packet(false).encode()
	})
}

// The table of RFC 5880, section 6.2: own state and what is received make the next.
func TestStates(t *testing.T) {
	for _, tt := range []struct {
		own, received, want Liveness
		lost                bool
	}{
		{Down, AdminDown, Down, false}, {Down, Down, Init, false}, {Down, Init, Up, false}, {Down, Up, Down, false},
		{Init, AdminDown, Down, false}, {Init, Down, Init, false}, {Init, Init, Up, false}, {Init, Up, Up, false},
		{Up, AdminDown, Down, false}, {Up, Down, Down, true}, {Up, Init, Up, false}, {Up, Up, Up, false},
	} {
		m := newMachine(50*time.Millisecond, 3, 1)
		m.state = tt.own
		lost := m.receive(packet{state: tt.received, mult: 3, mine: 2, yours: 1}, time.Now())
		if m.state != tt.want || (lost != "") != tt.lost {
			t.Errorf("%s in %s leads to %s, lost %q; want %s, lost %v", tt.received, tt.own, m.state, lost, tt.want, tt.lost)
		}
	}
}

// Two machines come up, agree on the interval, and notice silence within the detection time.
func TestTwoMachines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const interval = 50 * time.Millisecond
		a, b := newMachine(interval, 3, 1), newMachine(2*interval, 5, 2)
		if a.every() != slowTx {
			t.Errorf("it sends every %v before it is up", a.every())
		}
		for range 4 {
			b.receive(a.packet(false), time.Now())
			a.receive(b.packet(false), time.Now())
		}
		if a.state != Up || b.state != Up || !a.polling {
			t.Fatalf("%s and %s, polling %v", a.state, b.state, a.polling)
		}
		a.receive(b.packet(true), time.Now())
		if a.polling {
			t.Error("a final packet does not end the poll")
		}
		if a.every() != 2*interval || b.every() != 2*interval { // the slower of what one sends and the other takes
			t.Errorf("they send every %v and %v", a.every(), b.every())
		}
		if a.detection() != 5*2*interval || b.detection() != 3*2*interval {
			t.Errorf("they notice silence within %v and %v", a.detection(), b.detection())
		}
		time.Sleep(a.detection() - time.Millisecond)
		if lost := a.expire(time.Now()); lost != "" {
			t.Errorf("it is down too early: %s", lost)
		}
		time.Sleep(time.Millisecond)
		if lost := a.expire(time.Now()); !strings.Contains(lost, "500ms") || a.state != Down || a.diag != diagExpired {
			t.Errorf("lost %q, state %s", lost, a.state)
		}
		if a.packet(false).yours != 0 {
			t.Error("the old discriminator is still sent")
		}
	})
}

// TestChangeOfStateIsSaidAtOnce: a router that is not up yet may want a packet a second, and misses a loss until it is.
func TestChangeOfStateIsSaidAtOnce(t *testing.T) {
	router := netip.MustParseAddrPort("127.0.0.9:3784")
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(router))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s := New(Config{
		Peers: []Router{{Addr: router.Addr(), Interval: 50 * time.Millisecond, Multiplier: 3}},
		Log:   slog.New(slog.DiscardHandler), OnDown: func(netip.Addr, string) {},
	}).sessions[0]
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	defer func() {
		cancel()
		<-done
	}()
	heard := func(want Liveness) {
		t.Helper()
		for b := make([]byte, 100); ; {
			n, err := conn.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			if p, err := decode(b[:n]); err == nil && p.state == want {
				return
			}
		}
	}
	heard(Down)
	fastest := time.Hour
	for range 10 { // a busy machine may be late, and not each time
		for _, say := range []Liveness{Init, Down} {
			began := time.Now()
			s.received <- packet{state: say, mine: 7, yours: s.machine.local, minTx: slowTx, minRx: slowTx, mult: 3}
			if say == Init {
				heard(Up)
			} else {
				heard(Down)
			}
			fastest = min(fastest, time.Since(began))
		}
		if fastest < slowTx/4 {
			return
		}
	}
	t.Errorf("a change of state is said after %v at best", fastest)
}
