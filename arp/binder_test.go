package arp

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// A recorder is a Silencer that records its calls and whether the VIP was on lo.
type recorder struct {
	t        *testing.T
	lo       int
	calls    []string
	last     []Silenced
	repaired int
	err      error
}

func (r *recorder) Silence(_ context.Context, set []Silenced) (int, error) {
	all, err := addresses()
	if err != nil {
		r.t.Fatal(err)
	}
	call := "silence"
	if len(set) == 0 {
		call = "lift"
	}
	if slices.ContainsFunc(all, func(a address) bool { return a.index == r.lo && a.addr == vip4 }) {
		call += " while bound"
	}
	r.calls = append(r.calls, call)
	r.last = set
	return r.repaired, r.err
}

// The VIP is never on lo while the kernel would answer for it.
func TestSilencedWhileBound(t *testing.T) {
	h := newLAN(t).host("198.51.100.1/24", "192.0.2.11/24")
	within(t, h.ns, func() error {
		lo, err := loIndex()
		if err != nil {
			return err
		}
		r := &recorder{t: t, lo: lo, err: errors.New("nf_tables is missing")}
		var log strings.Builder
		w, err := Open(Config{
			VIPs:     []VIP{{vip4, "eth0"}, {vip6, "eth0"}},
			Silencer: r,
			Log:      slog.New(slog.NewTextHandler(&log, nil)),
		})
		if err != nil {
			return err
		}
		if len(r.calls) != 0 {
			t.Errorf("Open called the Silencer")
		}
		b := w.binder

		if err := b.reconcile(t.Context()); err == nil {
			t.Error("no error though the kernel answers")
		}
		if w.Status()[0].Bound {
			t.Error("bound though the kernel answers")
		}
		r.err = nil
		if err := b.reconcile(t.Context()); err != nil {
			return err
		}
		// Requests carry the node's address in the VIP's own subnet.
		if want := []Silenced{{vip4, "eth0", netip.MustParseAddr("192.0.2.11")}}; !slices.Equal(r.last, want) {
			t.Errorf("silenced %v, want %v", r.last, want)
		}
		r.repaired = 1
		for range 3 {
			if err := b.reconcile(t.Context()); err != nil {
				return err
			}
		}
		if n := strings.Count(log.String(), "silence had been lifted"); n != 1 {
			t.Errorf("a repair that repeats was logged %d times", n)
		}
		s := w.Status()
		if !s[0].Bound || !s[1].Bound || s[0].Repairs != 3 {
			t.Errorf("status %+v", s)
		}
		// A kernel that can no longer be silenced drops the VIP at the end of its lifetime, because nothing renews it.
		b.renewed = time.Now().Add(-time.Hour)
		r.err = errors.New("nf_tables is gone")
		if err := b.reconcile(t.Context()); err == nil || time.Since(b.renewed) < time.Minute {
			t.Errorf("renewed though the kernel answers: %v", err)
		}
		r.err = nil
		// release runs after the context has ended.
		ended, end := context.WithCancel(t.Context())
		end()
		if err := b.release(ended); err != nil {
			return err
		}
		want := append([]string{"silence", "silence"}, slices.Repeat([]string{"silence while bound"}, 4)...)
		want = append(want, "lift")
		if !slices.Equal(r.calls, want) {
			t.Errorf("calls %q, want %q", r.calls, want)
		}
		if s := w.Status(); s[0].Bound || s[1].Bound {
			t.Errorf("status after release %+v", s)
		}
		return nil
	})
	if got := h.loAddrs(); len(got) != 0 {
		t.Errorf("left on lo: %v", got)
	}
}

// Something else has the VIPs on an interface of this host, and is to be replaced: the kernel answers for them until
// they are given up, or until somebody answers.
func TestBesideSomethingElse(t *testing.T) {
	h := newLAN(t).host("192.0.2.11/24")
	within(t, h.ns, func() error {
		lo, err := loIndex()
		if err != nil {
			return err
		}
		r, beside := &recorder{t: t, lo: lo}, true
		open := func() (*Wire, error) {
			return Open(Config{VIPs: []VIP{{vip4, "eth0"}, {vip6, "eth0"}}, Silencer: r, Beside: func() bool { return beside }})
		}
		w, err := open()
		if err != nil {
			return err
		}
		eth0, _, _ := w.links.get("eth0")
		theirs := func(change func(netip.Addr) error) {
			for _, vip := range []netip.Addr{vip4, vip6} {
				if err := change(vip); err != nil {
					t.Fatal(err)
				}
			}
		}
		add := func(vip netip.Addr) error { return bind(vip, eth0.index, time.Hour) }
		remove := func(vip netip.Addr) error { return unbind(address{addr: vip, bits: vip.BitLen(), index: eth0.index}) }
		theirs(add)
		if w, err = open(); err != nil {
			return err
		}
		beside = false
		if _, err := open(); err == nil || !strings.Contains(err.Error(), "bound on eth0 already") {
			t.Errorf("opened though something else has the VIPs: %v", err)
		}
		look := func(silenced int, here int) {
			t.Helper()
			if err := w.binder.reconcile(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !w.Status()[0].Bound || !w.Status()[1].Bound {
				t.Error("the VIPs are not on lo, where the packets of open connections are to be taken later")
			}
			if len(r.last) != silenced {
				t.Errorf("silenced %v", r.last)
			}
			found, err := w.Ask(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(found) != here || here > 0 && (!found[0].Here || found[0].Interface != "eth0") {
				t.Errorf("Ask found %+v", found)
			}
		}
		beside = true
		look(0, 2)
		theirs(remove)
		look(1, 0)
		// It takes them again, as when another box of theirs has failed: the kernel answers again.
		theirs(add)
		look(0, 2)
		if last := r.calls[len(r.calls)-1]; last != "lift while bound" {
			t.Errorf("last call: %s", last)
		}
		beside = false // the group answers
		look(1, 0)
		return nil
	})
}

// Something else (NetworkManager, keepalived) binds the VIP while we run.
func TestVIPElsewhereIsLoggedOnce(t *testing.T) {
	h := newLAN(t).host("192.0.2.11/24")
	within(t, h.ns, func() error {
		var log strings.Builder
		w, err := Open(Config{VIPs: []VIP{{vip6, "eth0"}}, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			return err
		}
		b := w.binder
		s, _, _ := w.links.get("eth0")
		if err := bind(vip6, s.index, time.Hour); err != nil {
			return err
		}
		for range 2 {
			if err := b.reconcile(t.Context()); err != nil {
				return err
			}
		}
		if n := strings.Count(log.String(), "ip addr del 2001:db8::10/128 dev eth0"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, &log)
		}
		return nil
	})
}
