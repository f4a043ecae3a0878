package forward

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"appliance/balancer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// timeout bounds waits that a working forwarder ends at once.
const timeout = 60 * time.Second

var frontends atomic.Uint32

// frontend is a loopback address that nothing else in this run uses.
func frontend() netip.AddrPort {
	n, pid := frontends.Add(1), os.Getpid()
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, byte(pid>>8)&0x7f + 100, byte(pid), byte(n)}), 6443)
}

// start is a forwarder that serves services and is closed with the test.
func start(t testing.TB, cfg Config, services ...balancer.Service) *Forwarder {
	t.Helper()
	if cfg.Shortages == nil {
		cfg.Shortages = &balancer.Shortages{Log: slog.New(slog.DiscardHandler)}
	}
	f := New(cfg)
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	apply(t, f, services...)
	return f
}

func apply(t testing.TB, f *Forwarder, services ...balancer.Service) {
	t.Helper()
	if _, err := f.Apply(t.Context(), services); err != nil {
		t.Fatalf("apply: %v", err)
	}
}

// service has the backends in rotation, each of weight 1.
func to(at netip.AddrPort, backends ...netip.AddrPort) balancer.Service {
	s := balancer.Service{LoadBalancer: "lb", Frontend: at, Scheduler: balancer.RoundRobin, ConnectTimeout: timeout}
	for _, b := range backends {
		s.Backends = append(s.Backends, balancer.Backend{Addr: b, Weight: 1})
	}
	return s
}

// backend listens on a port of its own and serves each connection with handle,
// which need not close it.
func backend(t testing.TB, handle func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	return backendOn(t, "127.0.0.1:0", handle)
}

func backendOn(t testing.TB, at string, handle func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				if errors.Is(err, net.ErrClosed) {
					return
				}
				time.Sleep(time.Millisecond)
				continue
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			all.Go(func() {
				defer c.Close()
				handle(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// echo is a backend's handler. It hides that both ends are sockets, so that
// io.Copy takes no pipes that a test would count.
func echo(c *net.TCPConn) { io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}) }

// name is a backend that sends a word to each client and closes.
func name(word string) func(*net.TCPConn) {
	return func(c *net.TCPConn) { io.WriteString(c, word) }
}

// refusing is an address where nobody listens.
func refusing(t testing.TB) netip.AddrPort {
	t.Helper()
	// It is bound but does not listen, so that nobody else can take it.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	return bound(t, fd)
}

func bound(t testing.TB, fd int) netip.AddrPort {
	t.Helper()
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	in := sa.(*unix.SockaddrInet4)
	return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port))
}

// hanging is an address whose queue is full: it drops every SYN.
func hanging(t testing.TB) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}),
		unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	at := bound(t, fd)
	for range 10 {
		c, err := net.DialTimeout("tcp", at.String(), 300*time.Millisecond)
		if err != nil {
			return at
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the queue of a listener with backlog 0 does not fill")
	return at
}

// dial is a client's connection.
func dial(t testing.TB, at netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := dialErr(at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func dialErr(at netip.AddrPort) (*net.TCPConn, error) {
	c, err := net.DialTimeout("tcp", at.String(), timeout)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(timeout))
	return c.(*net.TCPConn), nil
}

// word connects and reads all that the backend says.
func word(at netip.AddrPort) (string, error) {
	c, err := dialErr(at)
	if err != nil {
		return "", err
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	if err == nil && len(b) == 0 {
		err = io.ErrUnexpectedEOF
	}
	return string(b), err
}

// ask sends text to an echoing backend and expects it back.
func ask(c net.Conn, text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != text {
		return fmt.Errorf("asked %q and got %q", text, b)
	}
	return nil
}

// eventually waits until ok holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(timeout); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// wantReset expects that the peer of c has reset it.
func wantReset(t testing.TB, c *net.TCPConn) {
	t.Helper()
	if _, err := io.ReadAll(c); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("read: %v, want a reset", err)
	}
}

// redirects is a PortRedirector that records its calls.
type redirects struct {
	mu   sync.Mutex
	last map[netip.AddrPort]netip.AddrPort
	err  error
}

func (r *redirects) Redirect(_ context.Context, to map[netip.AddrPort]netip.AddrPort) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = to
	return 1, r.err
}

// lines is a log that counts its lines.
type lines struct {
	mu  sync.Mutex
	all []byte
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, p...)
	return len(p), nil
}

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *lines) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.all, []byte(what))
}

// reset closes a socket with RST instead of FIN.
func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}
