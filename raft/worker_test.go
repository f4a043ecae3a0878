package raft

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"appliance/raft/auth"
	"appliance/raft/feed"
	"appliance/raft/peerport"
	"appliance/raft/settings"
)

func TestWorkerFollowsAndMayDoNothingElse(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	b.voters(3)
	key, err := b.key.Worker()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := auth.ParseWorkerKey([]byte(key.Text() + "\n")); err != nil || again != key {
		t.Fatalf("%v, %v", again, err)
	}
	if strings.Contains(fmt.Sprint(key), key.Text()[strings.Index(key.Text(), ":")+1:]) {
		t.Error("a worker key prints its secret")
	}
	publish := func(text string) {
		for _, n := range b.nodes {
			n.Publish([]byte(text), n.Index())
		}
	}
	publish(`"one"`)
	var last atomic.Value
	last.Store("")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	lost := make(chan error, 1)
	f := feed.Follower{ID: "w1", Version: "v7", Key: key, Peers: b.listed()[:1], Log: slog.New(slog.DiscardHandler)}
	go func() {
		done <- f.Follow(ctx, func(data []byte) { last.Store(string(data)) }, func(err error) { lost <- err })
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	b.eventually("the first list", func() bool { return last.Load() == `"one"` })
	b.eventually("the group", func() bool { return b.nodes["a"].Status().Cluster != "" })
	listed := func(peers ...string) (all []string) {
		for _, id := range peers {
			for _, w := range b.nodes[id].Status().Workers {
				if w.ID != "w1" || w.Version != "v7" || !w.Addr.IsValid() || time.Since(w.Since) > time.Minute {
					t.Errorf("%s lists the worker as %+v", id, w)
				}
				all = append(all, id)
			}
		}
		return all
	}
	if at := listed("a", "b", "c"); !slices.Equal(at, []string{"a"}) {
		t.Errorf("the worker is listed by %v", at)
	}
	// The peer that it began with goes away; it has learned of the others.
	b.stop("a")
	publish(`"two"`)
	b.eventually("the second list", func() bool { return last.Load() == `"two"` })
	b.eventually("another peer to list the worker", func() bool { return len(listed("b", "c")) == 1 })
	began := time.Now()
	publish(`"three"`)
	b.eventually("the third list", func() bool { return last.Load() == `"three"` })
	t.Logf("followed in %v", time.Since(began))

	// The key opens nothing else.
	cred, err := key.Credentials("a")
	if err != nil {
		t.Fatal(err)
	}
	p, err := peerport.Listen(netip.AddrPort{}, cred, b.config("a").network, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l := p.Link("b", b.peers[1].Addr)
	defer l.Close()
	for _, op := range []operation{opHello, opAccount, opAdmit, opPropose, opTransfer, opAdd, opRemove, opPromote,
		opDemote, "view"} {
		_, err := ask(b.ctx(), l, request{Op: op, To: "b", Peer: &b.peers[1],
			Change: &settings.Command{Set: map[string]string{"k": "v"}}})
		if err == nil || !strings.Contains(err.Error(), "worker may not") {
			t.Errorf("%s with a worker key: %v", op, err)
		}
	}
	for _, kind := range []byte{peerport.PreambleRaft, peerport.PreambleWatch} {
		conn, err := p.Open(b.ctx(), b.peers[1].Addr, "b", kind)
		if err != nil {
			continue
		}
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("a worker key opens a connection of kind %q: %d bytes", kind, n)
		}
		conn.Close()
	}
	// And a worker knows its peers: another group's do not count.
	other, err := auth.GenerateKey().Worker()
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := other.Credentials("w2")
	if err != nil {
		t.Fatal(err)
	}
	p2, _ := peerport.Listen(netip.AddrPort{}, stranger, b.config("a").network, slog.New(slog.DiscardHandler))
	l2 := p2.Link("b", b.peers[1].Addr)
	defer l2.Close()
	if _, err := ask(b.ctx(), l2, request{Op: opFollow}); err == nil {
		t.Error("a worker of another group follows this one")
	}
	b.stop("b", "c")
	select {
	case <-lost:
	case <-time.After(60 * time.Second):
		t.Error("a worker without any peer does not say so")
	}
}

// TestWorkerDoesNotGoBack: a worker keeps what it has when it asks a peer that is behind.
func TestWorkerDoesNotGoBack(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	b.voters(3)
	b.holder()
	b.named()
	key, err := b.key.Worker()
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var lists []string
	has := func(want ...string) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return slices.Equal(lists, want)
		}
	}
	b.nodes["a"].Publish([]byte(`"new"`), 1001)
	b.nodes["b"].Publish([]byte(`"old"`), 1000)
	b.nodes["c"].Publish([]byte(`"old"`), 1000)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	f := feed.Follower{ID: "w1", Key: key, Peers: b.listed()[:1], Log: slog.New(slog.DiscardHandler)}
	var asked atomic.Int64
	f.Dial = func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
		if addr == b.peers[1].Addr || addr == b.peers[2].Addr {
			asked.Add(1)
		}
		return feed.DialWorker(ctx, addr)
	}
	go func() {
		done <- f.Follow(ctx, func(data []byte) {
			mu.Lock()
			defer mu.Unlock()
			lists = append(lists, string(data))
		}, func(error) {})
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	b.eventually("the new list", has(`"new"`))
	b.stop("a")
	// It goes back and forth between the two that are behind.
	b.eventually("both others to be asked", func() bool { return asked.Load() >= 3 })
	if !has(`"new"`)() {
		t.Errorf("the worker went back: %v", lists)
	}
	b.nodes["b"].Publish([]byte(`"new"`), 1001)
	b.nodes["c"].Publish([]byte(`"new"`), 1001)
	b.nodes["b"].Publish([]byte(`"newer"`), 1002)
	b.nodes["c"].Publish([]byte(`"newer"`), 1002)
	b.eventually("the newer list", has(`"new"`, `"newer"`))
}

// TestWorkerLeavesPeerThatIsCutOff: the peer answers, but hears nothing new.
func TestWorkerLeavesPeerThatIsCutOff(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	b.voters(3)
	b.holder()
	b.named()
	key, err := b.key.Worker()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range b.nodes {
		n.Publish([]byte(`"old"`), 1000)
	}
	got := make(chan string, 16)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	f := feed.Follower{ID: "w1", Key: key, Peers: b.listed()[:1], Log: slog.New(slog.DiscardHandler)}
	go func() { done <- f.Follow(ctx, func(data []byte) { got <- string(data) }, func(error) {}) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	next := func(want string) {
		t.Helper()
		select {
		case text := <-got:
			if text != want {
				t.Errorf("got %s, want %s", text, want)
			}
		case <-time.After(60 * time.Second):
			t.Fatalf("no %s", want)
		}
	}
	next(`"old"`) // from a, the only one that it knows of
	b.wires.isolate("a", true)
	b.holder("b", "c")
	b.nodes["b"].Publish([]byte(`"new"`), 1001)
	b.nodes["c"].Publish([]byte(`"new"`), 1001)
	next(`"new"`)
}

// TestManyWorkers measures what a thousand workers cost a peer that serves all of them; with the race detector, which
// makes handshakes ten times as dear, it is two hundred.
func TestManyWorkers(t *testing.T) {
	if testing.Short() {
		t.Skip("a thousand TLS handshakes")
	}
	workers := 1000
	if raceDetector {
		workers = 200
	}
	b := newBench(t, 1)
	c := b.config("a")
	c.StartAsLeader = true
	b.run(c)
	b.holder("a")
	a := b.nodes["a"]
	key, err := b.key.Worker()
	if err != nil {
		t.Fatal(err)
	}
	const one = `{"name":"an ordinary load balancer","backends":["192.0.2.1:6443"]},`
	list := `{"loadBalancers":[` + strings.Repeat(one, 10) + `{}]}`
	a.Publish([]byte(list), a.Index())
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var got atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			f := feed.Follower{ID: fmt.Sprintf("w%d", i), Key: key, Peers: b.listed()[:1],
				Log: slog.New(slog.DiscardHandler)}
			if err := f.Follow(ctx, func([]byte) { got.Add(1) }, func(error) {}); err != nil {
				t.Error(err)
			}
		})
	}
	defer wg.Wait()
	defer cancel()
	b.eventually("every worker to have the list", func() bool { return got.Load() >= int64(workers) })
	runtime.GC()
	runtime.ReadMemStats(&after)
	idle := cpu()
	time.Sleep(3 * time.Second)
	idle = cpu() - idle
	change, began := cpu(), time.Now()
	a.Publish([]byte(strings.Replace(list, "192", "193", 1)), a.Index())
	b.eventually("every worker to have the change", func() bool { return got.Load() >= 2*int64(workers) })
	took := time.Since(began)
	change = cpu() - change
	perPair := int64(after.HeapInuse+after.StackInuse-before.HeapInuse-before.StackInuse) / int64(workers)
	t.Logf("%d workers and their peer, in one process: %d KiB for each pair of ends; idle %.1f %% of a core; a "+
		"change reaches all in %v for %v of CPU",
		workers, perPair>>10,
		100*idle.Seconds()/3, took.Round(time.Millisecond), change.Round(time.Millisecond))
	if perPair > 512<<10 {
		t.Errorf("%d KiB for each worker and its peer", perPair>>10)
	}
	if !a.lawfully() {
		b.holder("a") // it may have been late for a moment on a busy machine, and no longer
	}
}

// cpu is the processor time that this process has had.
func cpu() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
