package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// A resolver looks names up as the host does: /etc/hosts, /etc/nsswitch.conf, and the search list, options and servers
// of /etc/resolv.conf. Go's own resolver does that, and shows here what it has read, which has the records' life.
type resolver struct {
	servers []netip.AddrPort // instead of those of resolv.conf, if there are any
	turn    atomic.Uint32    // the server that is asked
}

// found is what was learned of one family of a name.
type found struct {
	addrs []netip.Addr
	// none means that the DNS says that there is no such address; err that nobody said anything.
	none bool
	err  error
}

// lookUp asks for both families. ttl is the shortest life of the records; zero where no server gave one.
func (r *resolver) lookUp(ctx context.Context, name string) (four, six found, ttl time.Duration) {
	l := &life{}
	system := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		return r.dial(ctx, network, address, l)
	}}
	ask := func(network string) (f found) {
		f.addrs, f.err = system.LookupNetIP(ctx, network, name)
		var e *net.DNSError
		if errors.As(f.err, &e) {
			// Where and what was asked stands beside it anyway.
			f.none, f.err = e.IsNotFound, errors.New(e.Err)
		}
		for i, a := range f.addrs {
			f.addrs[i] = a.Unmap()
		}
		slices.SortFunc(f.addrs, netip.Addr.Compare)
		f.addrs = slices.Compact(f.addrs)
		return f
	}
	var asking sync.WaitGroup
	asking.Go(func() { four = ask("ip4") })
	asking.Go(func() { six = ask("ip6") })
	asking.Wait()
	return four, six, l.shortest()
}

// dial opens a connection to a server. A server that says nothing is not the next one that is asked.
func (r *resolver) dial(ctx context.Context, network, address string, l *life) (net.Conn, error) {
	turn := r.turn.Load()
	if n := len(r.servers); n > 0 {
		address = r.servers[int(turn)%n].String()
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		r.turn.CompareAndSwap(turn, turn+1)
		return nil, err
	}
	w := &watched{Conn: conn, life: l, mute: func() { r.turn.CompareAndSwap(turn, turn+1) }}
	if udp, ok := conn.(*net.UDPConn); ok {
		return datagrams{w, udp}, nil
	}
	w.stream = true
	return w, nil
}

// watched is a connection to a server whose answers are read along.
type watched struct {
	net.Conn
	life   *life
	mute   func()
	stream bool
	heard  bool
	buf    bytes.Buffer // of a stream
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if n > 0 {
		w.heard = true
		if w.stream {
			w.buf.Write(b[:n])
		} else {
			w.life.note(b[:n])
		}
	}
	return n, err
}

func (w *watched) Close() error {
	if !w.heard {
		w.mute()
	}
	// Over TCP, each message comes after its length (RFC 1035, section 4.2.2).
	for b := w.buf.Bytes(); len(b) > 2; {
		n := min(2+int(binary.BigEndian.Uint16(b)), len(b))
		w.life.note(b[2:n])
		b = b[n:]
	}
	return w.Conn.Close()
}

// datagrams is watched for UDP. Go's resolver knows a connection for datagrams by its being a net.PacketConn.
type datagrams struct {
	*watched
	udp *net.UDPConn
}

func (d datagrams) ReadFrom(b []byte) (int, net.Addr, error)   { return d.udp.ReadFrom(b) }
func (d datagrams) WriteTo(b []byte, to net.Addr) (int, error) { return d.udp.WriteTo(b, to) }

// life is the shortest life of the records in some answers.
type life struct {
	mu   sync.Mutex
	ttl  time.Duration
	some bool
}

func (l *life) note(message []byte) {
	var p dnsmessage.Parser
	if _, err := p.Start(message); err != nil || p.SkipAllQuestions() != nil {
		return
	}
	for {
		h, err := p.AnswerHeader()
		if err != nil || p.SkipAnswer() != nil {
			return
		}
		ttl := time.Duration(h.TTL) * time.Second
		l.mu.Lock()
		if !l.some || ttl < l.ttl {
			l.ttl, l.some = ttl, true
		}
		l.mu.Unlock()
	}
}

func (l *life) shortest() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ttl
}
