package transport

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestIdleConns: a connection that has ended is not given out, and none is given out twice.
func TestIdleConns(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	to := netip.MustParseAddrPort(l.Addr().String())
	var s idleConns
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
