package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"appliance/configs"
	"appliance/status/client"
)

// said is a log that may be read while it is written.
type said struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// worker is a whole appliance in this process, with nothing of the kernel: it
// listens on loopback.
type worker struct {
	*testing.T
	log    said
	path   string
	client *client.Client
	stop   func()
}

func startWorker(t *testing.T, path string) *worker {
	t.Helper()
	w := &worker{T: t, path: path}
	dir := t.TempDir()
	load := func() (*configs.Config, error) {
		flags := map[string]string{"socket": filepath.Join(dir, "sock"), "data-dir": dir, "admin-listen": "off"}
		return configs.Load(
			path,
			configs.Source{Flag: func(name string) (string, bool) { v, ok := flags[name]; return v, ok }},
		)
	}
	cfg, err := load()
	if err != nil {
		t.Fatal(err)
	}
	w.client = client.New(cfg.Socket)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, Options{Config: cfg, File: path, Reload: load, Log: &w.log}) }()
	var once sync.Once
	w.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("start: %v", err)
			}
		})
	}
	t.Cleanup(func() {
		w.stop()
		if t.Failed() {
			t.Logf("the appliance said:\n%s", w.log.String())
		}
	})
	w.await("is served by data plane", 1)
	return w
}

// await waits until the log has what so many times.
func (w *worker) await(what string, n int) {
	w.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if strings.Count(w.log.String(), what) >= n {
			return
		}
	}
	w.Fatalf("the log has no %q for the %d. time", what, n)
}

// echo is a server that sends back each line.
func echo(t *testing.T) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			wg.Go(func() {
				io.Copy(c, c)
				c.Close()
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return netip.MustParseAddrPort(ln.Addr().String())
}

// freePort is below those that the kernel gives to clients, of which there are
// hundreds here.
func freePort(t *testing.T) uint16 {
	t.Helper()
	for range 1000 {
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(10000)))
		if err == nil {
			defer ln.Close()
			return netip.MustParseAddrPort(ln.Addr().String()).Port()
		}
	}
	t.Fatal("there is no free port")
	return 0
}

// flows are connections over which lines go back and forth all the time.
type flows struct {
	t      *testing.T
	wg     sync.WaitGroup
	stop   chan struct{}
	rounds atomic.Int64
	lost   atomic.Int64
}

func (f *flows) open(port uint16, n int) {
	f.t.Helper()
	for range n {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			f.t.Fatal(err)
		}
		f.wg.Go(func() {
			defer c.Close()
			in := bufio.NewReader(c)
			for i := 0; ; i++ {
				select {
				case <-f.stop:
					return
				case <-time.After(20 * time.Millisecond):
				}
				line := fmt.Sprintf("%d %s\n", i, c.LocalAddr())
				c.SetDeadline(time.Now().Add(time.Minute))
				if _, err := io.WriteString(c, line); err != nil {
					f.lost.Add(1)
					return
				}
				if got, err := in.ReadString('\n'); err != nil || got != line {
					f.lost.Add(1)
					return
				}
				f.rounds.Add(1)
			}
		})
	}
}

// check waits until each connection has gone round anew.
func (f *flows) check(what string) {
	f.t.Helper()
	for want, end := f.rounds.Load()+1000, time.Now().Add(time.Minute); f.rounds.Load() < want && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	if n := f.lost.Load(); n > 0 {
		f.t.Fatalf("%s: %d connections lost", what, n)
	}
}

// replace writes a file in the way that most programs do.
func replace(t *testing.T, path, text string) {
	t.Helper()
	next := path + ".next"
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
}

// Reloads of every kind, under hundreds of connections that flow: none is lost.
func TestReload(t *testing.T) {
	servers := []netip.AddrPort{echo(t), echo(t), echo(t), echo(t)}
	ports := []uint16{freePort(t), freePort(t), freePort(t)}
	// lb is one load balancer on loopback.
	lb := func(n int, more string, backends ...netip.AddrPort) string {
		text := fmt.Sprintf("- name: lb%d\n  port: %d\n  listen: [127.0.0.1]\n  check: {type: tcp}\n", n, ports[n])
		if more != "" {
			text += "  " + more + "\n"
		}
		text += "  backends:\n"
		for _, b := range backends {
			text += fmt.Sprintf("  - %s\n", b)
		}
		return text
	}
	const head = "role: worker\nloadBalancers:\n"
	dir := t.TempDir()
	path := filepath.Join(dir, "config.yaml")
	write := func(text string) { t.Helper(); replace(t, path, text) }
	first := head + lb(0, "", servers[:2]...) + lb(1, "", servers[2])
	write(first)
	w := startWorker(t, path)
	w.await("is served by data plane", 2)

	f := &flows{t: t, stop: make(chan struct{})}
	defer f.wg.Wait()
	defer close(f.stop)
	f.open(ports[0], 200)
	f.open(ports[1], 200)
	f.check("before")

	// A file that is not valid changes nothing, whatever else is in it.
	write(head + lb(2, "", servers[3]) + "- port: none\n")
	w.await("was not reloaded, and nothing has changed", 1)
	w.await("config.yaml:9: loadBalancers[1].port: none is not a port", 1)
	if _, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[2])); err == nil {
		t.Error("half of a bad file is in force")
	}
	_, err := w.client.Do(t.Context(), http.MethodPost, "/reload")
	if err == nil || !strings.Contains(err.Error(), "nothing has changed") {
		t.Errorf("reload of a bad file: %v", err)
	}
	f.check("a bad file")

	// A backend more, another scheduler and check; a load balancer more.
	second := head + lb(
		0,
		"scheduler: lc",
		servers[0],
		servers[1],
		servers[3],
	) + lb(
		1,
		"maxFails: 9",
		servers[2],
	) + lb(
		2,
		"",
		servers[3],
	)
	write(second)
	w.await(`configuration reloaded" changed=loadBalancers`, 1)
	w.await("is served by data plane", 3)
	f.open(ports[2], 50)
	f.open(ports[0], 60) // the new backend has some of them
	f.check("a file renamed over")

	// SIGHUP, and a file written in place.
	third := strings.Replace(second, "scheduler: lc", "scheduler: random", 1)
	if err := os.WriteFile(path, []byte(third), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	w.await(`configuration reloaded" changed=loadBalancers`, 2)
	f.check("SIGHUP")

	// As Kubernetes changes a ConfigMap: a link to a directory is swapped.
	for i, text := range []string{second, first + lb(2, "", servers[3]), second} {
		data := filepath.Join(dir, fmt.Sprintf("..%d", i))
		if err := os.Mkdir(data, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(data, "config.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		link := filepath.Join(dir, "..data_tmp")
		if err := os.Symlink(filepath.Base(data), link); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(link, filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
		if i == 0 { // from now on config.yaml is a link into it
			if err := os.Symlink("..data/config.yaml", link); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(link, path); err != nil {
				t.Fatal(err)
			}
		}
		if i == 1 {
			continue // back and forth in a moment: one reload or none
		}
		w.await(`configuration reloaded" changed=loadBalancers`, 3)
	}
	f.check("a swapped link")

	// The verb; what cannot change live is named, with the word restart.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	write("linger: 1m\n" + second)
	for end := time.Now().Add(time.Minute); ; {
		body, err := w.client.Do(t.Context(), http.MethodPost, "/reload")
		if err == nil && strings.Contains(string(body), "needs a restart of this node: linger ("+w.path+":1)") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%s %v", body, err)
		}
	}
	w.await("some changes need a restart of this node", 1)
	f.check("a change that needs a restart")

	// A load balancer and a backend less: they get no new connections, and the
	// open ones go on.
	write(first)
	w.await("load balancer is removed", 1)
	f.check("a load balancer less")
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[2]))
		if errors.Is(err, syscall.ECONNREFUSED) {
			return
		}
		if err == nil {
			c.Close()
		}
	}
	t.Error("a load balancer that is gone takes connections")
}

func TestReloadWithoutFile(t *testing.T) {
	r := newReloader("", &configs.Config{}, nil, nil)
	if _, err := r.reload(t.Context()); err == nil || !strings.Contains(err.Error(), "without a file") {
		t.Error(err)
	}
}
