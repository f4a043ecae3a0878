package peerport

import (
	"bufio"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"appliance/raft/auth"
)

// TestWorkersKeepNobodyOut: one worker does not use up the connections of all, nor all of them those of peers.
func TestWorkersKeepNobodyOut(t *testing.T) {
	p := &Port{conns: make(map[net.Conn]seat)}
	connect := func(who auth.Identity) error {
		c, other := net.Pipe()
		t.Cleanup(func() { c.Close(); other.Close() })
		if !p.track(c) {
			t.Fatal("no room for anybody")
		}
		err := p.seat(c, who)
		if err != nil {
			p.untrack(c)
		}
		return err
	}
	worker := func(n int) auth.Identity {
		return auth.Identity{Role: auth.Worker, ID: "w" + strings.Repeat("x", n)}
	}
	for i := range maxConnsOfWorker + 1 {
		if err := connect(worker(0)); (err != nil) != (i == maxConnsOfWorker) {
			t.Fatalf("connection %d of one worker: %v", i, err)
		}
	}
	n := maxConnsOfWorker
	for i := 1; n < maxWorkerConns; i++ {
		for range maxConnsOfWorker {
			if err := connect(worker(i)); err != nil {
				t.Fatal(err)
			}
			n++
		}
	}
	if err := connect(worker(maxWorkerConns)); err == nil {
		t.Error("workers have as many connections as they want")
	}
	if err := connect(auth.Identity{Role: auth.Peer, ID: "a"}); err != nil {
		t.Errorf("workers keep a peer out: %v", err)
	}
	if all := p.Workers(); len(all) != maxWorkerConns/maxConnsOfWorker || all[0].ID != "w" || all[0].Since.IsZero() ||
		!slices.IsSortedFunc(all, func(a, b Worker) int { return strings.Compare(a.ID, b.ID) }) {
		t.Errorf("%d workers are listed: %v", len(all), all)
	}
}

func TestLongLines(t *testing.T) {
	for _, tt := range []struct {
		length, most int
		ok           bool
	}{{100, maxLineOfWorker, true}, {maxLineOfWorker, maxLineOfWorker, false}, {maxLineOfWorker, maxLine, true},
		{maxLine, maxLine, false}} {
		var into string
		line := `"` + strings.Repeat("x", tt.length) + "\"\n"
		if err := readLine(bufio.NewReader(strings.NewReader(line)), tt.most, &into); (err == nil) != tt.ok {
			t.Errorf("%d of %d: %v", tt.length, tt.most, err)
		}
	}
}

// panicking is a listener that gives out one connection, and panics then.
type panicking struct {
	net.Listener
	conns chan net.Conn
}

func (l panicking) Accept() (net.Conn, error) { return <-l.conns, nil }

// TestAPanicIsNotHidden: a fault while connections are accepted ends the process, whoever is connected. If the handlers
// were waited for first, the port would take nobody any more, and nobody would know.
func TestAPanicIsNotHidden(t *testing.T) {
	l := panicking{conns: make(chan net.Conn)}
	p := &Port{l: l, conns: make(map[net.Conn]seat), log: slog.New(slog.DiscardHandler)}
	p.Expect(nil)
	connected, end := make(chan struct{}), make(chan struct{})
	defer close(end)
	panicked := make(chan any)
	go func() {
		defer func() { panicked <- recover() }()
		p.Serve(map[byte]func(net.Conn, auth.Identity){PreambleRaft: func(net.Conn, auth.Identity) {
			close(connected)
			<-end
		}})
	}()
	here, there := net.Pipe()
	defer there.Close()
	l.conns <- here
	if _, err := there.Write([]byte{PreambleRaft}); err != nil {
		t.Fatal(err)
	}
	<-connected
	l.conns <- nil // its address is asked for
	select {
	case why := <-panicked:
		if why == nil {
			t.Error("it did not panic")
		}
	case <-time.After(10 * time.Second):
		t.Error("the panic waits for a connection to end")
	}
}
