package raft

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"appliance/raft/settings"
)

// unrest is a time in which the world does to a group what worlds do.
type unrest struct {
	*sim
	down  map[string]string // hosts without a process, and what is on their disks
	disk  bool              // one disk was lost; a second one in the same unrest may take what was acknowledged with it
	asked sync.WaitGroup
}

// A fault is what may happen to h, or between h and o.
type fault struct {
	weight int // how often, beside others
	befall func(u *unrest, h, o *simHost)
}

var faults = []fault{
	{2, func(u *unrest, h, o *simHost) { u.cut("%s is cut off", h, true, true) }},
	{1, func(u *unrest, h, o *simHost) { u.cut("nothing comes from %s", h, true, false) }},
	{1, func(u *unrest, h, o *simHost) { u.cut("nothing comes to %s", h, false, true) }},
	{2, func(u *unrest, h, o *simHost) {
		u.say("nothing comes from %s to %s", h.id, o.id)
		u.net.set(h.id, o.id, true)
	}},
	{3, func(u *unrest, h, o *simHost) {
		u.say("the network heals")
		u.net.heal()
	}},
	{2, func(u *unrest, h, o *simHost) {
		if h.proc != nil {
			u.down[h.id] = u.crash(h, u.rnd.IntN(2) == 0)
		}
	}},
	{1, (*unrest).loseDisk},
	{3, func(u *unrest, h, o *simHost) {
		if h.proc != nil {
			d := time.Duration(1+u.rnd.IntN(400)) * ms
			u.say("%s is paused for %v", h.id, d)
			h.proc.until.Store(time.Now().Add(d).UnixNano())
		}
	}},
	{3, func(u *unrest, h, o *simHost) { // a thread, seldom where it would matter by itself
		at, d := place(u.rnd.IntN(int(beforeAnswer)+1)), time.Duration(20+u.rnd.IntN(400))*ms
		if u.rnd.IntN(2) == 0 {
			u.cut("%s is cut off", h, true, true)
		}
		h.arm(at, d)
		if u.rnd.IntN(2) == 0 {
			time.Sleep(time.Duration(u.rnd.IntN(50)) * ms)
			u.cut("%s is cut off", h, true, true)
		}
	}},
	{1, func(u *unrest, h, o *simHost) {
		d := time.Duration(1+u.rnd.IntN(1500)) * ms
		u.say("the machine of %s is paused for %v, and its clock", h.id, d)
		h.pause(d)
	}},
	{1, func(u *unrest, h, o *simHost) {
		if h.proc != nil {
			u.down[h.id] = u.stop(h)
		}
	}},
	{1, func(u *unrest, h, o *simHost) {
		d := time.Duration(u.rnd.IntN(300)) * ms
		u.say("%s: a write takes up to %v", h.id, d)
		u.net.mu.Lock()
		h.fsync = 2*ms + d
		u.net.mu.Unlock()
	}},
	{1, func(u *unrest, h, o *simHost) {
		u.ask("hand over to "+o.id, h, func(ctx context.Context, g *Group) error { return g.Transfer(ctx, o.id) })
	}},
	{1, func(u *unrest, h, o *simHost) {
		f := Fitness{Unserved: u.rnd.IntN(2)}
		u.ask(fmt.Sprint("fitness ", f), h, func(_ context.Context, g *Group) error { g.SetFitness(f); return nil })
	}},
	{1, func(u *unrest, h, o *simHost) {
		u.ask("remove "+o.id, h, func(ctx context.Context, g *Group) error { return g.RemovePeer(ctx, o.id, false) })
	}},
	{1, func(u *unrest, h, o *simHost) {
		u.ask("demote "+o.id, h, func(ctx context.Context, g *Group) error { return g.DemotePeer(ctx, o.id, false) })
	}},
	{1, func(u *unrest, h, o *simHost) {
		u.ask("promote "+o.id, h, func(ctx context.Context, g *Group) error { return g.PromotePeer(ctx, o.id, true) })
	}},
	{1, func(u *unrest, h, o *simHost) {
		p := Peer{ID: o.id, Addr: o.at}
		u.ask("add "+o.id, h, func(ctx context.Context, g *Group) error { return g.AddPeer(ctx, p, true) })
	}},
}

func (u *unrest) cut(what string, h *simHost, from, to bool) {
	u.say(what, h.id)
	for _, o := range u.hosts {
		if from {
			u.net.set(h.id, o.id, true)
		}
		if to {
			u.net.set(o.id, h.id, true)
		}
	}
}

// loseDisk puts an older copy into the place of a disk, or nothing. The others have to run and to know the present
// one: what they cannot notice is in package fence.
func (u *unrest) loseDisk(h, _ *simHost) {
	if u.disk || !u.complete() {
		return
	}
	u.disk = true
	old := u.newDir(h.id)
	if err := h.proc.copyTo(old); err != nil {
		u.t.Fatal(err)
	}
	time.Sleep(time.Duration(3+u.rnd.IntN(5)) * time.Second)
	u.hush.Store(true)
	defer u.hush.Store(false)
	for began := time.Now(); !u.known(h); time.Sleep(5 * ms) {
		if u.broken() || time.Since(began) > 3*time.Second {
			return
		}
	}
	what := "an older copy"
	if u.rnd.IntN(3) == 0 {
		what = "empty"
		os.RemoveAll(old)
	}
	u.crash(h, u.rnd.IntN(2) == 0)
	u.say("%s: the disk is %s", h.id, what)
	u.mu.Lock()
	u.disks++
	u.mu.Unlock()
	u.down[h.id] = old
}

// known says that all others know how far the disk of h has come.
func (s *sim) known(h *simHost) bool {
	if !s.complete() {
		return false
	}
	g := h.proc.group.Load()
	for _, o := range s.hosts {
		r := o.proc.group.Load().fence.ReachedBy(h.id)
		if o != h && (r.Process != g.disk.Process || r.Term < g.raft.CurrentTerm() || r.Commit < g.raft.LastIndex()) {
			return false
		}
	}
	return true
}

// ask has h do what an operator asks it to.
func (u *unrest) ask(what string, h *simHost, f func(ctx context.Context, g *Group) error) {
	p := u.running()[h.id]
	if p == nil || p.group.Load() == nil || p.group.Load().running() == nil {
		return
	}
	u.asked.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		u.say("%s is asked: %s", h.id, what)
		u.say("%s was asked: %s: %v", h.id, what, f(ctx, p.group.Load()))
	})
}

// upset lasts for a while. It returns what is down at the end.
func (s *sim) upset(lasts time.Duration) (down map[string]string) {
	u := &unrest{sim: s, down: make(map[string]string)}
	defer u.asked.Wait()
	s.net.mu.Lock()
	s.net.loss = s.rnd.Float64() * 0.05
	s.net.longest = []time.Duration{10 * ms, 100 * ms, 400 * ms}[s.rnd.IntN(3)]
	s.net.mu.Unlock()
	s.net.pauses.Store([]int64{0, 500, 3000}[s.rnd.IntN(3)])
	all := 0
	for _, f := range faults {
		all += f.weight
	}
	someone := func() *simHost { // the holder more often than others
		if h := s.holder(); s.rnd.IntN(2) == 0 && h != nil {
			return h
		}
		return s.hosts[s.rnd.IntN(len(s.hosts))]
	}
	for end := time.Now().Add(lasts); time.Now().Before(end) && !s.broken(); {
		n := s.rnd.IntN(all)
		i := slices.IndexFunc(faults, func(f fault) bool { n -= f.weight; return n < 0 })
		faults[i].befall(u, someone(), someone())
		time.Sleep(time.Duration(s.rnd.ExpFloat64() * float64(400*ms)))
		for _, h := range s.hosts {
			if dir, is := u.down[h.id]; is && s.rnd.IntN(3) == 0 {
				delete(u.down, h.id)
				s.boot(h, dir)
			}
		}
	}
	return u.down
}

// mend ends every fault, and waits until the group is whole: acknowledged settings are everywhere then.
func (s *sim) mend(down map[string]string) {
	s.say("everything is mended")
	s.net.heal()
	s.net.mu.Lock()
	s.net.loss, s.calm = 0, time.Now()
	s.net.pauses.Store(0)
	for _, h := range s.hosts {
		h.fsync = 2 * ms
		if h.proc != nil {
			h.proc.until.Store(0)
		}
	}
	s.net.mu.Unlock()
	for _, h := range s.hosts {
		if dir, is := down[h.id]; is {
			s.boot(h, dir)
		}
	}
	if !s.await("a whole group with a holder", time.Minute, func() bool {
		s.takeBack()
		return s.complete()
	}) {
		return
	}
	s.mu.Lock()
	acked := maps.Clone(s.acked)
	s.mu.Unlock()
	told := make(map[string]bool)
	s.await("the acknowledged settings everywhere", 10*time.Second, func() bool {
		for id, p := range s.running() {
			all := p.group.Load().Settings()
			for _, key := range slices.Sorted(maps.Keys(acked)) {
				if all[key] != acked[key] {
					if !told[id+key] {
						told[id+key] = true
						s.say("%s has %s=%q, acknowledged was %q", id, key, all[key], acked[key])
					}
					return false
				}
			}
		}
		return true
	})
}

// takeBack undoes what changes of the members have left, as an operator would.
func (s *sim) takeBack() {
	h := s.holder()
	if h == nil {
		return
	}
	g := s.running()[h.id].group.Load()
	for _, o := range s.peers {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		if g.Settings()[settings.RemovedPrefix+o.ID] != "" {
			g.AddPeer(ctx, o, true)
		}
		if m, is := settings.MemberOf(g.Settings(), o.ID); is && m.Standby {
			g.PromotePeer(ctx, o.ID, true)
		}
		cancel()
	}
}

// client changes settings through any peer, and remembers what was acknowledged.
func (s *sim) client(done <-chan struct{}) {
	rnd := rand.New(rand.NewPCG(s.seed, 3))
	for i := 0; ; i++ {
		select {
		case <-done:
			return
		case <-time.After(time.Duration(rnd.IntN(600)) * ms):
		}
		p := s.running()[s.hosts[rnd.IntN(len(s.hosts))].id]
		if p == nil || p.group.Load() == nil || s.hush.Load() {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		key, value := fmt.Sprint("key", i), fmt.Sprint(i)
		err := p.group.Load().Propose(ctx, map[string]string{key: value})
		cancel()
		if err == nil && !p.dead.Load() {
			s.mu.Lock()
			s.acked[key] = value
			s.mu.Unlock()
			s.say("%s has acknowledged %s", p.host.id, key)
		}
	}
}

// live is rounds of unrest and of rest, until the world is as old as lasts, or enough.
func (s *sim) live(lasts time.Duration, enough *atomic.Bool) {
	for _, h := range s.hosts {
		s.boot(h, s.newDir(h.id))
	}
	s.mend(nil)
	done := make(chan struct{})
	var client sync.WaitGroup
	client.Go(func() { s.client(done) })
	for time.Since(s.begun) < lasts && !s.broken() && !enough.Load() {
		s.mend(s.upset(time.Duration(5+s.rnd.IntN(20)) * time.Second))
	}
	close(done)
	client.Wait()
}
