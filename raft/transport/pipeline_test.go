package transport

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	hraft "github.com/hashicorp/raft"
)

// TestLeaderEndsThoughPiecesAreRefused: a follower that refuses pieces of the log while the next ones are on
// their way must not keep the leader from ending.
func TestLeaderEndsThoughPiecesAreRefused(t *testing.T) {
	peer, own := libraryWire(t, "127.0.0.1:0"), libraryWire(t, "127.0.0.1:0")
	stop := make(chan struct{})
	leader := &Transport{
		NetworkTransport: own, stop: stop, rpcs: make(chan hraft.RPC),
		rules: freeRules(), kept: kept{heartbeat: time.Hour},
	}

	ended, done := make(chan struct{}), make(chan struct{})
	var pieces atomic.Int64
	go func() {
		defer close(done)
		for {
			select {
			case <-ended:
				return
			case rpc := <-peer.Consumer():
				switch cmd := rpc.Command.(type) {
				case *hraft.RequestPreVoteRequest:
					rpc.Respond(&hraft.RequestPreVoteResponse{Term: cmd.Term, Granted: true}, nil)
				case *hraft.RequestVoteRequest:
					rpc.Respond(&hraft.RequestVoteResponse{Term: cmd.Term, Granted: true}, nil)
				case *hraft.AppendEntriesRequest:
					answer := &hraft.AppendEntriesResponse{Term: cmd.Term,
						LastLog: cmd.PrevLogEntry + uint64(len(cmd.Entries)), Success: true}
					if len(cmd.Entries) > 0 {
						answer.Success = pieces.Add(1)%3 > 0
					}
					rpc.Respond(answer, nil)
				}
			}
		}
	}()

	c := hraft.DefaultConfig()
	c.LocalID, c.Logger = "a", hclog.NewNullLogger()
	store := hraft.NewInmemStore()
	r, err := hraft.NewRaft(c, &hraft.MockFSM{}, store, store, hraft.NewInmemSnapshotStore(), leader)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.BootstrapCluster(hraft.Configuration{Servers: []hraft.Server{
		{ID: "a", Address: own.LocalAddr()}, {ID: "b", Address: peer.LocalAddr()},
	}}).Error(); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(30 * time.Second); r.State() != hraft.Leader; time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("no leader")
		}
	}
	const enough = 100
	for end := time.Now().Add(time.Minute); pieces.Load() < enough && time.Now().Before(end); {
		r.Apply([]byte("change"), time.Second)
		time.Sleep(100 * time.Microsecond)
	}
	ending := r.Shutdown()
	close(stop)
	result := make(chan error, 1)
	go func() { result <- ending.Error() }()
	select {
	case err := <-result:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		panic("the leader does not end") // with all stacks
	}
	close(ended)
	<-done
	if n := pieces.Load(); n < enough {
		t.Errorf("%d pieces of the log were sent: the test tests nothing", n)
	}
}
