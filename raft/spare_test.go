package raft

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestElectionNeedsNoNewConnection: votes are asked for on connections that are
// open already.
func TestElectionNeedsNoNewConnection(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	old := b.holder()
	b.voters(3)
	b.eventually("spare connections between all", func() bool {
		for id, n := range b.nodes {
			for _, p := range b.peers {
				if p.ID != id && !n.stream.spares.has(p.Addr) {
					return false
				}
			}
		}
		return true
	})
	b.wires.mu.Lock()
	b.wires.noNew = true
	b.wires.mu.Unlock()
	b.wires.isolate(old, true)
	var rest []string
	for id := range b.nodes {
		if id != old {
			rest = append(rest, id)
		}
	}
	b.holder(rest...)
}

// TestSpares: what has ended is not given away, and nothing is given twice.
func TestSpares(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	to := netip.MustParseAddrPort(l.Addr().String())
	var s spares
	open := func() (ours, theirs net.Conn) {
		t.Helper()
		ours, err := net.Dial("tcp", to.String())
		if err != nil {
			t.Fatal(err)
		}
		if theirs, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ours.Close(); theirs.Close() })
		s.put(to, ours)
		return ours, theirs
	}
	soon := func(what string, ok func() bool) {
		t.Helper()
		for until := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(until) {
				t.Fatalf("not %s", what)
			}
		}
	}
	isClosed := func(c net.Conn) bool { return c.SetDeadline(time.Time{}) != nil }

	ours, theirs := open()
	if _, err := theirs.Write([]byte("a ticket")); err != nil {
		t.Fatal(err)
	}
	if got := s.take(to); got != ours {
		t.Errorf("took %v, want the one that lives", got)
	}
	if got := s.take(to); got != nil {
		t.Errorf("took %v twice", got)
	}

	ours, theirs = open()
	theirs.Write([]byte("a ticket"))
	theirs.Close()
	soon("seen to have ended", func() bool { return !s.has(to) })
	if got := s.take(to); got != nil || !isClosed(ours) {
		t.Errorf("took %v, which had ended; closed: %v", got, isClosed(ours))
	}

	first, _ := open()
	second, _ := open()
	if !isClosed(first) || isClosed(second) {
		t.Error("the one before was not closed, or the new one was")
	}
	s.close()
	third, _ := open()
	if !isClosed(second) || !isClosed(third) || s.has(to) {
		t.Error("a connection is open after close")
	}
}
