package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A zone is a DNS server on loopback, over UDP and TCP on one port.
type zone struct {
	at netip.AddrPort

	mu       sync.Mutex
	records  map[string][]netip.Addr
	ttl      uint32
	mute     bool // answers nothing
	truncate bool // over UDP
	asked    map[string]int
}

func serveZone(t *testing.T) *zone {
	t.Helper()
	z := &zone{records: map[string][]netip.Addr{}, ttl: 30, asked: map[string]int{}}
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", udp.LocalAddr().String())
	if err != nil {
		udp.Close()
		t.Skipf("the port of the datagrams is taken for streams: %v", err)
	}
	z.at = udp.LocalAddr().(*net.UDPAddr).AddrPort()
	var serving sync.WaitGroup
	t.Cleanup(func() {
		udp.Close()
		tcp.Close()
		serving.Wait()
	})
	serving.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := udp.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if out := z.answer(buf[:n], true); out != nil {
				_, _ = udp.WriteToUDPAddrPort(out, from)
			}
		}
	})
	serving.Go(func() {
		for {
			conn, err := tcp.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
				var size [2]byte
				for {
					if _, err := io.ReadFull(conn, size[:]); err != nil {
						return
					}
					question := make([]byte, binary.BigEndian.Uint16(size[:]))
					if _, err := io.ReadFull(conn, question); err != nil {
						return
					}
					out := z.answer(question, false)
					_, _ = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...))
				}
			})
		}
	})
	return z
}

func (z *zone) set(name string, addrs ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.records[name] = nil
	for _, a := range addrs {
		z.records[name] = append(z.records[name], netip.MustParseAddr(a))
	}
}

func (z *zone) change(f func()) {
	z.mu.Lock()
	defer z.mu.Unlock()
	f()
}

func (z *zone) answer(question []byte, datagram bool) []byte {
	z.mu.Lock()
	defer z.mu.Unlock()
	var p dnsmessage.Parser
	h, err := p.Start(question)
	q, err2 := p.Question()
	if err != nil || err2 != nil || z.mute {
		return nil
	}
	name := strings.TrimSuffix(q.Name.String(), ".")
	z.asked[name]++
	addrs, known := z.records[name]
	h.Response, h.RecursionAvailable = true, true
	if !known {
		h.RCode = dnsmessage.RCodeNameError
	}
	if h.Truncated = z.truncate && datagram; h.Truncated {
		addrs = nil
	}
	b := dnsmessage.NewBuilder(nil, h)
	_ = b.StartQuestions()
	_ = b.Question(q)
	_ = b.StartAnswers()
	for _, a := range addrs {
		head := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: z.ttl}
		switch {
		case a.Is4() && q.Type == dnsmessage.TypeA:
			_ = b.AResource(head, dnsmessage.AResource{A: a.As4()})
		case a.Is6() && q.Type == dnsmessage.TypeAAAA:
			_ = b.AAAAResource(head, dnsmessage.AAAAResource{AAAA: a.As16()})
		}
	}
	out, _ := b.Finish()
	return out
}

func addrs(list ...string) (all []netip.Addr) {
	for _, s := range list {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

func TestLookUp(t *testing.T) {
	z := serveZone(t)
	z.set("api.example.org", "192.0.2.12", "2001:db8::1", "192.0.2.11")
	z.set("six.example.org", "2001:db8::6")
	for _, truncated := range []bool{false, true} {
		z.change(func() { z.truncate = truncated })
		r := &resolver{servers: []netip.AddrPort{z.at}}
		four, six, ttl := r.lookUp(t.Context(), "api.example.org.")
		if !slices.Equal(four.addrs, addrs("192.0.2.11", "192.0.2.12")) || !slices.Equal(six.addrs, addrs("2001:db8::1")) {
			t.Errorf("truncated %t: %+v, %+v", truncated, four, six)
		}
		if ttl != 30*time.Second {
			t.Errorf("truncated %t: the records live for %s, want 30s", truncated, ttl)
		}
		four, six, _ = r.lookUp(t.Context(), "six.example.org.")
		if !four.none || !slices.Equal(six.addrs, addrs("2001:db8::6")) {
			t.Errorf("truncated %t: %+v, %+v", truncated, four, six)
		}
		if four, six, _ = r.lookUp(t.Context(), "no.example.org."); !four.none || !six.none {
			t.Errorf("truncated %t: a name that is not there: %+v, %+v", truncated, four, six)
		}
	}
}

// TestDeadServer: a server that refuses is passed over, and stays so.
func TestDeadServer(t *testing.T) {
	gone, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	dead := gone.LocalAddr().(*net.UDPAddr).AddrPort()
	gone.Close()
	z := serveZone(t)
	z.set("api.example.org", "192.0.2.11")
	r := &resolver{servers: []netip.AddrPort{dead, z.at}}
	four, _, _ := r.lookUp(t.Context(), "api.example.org.")
	if !slices.Equal(four.addrs, addrs("192.0.2.11")) {
		t.Fatalf("%+v", four)
	}
	if four, six, _ := r.lookUp(t.Context(), "api.example.org."); four.err != nil && !four.none || !six.none {
		t.Errorf("the second look-up: %+v, %+v", four, six)
	}
}

// TestFollow: names are looked up as their records' life says, within the bounds, and the last answer stays while
// nobody answers.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		four, six, ttl := found{addrs: addrs("192.0.2.11")}, found{none: true, err: errors.New("none")}, time.Minute
		asked := 0
		var stored []byte
		n := Open(Config{Shortest: 5 * time.Second, Longest: 2 * time.Minute, Log: slog.New(slog.DiscardHandler),
			Keep: func(data []byte) error { stored = bytes.Clone(data); return nil }})
		n.lookUp = func(context.Context, string) (found, found, time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			asked++
			return four, six, ttl
		}
		set := func(f, s found, life time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			four, six, ttl, asked = f, s, life, 0
		}
		count := func() int {
			mu.Lock()
			defer mu.Unlock()
			return asked
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		n.Set([]string{"db"})
		if known := n.Known()["db"]; known.Error == "" || len(known.Addrs) > 0 {
			t.Errorf("before the first look-up: %+v", known)
		}
		var running sync.WaitGroup
		running.Go(func() { _ = n.Run(ctx) })
		want := func(what, why string, list ...string) {
			t.Helper()
			known := n.Known()["db"]
			if !slices.Equal(known.Addrs, addrs(list...)) || known.Error != why {
				t.Errorf("%s: %+v", what, known)
			}
		}
		synctest.Wait()
		want("at start", "", "192.0.2.11")
		<-n.Changed()

		down := found{err: errors.New("i/o timeout")}
		set(found{addrs: addrs("192.0.2.12", "192.0.2.13")}, found{addrs: addrs("2001:db8::1")}, time.Second)
		time.Sleep(time.Minute - time.Second)
		want("before the records' life is over", "", "192.0.2.11")
		time.Sleep(2 * time.Second)
		want("after it", "", "192.0.2.12", "192.0.2.13", "2001:db8::1")
		<-n.Changed()
		time.Sleep(time.Minute)
		if c := count(); c < 12 || c > 14 {
			t.Errorf("records that live for 1s were asked for %d times in a minute, want one each 5s", c)
		}

		set(down, down, 0)
		time.Sleep(time.Hour)
		want("while the DNS is away", "i/o timeout", "192.0.2.12", "192.0.2.13", "2001:db8::1")
		if c := count(); c > 60 {
			t.Errorf("a DNS that is away was asked %d times in an hour", c)
		}
		none := found{none: true, err: errors.New("no such host")}
		set(none, none, 0)
		time.Sleep(5 * time.Minute)
		want("while the zone is empty", "the DNS knows no address of it", "192.0.2.12", "192.0.2.13", "2001:db8::1")
		set(down, found{addrs: addrs("2001:db8::2")}, time.Hour)
		time.Sleep(5 * time.Minute)
		want("one family silent", "i/o timeout", "192.0.2.12", "192.0.2.13", "2001:db8::2")
		set(none, found{addrs: addrs("2001:db8::2")}, time.Hour)
		time.Sleep(5 * time.Minute)
		want("one family gone", "", "2001:db8::2")
		time.Sleep(10 * time.Minute)
		if c := count(); c < 5 {
			t.Errorf("records that live for 1h were asked for %d times in 15 minutes, want one each 2", c)
		}
		cancel()
		running.Wait()

		set(down, down, 0)
		again := Open(Config{Shortest: time.Second, Longest: time.Minute, Kept: stored, Log: slog.New(slog.DiscardHandler)})
		again.lookUp = n.lookUp
		again.Set([]string{"db", "never"})
		again.Await(t.Context())
		if known := again.Known(); !slices.Equal(known["db"].Addrs, addrs("2001:db8::2")) ||
			known["never"].Error != "i/o timeout" {
			t.Errorf("after a restart without DNS: %+v", known)
		}
	})
}

// TestUselessAnswers: what was kept by a later version, or damaged, is as good as nothing.
func TestUselessAnswers(t *testing.T) {
	for _, data := range []string{`{"format":2}`, `{`, `[]`} {
		n := Open(Config{Kept: []byte(data), Log: slog.New(slog.DiscardHandler)})
		n.Set([]string{"db"})
		if known := n.Known()["db"]; len(known.Addrs) > 0 {
			t.Errorf("%s: %+v", data, known)
		}
	}
}
