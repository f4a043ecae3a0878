package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// site is a lab with two servers, which both can take the VIP, a client and a
// watcher, all of one family.
type site struct {
	lab             *Lab
	a, b            *Machine
	client, watcher *Machine
	vip             netip.Prefix
	target          netip.AddrPort
}

func newSite(t *testing.T, is4 bool) *site {
	t.Helper()
	s := &site{lab: newLab(t)}
	net, bits := "10.77.0.%d", 24
	if !is4 {
		net, bits = "fd77::%d", 64
	}
	addr := func(n int) netip.Prefix {
		return netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf(net, n)), bits)
	}
	s.a = node(t, s.lab, "a", addr(11).String())
	s.b = node(t, s.lab, "b", addr(12).String())
	s.client = node(t, s.lab, "client", addr(50).String())
	var err error
	s.watcher, err = s.lab.Machine("watcher", Range(addr(200), 32)...)
	if err != nil {
		t.Fatal(err)
	}
	s.vip = addr(10)
	s.target = netip.AddrPortFrom(s.vip.Addr(), 6443)
	return s
}

// take gives the VIP to a machine or takes it away.
func (s *site) take(t *testing.T, n *Machine, takes bool) {
	t.Helper()
	err := n.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		a := &netlink.Addr{IPNet: ipNet(s.vip), Flags: 2 /* IFA_F_NODAD */}
		if s.vip.Addr().Is4() {
			a.Flags = 0
		}
		if takes {
			return netlink.AddrAdd(link, a)
		}
		return netlink.AddrDel(link, a)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestResolver moves an address between two machines, and then gives it to both.
func TestResolver(t *testing.T) {
	for _, is4 := range []bool{true, false} {
		t.Run(fmt.Sprintf("IPv4 %v", is4), func(t *testing.T) {
			s := newSite(t, is4)
			w, err := s.watcher.Resolve(t.Context(), Resolve{VIP: s.vip.Addr()})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Stop()

			time.Sleep(100 * time.Millisecond)
			if cs := w.Replies(); len(cs) > 0 {
				t.Errorf("somebody answers for an address that nobody has: %v", cs[0])
			}

			answeredBy := func(n *Machine, since time.Time) {
				t.Helper()
				eventually(t, n.Name+" answers", func() error {
					macs := w.Replies().Since(since).MACs()
					for _, m := range macs {
						if m == n.MAC().String() {
							return nil
						}
					}
					return fmt.Errorf("%v answer", macs)
				})
			}
			start := time.Now()
			s.take(t, s.a, true)
			answeredBy(s.a, start)
			// Each request is answered, and by its own answer.
			time.Sleep(500 * time.Millisecond)
			cs := w.Replies()
			if len(cs) < 20 {
				t.Errorf("%d answers in half a second", len(cs))
			}
			for _, c := range cs {
				if c.Asked.IsZero() || c.Asked.After(c.At) {
					t.Fatalf("the answer %v belongs to no request before it", c)
				}
			}

			moved := time.Now()
			s.take(t, s.a, false)
			s.take(t, s.b, true)
			answeredBy(s.b, moved)
			time.Sleep(200 * time.Millisecond)
			if o := w.Replies().Overlap(); o != 0 {
				t.Errorf("two answered for %s in a clean move\n%s", o, w.Replies().Around())
			}
			if turns := w.Replies().Turns(); len(turns) != 2 || turns[1] != s.b.MAC().String() {
				t.Errorf("turns %v, want %s, then %s", turns, s.a.MAC(), s.b.MAC())
			}

			both := time.Now()
			s.take(t, s.a, true)
			answeredBy(s.a, both)
			time.Sleep(300 * time.Millisecond)
			s.take(t, s.a, false)
			if o := w.Replies().Overlap(); o < 200*time.Millisecond || o > time.Since(both)+time.Second {
				t.Errorf("two answered for %s, want 300 ms or a little more", o)
			}
			if err := w.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestResolverNeedsFamily(t *testing.T) {
	s := newSite(t, true)
	if _, err := s.watcher.Resolve(t.Context(), Resolve{VIP: netip.MustParseAddr("fd77::10")}); err == nil {
		t.Error("an IPv6 address is watched from a machine without IPv6")
	}
}

// TestProbe takes a service away and brings it back.
func TestProbe(t *testing.T) {
	ca, err := NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	for _, withTLS := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %v", withTLS), func(t *testing.T) {
			s := newSite(t, true)
			var ss Servers
			defer ss.Close()
			s.take(t, s.a, true)
			// A busy machine is late with some answers; what counts here is who gives none.
			probe := Probe{Target: s.target, Every: 20 * time.Millisecond, Patience: 5 * time.Second}
			config, err := ca.Server(s.vip.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			if withTLS {
				probe.TLS = ca.Client(s.vip.Addr().String())
			} else {
				config = nil
			}
			server, err := ss.Serve(s.a, "one", s.target, config)
			if err != nil {
				t.Fatal(err)
			}
			p := s.client.Probe(t.Context(), probe)
			defer p.Stop()
			if o, err := p.WaitSteady(within(t, 30*time.Second), time.Now()); err != nil {
				t.Fatal(o, err)
			}
			fault := time.Now()
			server.Close()
			time.Sleep(300 * time.Millisecond)
			back := time.Now()
			if _, err := ss.Serve(s.a, "two", s.target, config); err != nil {
				t.Fatal(err)
			}
			o, err := p.WaitSteady(within(t, 30*time.Second), fault)
			if err != nil {
				t.Fatal(o, err)
			}
			// The service was away from fault to back at least.
			if o.First < back.Sub(fault)-50*time.Millisecond || o.Failed == 0 || o.LastErr == nil {
				t.Errorf("an outage of %s is seen as %s", back.Sub(fault), o)
			}
			if o.Steady < o.First {
				t.Errorf("steady after %s, before the first success after %s", o.Steady, o.First)
			}
			tries := p.Tries()
			if first, last := tries[0], tries[len(tries)-1]; first.Server != "one" || last.Server != "two" {
				t.Errorf("answers are from %q and at the end from %q", first.Server, last.Server)
			}
			if server.Requests() == 0 {
				t.Error("the first server counted no requests")
			}
		})
	}
}

// TestProbeDistrusts lets a client of another authority try.
func TestProbeDistrusts(t *testing.T) {
	s := newSite(t, true)
	ca, err := NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	config, err := ca.Server("10.77.0.11")
	if err != nil {
		t.Fatal(err)
	}
	var ss Servers
	defer ss.Close()
	server, err := ss.Serve(s.a, "a", netip.MustParseAddrPort("10.77.0.11:6443"), config)
	if err != nil {
		t.Fatal(err)
	}
	p := s.client.Probe(t.Context(), Probe{Target: server.Addr, TLS: other.Client("10.77.0.11")})
	defer p.Stop()
	eventually(t, "a try fails", func() error {
		for _, try := range p.Tries() {
			if try.Err != nil {
				return nil
			}
		}
		return fmt.Errorf("no failure yet")
	})
	if _, err := p.WaitSteady(within(t, 200*time.Millisecond), time.Now()); err == nil {
		t.Error("a client that distrusts the server is served")
	}
}

// TestLongConns breaks connections in both ways in which they can be lost.
func TestLongConns(t *testing.T) {
	for _, withTLS := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %v", withTLS), func(t *testing.T) {
			s := newSite(t, true)
			l := LongConns{Target: netip.AddrPortFrom(s.a.Addr(true), 6443), N: 20}
			ca, err := NewAuthority()
			if err != nil {
				t.Fatal(err)
			}
			config, err := ca.Server("a")
			if err != nil {
				t.Fatal(err)
			}
			if withTLS {
				l.TLS = ca.Client("a")
			} else {
				config = nil
			}
			var ss Servers
			defer ss.Close()
			if _, err := ss.Serve(s.a, "a", l.Target, config); err != nil {
				t.Fatal(err)
			}
			cs, err := s.client.OpenConns(within(t, 20*time.Second), l)
			if err != nil {
				t.Fatal(err)
			}
			defer cs.Close()
			if n := cs.Await(within(t, 20*time.Second), time.Second); n.OK != l.N {
				t.Errorf("all is well, and it says %+v", n)
			}
			if err := s.lab.Cut(s.a, s.client); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
			n := cs.Await(within(t, 500*time.Millisecond), 0)
			if n.Hung != l.N || len(n.Lost) != l.N || n.Lost[0].Server != "a" {
				t.Errorf("nothing gets through, and it says %+v", n)
			}
			if err := s.lab.Heal(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "connections go on", func() error {
				if n := cs.Await(within(t, 20*time.Second), time.Second); n.OK != l.N {
					return fmt.Errorf("%+v", n)
				}
				return nil
			})
			ss.Close()
			eventually(t, "connections are seen to end", func() error {
				if n := cs.Await(within(t, 10*time.Millisecond), 0); n.Broken != l.N {
					return fmt.Errorf("%+v", n)
				}
				return nil
			})
		})
	}
}

func TestServersSpeakHTTP(t *testing.T) {
	s := newSite(t, true)
	var ss Servers
	defer ss.Close()
	addr := netip.AddrPortFrom(s.a.Addr(true), 6443)
	if _, err := ss.Serve(s.a, "a", addr, nil); err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return s.client.Dial(ctx, addr) },
	}}
	resp, err := client.Get("http://vip/livez")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || !strings.HasPrefix(string(body), "a 10.77.0.50:") {
		t.Errorf("the answer is %q, %v", body, err)
	}
}

func TestOpenConnsFails(t *testing.T) {
	s := newSite(t, true)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := s.client.OpenConns(ctx, LongConns{Target: s.target, N: 2}); err == nil {
		t.Error("connections to nobody opened")
	}
}
