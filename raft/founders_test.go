package raft

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	hraft "github.com/hashicorp/raft"

	"appliance/raft/fence"
	"appliance/raft/transport"
)

// world is peers that all have startAsLeader for ever, each in a process that begins again when its group ends
// in favour of another, as node.Run does.
type world struct {
	*bench
	mu    sync.Mutex
	now   map[string]*Group
	stops map[string]func()
	// reachable since: the moment from which every peer reaches every other.
	whole    time.Time
	overlaps []string
}

func newWorld(t *testing.T, n int) *world {
	w := &world{bench: newBench(t, n), now: make(map[string]*Group), stops: make(map[string]func())}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { w.judgeAll(ctx) })
	t.Cleanup(func() {
		w.wires.heal()
		for _, stop := range w.stops {
			wg.Go(stop)
		}
		cancel()
		wg.Wait()
	})
	return w
}

// boot starts a peer, and starts it again whenever it has yielded.
func (w *world) boot(id string, change ...func(*Config)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			c := w.config(id)
			c.StartAsLeader = true
			for _, f := range change {
				f(&c)
			}
			g, err := Open(c)
			if err != nil {
				w.t.Errorf("%s: %v", id, err)
				return
			}
			w.mu.Lock()
			w.now[id] = g
			w.mu.Unlock()
			led := make(chan struct{})
			go func() {
				defer close(led)
				g.Lead(ctx, func(ctx context.Context, may func() bool) error {
					<-ctx.Done()
					return nil
				})
			}()
			err = g.Run(ctx)
			<-led
			if err != nil && !errors.Is(err, ErrYielded) {
				w.t.Errorf("%s: Run: %v", id, err)
				return
			}
		}
	}()
	w.stops[id] = func() { cancel(); <-done }
}

func (w *world) halt(id string) {
	w.stops[id]()
	delete(w.stops, id)
	w.mu.Lock()
	delete(w.now, id)
	w.mu.Unlock()
}

// complete says that n voters of one group run, so that it survives the loss of a disk.
func (w *world) complete(n int) bool {
	clusters := make(map[string]bool)
	groups := w.groups()
	for _, g := range groups {
		if g.running() == nil || len(g.voters(nil)) != n {
			return false
		}
		clusters[g.cluster()] = true
	}
	return len(groups) == n && len(clusters) == 1 && !clusters[""]
}

func (w *world) wipe(id string) { w.dirs[id] = w.t.TempDir() }

func (w *world) groups() map[string]*Group {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make(map[string]*Group, len(w.now))
	for id, g := range w.now {
		all[id] = g
	}
	return all
}

// holders are those that may answer at one moment, with the names of their groups.
func (w *world) holders() (ids []string, clusters map[string]bool) {
	clusters = make(map[string]bool)
	for id, g := range w.groups() {
		g.mu.Lock()
		may := g.tenure.may
		g.mu.Unlock()
		if may != nil && may() {
			ids = append(ids, id)
			clusters[g.cluster()] = true
		}
	}
	slices.Sort(ids)
	return ids, clusters
}

// judgeAll notes when two answer of one group, or of two after they have had time to meet.
func (w *world) judgeAll(ctx context.Context) {
	for ctx.Err() == nil {
		if ids, _ := w.holders(); len(ids) > 1 {
			w.mu.Lock()
			// Greetings are a second apart, and one may have begun before; a busy machine takes its time.
			if !w.whole.IsZero() && time.Since(w.whole) > 10*time.Second {
				w.overlaps = append(w.overlaps, fmt.Sprint(ids))
			}
			w.mu.Unlock()
		}
		time.Sleep(time.Millisecond)
	}
}

// settle waits until all peers that run are voters of one group with one holder.
func (w *world) settle(n int) {
	w.t.Helper()
	w.mu.Lock()
	w.whole = time.Now()
	w.mu.Unlock()
	w.eventually(fmt.Sprintf("one group of %d with one holder", n), func() bool {
		ids, _ := w.holders()
		return len(ids) == 1 && w.complete(n)
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range w.overlaps {
		w.t.Errorf("%s answered at once although all could reach each other", o)
	}
	w.whole = time.Time{}
}

func (w *world) apart(sides ...string) {
	for _, a := range w.peers {
		for _, b := range w.peers {
			same := slices.ContainsFunc(sides, func(s string) bool {
				return strings.Contains(s, a.ID) && strings.Contains(s, b.ID)
			})
			w.wires.set(a.ID, b.ID, a.ID != b.ID && !same)
		}
	}
}

// TestStartAsLeaderForEver: with startAsLeader left in every file nothing bad follows, in whatever order peers
// begin, lose their disks, and reach each other.
func TestStartAsLeaderForEver(t *testing.T) {
	for name, play := range map[string]func(w *world){
		"three at once": func(w *world) {
			w.boot("a")
			w.boot("b")
			w.boot("c")
		},
		"kubeadm's order, the last first": func(w *world) {
			w.boot("c")
			w.eventually("c to hold", func() bool { ids, _ := w.holders(); return slices.Equal(ids, []string{"c"}) })
			w.boot("b")
			w.boot("a")
		},
		"the switch does not forward yet": func(w *world) {
			w.apart("a", "b", "c")
			w.boot("a")
			w.boot("b")
			w.boot("c")
			w.eventually("three groups", func() bool { ids, _ := w.holders(); return len(ids) == 3 })
			w.wires.heal()
		},
		"two against one": func(w *world) {
			w.apart("a", "bc")
			w.boot("a")
			w.boot("b")
			w.boot("c")
			w.eventually("two groups", func() bool {
				_, clusters := w.holders()
				return len(clusters) == 2 && w.groups()["c"].running() != nil && len(w.groups()["c"].voters(nil)) == 2
			})
			stays := w.groups()["c"].cluster()
			w.wires.heal()
			w.settle(3)
			if now := w.groups()["a"].cluster(); now != stays {
				w.t.Errorf("the group with the majority of the listed peers ended")
			}
			if kept, _ := filepath.Glob(filepath.Join(w.dirs["a"], "aside-*", "raft.db")); len(kept) != 1 {
				w.t.Errorf("the loser's data is not put aside: %v", kept)
			}
		},
		"a wiped founder is cut off": func(w *world) {
			w.boot("a")
			w.boot("b")
			w.boot("c")
			w.settle(3)
			stays := w.groups()["b"].cluster()
			w.halt("a")
			w.wipe("a")
			w.apart("a", "bc")
			w.boot("a")
			w.eventually("a to hold alone", func() bool { ids, _ := w.holders(); return slices.Contains(ids, "a") })
			w.wires.heal()
			w.settle(3)
			if now := w.groups()["a"].cluster(); now != stays {
				w.t.Errorf("the group with the majority of the listed peers ended")
			}
		},
		"the wiped founder is the first to boot": func(w *world) {
			w.boot("a")
			w.boot("b")
			w.boot("c")
			w.settle(3)
			stays := w.groups()["b"].cluster()
			for _, id := range []string{"a", "b", "c"} {
				w.halt(id)
			}
			w.wipe("a")
			w.boot("a")
			w.eventually("a to hold alone", func() bool { ids, _ := w.holders(); return slices.Contains(ids, "a") })
			w.mu.Lock()
			w.whole = time.Now()
			w.mu.Unlock()
			w.boot("b")
			w.boot("c")
			w.settle(3)
			if now := w.groups()["a"].cluster(); now != stays {
				w.t.Errorf("the group with the majority of the listed peers ended")
			}
		},
		"anything": func(w *world) {
			seed := rand.Uint64()
			w.t.Logf("seed %d", seed)
			rnd := rand.New(rand.NewPCG(seed, 0))
			ids := []string{"a", "b", "c"}
			for range 8 {
				id := ids[rnd.IntN(3)]
				switch _, runs := w.stops[id]; {
				case !runs:
					w.boot(id)
				case rnd.IntN(3) == 0:
					redundant := w.complete(3)
					w.halt(id)
					if redundant && rnd.IntN(2) == 0 {
						w.wipe(id)
					}
				case rnd.IntN(2) == 0:
					w.apart([][]string{{"a", "bc"}, {"ab", "c"}, {"ac", "b"}, {"a", "b", "c"}}[rnd.IntN(4)]...)
				default:
					w.wires.heal()
				}
				time.Sleep(time.Duration(rnd.IntN(1500)) * ms)
			}
			w.wires.heal()
			for _, id := range ids {
				if _, runs := w.stops[id]; !runs {
					w.boot(id)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 3)
			play(w)
			w.settle(3)
		})
	}
}

// TestRestoredDiskDoesNotVote: a peer whose data directory is an older copy says so, is given no say by the
// others, and gets it back when the leader has brought it up to date.
func TestRestoredDiskDoesNotVote(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	b.voters(3)
	b.named()
	h := b.holder()
	id := "a"
	if h == "a" {
		id = "b"
	}
	b.stop(id)
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(b.dirs[id])); err != nil {
		t.Fatal(err)
	}
	b.start(id)
	b.holder()
	b.eventually("the others to have met it", func() bool {
		for other, n := range b.nodes {
			if other != id && n.fence.ReachedBy(id).Boots < 2 {
				return false
			}
		}
		return true
	})
	b.stop(id)
	b.dirs[id] = copied
	b.start(id)
	n := b.nodes[id]
	var said, refused bool
	b.eventually("it to say so, the others to refuse it, and both to end", func() bool {
		said = said || strings.Contains(n.Status().Trouble, "went backwards")
		for other, n := range b.nodes {
			refused = refused || other != id && n.fence.Refusal(id) != nil
		}
		if !said || !refused || n.Status().Trouble != "" {
			return false
		}
		for other, n := range b.nodes {
			if other != id && n.fence.Refusal(id) != nil {
				return false
			}
		}
		return true
	})
	// Its vote counts again: with one of the others gone it makes the majority.
	for other := range b.nodes {
		if other != id && other != h {
			b.stop(other)
		}
	}
	b.holder()
}

// TestRecoveredPeerDoesNotLeadItsFormerGroup: a peer of another group with the same key is no leader here.
func TestRecoveredPeerDoesNotLeadItsFormerGroup(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	b.voters(3)
	b.named()
	b.holder()
	a := b.nodes["a"]
	s := transport.NewStream(a.port, a.cfg.Addr)
	tr := transport.New(s, a.cfg.Heartbeat, transport.Rules{
		Granted: func(string, uint64, time.Duration) {}, Now: a.cfg.now,
		Removed: func() bool { return false }, Refusal: func(string) error { return nil },
		Withheld: func() error { return nil }, Stamp: func(string) (string, bool) { return "another", true },
	}, a.hlog)
	defer tr.Close()
	const term = 1000
	to := b.peers[1]
	id, addr := hraft.ServerID(to.ID), hraft.ServerAddress(to.Addr.String())
	header := hraft.RPCHeader{ProtocolVersion: hraft.ProtocolVersionMax, ID: []byte("a"),
		Addr: []byte(a.cfg.Addr.String())}
	for kind, err := range map[string]error{
		"a heartbeat": tr.AppendEntries(id, addr, &hraft.AppendEntriesRequest{RPCHeader: header, Term: term},
			new(hraft.AppendEntriesResponse)),
		"a request for a vote": tr.RequestVote(id, addr, &hraft.RequestVoteRequest{RPCHeader: header, Term: term,
			LastLogIndex: 1e6, LastLogTerm: term, LeadershipTransfer: true}, new(hraft.RequestVoteResponse)),
		"a call to stand": tr.TimeoutNow(id, addr, &hraft.TimeoutNowRequest{RPCHeader: header},
			new(hraft.TimeoutNowResponse)),
		"a snapshot": tr.InstallSnapshot(id, addr, &hraft.InstallSnapshotRequest{RPCHeader: header, Term: term,
			SnapshotVersion: 1, Size: 3}, new(hraft.InstallSnapshotResponse), strings.NewReader("{}\n")),
	} {
		if err == nil || !strings.Contains(err.Error(), fence.ErrStranger.Error()) {
			t.Errorf("%s of another group: %v", kind, err)
		}
	}
	if at := b.nodes["b"].Status().Term; at >= term {
		t.Errorf("a stranger raised the term to %d", at)
	}
	b.holder()
}
