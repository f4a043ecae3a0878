package transport

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	hraft "github.com/hashicorp/raft"

	"appliance/raft/notify"
)

// keptWire is a leader of term 7 whose messages to the peer b are counted.
type keptWire struct {
	*Transport
	t     *testing.T
	to    hraft.ServerAddress
	grown notify.Signal

	mu      sync.Mutex
	now     time.Duration
	sent    int // and answered
	granted int
	refuse  atomic.Bool
	slow    atomic.Bool // the peer is busy, and answers when the test ends
}

func newKeptWire(t *testing.T) *keptWire {
	peer := libraryWire(t, "127.0.0.1:0")
	w := &keptWire{t: t, to: peer.LocalAddr(), now: time.Hour}
	rules := freeRules()
	rules.Now = func() time.Duration {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.now
	}
	rules.Granted = func(string, uint64, time.Duration) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.granted++
	}
	rules.Grown = &w.grown
	w.Transport = &Transport{NetworkTransport: libraryWire(t, "127.0.0.1:0"), stop: make(chan struct{}),
		rules: rules, rpcs: make(chan hraft.RPC), kept: kept{heartbeat: time.Hour}} // the test fires the pulse
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	go func() {
		for {
			select {
			case <-done:
				return
			case rpc := <-peer.Consumer():
				w.mu.Lock()
				w.sent++
				w.mu.Unlock()
				if w.slow.Load() {
					<-done
				}
				rpc.Respond(&hraft.AppendEntriesResponse{Term: 7, Success: !w.refuse.Load()}, nil)
			}
		}
	}()
	return w
}

// say sends args in the background and tells when the library has its answer.
func (w *keptWire) say(args hraft.AppendEntriesRequest) <-chan bool {
	answer := make(chan bool, 1)
	go func() {
		args.Term = 7
		var resp hraft.AppendEntriesResponse
		err := w.AppendEntries("b", w.to, &args, &resp)
		answer <- err == nil && resp.Success && resp.Term == 7
	}()
	return answer
}

// sends wants args to go out, or not, and to be answered with success after wake.
func (w *keptWire) sends(what string, args hraft.AppendEntriesRequest, want bool, wake func()) {
	w.t.Helper()
	w.mu.Lock()
	before, granted := w.sent, w.granted
	w.mu.Unlock()
	answer := w.say(args)
	var ok bool
	for waiting := true; waiting; {
		select {
		case ok = <-answer:
			waiting = false
		case <-time.After(time.Millisecond):
			wake()
		}
	}
	gone := func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.sent > before && (w.granted > granted || w.refuse.Load())
	}
	// It may be sent in the background.
	for end := time.Now().Add(10 * time.Second); want && !gone() && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if sent := w.sent > before; sent != want {
		w.t.Errorf("%s: sent is %v, want %v", what, sent, want)
	}
	if want != (w.granted > granted) && !w.refuse.Load() {
		w.t.Errorf("%s: %d answers were counted as grants", what, w.granted-granted)
	}
	if ok == w.refuse.Load() {
		w.t.Errorf("%s: success is %v", what, ok)
	}
}

func (w *keptWire) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now += d
}

// TestProbesSpareHeartbeats: while a peer's raft takes probes for heartbeats, the library's own stay here and are
// no grants. Whatever says something new goes out, and everything does when replies are missing.
func TestProbesSpareHeartbeats(t *testing.T) {
	w := newKeptWire(t)
	beat := hraft.AppendEntriesRequest{}
	empty := hraft.AppendEntriesRequest{PrevLogEntry: 3, PrevLogTerm: 7, LeaderCommitIndex: 3}
	piece := empty
	piece.Entries = []*hraft.Log{{Index: 4, Term: 7}}
	further := empty
	further.LeaderCommitIndex = 4
	pulse := func() { w.Pulse(false) }
	missed := func() { w.Pulse(true) }

	w.sends("nobody has told of probes", beat, true, pulse)
	w.sends("nobody has told of probes, log", empty, true, pulse)
	w.Kept("b", 6, false)
	w.sends("told in another term", beat, true, pulse)
	w.Kept("b", 7, false)
	w.sends("kept", beat, false, pulse)
	w.sends("kept, nothing new", empty, false, missed)
	w.sends("kept, nothing new, and the log grows", empty, false, w.grown.Fire)
	w.sends("entries", piece, true, pulse)
	w.sends("after entries", empty, true, pulse)
	w.sends("a commit", further, true, pulse)
	w.sends("the commit again", further, false, missed)

	lost := sync.OnceFunc(func() { w.pass(time.Hour / 4); w.Pulse(true) })
	w.sends("replies are missing meanwhile", beat, true, lost)
	w.sends("replies are missing", further, true, pulse)
	w.Kept("b", 7, false)
	w.sends("replies come again", beat, false, pulse)
	w.sends("replies come again, log", further, false, missed)
	w.pass(truthEvery)
	w.sends("a second has passed", beat, true, pulse)

	w.Kept("b", 7, false)
	w.refuse.Store(true)
	w.sends("refused", piece, true, pulse)
	w.sends("after a refusal", beat, true, pulse)
	w.refuse.Store(false)
	w.sends("after refusals", beat, true, pulse)
	w.sends("after that", beat, false, pulse)

}

// TestDatagramsAnswerABusyPeer: a heartbeat that has to be sent, and whose answer takes its time, is answered as soon as
// the peer says by datagrams that it is there. Else the leader steps down because a peer is busy.
func TestDatagramsAnswerABusyPeer(t *testing.T) {
	w := newKeptWire(t)
	beat := hraft.AppendEntriesRequest{}
	w.sends("nobody has told of probes", beat, true, func() { w.Pulse(false) })
	w.slow.Store(true)
	answer := w.say(beat)
	for sent := 0; sent < 2; time.Sleep(time.Millisecond) {
		w.mu.Lock()
		sent = w.sent
		w.mu.Unlock()
	}
	w.Kept("b", 7, false)
	for until := time.Now().Add(30 * time.Second); time.Now().Before(until); {
		select {
		case ok := <-answer:
			if !ok {
				t.Error("answered without success")
			}
			return
		case <-time.After(time.Millisecond):
			w.Pulse(false)
		}
	}
	t.Error("not answered")
}

// TestRefresh: raft sees a probe as the leader's heartbeat, and a busy raft is not waited for.
func TestRefresh(t *testing.T) {
	w := newKeptWire(t)
	w.Refresh("l", "10.0.0.1:7", 7) // nobody listens
	seen := make(chan hraft.RPC, 1)
	go func() { seen <- <-w.rpcs }()
	var rpc hraft.RPC
	for waiting := true; waiting; {
		select {
		case rpc = <-seen:
			waiting = false
		case <-time.After(time.Millisecond):
			w.Refresh("l", "10.0.0.1:7", 8)
		}
	}
	args, ok := rpc.Command.(*hraft.AppendEntriesRequest)
	if !ok || !isHeartbeat(args) || args.Term != 8 || string(args.ID) != "l" || string(args.Addr) != "10.0.0.1:7" {
		t.Errorf("raft sees %+v", rpc.Command)
	}
	rpc.Respond(nil, nil) // does not block either
}
