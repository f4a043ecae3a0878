package raft

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestKeysAreRotatedWhileTheGroupLives goes the way that an operator goes: the
// new key is accepted everywhere, then shown everywhere, then the old one goes.
func TestKeysAreRotatedWhileTheGroupLives(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	b.voters(3)
	b.holder()
	b.datagramsFlow()
	next := GenerateKey()
	for _, keys := range [][]Key{{b.key, next}, {next, b.key}, {next}} {
		for _, id := range []string{"a", "b", "c"} {
			if err := b.nodes[id].SetKeys(keys); err != nil {
				t.Fatal(err)
			}
			// What begins now is understood by those before and those behind.
			for _, p := range b.peers {
				if p.ID != id {
					if err := b.nodes[id].meet(b.ctx(), p); err != nil {
						t.Errorf("%s to %s: %v", id, p.ID, err)
					}
				}
			}
			b.datagramsFlow()
		}
	}
	// Who has only the old key is a stranger now.
	old, err := fromKeys([]Key{b.key}, "b", rolePeer)
	if err != nil {
		t.Fatal(err)
	}
	p, err := listen(netip.AddrPort{}, old, &Config{dial: b.config("a").dial, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	l := newLink(p, "c", b.peers[2].Addr)
	defer l.close()
	if _, err := l.call(b.ctx(), request{Op: opHello}); err == nil {
		t.Error("the old key is still accepted")
	}
	b.key = next
	h := b.holder()
	b.stop(h)
	b.start(h)
	b.voters(3)
	b.holder()
}

// datagramsFlow waits until something new has come from every peer to every
// other, and all count as heard.
func (b *bench) datagramsFlow() {
	b.t.Helper()
	got := func(n *node, from string) uint64 {
		n.detector.mu.Lock()
		defer n.detector.mu.Unlock()
		return n.detector.fellows[from].got
	}
	for id, n := range b.nodes {
		for other := range b.nodes {
			if other == id {
				continue
			}
			before := got(n, other)
			b.eventually("datagrams from "+other+" to "+id, func() bool {
				heard, vanished := n.detector.reach(other)
				return heard && !vanished && got(n, other) > before
			})
		}
	}
}

func TestSeveralKeysInOneFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	a, b := GenerateKey(), GenerateKey()
	write := func(keys ...string) {
		if err := os.WriteFile(path, []byte(strings.Join(keys, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(a.Text(), b.Text())
	if keys, err := LoadKeys(path); err != nil || len(keys) != 2 || keys[0] != a || keys[1] != b {
		t.Errorf("%v, %v", keys, err)
	}
	write(a.Text(), b.Text(), a.Text(), b.Text())
	if _, err := LoadKeys(path); err == nil || !strings.Contains(err.Error(), "more than 3 keys") {
		t.Errorf("%v", err)
	}
	write(a.Text(), "nonsense")
	if _, err := LoadKeys(path); err == nil {
		t.Error("nonsense was passed over")
	}
}

func TestDataOfANewerVersionAreRefused(t *testing.T) {
	b := newBench(t, 1)
	b.start("a")
	b.holder()
	b.stop("a")
	s, err := openStore(b.dirs["a"], newHclog(b.config("a").Log))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.BoltStore.Set([]byte(formatKey), []byte("2")); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := Open(b.config("a")); err == nil || !strings.Contains(err.Error(), "newer version") {
		t.Errorf("Open: %v", err)
	}
}
