package store

import (
	"math"
	"sync"
	"time"

	hraft "github.com/hashicorp/raft"
)

// paced measures how long a disk takes for its writes.
type paced struct {
	Disk

	mu    sync.Mutex
	worst time.Duration // of a write, as remembered at the time at
	at    time.Time
	// slower, if set, is told of a write that was slower than those remembered. It must not wait.
	slower func()
}

// forgetful is how long a slow write counts in full; it counts half as much after as long again.
const forgetful = time.Minute

// pace is the longest that a write took lately.
func (p *paced) pace() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.remembered(time.Now())
}

// remembered is what is left of the slowest write. The caller holds mu.
func (p *paced) remembered(now time.Time) time.Duration {
	age := max(now.Sub(p.at)-forgetful, 0)
	return time.Duration(float64(p.worst) * math.Exp2(-age.Seconds()/forgetful.Seconds()))
}

func (p *paced) write(write func() error) error {
	began := time.Now()
	err := write()
	if err != nil {
		return err // a disk that refuses is another trouble: Store.Trouble
	}
	now := time.Now()
	p.mu.Lock()
	before := p.remembered(now)
	slower := now.Sub(began) > before
	if slower {
		p.worst, p.at = now.Sub(began), now
	}
	p.mu.Unlock()
	if slower && p.slower != nil {
		p.slower()
	}
	return nil
}

func (p *paced) Set(key, value []byte) error {
	return p.write(func() error { return p.Disk.Set(key, value) })
}

func (p *paced) StoreLogs(logs []*hraft.Log) error {
	return p.write(func() error { return p.Disk.StoreLogs(logs) })
}

func (p *paced) DeleteRange(first, last uint64) error {
	return p.write(func() error { return p.Disk.DeleteRange(first, last) })
}

// Pace is the longest that a write took lately; 0 if none did.
func (s *Store) Pace() time.Duration { return s.paced.pace() }

// Writes says that raft waits for a write that has not failed.
func (s *Store) Writes() bool { return s.writes.Load() && s.Trouble() == nil }

// busy notes that raft's main loop waits for write.
func (s *Store) busy(write func() error) error {
	s.writes.Store(true)
	defer s.writes.Store(false)
	return write()
}
