package settings

import (
	"bytes"
	"io"
	"maps"
	"testing"

	hraft "github.com/hashicorp/raft"
)

// FuzzLog: an entry of the log and a snapshot, whatever is in them, leave settings that can be read, and that a peer
// which gets them by a snapshot has too.
func FuzzLog(f *testing.F) {
	f.Add([]byte(`{"version":1,"settings":{"a":"b"},"index":4}`),
		[]byte(`{"version":1,"set":{"pin":"n1"},"remove":["a"]}`))
	f.Add([]byte(`{"settings":null}`), []byte(`{"set":{"member/b":"{\"address\":\"192.0.2.2:1\"}"},"once":true}`))
	f.Fuzz(func(t *testing.T, snapshot, entry []byte) {
		s := New(func() {})
		if s.Restore(io.NopCloser(bytes.NewReader(snapshot))) != nil {
			return
		}
		s.Apply(&hraft.Log{Index: 5, Data: entry})
		all := s.All()
		for key := range all {
			if id, ok := bytes.CutPrefix([]byte(key), []byte(MemberPrefix)); ok {
				if m, ok := MemberOf(all, string(id)); ok {
					m.Text()
				}
			}
		}
		frozen, err := s.Snapshot()
		if err != nil {
			return // of a later version
		}
		var sink sink
		if err := frozen.Persist(&sink); err != nil {
			t.Fatal(err)
		}
		again := New(func() {})
		if err := again.Restore(io.NopCloser(&sink)); err != nil || !maps.Equal(again.All(), all) {
			t.Errorf("%q became %q (%v)", all, again.All(), err)
		}
	})
}

// sink keeps a snapshot.
type sink struct{ bytes.Buffer }

func (*sink) ID() string    { return "" }
func (*sink) Cancel() error { return nil }
func (*sink) Close() error  { return nil }
