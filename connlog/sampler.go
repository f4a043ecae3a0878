package connlog

import (
	"sync"
	"sync/atomic"
	"time"
)

// A Sampler chooses which connections of a load balancer have a line.
type Sampler struct {
	seen atomic.Uint64

	mu     sync.Mutex
	second int64 // in which lines were written last
	lines  int   // in that second
}

// A Judgement is whether a connection has a line.
type Judgement int

const (
	Logged     Judgement = iota
	NotItsTurn           // another one of so many has a line
	TooMany              // as many lines as are wanted in a second are there already
)

// Judge judges a connection, if one of every has a line, and at most rate in a second; 0 is each, and no limit. Now is
// of a clock that does not go backwards, in nanoseconds.
func (s *Sampler) Judge(every, rate int, now int64) Judgement {
	if n := s.seen.Add(1) - 1; every > 1 && n%uint64(every) != 0 {
		return NotItsTurn
	}
	if rate <= 0 {
		return Logged
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if second := now / int64(time.Second); second != s.second {
		s.second, s.lines = second, 0
	}
	if s.lines >= rate {
		return TooMany
	}
	s.lines++
	return Logged
}
