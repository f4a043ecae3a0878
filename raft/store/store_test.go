package store

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
)

// TestTermIsNeverForgotten: a full disk makes raft wait, not go on.
func TestTermIsNeverForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		full := errors.New("no space left on device")
		tries, told := 0, []error{}
		s := &Store{stop: make(chan struct{}), OnError: func(err error) { told = append(told, err) }}
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
		if s.Trouble() != nil {
			t.Errorf("trouble %v after it has ended", s.Trouble())
		}

		// While the disk stays full, shutting down ends the caller without an answer.
		answered, ended := false, make(chan struct{})
		go func() {
			defer close(ended)
			s.persist(func() error { return full })
			answered = true
		}()
		synctest.Wait()
		if s.Trouble() != full {
			t.Errorf("trouble %v, want %v", s.Trouble(), full)
		}
		s.Stop()
		<-ended
		if answered {
			t.Error("a term that is not on the disk was reported as stored")
		}
	})
}
