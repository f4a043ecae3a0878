package raft

import "sync"

// beacon tells any number of listeners that something has changed. What has,
// they look up: the truth is in one place only.
type beacon struct {
	mu sync.Mutex
	ch chan struct{}
}

// next is closed at the next fire. Take it before looking at the state.
func (b *beacon) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *beacon) fire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}
