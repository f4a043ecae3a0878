package transport

import (
	"io"
	"net"
	"testing"
	"time"

	hraft "github.com/hashicorp/raft"
)

// libraryWire is the library's transport, bound to an address.
func libraryWire(t *testing.T, bind string) *hraft.NetworkTransport {
	t.Helper()
	n, err := hraft.NewTCPTransport(bind, nil, 1, time.Second, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.CloseStreams() // Close leaves those that are kept for the next RPC
		n.Close()
	})
	return n
}

// TestPieceFollowsHeartbeat: a piece of the log that could not be sent goes as soon as the peer answers
// heartbeats again, and not when the library's pause is over.
func TestPieceFollowsHeartbeat(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close() // nobody is there for now

	stop := make(chan struct{})
	leader := &Transport{
		NetworkTransport: libraryWire(t, "127.0.0.1:0"), stop: stop,
		rules: freeRules(), kept: kept{heartbeat: time.Hour},
	}
	t.Cleanup(func() { close(stop) })
	send := func(args hraft.AppendEntriesRequest) (hraft.AppendEntriesResponse, error) {
		args.Term = 7
		var resp hraft.AppendEntriesResponse
		err := leader.AppendEntries("b", hraft.ServerAddress(addr), &args, &resp)
		return resp, err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := send(hraft.AppendEntriesRequest{PrevLogEntry: 3, PrevLogTerm: 6})
		sent <- err
	}()
	if _, err := send(hraft.AppendEntriesRequest{}); err == nil {
		t.Fatal("a heartbeat to nobody succeeded")
	}
	select {
	case err := <-sent:
		t.Fatalf("the piece did not wait for its peer: %v", err)
	case <-time.After(50 * time.Millisecond):
	}

	peer := libraryWire(t, addr)
	pieces := make(chan uint64, 4)
	go func() {
		for {
			select {
			case rpc := <-peer.Consumer():
				args := rpc.Command.(*hraft.AppendEntriesRequest)
				if args.PrevLogEntry > 0 {
					pieces <- args.PrevLogEntry
				}
				rpc.Respond(&hraft.AppendEntriesResponse{Term: args.Term, LastLog: 3, Success: true}, nil)
			case <-stop:
				return
			}
		}
	}()
	for again := true; again; {
		if _, err := send(hraft.AppendEntriesRequest{}); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-sent:
			if err != nil {
				t.Fatalf("the piece was not sent again: %v", err)
			}
			again = false
		case <-time.After(5 * time.Millisecond): // as the library beats on
		}
	}
	if at := <-pieces; at != 3 {
		t.Errorf("the peer got the piece after entry %d, not 3", at)
	}
	if n := leader.replicas.behind("b", 7, 5); n != 2 {
		t.Errorf("a log that ends at 3 is %d behind one that ends at 5, not 2", n)
	}
	if n := leader.replicas.behind("b", 8, 5); n != 0 {
		t.Errorf("what was said in term 7 counts in term 8: %d behind", n)
	}
}
