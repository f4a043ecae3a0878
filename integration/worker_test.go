package integration

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestWorker: a worker follows the peers' backends with a key of its own, and
// serves from the last good list when no peer answers.
func TestWorker(t *testing.T) {
	tr := gather(t)
	if err := tr.app.StartAll(); err != nil {
		t.Fatal(err)
	}
	tr.members0(t, 0, 1, 2)
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
	start := func() {
		t.Helper()
		if err := tr.app.StartWith(w, "--role", "worker", "--group-key", path, "--peers", strings.Join(peers, ",")); err != nil {
			t.Fatal(err)
		}
	}
	serves := func(n int) {
		t.Helper()
		tr.until(t, "the worker to have the peers' backends", func(ctx context.Context) bool {
			s, err := tr.app.Status(ctx, w)
			return err == nil && backends(s) == n && len(s.NotReady) == 0
		})
	}
	start()
	serves(3)
	h := tr.holder(t, 0, 1, 2)
	tr.say(t, h, "peers", "remove", tr.Nodes[others(h)[0]].Name)
	serves(2)
	// A follower learns what the leader knows with the next word from it. Killed
	// before that, the last one alive would tell the worker the older list.
	tr.until(t, "every peer to know of the removal", func(ctx context.Context) bool {
		for _, i := range others(others(h)[0]) {
			if s, err := tr.app.Status(ctx, i); err != nil || backends(s) != 2 {
				return false
			}
		}
		return true
	})
	for i := range 3 {
		tr.app.Kill(i)
	}
	tr.app.Kill(w)
	start()
	serves(2) // its own file says three
	tr.oneAnswer(t)
}
