package forward

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"appliance/balancer"
)

// Each benchmark does the same work directly with the server, through the forwarder, and
// through the shortest proxy in Go, in turns within one run. It prints the forwarder's speed
// as a fraction of the first ("ofdirect") and of the last ("ofplain"). Client, forwarder and
// server share the machine.
func compare(b *testing.B, server netip.AddrPort, work func(at netip.AddrPort, n int)) {
	at := frontend()
	start(b, Config{}, to(at, server))
	const turns = 10
	plain := plainProxy(b, server)
	var direct, through, copied time.Duration
	timed := func(at netip.AddrPort, sum *time.Duration, n int) {
		began := time.Now()
		work(at, n)
		*sum += time.Since(began)
	}
	b.ResetTimer()
	for i := range turns {
		n := b.N*(i+1)/turns - b.N*i/turns
		if n > 0 {
			timed(server, &direct, n)
			timed(at, &through, n)
			timed(plain, &copied, n)
		}
	}
	b.ReportMetric(float64(direct)/float64(through), "ofdirect")
	b.ReportMetric(float64(copied)/float64(through), "ofplain")
	b.ReportMetric(float64(through.Nanoseconds())/float64(b.N), "ns/through")
	b.ReportMetric(0, "ns/op")
}

// plainProxy is io.Copy in both directions.
func plainProxy(b *testing.B, server netip.AddrPort) netip.AddrPort {
	return backend(b, func(client *net.TCPConn) {
		c, err := net.Dial("tcp", server.String())
		if err != nil {
			return
		}
		var down sync.WaitGroup
		down.Go(func() {
			io.Copy(client, c)
			client.CloseWrite()
		})
		io.Copy(c, client)
		c.(*net.TCPConn).CloseWrite()
		down.Wait()
		c.Close()
	})
}

// spread does n pieces of work in 64 goroutines.
func spread(b *testing.B, n int, worker func(take func() bool) error) {
	var mu sync.Mutex
	take := func() bool {
		mu.Lock()
		defer mu.Unlock()
		n--
		return n >= 0
	}
	var all sync.WaitGroup
	for range 64 {
		all.Go(func() {
			if err := worker(take); err != nil {
				b.Error(err)
			}
		})
	}
	all.Wait()
}

func BenchmarkConnections(b *testing.B) {
	compare(b, backend(b, echo), func(at netip.AddrPort, n int) {
		spread(b, n, func(take func() bool) error {
			for take() {
				c, err := dialErr(at)
				if err != nil {
					return err
				}
				if err := ask(c, "ping"); err != nil {
					return err
				}
				reset(c) // so that the client does not run out of ports
			}
			return nil
		})
	})
}

func BenchmarkRequests(b *testing.B) {
	compare(b, backend(b, echo), func(at netip.AddrPort, n int) {
		spread(b, n, func(take func() bool) error {
			c, err := dialErr(at)
			if err != nil {
				return err
			}
			defer reset(c)
			for take() {
				if err := ask(c, "a request of some sixty bytes, like those of a small API ....."); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func BenchmarkBulk(b *testing.B) {
	const block = 1 << 20
	server := backend(b, func(c *net.TCPConn) {
		buf := make([]byte, block)
		for {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	})
	compare(b, server, func(at netip.AddrPort, n int) {
		c, err := dialErr(at)
		if err != nil {
			b.Fatal(err)
		}
		defer reset(c)
		buf := make([]byte, block)
		for range n {
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// The cost of choosing a backend.
func BenchmarkPick(b *testing.B) {
	for _, name := range []balancer.Scheduler{balancer.RoundRobin, balancer.WeightedLeastConn, balancer.SourceHash} {
		b.Run(string(name), func(b *testing.B) {
			s, err := newScheduler(name)
			if err != nil {
				b.Fatal(err)
			}
			tb := &table{scheduler: s}
			for _, c := range weighted(1, 2, 3, 4, 5) {
				tb.slots = append(tb.slots, slot{target: newTarget(balancer.Target{Backend: c.addr}), weight: c.weight})
			}
			now := nanotime()
			b.ReportAllocs()
			for b.Loop() {
				tb.pick(client(7), nil, now)
			}
		})
	}
}

// The memory of an idle connection beside its two sockets. Client and server are bare file
// descriptors, so that all of the memory is the forwarder's.
func BenchmarkIdle(b *testing.B) {
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(listener)
	if err := errors.Join(unix.Bind(listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}),
		unix.Listen(listener, 4096)); err != nil {
		b.Fatal(err)
	}
	at := frontend()
	f := start(b, Config{}, to(at, bound(b, listener)))
	// The server's sockets stay in the listener's queue: it has one of 4096.
	const n = 2000
	used := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before := used()
	for range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			b.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}); err != nil {
			b.Fatal(err)
		}
	}
	var carried uint64
	eventually(b, "all are carried", func() bool {
		carried = 0
		for _, t := range f.Stats() {
			carried += t.Total
		}
		return carried == n
	})
	b.ReportMetric(float64(used()-before)/n, "B/connection")
	b.ReportMetric(0, "ns/op")
}
