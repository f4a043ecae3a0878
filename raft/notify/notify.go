// Package notify tells any number of listeners that something has changed.
package notify

import "sync"

// A Signal tells listeners that something has changed. They look up what it was: the truth is in one place
// only. The zero Signal is ready to use.
type Signal struct {
	mu sync.Mutex
	ch chan struct{}
}

// Next is closed at the next Fire. Take it before looking at the state.
func (s *Signal) Next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

// Fire wakes everybody who waits. It does not block.
func (s *Signal) Fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}
