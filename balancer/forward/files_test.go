package forward

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"appliance/balancer"
)

// Clients hold no more files than they may. One more waits, and is served as soon as another one leaves.
func TestFilesAreKeptBack(t *testing.T) {
	at := frontend()
	var log lines
	short := &balancer.Shortages{Log: log.logger()}
	f := start(t, Config{Shortages: short, Files: 3 * perClient}, to(at, backend(t, echo)))
	var clients []*net.TCPConn
	for range 3 {
		c := dial(t, at)
		if err := ask(c, "hello"); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	late := dial(t, at)
	late.SetDeadline(time.Now().Add(300 * time.Millisecond))
	if err := ask(late, "x"); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a client beyond the limit got %v", err)
	}
	if n := f.files.held.Load(); n != 3*perClient {
		t.Errorf("%d files are held", n)
	}
	late.SetDeadline(time.Time{})
	reset(clients[0])
	got := make([]byte, 1) // the question has been sent already
	late.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := late.Read(got); err != nil {
		t.Errorf("not served after another one left: %v", err)
	}
	if n := log.count("short of files"); n != 1 {
		t.Errorf("%d lines", n)
	}
	for _, c := range append(clients[1:], late) {
		reset(c)
	}
	eventually(t, "all files are given back", func() bool { return f.files.held.Load() == 0 })
}

// Who waits for want of files is refused in the end, and can try another address.
func TestFilesPatience(t *testing.T) {
	at := frontend()
	short := &balancer.Shortages{Log: slog.New(slog.DiscardHandler)}
	start(t, Config{Shortages: short, Files: perClient}, to(at, backend(t, echo)))
	first := dial(t, at)
	if err := ask(first, "hello"); err != nil {
		t.Fatal(err)
	}
	wantReset(t, dial(t, at))
	if list := short.List(); len(list) != 1 || list[0].Refused == 0 {
		t.Errorf("shortages are %+v", list)
	}
	if err := ask(first, "still there"); err != nil {
		t.Error(err)
	}
}

// A dial that fails for lack of something here is no failed dial: the backend is not blamed, and the client waits.
func TestDialShortage(t *testing.T) {
	at := frontend()
	var reports atomic.Int64
	short := &balancer.Shortages{Log: slog.New(slog.DiscardHandler)}
	f := start(t, Config{
		Shortages: short, Report: func(balancer.Target, error) { reports.Add(1) },
	}, to(at, backend(t, echo)))
	more := exhaust(t, 2) // for both ends of the client's connection; the dial gets none
	c, err := dialErr(at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	eventually(t, "the dial is short of files", func() bool {
		list := short.List()
		return len(list) == 1 && list[0].At == "dial"
	})
	time.Sleep(2 * retryPause)
	more()
	if err := ask(c, "late, but served"); err != nil {
		t.Error(err)
	}
	if n := reports.Load(); n > 0 {
		t.Errorf("%d reports about the backend", n)
	}
	for id, n := range f.Stats() {
		if n.Failed > 0 {
			t.Errorf("%v has %d failures", id, n.Failed)
		}
	}
}

// The timers of connections that have ended do not stay until their time.
func TestTimersAreSwept(t *testing.T) {
	l := &loop{conns: make([]*conn, 4)}
	const hour = int64(time.Hour)
	for i := range int64(100_000) {
		c := &conn{id: uint32(i + 1), slot: int32(i % 4), wakeAt: hour + i}
		l.conns[c.slot] = c // the one before has ended
		l.setTimer(timer{c.wakeAt, ref{c.slot, c.id}})
		if len(l.timers) > minSweep {
			t.Fatalf("%d timers for 4 connections", len(l.timers))
		}
	}
	l.sweepTimers()
	if len(l.timers) != 4 {
		t.Fatalf("%d timers for 4 connections", len(l.timers))
	}
	for last := int64(0); len(l.timers) > 0; {
		next := l.timers.pop()
		if next.at < last {
			t.Error("out of order")
		}
		if last = next.at; l.conns[next.slot].wakeAt != next.at {
			t.Errorf("timer of slot %d at %d", next.slot, next.at)
		}
	}
}
