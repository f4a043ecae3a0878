package forward

import (
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"appliance/balancer"
)

// stream sends n bytes of seed's random stream and returns their sum.
func stream(w io.Writer, seed byte, n int64) ([32]byte, error) {
	sum := sha256.New()
	_, err := io.CopyN(io.MultiWriter(w, sum), rand.NewChaCha8([32]byte{seed}), n)
	return [32]byte(sum.Sum(nil)), err
}

func TestBulkBothWaysAtOnce(t *testing.T) {
	const up, down = 24<<20 + 7, 16<<20 + 3
	type received struct {
		n   int64
		sum [32]byte
		err error
	}
	read := func(c *net.TCPConn) received {
		sum := sha256.New()
		n, err := io.Copy(sum, c)
		return received{n, [32]byte(sum.Sum(nil)), err}
	}
	atServer := make(chan received, 1)
	sent := make(chan [32]byte, 1)
	server := backend(t, func(c *net.TCPConn) {
		var out sync.WaitGroup
		out.Go(func() {
			sum, err := stream(c, 2, down)
			if err != nil {
				t.Errorf("server writes: %v", err)
			}
			c.CloseWrite()
			sent <- sum
		})
		atServer <- read(c)
		out.Wait()
	})
	at := frontend()
	f := start(t, Config{}, to(at, server))
	c := dial(t, at)
	var out sync.WaitGroup
	var sum [32]byte
	out.Go(func() {
		var err error
		if sum, err = stream(c, 1, up); err != nil {
			t.Errorf("client writes: %v", err)
		}
		c.CloseWrite()
	})
	got := read(c)
	out.Wait()
	if want := <-sent; got.err != nil || got.n != down || got.sum != want {
		t.Errorf("client got %d of %d bytes, the same: %v, error: %v", got.n, down, got.sum == want, got.err)
	}
	if got := <-atServer; got.err != nil || got.n != up || got.sum != sum {
		t.Errorf("server got %d of %d bytes, the same: %v, error: %v", got.n, up, got.sum == sum, got.err)
	}
	if n := f.pools.spliced.Load(); n < (up+down)/2 {
		t.Errorf("%d of %d bytes were spliced: most of a bulk transfer should be", n, up+down)
	}
	id := balancer.Target{LoadBalancer: "lb", Backend: server}
	eventually(t, "the connection is over", func() bool { return f.Stats()[id].Open == 0 })
	if got, want := f.Stats()[id], (balancer.Traffic{Total: 1, In: up, Out: down}); got != want {
		t.Errorf("stats are %+v, want %+v", got, want)
	}
}

// A slow reader must slow the sender down and lose nothing, with the buffer and with splice.
func TestSlowReader(t *testing.T) {
	const n = 8 << 20
	sums := make(chan [32]byte, 1)
	server := backend(t, func(c *net.TCPConn) {
		sum, _ := stream(c, 3, n)
		sums <- sum
	})
	at := frontend()
	start(t, Config{}, to(at, server))
	c := dial(t, at)
	c.SetReadBuffer(256 << 10) // smaller than what is sent, larger than loopback's segments
	sum := sha256.New()
	buf := make([]byte, 100_000)
	for got := 0; got < n; {
		m, err := c.Read(buf)
		if err != nil {
			t.Fatalf("after %d bytes: %v", got, err)
		}
		sum.Write(buf[:m])
		if got += m; rand.IntN(64) == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	if [32]byte(sum.Sum(nil)) != <-sums {
		t.Error("the bytes are not the same")
	}
}

func TestHalfClose(t *testing.T) {
	at := frontend()
	t.Run("client first", func(t *testing.T) {
		server := backend(t, func(c *net.TCPConn) {
			b, err := io.ReadAll(c) // to the client's end
			if err == nil {
				time.Sleep(20 * time.Millisecond)
				io.WriteString(c, "you said "+string(b))
			}
		})
		start(t, Config{}, to(at, server))
		c := dial(t, at)
		io.WriteString(c, "all")
		c.CloseWrite()
		if b, err := io.ReadAll(c); err != nil || string(b) != "you said all" {
			t.Errorf("got %q, %v", b, err)
		}
	})
	t.Run("server first", func(t *testing.T) {
		heard := make(chan string, 1)
		server := backend(t, func(c *net.TCPConn) {
			io.WriteString(c, "speak")
			c.CloseWrite()
			b, err := io.ReadAll(c)
			if err != nil {
				t.Errorf("server reads: %v", err)
			}
			heard <- string(b)
		})
		start(t, Config{}, to(at, server))
		c := dial(t, at)
		if b, err := io.ReadAll(c); err != nil || string(b) != "speak" {
			t.Fatalf("got %q, %v", b, err)
		}
		time.Sleep(20 * time.Millisecond)
		io.WriteString(c, "after your end")
		c.CloseWrite()
		if got := <-heard; got != "after your end" {
			t.Errorf("server heard %q", got)
		}
	})
}

func TestReset(t *testing.T) {
	tests := []struct {
		name      string
		halfFirst bool // the client has ended its half before
		byServer  bool
	}{
		{"by the client", false, false},
		{"by the server", false, true},
		{"by the client after its end", true, false},
		{"by the server after the client's end", true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			end := make(chan error, 1)
			server := backend(t, func(c *net.TCPConn) {
				c.SetDeadline(time.Now().Add(timeout))
				io.WriteString(c, "x")
				_, err := c.Read(make([]byte, 1))
				if tt.halfFirst && err == io.EOF {
					io.WriteString(c, "y") // it knows of the client's end
				}
				if tt.byServer {
					reset(c)
					end <- nil
					return
				}
				// A socket whose reading side has ended reports a reset only by its
				// error.
				raw, _ := c.SyscallConn()
				for until := time.Now().Add(timeout); err == nil || err == io.EOF; time.Sleep(time.Millisecond) {
					raw.Control(func(fd uintptr) {
						if n, gerr := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); gerr != nil || n != 0 {
							err = unix.ECONNRESET
						}
					})
					if time.Now().After(until) {
						break
					}
				}
				end <- err
			})
			at := frontend()
			f := start(t, Config{}, to(at, server))
			c := dial(t, at)
			b := make([]byte, 1)
			if _, err := io.ReadFull(c, b); err != nil {
				t.Fatal(err)
			}
			switch {
			case tt.halfFirst:
				c.CloseWrite()
				if _, err := io.ReadFull(c, b); err != nil {
					t.Fatal(err)
				}
			case tt.byServer:
				io.WriteString(c, "z")
			}
			if tt.byServer {
				wantReset(t, c)
			} else {
				reset(c)
			}
			if err := <-end; !tt.byServer && !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("server got %v, want a reset", err)
			}
			eventually(t, "the connection is over", func() bool {
				return f.Stats()[balancer.Target{LoadBalancer: "lb", Backend: server}].Open == 0
			})
		})
	}
}

// files counts the open files of this process by kind.
func files(t *testing.T) (sockets, pipes int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		switch to, _ := os.Readlink("/proc/self/fd/" + e.Name()); {
		case strings.HasPrefix(to, "socket:"):
			sockets++
		case strings.HasPrefix(to, "pipe:"):
			pipes++
		}
	}
	return sockets, pipes
}

// 500 connections that have moved bulk and are idle now hold two files each, and no pipe
// beyond those of the pool.
func TestManyIdleConnections(t *testing.T) {
	const n = 500
	server := backend(t, echo)
	at := frontend()
	f := start(t, Config{}, to(at, server))
	before, pipesBefore := files(t)
	conns := make([]*net.TCPConn, n)
	var all sync.WaitGroup
	text := strings.Repeat("0123456789abcdef", 16<<10) // 256 KiB
	for i := range conns {
		conns[i] = dial(t, at)
		all.Go(func() {
			var out sync.WaitGroup
			defer out.Wait()
			out.Go(func() { io.WriteString(conns[i], text) })
			b := make([]byte, len(text))
			if _, err := io.ReadFull(conns[i], b); err != nil || string(b) != text {
				t.Errorf("connection %d: %v", i, err)
			}
		})
	}
	all.Wait()
	id := balancer.Target{LoadBalancer: "lb", Backend: server}
	if got := f.Stats()[id].Open; got != n {
		t.Errorf("%d connections are open, want %d", got, n)
	}
	pipeFiles := func() int { _, p := files(t); return p - pipesBefore }
	eventually(t, "pipes beyond the pool's are closed", func() bool { return pipeFiles() <= 2*cap(f.pools.pipes) })
	// The sockets of client and backend belong to this process too.
	if now, _ := files(t); now-before > 4*n {
		t.Errorf("%d sockets for %d connections, want %d", now-before, n, 4*n)
	}
	for _, c := range conns {
		if err := ask(c, "still there?"); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	eventually(t, "all connections are over", func() bool { return f.Stats()[id].Open == 0 })
}
