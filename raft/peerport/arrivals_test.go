package peerport

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"appliance/raft/auth"
)

// A caller is a connection from an address.
type caller struct {
	net.Conn
	from netip.Addr
}

func (c caller) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.from, 1)) }

// TestPlacesOfArrivals: who has many connections gives way to who has few, and those that take long to all.
func TestPlacesOfArrivals(t *testing.T) {
	calls := func(n byte) net.Conn { return &caller{from: netip.AddrFrom4([4]byte{192, 0, 2, n})} }
	now := time.Now()
	var a arrivals
	enter := func(conn net.Conn, after time.Duration) string {
		out, ok := a.enter(conn, now.Add(after))
		if out == nil {
			return fmt.Sprint(ok)
		}
		return fmt.Sprint("for ", out.(*caller).from)
	}
	var first net.Conn
	for i := range MaxHandshakes {
		c := calls(byte(1 + i%2)) // sixteen each
		if i == 0 {
			first = c
		}
		if got := enter(c, 0); got != "true" {
			t.Fatalf("connection %d: %s", i, got)
		}
	}
	for _, tt := range []struct {
		from  byte
		after time.Duration
		want  string
	}{
		{1, 0, "false"},
		{3, 0, "for 192.0.2.1"},             // sixteen against none
		{3, 0, "for 192.0.2.2"},             // sixteen against one
		{2, 0, "false"},                     // fifteen against fifteen
		{2, slowHandshake, "for 192.0.2.1"}, // its oldest has had its time
		{4, slowHandshake, "for 192.0.2.2"}, // the busiest now
		{1, slowHandshake, "for 192.0.2.2"},
		{1, slowHandshake, "for 192.0.2.1"},
	} {
		if got := enter(calls(tt.from), tt.after); got != tt.want {
			t.Errorf("one more from 192.0.2.%d after %v: %s, want %s", tt.from, tt.after, got, tt.want)
		}
	}
	if a.leave(first) {
		t.Error("one that had to go is still there")
	}
	if n := len(a.all); n != MaxHandshakes || !a.leave(a.all[0].conn) || len(a.all) != n-1 {
		t.Errorf("%d are there", n)
	}
}

// TestSilentStrangersKeepNobodyOut: while ten thousand connections of a stranger say nothing, a peer gets in, and so does
// a worker, of whose address nothing is known.
func TestSilentStrangersKeepNobodyOut(t *testing.T) {
	key := auth.GenerateKey()
	open := func(id string, role auth.CertRole, bind string) *Port {
		cred, err := auth.FromKeys([]auth.Key{key}, id, role)
		if err != nil {
			t.Fatal(err)
		}
		p, err := Listen(netip.MustParseAddrPort(bind), cred, Network{}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := open("a", auth.Peer, "127.0.0.1:0")
	at := netip.MustParseAddrPort(p.l.Addr().String())
	p.Expect([]netip.AddrPort{netip.MustParseAddrPort("127.0.0.3:1")})
	var served sync.WaitGroup
	served.Go(func() {
		p.Serve(map[byte]func(net.Conn, auth.Identity){PreambleControl: func(c net.Conn, _ auth.Identity) {
			c.Write([]byte{1})
			c.Close()
		}})
	})
	defer served.Wait()
	defer p.Close()

	from := func(addr string) *net.Dialer { return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}} }
	ctx, end := context.WithTimeout(t.Context(), time.Minute)
	defer end()
	var flood sync.WaitGroup
	var sent atomic.Int64
	over := make(chan struct{})
	flood.Go(func() {
		defer close(over)
		held := make([]net.Conn, 500)
		for i := range 10_000 {
			c, err := from("127.0.0.9").DialContext(ctx, "tcp", at.String())
			if err != nil {
				t.Error(err)
				return
			}
			sent.Add(1)
			if old := held[i%len(held)]; old != nil {
				old.Close()
			}
			held[i%len(held)] = c
		}
		for _, c := range held {
			c.Close()
		}
	})
	defer flood.Wait()
	for sent.Load() < 2*MaxHandshakes && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	var tries sync.WaitGroup
	defer tries.Wait()
	for name, who := range map[string]struct {
		role auth.CertRole
		addr string
	}{"a worker": {auth.Worker, "127.0.0.2"}, "a peer": {auth.Peer, "127.0.0.3"}} {
		q := open("b", who.role, "127.0.0.1:0")
		defer q.Close()
		q.dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			return from(who.addr).DialContext(ctx, "tcp", to.String())
		}
		tries.Go(func() {
			for n := 0; ; n++ {
				c, err := q.Open(ctx, at, "a", PreambleControl)
				if err == nil {
					_, err = c.Read(make([]byte, 1))
					c.Close()
				}
				if err != nil {
					t.Errorf("%s is kept out at its try %d, after %d silent connections: %v", name, n, sent.Load(), err)
					return
				}
				select {
				case <-over:
					t.Logf("%s was let in %d times, beside %d silent connections", name, n, sent.Load())
					return
				case <-time.After(10 * time.Millisecond):
				}
			}
		})
	}
}
