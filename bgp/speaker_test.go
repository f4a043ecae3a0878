package bgp

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jwhited/corebgp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait: a busy machine is slow, and a fault is there for good.
const patience = 30 * time.Second

var (
	loop   = netip.MustParseAddr("127.0.0.1")
	vip4   = netip.MustParseAddr("198.51.100.10")
	vip6   = netip.MustParseAddr("2001:db8:1::10")
	local6 = netip.MustParseAddr("2001:db8::11")
)

const (
	ownAS    = 64512
	routerAS = 4200000000
)

// A bench is a Speaker with one router, which the test plays.
type bench struct {
	*Speaker
	listener net.Listener
	changes  chan SessionChange
	stop     func()
}

// newBench runs a Speaker whose neighbour listens on loopback.
func newBench(t *testing.T, edit func(*Config)) *bench {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{listener: l, changes: make(chan SessionChange, 100)}
	cfg := Config{
		AS: ownAS, RouterID: netip.MustParseAddr("192.0.2.11"), HoldTime: 9 * time.Second,
		Neighbours: []Neighbour{{Addr: loop, AS: routerAS, Port: uint16(l.Addr().(*net.TCPAddr).Port), Hops: 1}},
		NextHop: func(local netip.Addr, is4, extended bool) (netip.Addr, error) {
			if is4 && !extended {
				return local, nil
			}
			return local6, nil
		},
		OnChange: func(c SessionChange) { b.changes <- c }, Log: slog.New(slog.DiscardHandler),
	}
	if edit != nil {
		edit(&cfg)
	}
	if b.Speaker, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	var once sync.Once
	b.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	t.Cleanup(func() { b.stop(); l.Close() })
	return b
}

// A router is its end of a connection.
type router struct {
	net.Conn
	t *testing.T
}

// accept waits until the Speaker connects.
func (b *bench) accept(t *testing.T) router {
	t.Helper()
	_ = b.listener.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	c, err := b.listener.Accept()
	if err != nil {
		t.Fatalf("nobody connects: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	return router{c, t}
}

func frame(kind byte, body []byte) []byte {
	m := make([]byte, headerSize, headerSize+len(body))
	for i := range 16 {
		m[i] = 0xff
	}
	binary.BigEndian.PutUint16(m[16:], uint16(headerSize+len(body)))
	m[18] = kind
	return append(m, body...)
}

// open is an OPEN message.
func open(as uint32, hold uint16, caps ...corebgp.Capability) []byte {
	var all []byte
	four := corebgp.Capability{Code: corebgp.CAP_FOUR_OCTET_AS, Value: binary.BigEndian.AppendUint32(nil, as)}
	for _, c := range append([]corebgp.Capability{four}, caps...) {
		all = append(append(all, c.Code, byte(len(c.Value))), c.Value...)
	}
	body := []byte{4, 23456 >> 8, 23456 & 0xff, byte(hold >> 8), byte(hold), 10, 0, 0, 1}
	body = append(body, byte(len(all)+2), 2, byte(len(all)))
	return frame(typeOpen, append(body, all...))
}

var bothFamilies = []corebgp.Capability{
	corebgp.NewMPExtensionsCapability(afiIPv4, safiUnicast), corebgp.NewMPExtensionsCapability(afiIPv6, safiUnicast),
}

func (r router) send(m []byte) {
	r.t.Helper()
	if _, err := r.Write(m); err != nil {
		r.t.Fatal(err)
	}
}

// next is the next message that is no keepalive, its type and body.
func (r router) next() (kind byte, body []byte, err error) {
	_ = r.SetReadDeadline(time.Now().Add(patience))
	for {
		m, err := readMessage(r)
		if err != nil {
			return 0, nil, err
		}
		if m[18] != 4 {
			return m[18], m[headerSize:], nil
		}
	}
}

// establish goes through the opening of a session.
func (r router) establish(caps ...corebgp.Capability) {
	r.t.Helper()
	if kind, _, err := r.next(); err != nil || kind != typeOpen {
		r.t.Fatalf("message %d, %v, want an OPEN", kind, err)
	}
	r.send(open(routerAS, 9, caps...))
	r.send(frame(4, nil))
}

// update is the next message, which has to be about routes.
func (r router) update() heard {
	r.t.Helper()
	kind, body, err := r.next()
	if err != nil || kind != typeUpdate {
		r.t.Fatalf("message %d, %v, want an UPDATE", kind, err)
	}
	return decode(r.t, body)
}

func (b *bench) change(t *testing.T) SessionChange {
	t.Helper()
	select {
	case c := <-b.changes:
		return c
	case <-time.After(patience):
		t.Fatal("no session begins or ends")
		return SessionChange{}
	}
}

func host(a netip.Addr) []netip.Prefix { return []netip.Prefix{netip.PrefixFrom(a, a.BitLen())} }

// A session tells what is wanted, then the differences, and ends with a Cease.
func TestSession(t *testing.T) {
	b := newBench(t, nil)
	b.Set(map[netip.Addr]RoutePath{vip4: {}, vip6: {Communities: []string{"64512:1"}}})
	r := b.accept(t)
	r.establish(bothFamilies...)
	if c := b.change(t); !c.Established || c.Neighbour != loop {
		t.Fatalf("%+v", c)
	}
	for _, want := range []heard{
		{Announced: host(vip4), ASPath: []uint32{ownAS}, NextHop: loop},
		{Announced: host(vip6), ASPath: []uint32{ownAS}, NextHop: local6, Communities: []uint32{64512<<16 | 1}},
	} {
		if diff := cmp.Diff(want, r.update(), same); diff != "" {
			t.Error(diff)
		}
	}
	b.Set(map[netip.Addr]RoutePath{vip4: {Leaving: true}})
	want := heard{Announced: host(vip4), ASPath: []uint32{ownAS}, NextHop: loop, Communities: []uint32{0xffff0000}}
	if diff := cmp.Diff(want, r.update(), same); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(heard{Withdrawn: host(vip6)}, r.update(), same); diff != "" {
		t.Error(diff)
	}
	// Routes of the router are read and forgotten.
	body, err := encodeAnnounce(netip.MustParseAddr("203.0.113.1"), announcement{nextHop: loop}, routerAS, ownAS)
	if err != nil {
		t.Fatal(err)
	}
	r.send(frame(typeUpdate, body))
	b.Set(nil)
	if diff := cmp.Diff(heard{Withdrawn: host(vip4)}, r.update(), same); diff != "" {
		t.Error(diff)
	}
	for deadline := time.Now().Add(patience); !b.Told(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the router was told of everything, and the speaker does not know")
		}
	}
	st := b.Status()[0]
	if st.State != "established" || st.HoldTime != 9*time.Second || st.RouterID != netip.MustParseAddr("10.0.0.1") {
		t.Errorf("status %+v", st)
	}
	go b.stop()
	kind, n, err := r.next()
	if err != nil || kind != typeNotification || n[0] != corebgp.NOTIF_CODE_CEASE || n[1] != ceaseShutdown {
		t.Errorf("message %d %v, %v, want a Cease for an administrative shutdown", kind, n, err)
	}
	b.stop()
	if c := b.change(t); c.Established || !strings.Contains(c.Reason, "this node ended the session") {
		t.Errorf("%+v", c)
	}
}

// A router that knows no IPv6 routes is not told of any, and the status says why.
func TestFamilyOfTheRouter(t *testing.T) {
	b := newBench(t, nil)
	b.Set(map[netip.Addr]RoutePath{vip4: {}, vip6: {}})
	r := b.accept(t)
	r.establish() // no capability of families: IPv4 alone
	if h := r.update(); len(h.Announced) != 1 || h.Announced[0].Addr() != vip4 {
		t.Errorf("heard %+v", h)
	}
	for deadline := time.Now().Add(patience); !b.Told(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not told")
		}
	}
	if why := b.Status()[0].Untold[vip6]; !strings.Contains(why, "takes no IPv6 routes") {
		t.Errorf("IPv6 is not announced because %q", why)
	}
}

// A router that takes next hops of IPv6 for IPv4 (RFC 8950) is given them over a session of IPv6; another is not.
func TestExtendedNextHop(t *testing.T) {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 on lo: ", err)
	}
	loop6, hop4 := netip.MustParseAddr("::1"), netip.MustParseAddr("192.0.2.11")
	b := newBench(t, func(cfg *Config) {
		cfg.Neighbours = []Neighbour{{Addr: loop6, AS: routerAS, Port: uint16(l.Addr().(*net.TCPAddr).Port), Hops: 1}}
		cfg.NextHop = func(local netip.Addr, is4, extended bool) (netip.Addr, error) {
			if is4 && !extended {
				return hop4, nil
			}
			return local, nil
		}
	})
	b.listener.Close()
	b.listener = l
	t.Cleanup(func() { l.Close() })
	for name, tt := range map[string]struct {
		capabilities []corebgp.Capability
		hop          netip.Addr
	}{
		"takes them": {append(bothFamilies, corebgp.Capability{
			// The value begins with labelled routes (SAFI 4), which are no business of this node.
			Code: capExtendedNextHop, Value: append([]byte{0, 1, 0, 4, 0, 2}, extendedNextHop...),
		}), loop6},
		"labelled routes only": {append(bothFamilies, corebgp.Capability{
			Code: capExtendedNextHop, Value: []byte{0, 1, 0, 4, 0, 2},
		}), hop4},
		"a broken capability": {append(bothFamilies, corebgp.Capability{
			Code: capExtendedNextHop, Value: []byte{0, 1},
		}), hop4},
		"knows nothing of it": {bothFamilies, hop4},
	} {
		b.Set(map[netip.Addr]RoutePath{vip4: {}, vip6: {}})
		r := b.accept(t)
		kind, body, err := r.next()
		if err != nil || kind != typeOpen || !strings.Contains(string(body), "\x05\x06"+string(extendedNextHop)) {
			t.Fatalf("message %d %x, %v, want an OPEN with the capability", kind, body, err)
		}
		r.send(open(routerAS, 9, tt.capabilities...))
		r.send(frame(4, nil))
		for _, want := range []heard{
			{Announced: host(vip4), ASPath: []uint32{ownAS}, NextHop: tt.hop},
			{Announced: host(vip6), ASPath: []uint32{ownAS}, NextHop: loop6},
		} {
			if diff := cmp.Diff(want, r.update(), same); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
		b.Set(map[netip.Addr]RoutePath{vip6: {}})
		if diff := cmp.Diff(heard{Withdrawn: host(vip4)}, r.update(), same); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		r.Close()
	}
}

// A router that restarts has its session back within seconds, whatever ended the one before.
func TestRouterComesBack(t *testing.T) {
	b := newBench(t, nil)
	b.Set(map[netip.Addr]RoutePath{vip4: {}})
	for i, end := range []func(router){
		func(r router) { r.Close() },
		func(r router) { r.send(frame(typeNotification, []byte{4, 0})) },                             // its hold timer
		func(r router) { r.send(frame(typeNotification, []byte{6, 2, 5, 'f', 'i', 'b', 'e', 'r'})) }, // maintenance
		func(r router) { b.BFDDown(loop, "silent for 150ms") },
	} {
		r := b.accept(t)
		r.establish(bothFamilies...)
		if !b.change(t).Established {
			t.Fatal("not established")
		}
		if h := r.update(); len(h.Announced) != 1 {
			t.Fatalf("session %d begins with %+v", i, h)
		}
		end(r)
		want := []string{"broke", "nothing was heard for the hold time", `"fiber"`, "BFD: silent for 150ms"}[i]
		if c := b.change(t); c.Established || !strings.Contains(c.Reason, want) {
			t.Errorf("session %d ended with %+v, want %q", i, c, want)
		}
	}
	if st := b.Status()[0]; st.Flaps != 4 {
		t.Errorf("%d sessions have ended, not 4", st.Flaps)
	}
}

// A passive neighbour connects itself, and strangers are turned away.
func TestPassive(t *testing.T) {
	free, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(free.Addr().(*net.TCPAddr).Port)
	free.Close()
	b := newBench(t, func(c *Config) { c.Port, c.Neighbours[0].Passive = port, true })
	b.Set(map[netip.Addr]RoutePath{vip4: {}})
	connect := func(from string) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
			c, err := d.Dial("tcp4", netip.AddrPortFrom(loop, port).String())
			if err == nil {
				t.Cleanup(func() { c.Close() })
				return c
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	}
	stranger := connect("127.0.0.9")
	_ = stranger.SetReadDeadline(time.Now().Add(patience))
	if _, err := stranger.Read(make([]byte, 1)); err != io.EOF && !isReset(err) {
		t.Errorf("a stranger gets %v, want the end", err)
	}
	r := router{connect("127.0.0.1"), t}
	r.establish(bothFamilies...)
	if h := r.update(); len(h.Announced) != 1 {
		t.Errorf("heard %+v", h)
	}
	// A second connection of the same router is closed, and the first goes on (RFC 4271, section 6.8).
	second := connect("127.0.0.1")
	_ = second.SetReadDeadline(time.Now().Add(patience))
	if _, err := second.Read(make([]byte, 1)); err != io.EOF && !isReset(err) {
		t.Errorf("a second connection gets %v, want the end", err)
	}
	b.Set(nil)
	if h := r.update(); len(h.Withdrawn) != 1 {
		t.Errorf("heard %+v", h)
	}
}

func isReset(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && !op.Timeout()
}

// The errors of RFC 4271, section 6, are answered with their codes, and the next session begins soon.
func TestErrorsOfTheRouter(t *testing.T) {
	badMarker := frame(4, nil)
	badMarker[3] = 0
	short, long := frame(4, nil), frame(4, nil)
	binary.BigEndian.PutUint16(short[16:], 18)
	binary.BigEndian.PutUint16(long[16:], 4097)
	version := open(routerAS, 9)
	version[headerSize] = 3
	sameID := open(routerAS, 9)
	copy(sameID[headerSize+5:], []byte{224, 0, 0, 1})
	noFour := frame(typeOpen, []byte{4, 0xfc, 0, 0, 9, 10, 0, 0, 1, 0})
	for name, tt := range map[string]struct {
		established bool
		message     []byte
		code, sub   byte
	}{
		"marker":                {false, badMarker, 1, 1},
		"length below 19":       {false, short, 1, 2},
		"length above 4096":     {false, long, 1, 2},
		"unknown type":          {false, frame(9, nil), 1, 3},
		"version":               {false, version, 2, 1},
		"another AS":            {false, open(routerAS+1, 9), 2, 2},
		"identifier":            {false, sameID, 2, 3},
		"hold time of 1 s":      {false, open(routerAS, 1), 2, 6},
		"hold time of zero":     {false, open(routerAS, 0), 2, 6},
		"AS of two octets":      {false, noFour, 2, 0},
		"KEEPALIVE for OPEN":    {false, frame(4, nil), 5, 1},
		"UPDATE for OPEN":       {false, frame(typeUpdate, []byte{0, 0, 0, 0}), 5, 1},
		"OPEN when established": {true, open(routerAS, 9), 5, 3},
		"marker, established":   {true, badMarker, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			r := b.accept(t)
			if tt.established {
				r.establish(bothFamilies...)
			} else if kind, _, err := r.next(); err != nil || kind != typeOpen {
				t.Fatalf("message %d, %v, want an OPEN", kind, err)
			}
			r.send(tt.message)
			kind, n, err := r.next()
			if err != nil || kind != typeNotification || n[0] != tt.code || n[1] != tt.sub {
				t.Errorf("message %d %v, %v, want a NOTIFICATION %d/%d", kind, n, err, tt.code, tt.sub)
			}
			b.accept(t).establish(bothFamilies...)
		})
	}
}

// Whatever a router sends, the process lives and opens the next session.
func TestStrangeMessages(t *testing.T) {
	b := newBench(t, nil)
	b.Set(map[netip.Addr]RoutePath{vip4: {}})
	random := rand.New(rand.NewPCG(4271, 2006))
	for i := range 30 {
		r := b.accept(t)
		if i%2 == 0 {
			r.establish(bothFamilies...)
		}
		body := make([]byte, random.IntN(60))
		for j := range body {
			body[j] = byte(random.Uint32())
		}
		if i%3 == 0 && len(body) > 10 { // an OPEN that is almost right
			copy(body, open(routerAS, 9)[headerSize:])
			body[random.IntN(len(body))] ^= byte(1 + random.IntN(255))
		}
		// It may be refused while it is still being sent.
		_, _ = r.Write(frame(byte(1+random.IntN(5)), body))
		r.Close()
	}
	r := b.accept(t)
	r.establish(bothFamilies...)
	if h := r.update(); len(h.Announced) != 1 {
		t.Errorf("heard %+v", h)
	}
}

// FuzzMessage feeds a connection: it passes on what it read, and never more than one message at once.
func FuzzMessage(f *testing.F) {
	f.Add(open(routerAS, 9))
	f.Add(frame(typeNotification, []byte{6, 2, 255, 'x'}))
	f.Add(frame(typeOpen, []byte{4}))
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, theirs := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = theirs.Write(data)
			theirs.Close()
			_, _ = io.Copy(io.Discard, theirs)
		}()
		c := newConn(ours, func(*conn) {})
		var got []byte
		for buf := make([]byte, 7); ; {
			n, err := c.Read(buf)
			got = append(got, buf[:n]...)
			if err != nil {
				break
			}
		}
		c.Close()
		<-done
		if len(got) > len(data) || string(got) != string(data[:len(got)]) {
			t.Errorf("read %x of %x", got, data)
		}
		_ = c.why()
	})
}
