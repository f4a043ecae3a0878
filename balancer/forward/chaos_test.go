package forward

import (
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"appliance/balancer"
)

// Clients and backends misbehave in many ways, and reloads come in between. In the end no
// file and no count is left, and an honest client is still served.
func TestNothingIsLeft(t *testing.T) {
	sockets, _ := files(t)
	honest := backend(t, echo)
	resets := backend(t, func(c *net.TCPConn) {
		c.Read(make([]byte, 10))
		reset(c)
	})
	speaks := backend(t, func(c *net.TCPConn) {
		io.WriteString(c, "hello")
		c.CloseWrite()
		io.Copy(io.Discard, struct{ io.Reader }{c})
	})
	closes := backend(t, func(*net.TCPConn) {})
	dead := refusing(t)

	at := frontend()
	configured := func(i int) balancer.Service {
		s := to(at, honest, resets, speaks, closes, dead)
		s.ConnectTimeout = time.Second
		s.Scheduler = []balancer.Scheduler{balancer.RoundRobin, balancer.WeightedLeastConn, balancer.Random,
			balancer.SourceHash}[i%4]
		s.Backends = s.Backends[i%2:]
		if i%3 == 0 {
			s.Backends[0].MaxConn, s.Backends[0].MaxQueue = 2, 5
			s.ConnOptions.MaxConn = 20
			s.ConnOptions.QueueTimeout = 20 * time.Millisecond
		}
		if i%4 == 1 {
			s.ConnOptions.Persistence = time.Minute
			s.ConnOptions.ClientTimeout = 30 * time.Millisecond
		}
		if i%5 == 2 {
			s.ConnOptions.RequireTLS = 10 * time.Millisecond
		}
		if i%5 == 3 {
			s.ConnOptions.SendProxy = "v2"
		}
		if i%5 == 4 {
			s.ConnOptions.AcceptProxyFrom = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		}
		return s
	}
	f := start(t, Config{Loops: 3}, configured(0))
	var clients sync.WaitGroup
	for range 24 {
		clients.Go(func() {
			for range 60 {
				c, err := dialErr(at)
				if err != nil {
					continue
				}
				c.SetDeadline(time.Now().Add(200 * time.Millisecond))
				switch rand.IntN(6) {
				case 0:
					reset(c)
					continue
				case 1:
					ask(c, "ping")
				case 2:
					c.CloseWrite()
					io.Copy(io.Discard, struct{ io.Reader }{c})
				case 3:
					c.Write(make([]byte, 100_000))
				case 4:
					io.WriteString(c, "half")
					time.Sleep(time.Duration(rand.IntN(5)) * time.Millisecond)
					reset(c)
					continue
				}
				c.Close()
			}
		})
	}
	done := make(chan struct{})
	go func() { clients.Wait(); close(done) }()
	for i := 0; ; i++ {
		select {
		case <-done:
		case <-time.After(5 * time.Millisecond):
			apply(t, f, configured(i))
			continue
		}
		break
	}
	apply(t, f, to(at, honest))
	f.mu.Lock()
	s := f.services[at]
	f.mu.Unlock()
	eventually(t, "nothing is open", func() bool {
		var open uint64
		for _, n := range f.Stats() {
			open += n.Open
		}
		inLoops := int64(0)
		for _, l := range f.loops {
			inLoops += l.open.Load()
		}
		return open == 0 && inLoops == 0 && s.open.Load() == 0 && s.queue.waiting.Load() == 0
	})
	for range 10 {
		c := dial(t, at)
		if err := ask(c, "still served"); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	eventually(t, "no socket is left but the listeners", func() bool {
		now, _ := files(t)
		return now <= sockets+6 // four backends, one that refuses, the frontend
	})
}
