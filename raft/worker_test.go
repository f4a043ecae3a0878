package raft

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestWorkerFollowsAndMayDoNothingElse(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	b.voters(3)
	key, err := b.key.Worker()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := ParseWorkerKey([]byte(key.Text() + "\n")); err != nil || again != key {
		t.Fatalf("%v, %v", again, err)
	}
	if strings.Contains(fmt.Sprint(key), key.Text()[len(workerKeyPrefix):]) {
		t.Error("a worker key prints its secret")
	}
	publish := func(text string) {
		for _, n := range b.nodes {
			n.Publish([]byte(text))
		}
	}
	publish(`"one"`)
	var last atomic.Value
	last.Store("")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	lost := make(chan error, 1)
	f := Follower{ID: "w1", Key: key, Peers: []netip.AddrPort{b.peers[0].Addr}, Log: slog.New(slog.DiscardHandler)}
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
	// The peer that it was told goes away; it has learned of the others.
	b.stop("a")
	publish(`"two"`)
	b.eventually("the second list", func() bool { return last.Load() == `"two"` })
	began := time.Now()
	publish(`"three"`)
	b.eventually("the third list", func() bool { return last.Load() == `"three"` })
	t.Logf("followed in %v", time.Since(began))

	// The key opens nothing else.
	cred, err := key.credentials("a")
	if err != nil {
		t.Fatal(err)
	}
	p, err := listen(netip.AddrPort{}, cred, &Config{dial: b.config("a").dial, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	l := newLink(p, "b", b.peers[1].Addr)
	defer l.close()
	for _, op := range []operation{opHello, opAccount, opAdmit, opPropose, opTransfer, opAdd, opRemove, opPromote, opDemote, "view"} {
		_, err := l.call(b.ctx(), request{Op: op, To: "b", Peer: &b.peers[1], Change: &change{Set: map[string]string{"k": "v"}}})
		if err == nil || !strings.Contains(err.Error(), "worker may not") {
			t.Errorf("%s with a worker key: %v", op, err)
		}
	}
	for _, kind := range []byte{preambleRaft, preambleWatch} {
		conn, err := p.open(b.ctx(), b.peers[1].Addr, "b", kind)
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
	other, err := GenerateKey().Worker()
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := other.credentials("w2")
	if err != nil {
		t.Fatal(err)
	}
	p2, _ := listen(netip.AddrPort{}, stranger, &Config{dial: b.config("a").dial, Log: slog.New(slog.DiscardHandler)})
	l2 := newLink(p2, "b", b.peers[1].Addr)
	defer l2.close()
	if _, err := l2.call(b.ctx(), request{Op: opFollow}); err == nil {
		t.Error("a worker of another group follows this one")
	}
	b.stop("b", "c")
	select {
	case <-lost:
	case <-time.After(60 * time.Second):
		t.Error("a worker without any peer does not say so")
	}
}

// TestAThousandWorkers measures what they cost a peer that serves all of them.
func TestAThousandWorkers(t *testing.T) {
	if testing.Short() {
		t.Skip("a thousand TLS handshakes")
	}
	const workers = 1000
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
	list := `{"loadBalancers":[` + strings.Repeat(`{"name":"an ordinary load balancer","backends":["192.0.2.1:6443"]},`, 10) + `{}]}`
	a.Publish([]byte(list))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var got atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			f := Follower{ID: fmt.Sprintf("w%d", i), Key: key, Peers: []netip.AddrPort{b.peers[0].Addr}, Log: slog.New(slog.DiscardHandler)}
			if err := f.Follow(ctx, func([]byte) { got.Add(1) }, func(error) {}); err != nil {
				t.Error(err)
			}
		})
	}
	defer wg.Wait()
	defer cancel()
	b.eventually("every worker to have the list", func() bool { return got.Load() >= workers })
	runtime.GC()
	runtime.ReadMemStats(&after)
	idle := cpu()
	time.Sleep(3 * time.Second)
	idle = cpu() - idle
	change, began := cpu(), time.Now()
	a.Publish([]byte(strings.Replace(list, "192", "193", 1)))
	b.eventually("every worker to have the change", func() bool { return got.Load() >= 2*workers })
	took := time.Since(began)
	change = cpu() - change
	t.Logf("%d workers and their peer, in one process: %d KiB for each pair of ends; idle %.1f %% of a core; a change reaches all in %v for %v of CPU",
		workers, int64(after.HeapInuse+after.StackInuse-before.HeapInuse-before.StackInuse)/workers/1024,
		100*idle.Seconds()/3, took.Round(time.Millisecond), change.Round(time.Millisecond))
	if perPair := int64(after.HeapInuse+after.StackInuse-before.HeapInuse-before.StackInuse) / workers; perPair > 512<<10 {
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
