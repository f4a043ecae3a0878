package integration

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// joinWorker adds a node, and returns what starts a worker on it that follows
// the first three.
func (tr *trial) joinWorker(t *testing.T) (w int, start func()) {
	t.Helper()
	w, err := tr.AddNode()
	if err != nil {
		t.Fatal(err)
	}
	key := tr.say(t, 0, "keygen", "--worker", "--group-key", filepath.Join(tr.Dir, "group.key"))
	path := filepath.Join(tr.Dir, "worker.key")
	if err := os.WriteFile(path, []byte(key), 0o600); err != nil {
		t.Fatal(err)
	}
	var peers []string
	for i := range 3 {
		peers = append(peers, tr.Addr(i).String())
	}
	return w, func() {
		t.Helper()
		if err := tr.app.StartWith(w, "--role", "worker", "--group-key", path, "--peers",
			strings.Join(peers, ",")); err != nil {
			t.Fatal(err)
		}
	}
}

// TestWorkerLeavesVanishedHosts: the host of the peer that a worker follows vanishes. The
// next change that the other peers learn of reaches the worker.
func TestWorkerLeavesVanishedHosts(t *testing.T) {
	tr := gather(t)
	tr.begin(t)
	w, start := tr.joinWorker(t)
	start()
	weighs := func(n int) func(context.Context) bool {
		return func(ctx context.Context) bool {
			s, err := tr.app.Status(ctx, w)
			return err == nil && backends(s) == 3 && s.LoadBalancers[0].Backends[0].Weight == n
		}
	}
	tr.until(t, "the worker to have the list", weighs(1))
	// It follows one of the three, nobody knows which.
	for i := range 3 {
		if err := tr.Nodes[i].Unplug(); err != nil {
			t.Fatal(err)
		}
		gone := time.Now()
		j := tr.holder(t, others(i)...)
		tr.say(t, j, "backends", "weight", tr.Addr(0).String(), strconv.Itoa(10+i))
		tr.until(t, "the worker to have the change", weighs(10+i))
		t.Logf("node %d vanished: the worker has a change %v later", i+1, time.Since(gone).Round(time.Millisecond))
		if err := tr.Nodes[i].Plug(); err != nil {
			t.Fatal(err)
		}
		tr.members(t, 0, 1, 2)
	}
}

// TestWorker: a worker follows the peers' backends with a key of its own, and
// serves from the last good list when no peer answers.
func TestWorker(t *testing.T) {
	tr := gather(t)
	tr.begin(t)
	w, start := tr.joinWorker(t)
	serves := func(n int) {
		t.Helper()
		tr.until(t, "the worker to have the peers' backends", func(ctx context.Context) bool {
			s, err := tr.app.Status(ctx, w)
			return err == nil && backends(s) == n && len(s.NotReady) == 0
		})
	}
	start()
	serves(3)
	tr.until(t, "one peer to list the worker", func(ctx context.Context) bool {
		listed := 0
		for i := range 3 {
			s, err := tr.app.Status(ctx, i)
			if err != nil {
				return false
			}
			for _, one := range s.Group.Workers {
				if one.ID == tr.Addr(w).String() && one.Address == tr.Addr(w) && one.Version != "" &&
					time.Since(one.Since) < time.Hour {
					listed++
				}
			}
		}
		return listed == 1
	})
	h := tr.holder(t, 0, 1, 2)
	tr.say(t, h, "peers", "remove", tr.Nodes[others(h)[0]].Name)
	serves(2)
	// Some of the peers may not know yet: a worker does not go back to their list.
	for i := range 3 {
		tr.app.Kill(i)
	}
	tr.app.Kill(w)
	start()
	serves(2) // its own file says three
	tr.oneAnswer(t)
}
