package raft

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"appliance/raft/auth"
	"appliance/raft/lease"
)

// childSpec is what a peer in a process of its own reads from its environment.
type childSpec struct {
	ID        string
	Peers     []Peer
	Dir, Key  string
	Insecure  bool
	Heartbeat time.Duration
}

// child runs one peer until its standard input ends. It prints a line each time it may answer and each time
// it no longer may.
func child() int {
	var s childSpec
	if err := json.Unmarshal([]byte(os.Getenv("RAFT_TEST_CHILD")), &s); err != nil {
		fmt.Println("error", err)
		return 2
	}
	sec := auth.Security{Insecure: s.Insecure}
	if !s.Insecure {
		key, err := auth.ParseKey([]byte(s.Key))
		if err != nil {
			fmt.Println("error", err)
			return 2
		}
		sec.Keys = []auth.Key{key}
	}
	g, err := Open(Config{ID: s.ID, Peers: s.Peers, DataDir: s.Dir, Security: sec, Heartbeat: s.Heartbeat})
	if err != nil {
		fmt.Println("error", err)
		return 2
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		bufio.NewReader(os.Stdin).ReadByte()
		cancel()
	}()
	go g.Lead(ctx, func(ctx context.Context, may func() bool) error {
		g.mu.Lock()
		term := g.tenure.term
		g.mu.Unlock()
		said := false
		for ctx.Err() == nil {
			// A frozen process goes on here when it thaws. The time is taken before the question, so that an
			// answer counts from the earliest possible moment.
			at := lease.Boottime()
			if now := may(); now != said {
				said = now
				fmt.Println(map[bool]string{true: "may", false: "not"}[now], term, int64(at))
			}
			time.Sleep(100 * time.Microsecond)
		}
		return nil
	})
	if err := g.Run(ctx); err != nil {
		fmt.Println("error", err)
		return 1
	}
	return 0
}

// startChild runs peer id in a process of its own and returns the lines that it prints.
func (b *bench) startChild(id string, insecure bool) (*exec.Cmd, <-chan string) {
	b.t.Helper()
	c := b.config(id)
	spec, err := json.Marshal(childSpec{
		ID: id, Peers: b.peers, Dir: b.dirs[id], Key: b.key.Text(), Insecure: insecure, Heartbeat: c.Heartbeat,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "RAFT_TEST_CHILD="+string(spec))
	cmd.Stderr = b.t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	lines := make(chan string, 1024)
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			select {
			case lines <- s.Text():
			default: // nobody is interested any more
			}
		}
	}()
	b.t.Cleanup(func() {
		in.Close()
		cmd.Process.Signal(syscall.SIGCONT)
		cmd.Process.Kill()
		<-read
		cmd.Wait()
	})
	return cmd, lines
}

// childHolds waits until the child may answer and returns its term.
func (b *bench) childHolds(lines <-chan string) (term uint64) {
	b.t.Helper()
	timeout := time.After(60 * time.Second)
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				b.t.Fatal("the child has ended")
			}
			if strings.HasPrefix(line, "error") {
				b.t.Fatal(line)
			}
			if n, _ := fmt.Sscanf(line, "may %d", &term); n == 1 {
				return term
			}
		case <-timeout:
			b.t.Fatal("the child does not hold")
		}
	}
}

// withChildHolder makes a group whose holder is a process of its own.
func withChildHolder(t *testing.T, insecure bool, heartbeat time.Duration) (*bench, *exec.Cmd, <-chan string) {
	b := newBench(t, 3)
	b.tweak = func(c *Config) {
		c.Heartbeat = heartbeat
		if insecure {
			c.Security = auth.Security{Insecure: true}
		}
	}
	cmd, lines := b.startChild("a", insecure)
	b.start("b", "c")
	b.voters(3)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	b.eventually("the child to lead", func() bool {
		b.nodes["b"].Transfer(ctx, "a") // fails until there is a leader that a has caught up with
		return b.nodes["b"].Status().Leader == "a"
	})
	b.childHolds(lines)
	b.eventually("the watchers to watch", func() bool {
		for _, n := range b.nodes {
			if s := n.Status(); s.Leader != "a" || !s.Peers[0].Connected {
				return false
			}
		}
		return true
	})
	time.Sleep(2 * heartbeat) // a watch connection is retried at half a heartbeat
	return b, cmd, lines
}

func TestKilledHolderIsReplacedAtOnce(t *testing.T) {
	for name, insecure := range map[string]bool{"tls": false, "insecure": true} {
		t.Run(name, func(t *testing.T) {
			// Even a slow machine proves a death within such a heartbeat.
			b, cmd, _ := withChildHolder(t, insecure, time.Second)
			killed := time.Now()
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			next := b.holder()
			t.Logf("%s holds %v after SIGKILL", next, time.Since(killed).Round(100*time.Microsecond))
			if d := b.nodes["b"].Status().Counters.Deaths + b.nodes["c"].Status().Counters.Deaths; d == 0 {
				t.Error("nobody proved the death; the heartbeat timeout did it")
			}
		})
	}
}

func TestFrozenHolderFallsSilent(t *testing.T) {
	b, cmd, lines := withChildHolder(t, false, DefaultHeartbeat)
	for range 3 {
		cmd.Process.Signal(syscall.SIGSTOP)
		next := b.holder("b", "c")
		term := b.nodes[next].Status().Term
		took := int64(lease.Boottime())
		cmd.Process.Signal(syscall.SIGCONT)
		b.eventually("the thawed peer to follow", func() bool {
			for _, p := range b.nodes[next].Status().Peers {
				if p.ID == "a" && p.Connected {
					return true
				}
			}
			return false
		})
		time.Sleep(3 * DefaultHeartbeat)
		for len(lines) > 0 {
			var what string
			var of uint64
			var at int64
			line := <-lines
			fmt.Sscanf(line, "%s %d %d", &what, &of, &at)
			if what == "may" && of < term && at > took {
				t.Errorf("%q: answered in term %d after %s had taken over in term %d", line, of, next, term)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		b.eventually("the child to lead again", func() bool {
			b.nodes["b"].Transfer(ctx, "a")
			return b.nodes["b"].Status().Leader == "a"
		})
		cancel()
		b.childHolds(lines)
	}
}

func TestGracefulStopIsNoDeath(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	old := b.holder()
	b.voters(3)
	time.Sleep(2 * DefaultHeartbeat)
	b.stop(old)
	b.holder()
	for id, n := range b.nodes {
		if d := n.Status().Counters.Deaths; d != 0 {
			t.Errorf("%s took the goodbye of %s for a death", id, old)
		}
	}
}

var soak = flag.Duration("soak", 0, "how long TestNoFalseFailover keeps every core busy")

// TestNoFalseFailover keeps every core busy with other processes. It is not part of the usual run: a test
// cannot assert for how long a machine may starve a process.
func TestNoFalseFailover(t *testing.T) {
	if *soak == 0 {
		t.Skip("run it with -soak=1m")
	}
	b := newBench(t, 3)
	var all []<-chan string
	for _, p := range b.peers {
		_, lines := b.startChild(p.ID, false)
		all = append(all, lines)
	}
	time.Sleep(5 * time.Second)
	count := func() (n int) {
		for _, lines := range all {
			for len(lines) > 0 {
				t.Log(<-lines)
				n++
			}
		}
		return n
	}
	if count() == 0 {
		t.Fatal("nobody holds")
	}
	for range 2 * runtime.NumCPU() {
		busy := exec.Command("sh", "-c", "while :; do :; done")
		if err := busy.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { busy.Process.Kill(); busy.Wait() })
	}
	time.Sleep(*soak)
	if n := count(); n > 0 {
		t.Errorf("the lease lapsed or moved %d times in %v", n, *soak)
	}
}
