package settings

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	hraft "github.com/hashicorp/raft"
)

func TestSettingsSurviveASnapshot(t *testing.T) {
	s := New(func() {})
	for _, c := range []string{
		`{"v":1,"set":{"a":"1","b":"2"}}`,
		`{"v":1,"set":{"a":"x","c":"3"},"once":true}`,
		`{"v":1,"remove":["b"]}`,
	} {
		if err := s.Apply(&hraft.Log{Data: []byte(c)}); err != error(nil) {
			t.Fatalf("%s: %v", c, err)
		}
	}
	snap, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var to memorySink
	if err := snap.Persist(&to); err != nil {
		t.Fatal(err)
	}
	r := New(func() {})
	if err := r.Restore(io.NopCloser(&to)); err != nil {
		t.Fatal(err)
	}
	if got := r.All(); len(got) != 2 || got["a"] != "1" || got["c"] != "3" {
		t.Errorf("restored %v", got)
	}
}

func TestNewerStateIsRefused(t *testing.T) {
	s := New(func() {})
	err, _ := s.Apply(&hraft.Log{Data: []byte(`{"v":2,"set":{"a":"1"},"unheard":"of"}`)}).(error)
	if !errors.Is(err, errTooNew) || !errors.Is(s.Err(), errTooNew) {
		t.Errorf("a newer change: %v", err)
	}
	if err, _ := s.Apply(&hraft.Log{Data: []byte(`{"v":1,"set":{"a":"1"}}`)}).(error); !errors.Is(err,
		errTooNew) || len(s.All()) > 0 {
		t.Errorf("a change after one that was not understood: %v, %v", err, s.All())
	}
	if _, err := s.Snapshot(); err == nil {
		t.Error("a snapshot of a state that misses a change")
	}
	r := New(func() {})
	err = r.Restore(io.NopCloser(strings.NewReader(`{"version":2,"settings":{}}`)))
	if !errors.Is(err, errTooNew) {
		t.Errorf("a newer snapshot: %v", err)
	}
}

type memorySink struct{ bytes.Buffer }

func (*memorySink) ID() string    { return "" }
func (*memorySink) Cancel() error { return nil }
func (*memorySink) Close() error  { return nil }
