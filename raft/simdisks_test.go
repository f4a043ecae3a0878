package raft

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"
)

// playDisks plays a world of three in which only what f does goes wrong.
func playDisks(t *testing.T, f func(s *sim)) {
	simulate(t, 1, 3, func(s *sim) {
		for _, h := range s.hosts {
			s.boot(h, s.newDir(h.id))
		}
		s.mend(nil)
		f(s)
		s.mend(nil)
	})
}

// followers are the hosts that do not hold.
func (s *sim) followers() (all []*simHost) {
	holder := s.holder()
	for _, h := range s.hosts {
		if h != holder {
			all = append(all, h)
		}
	}
	return all
}

// TestSimRemovalBesideALostDisk: a peer that has lost its disk answers, and has no vote. While it is on its way back, the
// removal of another leaves nobody without a leader for good.
func TestSimRemovalBesideALostDisk(t *testing.T) {
	playDisks(t, func(s *sim) {
		lost, other := s.followers()[0], s.followers()[1]
		holder := s.holder()
		os.RemoveAll(s.crash(lost, true))
		s.net.set(holder.id, other.id, true) // it asks to be taken in while nobody leads, and again after seconds
		s.net.set(other.id, holder.id, true)
		s.boot(lost, s.newDir(lost.id))
		time.Sleep(2 * time.Second)
		s.net.heal()
		began := time.Now()
		for time.Since(began) < 2*time.Second && !s.broken() {
			if h := s.holder(); h != nil {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				s.say("remove %s: %v", other.id, h.proc.group.Load().RemovePeer(ctx, other.id, false))
				cancel()
			}
			time.Sleep(20 * ms)
		}
	})
}

// TestSimMemoryOfAnOlderDisk: what a peer with an older disk remembers of another's is older as well. It keeps nobody from
// voting who has caught up since.
func TestSimMemoryOfAnOlderDisk(t *testing.T) {
	playDisks(t, func(s *sim) {
		propose := func(key string) bool {
			return s.await("a setting to be taken", time.Minute, func() bool {
				h := s.holder()
				if h == nil {
					return false
				}
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				return h.proc.group.Load().Propose(ctx, map[string]string{key: key}) == nil
			})
		}
		first, second := s.followers()[0], s.followers()[1]
		older := s.newDir(first.id)
		if err := first.proc.copyTo(older); err != nil {
			t.Fatal(err)
		}
		propose("1")
		time.Sleep(3 * time.Second) // the others hear how far it has come
		holder := s.holder()
		if holder == nil {
			t.Fatal("nobody holds")
		}
		s.net.set(first.id, holder.id, true) // or it may have caught up before the other has asked it
		s.net.set(holder.id, first.id, true)
		s.crash(first, true)
		s.boot(first, older)
		memory := s.newDir(second.id)
		s.await("the other follower to know", time.Minute, func() bool {
			return second.proc.group.Load().fence.Refusal(first.id) != nil
		})
		if err := second.proc.copyTo(memory); err != nil {
			t.Fatal(err)
		}
		s.net.heal()
		s.await("the first disk to be up to date", time.Minute, func() bool {
			return s.complete() && second.proc.group.Load().fence.Refusal(first.id) == nil
		})
		propose("2")
		time.Sleep(3 * time.Second)
		dirs := []string{s.crash(first, true), s.crash(holder, true)}
		s.crash(second, true)
		s.boot(first, dirs[0])
		s.boot(holder, dirs[1])
		s.boot(second, memory)
	})
}

// TestSimSlowDisks: with disks that take their time for a write, nothing moves at rest, and a lost holder has a successor
// after a few writes and not many elections.
func TestSimSlowDisks(t *testing.T) {
	for _, takes := range []time.Duration{300 * ms, 3 * time.Second} {
		for what, lose := range map[string]func(s *sim, h *simHost) (dir string){
			"no host": func(s *sim, h *simHost) string { return s.crash(h, true) },
			"cut off": func(s *sim, h *simHost) string {
				(&unrest{sim: s}).cut("%s is cut off", h, true, true)
				return ""
			},
		} {
			t.Run(fmt.Sprint(what, " ", takes), func(t *testing.T) {
				playDisks(t, func(s *sim) {
					s.slow = 10 * takes
					s.net.mu.Lock()
					for _, h := range s.hosts {
						h.fsync = takes
					}
					s.net.mu.Unlock()
					lost := s.holder()
					ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
					defer cancel()
					s.say("proposed: %v", lost.proc.group.Load().Propose(ctx, map[string]string{"key": "1"}))
					time.Sleep(20 * time.Second)
					if h := s.holder(); h != lost {
						t.Fatal("the holder changed at rest")
					}
					others := s.followers()
					began, before := time.Now(), others[0].elections()+others[1].elections()
					dir := lose(s, lost)
					s.await("a successor", simBound+s.slow, func() bool {
						h := s.holder()
						return h != nil && h != lost
					})
					n := others[0].elections() + others[1].elections() - before
					t.Logf("%d elections, a successor after %v", n, time.Since(began))
					if n > 6 {
						t.Error("that is no patience")
					}
					if dir != "" {
						s.boot(lost, dir)
					}
				})
			})
		}
	}
}

func (h *simHost) elections() uint64 { return h.proc.group.Load().Status().Counters.Elections }

// TestSimRemovedBeforeTheGroupHadAName: a founder that was cut off, removed, and added again has a disk of which nobody
// can say that it is of this group. It comes back all the same.
func TestSimRemovedBeforeTheGroupHadAName(t *testing.T) {
	// A peer that hears of the others late joins them, and knows the name from its first moment.
	untilInTime(t, (*sim).removeNameless)
}

// untilInTime plays worlds of three until one comes to the moment that a test is about.
func untilInTime(t *testing.T, play func(s *sim) bool) {
	t.Helper()
	for seed, inTime := uint64(1), false; !inTime && !t.Failed(); seed++ {
		if seed > 50 {
			t.Fatal("no world comes to that moment")
		}
		simulate(t, seed, 3, func(s *sim) {
			for _, h := range s.hosts {
				s.boot(h, s.newDir(h.id))
			}
			inTime = play(s)
		})
	}
}

// removeNameless is false if c does not begin the group with the others, or hears its name all the same.
func (s *sim) removeNameless() bool {
	c := s.host("c")
	for {
		g := c.proc.group.Load()
		if g != nil && g.running() != nil && g.cluster() == "" {
			break
		}
		if time.Since(s.begun) > 5*time.Second {
			return false
		}
		time.Sleep(ms)
	}
	(&unrest{sim: s}).cut("%s is cut off", c, true, true)
	s.change("c to be removed", func(ctx context.Context, g *Group) error { return g.RemovePeer(ctx, "c", false) })
	if c.proc.group.Load().cluster() != "" {
		return false // the name was on its way when it was cut off
	}
	s.change("c to be added", func(ctx context.Context, g *Group) error {
		return g.AddPeer(ctx, Peer{ID: "c", Addr: c.at}, true)
	})
	s.mend(nil)
	return true
}

// change has the holder change the members, as soon as it can.
func (s *sim) change(what string, f func(ctx context.Context, g *Group) error) {
	s.await(what, time.Minute, func() bool {
		h := s.holder()
		if h == nil {
			return false
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		return f(ctx, h.proc.group.Load()) == nil
	})
}

// TestSimRemovedBeforeItHadTheLog: a peer that was admitted, removed before anything of the log came, and added again
// does not ask any more to be admitted. It is taken back all the same.
func TestSimRemovedBeforeItHadTheLog(t *testing.T) {
	untilInTime(t, (*sim).removeEmpty) // the log may come at once
}

// removeEmpty is false if the peer has some of the log when it is cut off.
func (s *sim) removeEmpty() bool {
	s.mend(nil)
	lost := s.followers()[0]
	os.RemoveAll(s.crash(lost, true))
	s.boot(lost, s.newDir(lost.id))
	for {
		if g := lost.proc.group.Load(); g != nil && g.cluster() != "" {
			break
		}
		if s.broken() {
			return false
		}
		time.Sleep(ms / 10)
	}
	(&unrest{sim: s}).cut("%s is cut off", lost, true, true)
	s.change("its removal", func(ctx context.Context, g *Group) error { return g.RemovePeer(ctx, lost.id, false) })
	time.Sleep(5 * time.Second) // what is on its way is given up
	empty := !lost.proc.group.Load().hello().HasState
	s.change("its return", func(ctx context.Context, g *Group) error {
		return g.AddPeer(ctx, Peer{ID: lost.id, Addr: lost.at}, true)
	})
	s.mend(nil)
	return empty
}
