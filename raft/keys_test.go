package raft

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"appliance/raft/auth"
	"appliance/raft/peerport"
	"appliance/raft/raftlog"
	"appliance/raft/store"
)

// TestKeysAreRotatedWhileTheGroupLives goes the way that an operator goes: the new key is accepted
// everywhere, then shown everywhere, then the old one goes.
func TestKeysAreRotatedWhileTheGroupLives(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	b.voters(3)
	b.holder()
	b.datagramsFlow()
	next := auth.GenerateKey()
	for _, keys := range [][]auth.Key{{b.key, next}, {next, b.key}, {next}} {
		for _, id := range []string{"a", "b", "c"} {
			if err := b.nodes[id].SetKeys(keys); err != nil {
				t.Fatal(err)
			}
			// Peers with the former and with the next keys understand connections that begin now.
			for _, p := range b.peers {
				if p.ID != id {
					if err := b.nodes[id].verifyPeer(b.ctx(), p); err != nil {
						t.Errorf("%s to %s: %v", id, p.ID, err)
					}
				}
			}
			b.datagramsFlow()
		}
	}
	// Somebody who has only the old key is a stranger now.
	old, err := auth.FromKeys([]auth.Key{b.key}, "b", auth.Peer)
	if err != nil {
		t.Fatal(err)
	}
	p, err := peerport.Listen(netip.AddrPort{}, old, b.config("a").network, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l := p.Link("c", b.peers[2].Addr)
	defer l.Close()
	if _, err := ask(b.ctx(), l, request{Op: opHello}); err == nil {
		t.Error("the old key is still accepted")
	}
	b.key = next
	h := b.holder()
	b.stop(h)
	b.start(h)
	b.voters(3)
	b.holder()
}

// datagramsFlow waits until something new has come from every peer to every other, and all count as heard.
func (b *bench) datagramsFlow() {
	b.t.Helper()
	got := func(n *node, from string) uint64 { return n.detector.Received(from) }
	for id, n := range b.nodes {
		for other := range b.nodes {
			if other == id {
				continue
			}
			before := got(n, other)
			b.eventually("datagrams from "+other+" to "+id, func() bool {
				heard, vanished := n.detector.Reach(other)
				return heard && !vanished && got(n, other) > before
			})
		}
	}
}

func TestDataOfANewerVersionAreRefused(t *testing.T) {
	b := newBench(t, 1)
	b.start("a")
	b.holder()
	b.stop("a")
	s, err := store.Open(b.dirs["a"], nil, raftlog.New(b.config("a").Log))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetOwn(store.FormatKey, "2"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := Open(b.config("a")); err == nil || !strings.Contains(err.Error(), "newer version") {
		t.Errorf("Open: %v", err)
	}
}
