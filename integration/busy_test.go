package integration

import (
	"context"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"appliance/integration/scene"
)

const (
	// busyFor is how long TestBusyCores keeps every core busy.
	busyFor = 15 * time.Second
	// unfair is a pause of the machine itself that excuses a failover: half of
	// the silence after which a peer is suspected.
	unfair = 25 * time.Millisecond
)

// TestBusyCores: with two busy processes per core the holder stays, and nobody stands
// for election. A thread of the same priority measures how long the machine runs
// nobody, as happens in a virtual machine on an overbooked host. A failover after such
// a pause says nothing about the appliance.
func TestBusyCores(t *testing.T) {
	tr := serve(t, scene.Setup{Family: scene.IPv4, Stacked: true})
	holder := tr.holder(t, 0, 1, 2)
	before, err := tr.app.Status(t.Context(), holder)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 * runtime.NumCPU() {
		busy := exec.Command("sh", "-c", "while :; do :; done")
		busy.SysProcAttr = &unix.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}
		if err := busy.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			busy.Process.Kill()
			busy.Wait()
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), busyFor)
	defer cancel()
	pause := longestPause(ctx)
	after, err := tr.app.Status(t.Context(), holder)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the machine paused for %v at most", pause)
	if after.Holder != before.Holder || after.Term != before.Term {
		if pause > unfair {
			t.Skipf("%s in term %d became %s in term %d after the machine had paused for %v: too busy to tell",
				before.Holder, before.Term, after.Holder, after.Term, pause)
		}
		t.Errorf("%s in term %d became %s in term %d although nothing had failed", before.Holder, before.Term,
			after.Holder, after.Term)
	}
	tr.oneAnswer(t)
}

// longestPause is the longest time by which a real-time thread overslept.
func longestPause(ctx context.Context) time.Duration {
	result := make(chan time.Duration)
	go func() {
		var longest time.Duration
		defer func() { result <- longest }()
		runtime.LockOSThread() // and ends with the goroutine, with its priority
		if attr, err := unix.SchedGetAttr(0, 0); err == nil {
			attr.Policy, attr.Priority, attr.Nice = unix.SCHED_RR, 1, 0
			_ = unix.SchedSetAttr(0, attr, 0)
		}
		const nap = 5 * time.Millisecond
		for ctx.Err() == nil {
			began := time.Now()
			ts := unix.NsecToTimespec(int64(nap))
			_ = unix.Nanosleep(&ts, nil)
			longest = max(longest, time.Since(began)-nap)
		}
	}()
	return <-result
}
