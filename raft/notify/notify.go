// Package notify tells any number of listeners that something has changed.
package notify

import "sync"

// A Change tells listeners that something has changed. They look up what it was: the truth is in one
// place only. The zero Change is ready to use.
type Change struct {
	mu sync.Mutex
	ch chan struct{}
}

// Next is closed at the next Fire. Take it before looking at the state.
func (c *Change) Next() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ch == nil {
		c.ch = make(chan struct{})
	}
	return c.ch
}

// Fire wakes everybody who waits. It does not block.
func (c *Change) Fire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ch != nil {
		close(c.ch)
		c.ch = nil
	}
}
