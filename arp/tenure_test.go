package arp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A fakeSocket records what is sent, and when.
type fakeSocket struct {
	began time.Time
	err   error

	mu   sync.Mutex
	sent []sentPacket
}

type sentPacket struct {
	at   time.Duration
	kind packetKind
	to   netip.Addr
}

func (s *fakeSocket) send(p packet, may func() bool) error {
	if !may() {
		return errNotAllowed
	}
	if s.err != nil {
		return s.err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, sentPacket{time.Since(s.began), p.kind, p.to})
	return nil
}

func (s *fakeSocket) receive(func(message), func(string)) error { return nil }
func (s *fakeSocket) close() error                              { return nil }

func (s *fakeSocket) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = nil
}

// times lists when packets of a kind were sent.
func (s *fakeSocket) times(k packetKind) (times []time.Duration) {
	for _, p := range s.sent {
		if p.kind == k {
			times = append(times, p.at)
		}
	}
	return times
}

// fakeWire makes a Wire without a network.
func fakeWire(log *slog.Logger, vips ...netip.Addr) (*Wire, *fakeSocket) {
	w := &Wire{
		log:        log,
		vips:       make(map[netip.Addr]*vipState),
		reannounce: make(chan struct{}, 1),
		links:      newLinks([]string{"eth0"}),
	}
	w.links.states["eth0"] = linkState{index: 2, mac: "\x02\x00\x00\x00\x00\x01", admin: true, up: true}
	st := &fakeSocket{began: time.Now()}
	for _, v := range vips {
		w.vips[v] = &vipState{vip: VIP{v, "eth0"}}
		w.order = append(w.order, v)
		p := newResponder(w, responderKey{"eth0", v.Is6()}, []netip.Addr{v})
		p.set(st)
		w.responders = append(w.responders, p)
	}
	return w, st
}

func yes() bool { return true }

// hold runs f in the middle of a tenure and then ends it.
func hold(t *testing.T, w *Wire, may func() bool, f func()) {
	t.Helper()
	ctx, end := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Answer(ctx, may) }()
	synctest.Wait()
	f()
	synctest.Wait()
	end()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

const ms = time.Millisecond

func TestAnnouncementSchedule(t *testing.T) {
	want := []time.Duration{0, 50 * ms, 200 * ms, 1000 * ms, 2000 * ms, 5000 * ms, 35000 * ms, 65000 * ms}
	synctest.Test(t, func(t *testing.T) {
		w, st := fakeWire(slog.New(slog.DiscardHandler), vip4)
		w.Announce() // before the tenure: adds nothing
		hold(t, w, yes, func() { time.Sleep(70 * time.Second) })
		for _, k := range []packetKind{announceRequest, announceReply} {
			if got := st.times(k); !slices.Equal(got, want) {
				t.Errorf("kind %d sent at %v, want %v", k, got, want)
			}
		}
		if got, want := st.times(probe), []time.Duration{0, 5000 * ms, 35000 * ms, 65000 * ms}; !slices.Equal(
			got,
			want,
		) {
			t.Errorf("probes at %v, want %v", got, want)
		}
		n := len(st.sent)
		time.Sleep(time.Hour)
		if len(st.sent) != n {
			t.Error("sent after the tenure")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w, st := fakeWire(slog.New(slog.DiscardHandler), vip6)
		hold(t, w, yes, func() { time.Sleep(70 * time.Second) })
		if got := st.times(advertise); !slices.Equal(got, want) {
			t.Errorf("advertisements at %v, want %v", got, want)
		}
	})
}

func TestAnnounceBeginsTheBurstAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, st := fakeWire(slog.New(slog.DiscardHandler), vip4)
		hold(t, w, yes, func() {
			time.Sleep(10 * time.Second)
			st.forget()
			w.Announce()
			w.Announce() // one pending is enough
			time.Sleep(300 * ms)
		})
		if got, want := st.times(announceRequest), []time.Duration{10000 * ms, 10050 * ms, 10200 * ms}; !slices.Equal(
			got,
			want,
		) {
			t.Errorf("announced at %v, want %v", got, want)
		}
	})
}

func TestLeaseIsAskedBeforeEveryPacket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, st := fakeWire(slog.New(slog.DiscardHandler), vip4)
		var asked atomic.Int64
		// The lease runs out between the two packets of one announcement.
		may := func() bool { return asked.Add(1) <= 2 }
		hold(t, w, may, func() {
			time.Sleep(time.Second)
			w.deliver(message{kind: request, vip: vip4, via: w.responders[0]})
		})
		if len(st.sent) != 1 || st.sent[0].kind != announceRequest {
			t.Errorf("sent %v, want the one packet that the lease allowed", st.sent)
		}
		if s := w.Status()[0]; s.Announcements != 1 || s.Answers != 0 || s.Suppressed == 0 {
			t.Errorf("status %+v", s)
		}
	})
}

func TestRequestsOutsideATenureAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, st := fakeWire(slog.New(slog.DiscardHandler), vip4)
		asker := netip.MustParseAddr("192.0.2.99")
		q := message{kind: request, vip: vip4, from: asker, via: w.responders[0]}
		w.deliver(q)
		hold(t, w, yes, func() {})
		if got := st.times(reply); len(got) != 0 {
			t.Errorf("answered %d requests from before the tenure", len(got))
		}
		hold(t, w, yes, func() { w.deliver(q) })
		if got := st.times(reply); len(got) != 1 || st.sent[len(st.sent)-1].to != asker {
			t.Errorf("sent %v, want one answer", st.sent)
		}
	})
}

func TestOneTenureAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := fakeWire(slog.New(slog.DiscardHandler), vip4)
		hold(t, w, yes, func() {
			if err := w.Answer(t.Context(), yes); err == nil {
				t.Error("a second tenure began")
			}
		})
	})
}

func TestForeignClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		w, st := fakeWire(slog.New(slog.NewTextHandler(&log, nil)), vip4)
		var reported []Claim
		w.cfg.OnForeign = func(c Claim) { reported = append(reported, c) }
		claims := func(mac string) {
			w.deliver(message{kind: claim, vip: vip4, from: vip4, mac: mac, via: w.responders[0]})
		}
		const a, b = "\x02\x00\x00\x00\x00\x0a", "\x02\x00\x00\x00\x00\x0b"

		claims(a) // we do not hold it: somebody else may
		hold(t, w, yes, func() {
			time.Sleep(20 * time.Second)
			st.forget()
			for range 50 { // 5 s, a claim every 100 ms
				claims(a)
				time.Sleep(100 * ms)
			}
			claims(b)
		})
		// At most one in DEFEND_INTERVAL (RFC 5227, section 2.4).
		if got := st.times(announceReply); !slices.Equal(got, []time.Duration{20 * time.Second}) {
			t.Errorf("defended at %v, want once", got)
		}
		if s := w.Status()[0]; s.ForeignClaims != 51 || s.LastForeignMAC != "02:00:00:00:00:0b" {
			t.Errorf("status %+v", s)
		}
		if len(reported) != 2 || strings.Count(log.String(), "another machine claims") != 2 {
			t.Errorf("reported %v, want one per MAC; log:\n%s", reported, &log)
		}
		hold(t, w, yes, func() { claims(a) }) // the same, within logAgainAfter
		time.Sleep(logAgainAfter)
		hold(t, w, yes, func() { claims(a) }) // and after it
		if len(reported) != 3 {
			t.Errorf("reported %d times, want 3", len(reported))
		}
		hold(t, w, func() bool { return false }, func() { claims(a) })
		if s := w.Status()[0]; s.ForeignClaims != 53 {
			t.Errorf("%d claims, want none counted without a lease", s.ForeignClaims)
		}
		hold(t, w, yes, func() { // an attacker has many MACs
			for i := range 10 * claimantsMax {
				claims(fmt.Sprintf("\x02\x00\x00\x01%c%c", byte(i>>7), byte(i&127)))
				synctest.Wait()
			}
		})
		if len(reported) > claimantsMax+3 {
			t.Errorf("reported %d times, want no more than %d", len(reported), claimantsMax)
		}
	})
}

func TestSendErrorsAreLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		w, st := fakeWire(slog.New(slog.NewTextHandler(&log, nil)), vip4)
		st.err = errors.New("no buffer space")
		hold(t, w, yes, func() { time.Sleep(time.Minute) })
		if n := strings.Count(log.String(), "cannot send"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, &log)
		}
		if s := w.Status()[0]; s.Announcements != 0 {
			t.Errorf("%d announcements counted", s.Announcements)
		}
	})
}

func TestNothingIsSentWithoutCarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, st := fakeWire(slog.New(slog.DiscardHandler), vip4)
		s := w.links.states["eth0"]
		s.up = false
		w.links.states["eth0"] = s
		if f, _ := w.Fault(); f.String() != "eth0 has no carrier" {
			t.Errorf("fault %q", f)
		}
		hold(t, w, yes, func() { w.deliver(message{kind: request, vip: vip4, via: w.responders[0]}) })
		if len(st.sent) != 0 {
			t.Errorf("sent %v", st.sent)
		}
	})
}
