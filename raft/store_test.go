package raft

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	hraft "github.com/hashicorp/raft"
)

// TestTermIsNeverForgotten: a full disk makes raft wait, not go on.
func TestTermIsNeverForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		full := errors.New("no space left on device")
		tries, told := 0, []error{}
		s := &store{stop: make(chan struct{}), onError: func(err error) { told = append(told, err) }}
		write := func() error {
			mu.Lock()
			defer mu.Unlock()
			tries++
			if tries < 10 {
				return full
			}
			return nil
		}
		if err := s.persist(write); err != nil {
			t.Fatal(err)
		}
		if tries != 10 || len(told) != 2 || told[0] != full || told[1] != nil {
			t.Errorf("%d tries, told %v: want 10 tries, and the trouble and its end told once each", tries, told)
		}
		if s.trouble() != nil {
			t.Errorf("trouble %v after it has ended", s.trouble())
		}

		// While the disk stays full, shutting down ends the caller without an answer.
		answered, ended := false, make(chan struct{})
		go func() {
			defer close(ended)
			s.persist(func() error { return full })
			answered = true
		}()
		synctest.Wait()
		if s.trouble() != full {
			t.Errorf("trouble %v, want %v", s.trouble(), full)
		}
		close(s.stop)
		<-ended
		if answered {
			t.Error("a term that is not on the disk was reported as stored")
		}
	})
}

func TestSettingsSurviveASnapshot(t *testing.T) {
	s := newSettings(func() {})
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
	r := newSettings(func() {})
	if err := r.Restore(io.NopCloser(&to)); err != nil {
		t.Fatal(err)
	}
	if got := r.all(); len(got) != 2 || got["a"] != "1" || got["c"] != "3" {
		t.Errorf("restored %v", got)
	}
}

func TestNewerStateIsRefused(t *testing.T) {
	s := newSettings(func() {})
	err, _ := s.Apply(&hraft.Log{Data: []byte(`{"v":2,"set":{"a":"1"},"unheard":"of"}`)}).(error)
	if !errors.Is(err, errTooNew) || !errors.Is(s.err(), errTooNew) {
		t.Errorf("a newer change: %v", err)
	}
	if err, _ := s.Apply(&hraft.Log{Data: []byte(`{"v":1,"set":{"a":"1"}}`)}).(error); !errors.Is(err, errTooNew) || len(s.all()) > 0 {
		t.Errorf("a change after one that was not understood: %v, %v", err, s.all())
	}
	if _, err := s.Snapshot(); err == nil {
		t.Error("a snapshot of a state that misses a change")
	}
	r := newSettings(func() {})
	err = r.Restore(io.NopCloser(strings.NewReader(`{"version":2,"settings":{}}`)))
	if !errors.Is(err, errTooNew) {
		t.Errorf("a newer snapshot: %v", err)
	}
}

type memorySink struct{ bytes.Buffer }

func (*memorySink) ID() string    { return "" }
func (*memorySink) Cancel() error { return nil }
func (*memorySink) Close() error  { return nil }
