package raft

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// founders is a world in which every file has startAsLeader for ever.
type founders struct {
	*sim
	dirs map[string]string
}

func (w *founders) begin(ids ...string) {
	for _, id := range ids {
		if w.dirs[id] == "" {
			w.dirs[id] = w.newDir(id)
		}
		w.boot(w.host(id), w.dirs[id])
	}
}

func (w *founders) end(id string) { w.dirs[id] = w.stop(w.host(id)) }

func (w *founders) wipe(id string) { w.dirs[id] = w.newDir(id) }

// apart lets only those talk that are on the same side.
func (w *founders) apart(sides ...string) {
	w.say("apart: %v", sides)
	for _, a := range w.hosts {
		for _, b := range w.hosts {
			w.net.set(a.id, b.id, !slices.ContainsFunc(sides, func(s string) bool {
				return strings.Contains(s, a.id) && strings.Contains(s, b.id)
			}))
		}
	}
}

// holders are those that may answer now, with the names of their groups.
func (s *sim) holders() map[string]string {
	held := make(map[string]string)
	for id, p := range s.running() {
		if p.allowed() {
			held[id] = p.group.Load().cluster()
		}
	}
	return held
}

func (w *founders) hold(ids ...string) {
	w.await(fmt.Sprint(ids, " to hold"), 2*time.Minute, func() bool {
		return slices.Equal(slices.Sorted(maps.Keys(w.holders())), ids)
	})
}

func (w *founders) group(id string) string {
	if g := w.running()[id].group.Load(); g != nil {
		return g.cluster()
	}
	return ""
}

// settle heals the network and waits until all are voters of one group with one holder.
func (w *founders) settle() {
	w.net.heal()
	w.mu.Lock()
	w.whole = time.Now()
	w.mu.Unlock()
	w.await("one group with one holder", 3*time.Minute, w.complete)
	w.mu.Lock()
	w.whole = time.Time{}
	w.mu.Unlock()
}

// stays is that the group called name goes on in all.
func (w *founders) stays(name string) {
	for id := range w.running() {
		if now := w.group(id); now != name {
			w.wrong("%s is in group %.8s; that with a majority of the listed peers, %.8s, has ended", id, now, name)
		}
	}
}

// TestFounders: with startAsLeader left in every file nothing bad follows, in whatever order peers begin, lose their
// disks, and reach each other. A founder has founding.Patience.
func TestFounders(t *testing.T) {
	type play struct {
		peers int
		do    func(w *founders)
		seed  uint64
	}
	plays := map[string]play{
		"three at once": {peers: 3, do: func(w *founders) { w.begin("a", "b", "c") }},
		"kubeadm's order": {peers: 3, do: func(w *founders) {
			for _, id := range []string{"a", "b", "c"} { // init, and later each join
				w.begin(id)
				w.await(id+" to vote", time.Minute, func() bool {
					p := w.running()[id].group.Load()
					return p != nil && p.running() != nil && len(p.voters(nil)) == len(w.running())
				})
			}
			if w.holder() != w.host("a") {
				w.wrong("the holder moved while others joined")
			}
		}},
		"kubeadm's order, the last first": {peers: 3, do: func(w *founders) {
			w.begin("c")
			w.hold("c")
			w.begin("b", "a")
		}},
		"the switch does not forward yet": {peers: 3, do: func(w *founders) {
			w.apart()
			w.begin("a", "b", "c")
			w.hold("a", "b", "c")
		}},
		"the switch forwards in time": {peers: 3, do: func(w *founders) {
			w.apart()
			w.begin("a", "b", "c")
			time.Sleep(25 * time.Second)
			if held := w.holders(); len(held) > 0 {
				w.wrong("%v founded alone although a switch may not forward yet", held)
			}
		}},
		"two against one": {peers: 3, do: func(w *founders) {
			w.apart("a", "bc")
			w.begin("a", "b", "c")
			w.await("two groups", 2*time.Minute, func() bool {
				c := w.running()["c"].group.Load()
				return len(w.holders()) == 2 && c.running() != nil && len(c.voters(nil)) == 2
			})
			name := w.group("c")
			w.settle()
			w.stays(name)
			if kept, _ := filepath.Glob(filepath.Join(w.dirs["a"], "aside-*", "raft.db")); len(kept) != 1 {
				w.wrong("the loser's data is not put aside: %v", kept)
			}
		}},
		"two of five against three": {peers: 5, do: func(w *founders) {
			w.apart("ab", "cde")
			w.begin("a", "b", "c", "d", "e")
			w.await("two groups", 2*time.Minute, func() bool {
				e := w.running()["e"].group.Load()
				return len(w.holders()) == 2 && e.running() != nil && len(e.voters(nil)) == 3
			})
			name := w.group("e")
			w.settle()
			w.stays(name)
		}},
		"they hear each other in one direction": {peers: 3, do: func(w *founders) {
			for _, way := range []string{"ab", "bc", "ca"} {
				w.net.set(way[:1], way[1:], true)
			}
			w.begin("a", "b", "c")
			w.hold("a", "b", "c")
		}},
		"a wiped founder is cut off": {peers: 3, do: func(w *founders) {
			w.begin("a", "b", "c")
			w.settle()
			name := w.group("b")
			w.end("a")
			w.wipe("a")
			w.apart("a", "bc")
			w.begin("a")
			w.await("a to hold alone", 2*time.Minute, func() bool { _, holds := w.holders()["a"]; return holds })
			w.settle()
			w.stays(name)
		}},
		"the wiped founder is the first to begin": {peers: 3, do: func(w *founders) {
			w.begin("a", "b", "c")
			w.settle()
			name := w.group("b")
			for _, id := range []string{"a", "b", "c"} {
				w.end(id)
			}
			w.wipe("a")
			w.begin("a")
			w.hold("a")
			w.begin("b", "c")
			w.settle()
			w.stays(name)
		}},
	}
	anything := 4
	if testing.Short() {
		anything = 0
	}
	for i := range anything {
		plays[fmt.Sprint("anything ", i)] = play{3 + i%2*2, (*founders).anything, uint64(i)}
	}
	for name, p := range plays {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			simulate(t, max(*simSeed, p.seed), p.peers, func(s *sim) {
				s.tweak = func(c *Config) { c.StartAsLeader = true }
				s.founding = true
				w := &founders{sim: s, dirs: make(map[string]string)}
				p.do(w)
				w.settle()
			})
		})
	}
}

// anything is beginnings, ends, lost disks and partitions in any order.
func (w *founders) anything() {
	rnd := w.rnd
	for range 12 {
		h := w.hosts[rnd.IntN(len(w.hosts))]
		switch {
		case h.proc == nil:
			w.begin(h.id)
		case rnd.IntN(3) == 0:
			redundant := w.complete()
			if rnd.IntN(2) == 0 {
				w.end(h.id)
			} else {
				w.dirs[h.id] = w.crash(h, rnd.IntN(2) == 0)
			}
			if redundant && rnd.IntN(2) == 0 {
				w.wipe(h.id)
			}
		case rnd.IntN(2) == 0:
			sides := make([]string, 1+rnd.IntN(3))
			for _, o := range w.hosts {
				sides[rnd.IntN(len(sides))] += o.id
			}
			w.apart(sides...)
		case rnd.IntN(2) == 0:
			w.net.set(h.id, w.hosts[rnd.IntN(len(w.hosts))].id, true)
		default:
			w.net.heal()
		}
		time.Sleep(time.Duration(rnd.ExpFloat64() * float64(12*time.Second)))
	}
	for _, h := range w.hosts {
		if h.proc == nil {
			w.begin(h.id)
		}
	}
}
