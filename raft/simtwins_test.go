package raft

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"appliance/raft/auth"
	"appliance/raft/founding"
)

// twin is a machine with the id of h at another address, with a copy of its disk or an empty one. Its file lists the
// peers as that of h does, or has its own address and startAsLeader.
func (s *sim) twin(h *simHost, copied, listed bool) (other *simHost, dir string) {
	other = &simHost{net: s.net, id: h.id, rate: 1, born: time.Now(), news: make(chan struct{}, 1), up: true, fsync: 2 * ms,
		changed: time.Now(), at: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 99}), 7000)}
	s.net.mu.Lock()
	s.net.hosts[other.at.Addr()] = other
	s.net.mu.Unlock()
	dir = s.newDir(h.id)
	if copied {
		if err := h.proc.copyTo(dir); err != nil {
			s.t.Fatal(err)
		}
	}
	s.tweak = func(c *Config) {
		if c.DataDir == dir && listed {
			c.Peers, c.StartAsLeader = slices.Clone(c.Peers), true
			c.Peers[slices.IndexFunc(c.Peers, func(p Peer) bool { return p.ID == h.id })].Addr = other.at
		}
	}
	return other, dir
}

// TestSimTwin: a second process with the id of a peer takes no part while the first lives, which goes on, and says why.
// It goes on when the first has ended.
func TestSimTwin(t *testing.T) {
	for _, tt := range []struct {
		name           string
		copied, listed bool
		of             func(s *sim) *simHost
	}{
		{"a copied file", false, false, func(s *sim) *simHost { return s.followers()[0] }},
		{"a copied machine", true, false, func(s *sim) *simHost { return s.followers()[0] }},
		{"a copy of the holder", true, false, (*sim).holder},
		{"a copied file with an address of its own", false, true, func(s *sim) *simHost { return s.followers()[0] }},
		{"a copied machine with an address of its own", true, true, func(s *sim) *simHost { return s.followers()[0] }},
		{"a copy of the holder with an address of its own", true, true, (*sim).holder},
	} {
		t.Run(tt.name, func(t *testing.T) {
			playDisks(t, func(s *sim) {
				holder, first := s.holder(), tt.of(s)
				term := holder.proc.group.Load().Status().Term
				h, dir := s.twin(first, tt.copied, tt.listed)
				p := s.boot(h, dir)
				stop := s.end(h, p)
				defer stop()
				s.awaitWaiting(p)
				takesPart := func() bool { // or did, if it has got a log meanwhile
					g := p.group.Load()
					return p.allowed() || g.running() != nil || g.known != tt.copied
				}
				wait := 10 * time.Second
				if !tt.copied && tt.listed { // it might found a group of its own
					wait = 2 * founding.Patience
				}
				for range wait / time.Second {
					time.Sleep(time.Second)
					if takesPart() {
						s.wrong("the twin takes part")
						return
					}
				}
				if s.holder() != holder || holder.proc.group.Load().Status().Term != term || !s.complete() {
					s.wrong("the group did not rest")
				}
				told := slices.ContainsFunc(s.hosts, func(h *simHost) bool {
					peers := h.proc.group.Load().Status().Peers
					return slices.ContainsFunc(peers, func(p PeerStatus) bool {
						return p.ID == first.id && strings.Contains(p.Doubled, "192.0.2.99") &&
							strings.Contains(p.Doubled, first.at.Addr().String())
					})
				})
				if !told {
					s.wrong("no status names both addresses")
				}
				kept := s.crash(first, false)
				time.Sleep(5 * time.Second) // a restart is not the end of the first
				if takesPart() {
					s.wrong("the twin has taken the place of one that is restarted")
				}
				if tt.copied && !tt.listed { // nobody is in its way
					s.await("the twin to begin", time.Minute, func() bool { return p.group.Load().running() != nil })
					stop()
				}
				s.boot(first, kept)
			})
		})
	}
}

// end returns what ends process p of h, which is none of the world's own hosts.
func (s *sim) end(h *simHost, p *simProc) (once func()) {
	return sync.OnceFunc(func() {
		h.kill()
		p.cancel()
	})
}

// awaitWaiting waits until p says that another process with its id lives.
func (s *sim) awaitWaiting(p *simProc) {
	s.await("the twin to say why it waits", 20*time.Second, func() bool {
		g := p.group.Load()
		return g != nil && strings.Contains(g.Status().Trouble, "localPeer.id") && g.Status().Phase == waitsForTwin
	})
}

// TestSimTwinBegunApart: a second process that could ask nobody when it began ends its part when the others say that
// there is another one, whatever it has begun meanwhile.
func TestSimTwinBegunApart(t *testing.T) {
	for name, copied := range map[string]bool{"a group of its own": false, "as the member that it was": true} {
		t.Run(name, func(t *testing.T) {
			playDisks(t, func(s *sim) {
				first := s.followers()[0]
				(&unrest{sim: s}).cut("%s and its twin are cut off", first, true, true)
				h, dir := s.twin(first, copied, true)
				p := s.boot(h, dir)
				defer s.end(h, p)()
				s.await("the twin to begin", 2*founding.Patience, func() bool {
					g := p.group.Load()
					return g != nil && g.running() != nil && (copied || p.allowed())
				})
				s.net.heal()
				s.awaitWaiting(p)
				s.await("the first to be back", simBound, s.complete)
				for range 30 {
					time.Sleep(time.Second)
					if p.allowed() || p.group.Load().running() != nil {
						s.wrong("the twin takes part")
						return
					}
				}
			})
		})
	}
}

// TestSimMovedPeerIsNoTwin: a peer that begins again elsewhere takes part at once, and nobody calls it a twin, whether the
// process before it has ended, its host has vanished, or it stands still.
func TestSimMovedPeerIsNoTwin(t *testing.T) {
	for name, stop := range map[string]func(s *sim, h *simHost){
		"ended":    func(s *sim, h *simHost) { s.crash(h, false) },
		"vanished": func(s *sim, h *simHost) { s.crash(h, true) },
		"stopped":  func(_ *sim, h *simHost) { h.proc.until.Store(time.Now().Add(time.Hour).UnixNano()) },
	} {
		t.Run(name, func(t *testing.T) {
			playDisks(t, func(s *sim) {
				first := s.followers()[0]
				others := slices.DeleteFunc(slices.Clone(s.hosts), func(h *simHost) bool { return h == first })
				h, dir := s.twin(first, true, true)
				stop(s, first)
				p := s.boot(h, dir)
				end := s.end(h, p)
				defer end()
				s.await("the peer to begin", 5*time.Second, func() bool {
					g := p.group.Load()
					return g != nil && g.running() != nil
				})
				for range 20 {
					time.Sleep(time.Second)
					if why := p.group.Load().doubled(); why != "" || p.group.Load().running() == nil {
						s.wrong("the peer takes no part: %s", why)
					}
					for _, o := range others {
						if why := o.proc.group.Load().twins.Of(first.id, time.Now()); why != "" {
							s.wrong("%s says: %s", o.id, why)
						}
					}
				}
				if first.proc != nil {
					s.crash(first, true)
				}
				kept := s.newDir(first.id)
				if err := p.copyTo(kept); err != nil {
					t.Fatal(err)
				}
				end()
				s.boot(first, kept)
			})
		})
	}
}

// TestSimTwinsThatSpeak: of two processes that go on talking as one peer, the log says so once, and an event and the
// status of the peer do.
func TestSimTwinsThatSpeak(t *testing.T) {
	playDisks(t, func(s *sim) {
		g, peer := s.hosts[0].proc.group.Load(), s.hosts[1].proc.group.Load()
		var doubled atomic.Int64
		s.procs.Go(func() {
			for e := range g.Events() {
				if e.Kind == PeerDoubled && e.Peer == "b" && strings.Contains(e.Detail, "192.0.2.98") {
					doubled.Add(1)
				}
			}
		})
		stands := func() bool {
			all := g.Status().Peers
			return slices.ContainsFunc(all, func(p PeerStatus) bool { return strings.Contains(p.Doubled, "192.0.2.98") })
		}
		for range 20 { // the other is heard beside it
			h := peer.hello()
			h.Fence.Process, h.Fence.Boots = "another", h.Fence.Boots+1
			g.answer(context.Background(), auth.Identity{Role: auth.Peer, ID: "b"}, netip.MustParseAddr("192.0.2.98"),
				request{Op: opHello, From: "b", Heartbeat: h.Heartbeat, Hello: &h})
			time.Sleep(time.Second)
		}
		if !stands() || doubled.Load() != 1 {
			s.wrong("status says so: %v; events: %d, want 1", stands(), doubled.Load())
		}
		time.Sleep(time.Minute)
		if stands() || doubled.Load() != 1 {
			s.wrong("status still says so: %v; events: %d, want 1", stands(), doubled.Load())
		}
	})
}
