package proving

import (
	"context"
	"encoding/json"
	"log/slog"
	"testing"

	"appliance/raft"
	"appliance/status"
)

// FuzzQuestion: whatever a peer asks for, or answers to such a question, this node does not panic, tries nobody who is no
// peer in reach, and answers with something that can be read.
func FuzzQuestion(f *testing.F) {
	f.Add([]byte(`{"node":"n2","trials":[{"frontend":"192.0.2.10:6443","count":3}]}`))
	f.Add([]byte(`{"serves":{"api":"x"},"findings":[{"frontend":"192.0.2.10:6443","results":{"served":1}}]}`))
	f.Fuzz(func(t *testing.T, said []byte) {
		trials := New(Config{
			Self: "n1", Log: slog.New(slog.DiscardHandler), Note: func(status.Event) {},
			Serves: func() map[string]string { return map[string]string{"api": "y"} },
			Peers:  func() []raft.PeerStatus { return []raft.PeerStatus{{ID: "n1", Self: true}} },
			Ask:    func(context.Context, string, []byte) ([]byte, error) { return said, nil },
		})
		if back, err := trials.Answer(t.Context(), said); err == nil {
			var a questionAnswer
			var q question
			if err := json.Unmarshal(back, &a); err != nil || len(a.Findings) > 0 {
				t.Errorf("the answer %s (%v)", back, err)
			}
			if json.Unmarshal(said, &q); len(q.Trials) > 0 && a.Problem == "" {
				t.Errorf("%s tries somebody", said)
			}
		}
		_, _ = trials.ask(t.Context(), raft.PeerStatus{ID: "n2"}, nil)
	})
}
