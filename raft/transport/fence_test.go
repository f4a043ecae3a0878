package transport

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	hraft "github.com/hashicorp/raft"

	"appliance/raft/fence"
	"appliance/raft/notify"
)

// freeRules forbid nothing and note nothing.
func freeRules() Rules {
	return Rules{
		Heard: func(string, uint64) {}, Granted: func(string, uint64, time.Duration) {},
		Now:     func() time.Duration { return 0 },
		Removed: func() bool { return false }, Refusal: func(string) error { return nil },
		Withheld: func() error { return nil }, Follow: func(string, uint64) bool { return true },
		Stamp:  func(string) (string, bool) { return "", false },
		Admits: func(string, string, bool) error { return nil }, Grown: new(notify.Signal),
	}
}

func header(id, addr, cluster string) hraft.RPCHeader {
	return hraft.RPCHeader{ID: []byte(id), Addr: fence.Stamp([]byte(addr), cluster)}
}

// TestWhatRaftNeverSees: which messages are stopped before raft, by which rule.
func TestWhatRaftNeverSees(t *testing.T) {
	no := errors.New("no")
	stranger := func(r *Rules) {
		r.Admits = func(_, cluster string, stamped bool) error {
			if stamped && cluster != "ours" {
				return no
			}
			return nil
		}
	}
	for name, tt := range map[string]struct {
		rule    func(*Rules)
		refused []string
	}{
		"no rule":       {func(*Rules) {}, nil},
		"another group": {stranger, []string{"append", "vote", "prevote", "snapshot", "timeout"}},
		"no grant": {func(r *Rules) { r.Refusal = func(string) error { return no } },
			[]string{"append", "vote", "prevote"}},
		"restored disk": {func(r *Rules) { r.Withheld = func() error { return no } }, []string{"vote", "prevote"}},
		"second leader": {func(r *Rules) { r.Follow = func(string, uint64) bool { return false } }, []string{"append"}},
	} {
		t.Run(name, func(t *testing.T) {
			rules := freeRules()
			tt.rule(&rules)
			tr := &Transport{rules: rules}
			h := header("b", "192.0.2.2:1", "theirs")
			for kind, cmd := range map[string]any{
				"append": &hraft.AppendEntriesRequest{RPCHeader: h}, "vote": &hraft.RequestVoteRequest{RPCHeader: h},
				"prevote":  &hraft.RequestPreVoteRequest{RPCHeader: h},
				"snapshot": &hraft.InstallSnapshotRequest{RPCHeader: h}, "timeout": &hraft.TimeoutNowRequest{RPCHeader: h},
			} {
				err := tr.refuses(cmd)
				if (err != nil) != slices.Contains(tt.refused, kind) {
					t.Errorf("%s: %v", kind, err)
				}
				if addr := string(headerOf(cmd).Addr); addr != "192.0.2.2:1" {
					t.Errorf("%s: raft would see the address %q", kind, addr)
				}
			}
		})
	}
}

// TestGrantIsNotedBeforeRaftSeesTheMessage is step 1 of package lease on the voter's side.
func TestGrantIsNotedBeforeRaftSeesTheMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		noted := make(map[string]bool)
		rules := freeRules()
		rules.Heard = func(from string, term uint64) { noted[from] = true }
		in := make(chan hraft.RPC)
		tr := &Transport{NetworkTransport: nil, rules: rules, rpcs: make(chan hraft.RPC), consumer: in}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- tr.Relay(ctx) }()
		for from, cmd := range map[string]any{
			"a": &hraft.AppendEntriesRequest{RPCHeader: hraft.RPCHeader{ID: []byte("a")}, Term: 3},
			"b": &hraft.RequestVoteRequest{RPCHeader: hraft.RPCHeader{ID: []byte("b")}, Term: 3},
		} {
			in <- hraft.RPC{Command: cmd, RespChan: make(chan hraft.RPCResponse, 1)}
			synctest.Wait()
			if !noted[from] {
				t.Errorf("raft is offered the message of %s, and it is no grant yet", from)
			}
			<-tr.Consumer()
		}
		cancel()
		<-done
	})
}
